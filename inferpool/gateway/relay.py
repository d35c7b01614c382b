"""From a node's stream to the client's answer: watched, counted, hashed, and closed honestly.

`NodeStream` reads what the node sends and sees silence; `StreamedAnswer` and `WholeAnswer` write
what the client gets. The client's last chunk leaves only after the receipt was checked and booked.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Final

import orjson

from inferpool.protocol import answers, headers
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import InferpoolError, Refused
from inferpool.protocol.limits import FIRST_BYTE_TIMEOUT_S, SILENCE_MS
from inferpool.protocol.receipt import SignedReceipt
from inferpool.protocol.usage import Usage
from inferpool.transport.asgi import EVENT_STREAM, JSON, HttpRequest
from inferpool.transport.base import AnswerInvalid, AnswerTimeout, ConnectionCut, Response
from inferpool.transport.sse import Comment, events

_SILENCE_S: Final = SILENCE_MS / 1000
_DONE: Final = b"[DONE]"


class NodeStream:
    """A node's answer, event by event.

    Silence is nothing at all for three seconds, or heartbeats whose state of `tokens` does not
    move for as long; in `queued` and `prefill` the engine may take its time.
    """

    def __init__(self, response: Response) -> None:
        self._response = response
        self._hash = hashlib.sha256()
        self.output_units = 0
        self.signed: SignedReceipt | None = None
        self.finish: str | None = None

    @property
    def answer_hash(self) -> bytes:
        """SHA-256 of the data of every event before the receipt, each with a line feed."""
        return self._hash.digest()

    async def chunks(self) -> AsyncIterator[dict[str, object]]:
        """Chunks with content, until the receipt came.

        Raises ConnectionCut where the stream ends without one, AnswerTimeout on silence,
        AnswerInvalid for what is not a chunk.
        """
        stream = events(self._response)
        loop = asyncio.get_running_loop()
        state, state_s = b"", loop.time()
        while self.signed is None:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    item = await anext(stream)
            except TimeoutError:
                raise AnswerTimeout("The node fell silent in the middle of its answer.") from None
            except StopAsyncIteration:
                raise ConnectionCut("The node's stream ended without a receipt.") from None
            if isinstance(item, Comment):
                if item.text != state:
                    state, state_s = item.text, loop.time()
                limit_s = _SILENCE_S if state.startswith(b"tokens") else FIRST_BYTE_TIMEOUT_S
                if loop.time() - state_s >= limit_s:
                    raise AnswerTimeout("The node's engine stands still while its front end beats.")
                continue
            state, state_s = b"", loop.time()
            chunk = self._read(item.data)
            if chunk is not None:
                yield chunk

    def _read(self, data: bytes) -> dict[str, object] | None:
        if data == _DONE:
            raise ConnectionCut("The node's stream ended without a receipt.")
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise AnswerInvalid("The node sent an event that is not JSON.") from None
        if not isinstance(value, dict) or not isinstance(value.get("choices"), list):
            raise AnswerInvalid("The node sent an event that is not a chunk.")
        ours = value.pop("inferpool", None)
        if isinstance(ours, dict) and "receipt" in ours:
            try:
                self.signed = SignedReceipt.from_wire(ours)
            except Refused as error:
                raise AnswerInvalid(f"The node's receipt cannot be read: {error.message}") from None
            return None
        self._hash.update(data + b"\n")
        if isinstance(ours, dict):
            ids = ours.get("ids")
            self.output_units += len(ids) if isinstance(ids, list) else 0
        self.finish = _finish_of(value) or self.finish
        return value


def _choice(value: dict[str, object]) -> dict[str, object]:
    choices = value["choices"]
    if isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict):
        return choices[0]
    raise AnswerInvalid("The node sent a chunk without its one choice.")


def _finish_of(value: dict[str, object]) -> str | None:
    finish = _choice(value).get("finish_reason")
    return finish if isinstance(finish, str) else None


def text_of(value: dict[str, object]) -> str:
    """The text that a chunk adds."""
    delta = _choice(value).get("delta")
    text = delta.get("content") if isinstance(delta, dict) else None
    return text if isinstance(text, str) else ""


def told(node: bytes, signed: SignedReceipt) -> dict[str, object]:
    """The object `inferpool` of an answer: who served, what it cost, and the proof."""
    receipt = signed.receipt
    return {
        "node": to_hex(node),
        "cost_pico_usd": receipt.charge_pico_usd,
        "prompt_units": receipt.prompt_units,
        "output_units": receipt.output_units,
        **signed.to_wire(),
    }


class StreamedAnswer:
    """The client's stream. Ids, model and fingerprint are the gateway's, whichever node serves."""

    def __init__(self, request: HttpRequest, client_id: str, model: str, created_s: int) -> None:
        self._request, self._client_id = request, client_id
        self._head: dict[str, object] = {
            "id": f"chatcmpl-{client_id}",
            "object": "chat.completion.chunk",
            "created": created_s,
            "model": model,
        }
        self._node = b""
        self.delivered = False

    async def begin(self, node: bytes, engine_class: str) -> None:
        """Send the head once; a second node goes on under the first one's."""
        self._node = node
        if self.delivered:
            return
        self._head["system_fingerprint"] = answers.fingerprint(engine_class)
        await self._request.start(
            [
                *EVENT_STREAM,
                (b"x-request-id", self._client_id.encode()),
                (headers.NODE, to_hex(node).encode()),
            ]
        )
        self.delivered = True
        await self._send(answers.chunk(self._head, {"role": "assistant", "content": ""}, None))

    async def _send(self, value: dict[str, object]) -> None:
        await self._request.send(answers.event(value))

    async def chunk(self, value: dict[str, object]) -> None:
        """Pass on the text of a chunk; roles and finish reasons are the gateway's to send."""
        text = text_of(value)
        if text:
            await self._send(answers.chunk(self._head, {"content": text}, None))

    async def end(self, finish: str, signed: SignedReceipt, *, include_usage: bool) -> None:
        """Finish reason with the proof, usage if asked for, [DONE]."""
        await self._send(
            {**answers.chunk(self._head, {}, finish), "inferpool": told(self._node, signed)}
        )
        if include_usage:
            usage = answers.usage_object(signed.receipt.usage)
            await self._send({**self._head, "choices": [], "usage": usage})
        await self._request.send(answers.DONE)
        await self._request.end()

    async def fail(self, error: InferpoolError) -> None:
        """An honest error event, without [DONE]."""
        await self._send(error.openai())
        await self._request.end()


