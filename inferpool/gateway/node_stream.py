"""A node's answer as it arrives: watched, counted, hashed, until its receipt.

Silence is nothing at all for three seconds, or heartbeats whose state of `tokens` does not move
for as long; in `queued` and `prefill` the engine may take its time (design D12).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from functools import partial
from typing import Final

import orjson

from inferpool.gateway.alike import Alike
from inferpool.payments.checks import ReceiptInvalid
from inferpool.protocol.calls import CallDelta
from inferpool.protocol.errors import CODES, BadRequest, InferpoolError, Refused, Unavailable
from inferpool.protocol.forms import CHAT, Form
from inferpool.protocol.limits import ANSWER_MAX, FIRST_BYTE_TIMEOUT_S, SILENCE_MS
from inferpool.protocol.logprobs import TokenLogprob
from inferpool.protocol.receipt import SignedReceipt
from inferpool.protocol.tools import Tools
from inferpool.protocol.value import value
from inferpool.transport.base import AnswerInvalid, AnswerTimeout, ConnectionCut, Response
from inferpool.transport.patience import Patience
from inferpool.transport.sse import Comment, Event, SseParser

_SILENCE_S: Final = SILENCE_MS / 1000
ERROR_TEXT_MAX: Final = 2000
FINISHES: Final = ("stop", "length", "tool_calls")
_TOKENS: Final = b"tokens"
_DONE: Final = b"[DONE]"
SLOWEST_TOKEN_S: Final = 1.0  # a slower stream is one that does not end


@value
class Piece:
    """What one chunk adds: text, the token ids behind it, and what was asked of each."""

    text: str
    ids: tuple[int, ...]
    tokens: tuple[TokenLogprob, ...] = ()
    calls: tuple[CallDelta, ...] = ()


class _Watch:
    """When the engine behind a stream last moved, by its chunks and its heartbeats."""

    def __init__(self, now_s: float) -> None:
        self._state, self._moved_s = b"", now_s

    def moved(self, now_s: float) -> None:
        """A chunk came."""
        self._state, self._moved_s = b"", now_s

    def beat(self, state: bytes, got: int, now_s: float) -> None:
        """A heartbeat came; `got`: tokens that arrived. The first after a chunk that counts no
        more of them says nothing new: the engine stands still since that chunk."""
        if state != self._state:
            phase, _, count = state.partition(b" ")
            known = phase == _TOKENS and count.isdigit() and int(count) <= got
            if self._state or not known:
                self._moved_s = now_s
            self._state = state

    def left_s(self, now_s: float) -> float:
        """Until it has stood still for too long; in a queue or a prefill it may take its time."""
        patience_s = _SILENCE_S if self._state.startswith(_TOKENS) else FIRST_BYTE_TIMEOUT_S
        return max(0.0, self._moved_s + patience_s - now_s)

    def why(self, now_s: float) -> str:
        """What went wrong when the time was over."""
        if self._state and not self.left_s(now_s):
            return "The node's engine stands still while it beats."
        return "The node fell silent in mid-answer."


class NodeStream:
    """One answer of at most `max_output` tokens. `texts` counts the chunks that had text."""

    def __init__(
        self,
        response: Response,
        max_output: int,
        form: Form = CHAT,
        *,
        tells: bool = False,
        tools: Tools | None = None,
    ) -> None:
        self._response, self._max_output, self._form = response, max_output, form
        self._tools, self._begun = tools, 0  # calls
        self._tells = tells  # whether each id has to come with its log-probability
        # What has neither log-probabilities nor calls is text and ids alone.
        self._alike = None if tells or tools is not None else Alike(partial(_plain, form))
        self._hash = hashlib.sha256()
        self._bytes = 0
        self.output_units = 0
        self.texts = 0
        self.signed: SignedReceipt | None = None
        self.failure: InferpoolError | None = None  # the node's own word on an answer that failed
        self.finish: str | None = None

    @property
    def answer_hash(self) -> bytes:
        """SHA-256 of the data of every event before the receipt, each with a line feed."""
        return self._hash.digest()

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """Pieces of the answer as they arrive, those together that came together, until the
        receipt came.

        Raises ConnectionCut where the stream ends without one, AnswerTimeout on silence,
        AnswerInvalid for what is not a chunk or too much; what came before that was given.
        """
        loop = asyncio.get_running_loop()
        watch, patience, parser = _Watch(loop.time()), Patience(loop), SseParser()
        until_s = loop.time() + FIRST_BYTE_TIMEOUT_S + SLOWEST_TOKEN_S * self._max_output
        chunks = aiter(self._response.chunks())
        try:
            while self.signed is None:
                now_s = loop.time()
                if now_s > until_s:
                    raise AnswerTimeout("The node is slower than anybody would wait for.")
                left_s = min(_SILENCE_S, watch.left_s(now_s))
                try:
                    chunk = await patience.wait(anext(chunks), left_s)
                except TimeoutError:
                    raise AnswerTimeout(watch.why(loop.time())) from None
                except StopAsyncIteration:
                    raise ConnectionCut("The node's stream ended without a receipt.") from None
                found, error = self._take(parser.feed(chunk), watch, loop.time())
                if found:
                    yield found
                if error is not None:
                    raise error
        finally:
            patience.close()

    def _take(
        self, items: list[Event | Comment], watch: _Watch, now_s: float
    ) -> tuple[list[Piece], InferpoolError | None]:
        """The pieces in what came, and what is wrong behind them."""
        found: list[Piece] = []
        for item in items:
            if isinstance(item, Comment):
                watch.beat(item.text, self.output_units, now_s)
                continue
            watch.moved(now_s)
            try:
                piece = self._read(item.data)
            except InferpoolError as error:
                return found, error
            if piece is None:
                break
            found.append(piece)
        return found, None

    def _read(self, data: bytes) -> Piece | None:
        known = self._alike.read(data) if self._alike is not None else None
        if known is not None:
            self._hash.update(data + b"\n")
            text, ids = known
            self.texts += bool(text)
            self._count(len(data), len(ids))
            return Piece(text, ids)
        if data == _DONE:
            raise ConnectionCut("The node's stream ended without a receipt.")
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise AnswerInvalid("The node sent an event that is not JSON.") from None
        if not isinstance(value, dict):
            raise AnswerInvalid("The node sent an event that is not a chunk.")
        ours = value.get("inferpool")
        if isinstance(ours, dict) and "receipt" in ours:
            try:
                self.signed = SignedReceipt.from_wire(ours)
            except Refused as error:
                raise AnswerInvalid(f"The node's receipt is unreadable: {error.message}") from None
            self._compare(value.get("usage"), self.signed)
            if "error" in value:
                self.failure = error_of(value)
            return None
        self._hash.update(data + b"\n")
        choice = _choice(value)
        text, finish = _text(choice, self._form), _finish(choice)
        calls = self._calls(choice) if self._tools is not None else ()
        self.texts += bool(text or calls)
        self.finish = finish or self.finish
        ids = _ids(ours)
        self._count(len(data), len(ids))
        if self._alike is not None and finish is None:
            self._alike.learn(data, text, ids)
        return Piece(text, ids, self._tokens(choice, ids), calls)

    def _count(self, size: int, ids: int) -> None:
        self._bytes += size
        self.output_units += ids
        if self.output_units > self._max_output or self._bytes > ANSWER_MAX:
            raise AnswerInvalid("The node sent more than was asked for.")

    def _calls(self, choice: dict[str, object]) -> tuple[CallDelta, ...]:
        """The chunk's calls, each of a function that may be called, one after another."""
        try:
            calls = self._form.calls_of(choice)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            message = f"The node sent calls of functions that are none: {error}"
            raise AnswerInvalid(message[:ERROR_TEXT_MAX]) from None
        known = [function.name for function in self._tools.callable] if self._tools else []
        for call in calls:
            self._begun += call.name is not None
            if call.index != self._begun - 1 or (call.name is not None and call.name not in known):
                raise AnswerInvalid("The node sent a call of what may not be called.")
        if self._tools is not None and self._begun > self._tools.calls_max:
            raise AnswerInvalid("The node sent more calls than were asked for.")
        return calls

    def _tokens(self, choice: dict[str, object], ids: tuple[int, ...]) -> tuple[TokenLogprob, ...]:
        if not self._tells:
            return ()
        try:
            tokens = self._form.tokens_of(choice)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            message = f"The node sent log-probabilities that are none: {error}"
            raise AnswerInvalid(message[:ERROR_TEXT_MAX]) from None
        if len(tokens) != len(ids):
            raise AnswerInvalid("The node sent another number of log-probabilities than of ids.")
        return tokens

    @staticmethod
    def _compare(usage: object, signed: SignedReceipt) -> None:
        """A client reads the usage, the node is paid by the receipt: they must say the same."""
        if isinstance(usage, dict):
            told = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
            if told != (signed.receipt.prompt_units, signed.receipt.output_units):
                raise ReceiptInvalid("The node's usage is not that of its receipt.")


