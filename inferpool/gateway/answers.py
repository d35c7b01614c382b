"""What the client gets: one answer at one price, whichever nodes worked on it.

The last chunk leaves only after the receipt was checked and booked. Ids, model and fingerprint are
the gateway's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import orjson

from inferpool.protocol import answers, headers
from inferpool.protocol.calls import CallDelta, delta_objects, whole_objects
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import InferpoolError
from inferpool.protocol.forms import Form, head
from inferpool.protocol.logprobs import TokenLogprob, Tokens
from inferpool.protocol.receipt import SignedReceipt
from inferpool.protocol.usage import Usage
from inferpool.transport.asgi import EVENT_STREAM, JSON, HttpRequest

if TYPE_CHECKING:
    from inferpool.gateway.walk_ins import WalkIn


@dataclass(slots=True)
class Delivered:
    """What the client has of its answer so far, and what it is billed, in pico-USD.

    `ids` stand for exactly the text that was delivered: ids whose text is still held back (half a
    character) wait in `pending`, and are forgotten when their node dies.
    """

    ids: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)  # of `pending`, where asked for
    counted: int = 0  # output units by the receipt, of a node that tells no ids
    text: bool = False  # or calls
    calls: bool = False
    # What came from this leg, and the client has not:
    held_text: list[str] = field(default_factory=list)
    held_calls: list[CallDelta] = field(default_factory=list)
    finish: str | None = None
    billed_pico_usd: int = 0
    fee_pico_usd: int = 0  # the gateway's own, on top
    prompt_units: int = 0
    legs: int = 0
    node: bytes = b""
    signed: SignedReceipt | None = None

    def begin(self, node: bytes) -> None:
        """A leg begins: what the one before left behind is forgotten."""
        self.node, self.pending, self.tokens = node, [], []
        self.held_text, self.held_calls = [], []

    def forget(self) -> None:
        """Begin again: the client has nothing of it, and nothing of it was billed."""
        assert not self.billed_pico_usd, "what was billed was delivered"
        self.ids, self.pending, self.tokens, self.counted = [], [], [], 0
        self.text, self.calls, self.finish = False, False, None

    def take_tokens(self) -> list[TokenLogprob]:
        """The tokens that go out now."""
        tokens, self.tokens = self.tokens, []
        return tokens

    @property
    def usage(self) -> Usage:
        """The whole answer's usage, as if one node had given it."""
        return Usage(self.prompt_units, len(self.ids) or self.counted)

    def proof(self) -> dict[str, object]:
        """The object `inferpool` of an answer: who served, what it cost, and the proof.

        The last leg's receipt; without one (its node died at the very end) nothing was charged.
        """
        signed = self.signed.to_wire() if self.signed else {"receipt": None, "signature": None}
        return {
            "node": to_hex(self.node),
            "cost_pico_usd": self.billed_pico_usd,
            **({"fee_pico_usd": self.fee_pico_usd} if self.fee_pico_usd else {}),
            "prompt_units": self.prompt_units,
            "output_units": self.usage.output_units,
            "legs": self.legs,
            **signed,
        }


def call_prefix(client_id: str) -> str:
    """How the ids of an answer's calls begin: they are the gateway's, whoever made the call."""
    return f"call_{client_id.removeprefix('req_')}_"


class Answer(Protocol):
    """The two forms of an answer."""

    started: bool  # whether the client has received anything

    async def begin(self, node: bytes, engine_class: str) -> None:
        """A node starts, or goes on."""
        ...

    async def texts(self, texts: Sequence[tuple[str, Tokens]]) -> None:
        """More texts, with the tokens behind each where their log-probabilities were asked for."""
        ...

    async def calls(self, calls: Sequence[CallDelta], tokens: Tokens) -> None:
        """Calls of functions, with the tokens behind them."""
        ...

    def forget(self) -> None:
        """Begin again with the text; only before the client has received anything."""
        ...

    async def end(self, delivered: Delivered) -> None:
        """The whole answer is there and paid for."""
        ...

    async def fail(self, error: InferpoolError) -> None:
        """No node can finish it."""
        ...


_TEXT = "a text to be replaced"


def _around(form: Form, head: dict[str, object]) -> tuple[bytes, bytes] | None:
    """What stands before and behind the text in each chunk of a stream; None where it cannot be
    told, since the caller's name for the model holds the same words."""
    parts = answers.event(form.piece(head, _TEXT, None)).split(orjson.dumps(_TEXT))
    return (parts[0], parts[1]) if len(parts) == 2 else None