class WholeAnswer:
    """The client's answer in one piece."""

    def __init__(self, request: HttpRequest, client_id: str, model: str, created_s: int) -> None:
        self._request, self._client_id = request, client_id
        self._head: dict[str, object] = {
            "id": f"chatcmpl-{client_id}",
            "created": created_s,
            "model": model,
        }
        self._texts: list[str] = []
        self._node = b""
        self.delivered = False

    async def begin(self, node: bytes, engine_class: str) -> None:
        """Start, or start again, with a node."""
        self._head["system_fingerprint"] = answers.fingerprint(engine_class)
        self._node, self._texts = node, []

    async def chunk(self, value: dict[str, object]) -> None:
        """Keep the text of a chunk."""
        self._texts.append(text_of(value))

    async def end(self, finish: str, signed: SignedReceipt, *, include_usage: bool) -> None:
        """Answer."""
        usage: Usage = signed.receipt.usage
        body = answers.whole(self._head, "".join(self._texts), finish, usage)
        body["inferpool"] = told(self._node, signed)
        extra = [
            JSON,
            (b"x-request-id", self._client_id.encode()),
            (headers.NODE, to_hex(self._node).encode()),
            (headers.COST, str(signed.receipt.charge_pico_usd).encode()),
            (headers.RECEIPT, signed.header()),
        ]
        await self._request.answer(200, orjson.dumps(body), extra)

    async def fail(self, error: InferpoolError) -> None:
        """Nothing was delivered: the error is the answer."""
        raise error