def error_of(value: dict[str, object]) -> InferpoolError:
    """The error in a node's last event. Only a request's own fault is passed on as such."""
    error = value["error"] if isinstance(value["error"], dict) else {}
    code, param = str(error.get("code")), error.get("param")
    message = str(error.get("message"))[:ERROR_TEXT_MAX]
    if CODES.get(code, (0,))[0] == 400:
        return BadRequest(message, code=code, param=str(param) if param else None)
    return Unavailable(f"The node's engine failed in mid-answer: {message}", code="engine_failed")


def _plain(form: Form, data: bytes) -> tuple[str, tuple[int, ...]]:
    """Text and ids of a chunk that is nothing else. Raises AnswerInvalid, JSONDecodeError."""
    value = orjson.loads(data)
    if not isinstance(value, dict):
        raise AnswerInvalid("The node sent an event that is not a chunk.")
    ours, choice = value.get("inferpool"), _choice(value)
    if _finish(choice) is not None or (isinstance(ours, dict) and "receipt" in ours):
        raise AnswerInvalid("The node sent an end where a text was expected.")
    return _text(choice, form), _ids(ours)


def _choice(value: dict[str, object]) -> dict[str, object]:
    """A chunk's one choice."""
    choices = value.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise AnswerInvalid("The node sent a chunk without its one choice.")
    return choices[0]


def _text(choice: dict[str, object], form: Form) -> str:
    text = form.text_of(choice)
    return text if isinstance(text, str) else ""


def _finish(choice: dict[str, object]) -> str | None:
    finish = choice.get("finish_reason")
    if finish is not None and finish not in FINISHES:
        raise AnswerInvalid("The node sent an unknown finish reason.")
    return str(finish) if finish else None


def _ids(ours: object) -> tuple[int, ...]:
    ids = ours.get("ids") if isinstance(ours, dict) else None
    if ids is None:
        return ()
    if not isinstance(ids, list):
        raise AnswerInvalid("The node sent token ids that are none.")
    for number in ids:
        if type(number) is not int or not 0 <= number < 2**32:
            raise AnswerInvalid("The node sent token ids that are none.")
    return tuple(ids)