class StreamedAnswer:
    """Server-sent events."""

    def __init__(
        self,
        request: HttpRequest,
        client_id: str,
        model: str,
        created_s: int,
        form: Form,
        *,
        include_usage: bool,
        tells: bool = False,
        walk_in: WalkIn | None = None,
    ) -> None:
        self._request, self._client_id, self._form = request, client_id, form
        self._include_usage, self._tells, self._walk_in = include_usage, tells, walk_in
        self._told = 0  # characters of the tokens so far
        self._head = head(form, client_id, model, created_s)
        self._node = b""
        self._around: tuple[bytes, bytes] | None = None
        self.started = False

    async def begin(self, node: bytes, engine_class: str) -> None:
        """Remember who serves; a second node goes on under the first one's head.

        The head leaves with the first text: until then whatever fails is answered with a status
        of its own, which clients understand better than an error within a stream.
        """
        if not self.started:
            self._node, self._head["system_fingerprint"] = node, answers.fingerprint(engine_class)

    async def _open(self) -> None:
        if self.started:
            return
        paid = await self._walk_in.open_stream() if self._walk_in is not None else ()
        await self._request.start(
            [
                *EVENT_STREAM,
                *paid,
                (b"x-request-id", self._client_id.encode()),
                (headers.NODE, to_hex(self._node).encode()),
            ]
        )
        self.started = True
        self._around = _around(self._form, self._head)
        first = self._form.first(self._head)
        if first is not None:
            await self._send(first)

    async def _send(self, value: dict[str, object]) -> None:
        await self._request.send(answers.event(value))

    async def texts(self, texts: Sequence[tuple[str, Tokens]]) -> None:
        """A chunk for each; those that came together leave together."""
        if not self.started:
            await self._open()
        if self._around is None or self._tells:
            made = [self._form.piece(self._head, t, self._logprobs(tokens)) for t, tokens in texts]
            await self._request.send(b"".join(map(answers.event, made)))
            return
        before, after = self._around
        await self._request.send(b"".join([before + orjson.dumps(t) + after for t, _ in texts]))

    async def calls(self, calls: Sequence[CallDelta], tokens: Tokens) -> None:
        """A chunk with all of them."""
        await self._open()
        made = delta_objects(calls, call_prefix(self._client_id))
        await self._send(self._form.piece(self._head, "", self._logprobs(tokens), made))

    def _logprobs(self, tokens: Tokens) -> dict[str, object] | None:
        if not self._tells:
            return None
        told = self._form.logprobs(tokens, self._told)
        self._told += sum(len(token.name) for token in tokens)
        return told

    def forget(self) -> None:
        """Nothing is kept here: what came was delivered."""
        assert not self.started, "what was delivered cannot be taken back"

    async def end(self, delivered: Delivered) -> None:
        """Finish reason with the proof, usage if asked for, [DONE]."""
        await self._open()
        assert delivered.finish is not None, "the end has a finish reason"
        rest = delivered.take_tokens()  # without a text of their own: half a character, the end
        last = self._form.last(self._head, delivered.finish, self._logprobs(rest) if rest else None)
        proof = delivered.proof()
        if self._walk_in is not None:
            proof |= self._walk_in.proof()
        await self._send({**last, "inferpool": proof})
        if self._include_usage:
            usage = answers.usage_object(delivered.usage)
            await self._send({**self._head, "choices": [], "usage": usage})
        await self._request.send(answers.DONE)
        await self._request.end()

    async def fail(self, error: InferpoolError) -> None:
        """An honest error event, without [DONE]."""
        await self._send(error.openai())
        await self._request.end()


class WholeAnswer:
    """One JSON body."""

    def __init__(
        self,
        request: HttpRequest,
        client_id: str,
        model: str,
        created_s: int,
        form: Form,
        *,
        tells: bool = False,
    ) -> None:
        self._request, self._client_id, self._form = request, client_id, form
        self._head = head(form, client_id, model, created_s)
        self._texts: list[str] = []
        self._tells, self._tokens = tells, list[TokenLogprob]()
        self._calls: list[CallDelta] = []
        self.started = False

    async def begin(self, node: bytes, engine_class: str) -> None:
        """The first node's class gives the fingerprint."""
        self._head.setdefault("system_fingerprint", answers.fingerprint(engine_class))

    async def texts(self, texts: Sequence[tuple[str, Tokens]]) -> None:
        """Keep them."""
        for text, tokens in texts:
            self._texts.append(text)
            self._tokens += tokens

    async def calls(self, calls: Sequence[CallDelta], tokens: Tokens) -> None:
        """Keep them."""
        self._calls += calls
        self._tokens += tokens

    def forget(self) -> None:
        """Another node makes it from its beginning."""
        self._texts.clear()
        self._tokens.clear()
        self._calls.clear()
        self._head.pop("system_fingerprint", None)

    def body(self, delivered: Delivered) -> dict[str, object]:
        """The whole answer in OpenAI's shape."""
        assert delivered.finish is not None, "a whole answer has a finish reason"
        text = "".join(self._texts)
        self._tokens += delivered.take_tokens()
        told = self._form.logprobs(self._tokens, 0) if self._tells else None
        made = whole_objects(self._calls, call_prefix(self._client_id))
        return self._form.whole(self._head, text, delivered.finish, delivered.usage, told, made)

    async def end(self, delivered: Delivered) -> None:
        """Answer."""
        body = self.body(delivered)
        body["inferpool"] = delivered.proof()
        extra = [
            JSON,
            (b"x-request-id", self._client_id.encode()),
            (headers.NODE, to_hex(delivered.node).encode()),
            (headers.COST, str(delivered.billed_pico_usd).encode()),
        ]
        if delivered.fee_pico_usd:
            extra.append((headers.FEE, str(delivered.fee_pico_usd).encode()))
        if delivered.signed is not None:
            extra.append((headers.RECEIPT, delivered.signed.header()))
        await self._request.answer(200, orjson.dumps(body), extra)

    async def fail(self, error: InferpoolError) -> None:
        """Nothing was delivered: the error is the answer."""
        raise error
