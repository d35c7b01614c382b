"""Several answers to one request (`n`): each is an attempt of its own, and all leave as one.

Each has its own seed, hold and nodes, so that each goes on elsewhere by itself and they run side
by side; the price is the sum of theirs, prompt included. They succeed together: where one cannot
be finished, the stream ends with an error, and a whole answer is none and costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson

from inferpool.gateway.admission import Caller, Hold
from inferpool.gateway.affinity import Blocks
from inferpool.gateway.answers import Answer, Delivered, WholeAnswer, call_prefix
from inferpool.gateway.chat import Parsed, TextRun
from inferpool.protocol import answers, headers
from inferpool.protocol.calls import CallDelta, delta_objects
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import BadRequest, InferpoolError
from inferpool.protocol.forms import Form, form_of, head
from inferpool.protocol.logprobs import Tokens
from inferpool.protocol.preferences import RoutePreferences
from inferpool.protocol.usage import Usage
from inferpool.transport.asgi import EVENT_STREAM, JSON, HttpRequest, stop_task

if TYPE_CHECKING:
    from inferpool.gateway.gateway import Gateway


async def serve(
    gateway: Gateway,
    request: HttpRequest,
    parsed: Parsed,
    caller: Caller,
    prompt: Blocks,
    preferences: RoutePreferences,
) -> None:
    """Serve a request of several choices. Raises what one choice raises, before any byte."""
    if caller.walk_in is not None:
        raise BadRequest(
            "A payment is for one answer; send n requests, or ask with a key.",
            code="unsupported_parameter",
            param="n",
        )
    one, seed = replace(parsed, choices=1), gateway.seed(parsed.seed)
    async with AsyncExitStack() as stack:
        holds: list[Hold] = []
        for _ in range(parsed.choices):
            route = gateway.route(one.job, caller, prompt, preferences)
            holds.append(await stack.enter_async_context(gateway.hold(caller, route)))
        created_s = gateway.clock.now_ms() // 1000
        form = form_of(parsed)
        together = Together(request, parsed, holds[0].client_id, form, created_s)
        runs = [
            TextRun(
                gateway,
                together.choice(index),
                one,
                hold,
                (seed + index) % 2**32,
                prompt,
                preferences,
            )
            for index, hold in enumerate(holds)
        ]
        failure = await _run(request, runs)
        for run, hold in zip(runs, holds, strict=True):
            hold.complete = run.delivered.finish is not None and run.delivered.signed is not None
        if failure is None:
            if all(run.delivered.finish is not None for run in runs):  # else the client left
                await together.end([run.delivered for run in runs])
            return
        if together.started:
            await together.fail(failure)
            return
    await gateway.forgive(caller, [hold.client_id for hold in holds])
    failure.request_id = holds[0].client_id
    raise failure


async def _run(request: HttpRequest, runs: list[TextRun]) -> InferpoolError | None:
    """Run all until they ended, one failed, or the client left; what failed, if anything."""
    tasks = [asyncio.create_task(run.run(run.hold.candidates)) for run in runs]
    left = asyncio.create_task(request.disconnected())
    failed: InferpoolError | None = None
    try:
        waiting: set[asyncio.Task[None]] = {left, *tasks}
        while waiting > {left} and failed is None and not left.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {left}:
                error = task.exception()
                if isinstance(error, InferpoolError):
                    failed = error
                elif error is not None:
                    raise error
    finally:
        await stop_task(left)
        for task in tasks:
            await stop_task(task)
    return failed


@dataclass(slots=True)
class Together:
    """What the choices have in common: one head, one stream or one body."""

    request: HttpRequest
    parsed: Parsed
    client_id: str
    form: Form
    created_s: int
    started: bool = False
    head: dict[str, Any] = field(init=False)
    node: bytes = b""
    wholes: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.head = head(self.form, self.client_id, self.parsed.model, self.created_s)

    def choice(self, index: int) -> Answer:
        """One of them."""
        return _Streamed(self, index) if self.parsed.stream else _Whole(self, index)

    def begin(self, node: bytes, engine_class: str) -> None:
        """The first node that begins gives the fingerprint."""
        if not self.node:
            self.node, self.head["system_fingerprint"] = node, answers.fingerprint(engine_class)

    async def send(self, index: int, value: dict[str, Any]) -> None:
        """A chunk of one choice."""
        if not self.started:
            self.started = True
            named = (b"x-request-id", self.client_id.encode())
            await self.request.start(
                [*EVENT_STREAM, named, (headers.NODE, to_hex(self.node).encode())]
            )
        value["choices"][0]["index"] = index
        await self.request.send(answers.event(value))

    async def end(self, delivered: list[Delivered]) -> None:
        """All are there and paid for."""
        usage = Usage(
            sum(one.usage.prompt_units for one in delivered),
            sum(one.usage.output_units for one in delivered),
        )
        if self.parsed.stream:
            if self.parsed.include_usage:
                told = {"choices": [], "usage": answers.usage_object(usage)}
                await self.request.send(answers.event({**self.head, **told}))
            await self.request.send(answers.DONE)
            await self.request.end()
            return
        bodies = [self.wholes[index] for index in range(len(delivered))]
        cost = sum(one.billed_pico_usd for one in delivered)
        fee = sum(one.fee_pico_usd for one in delivered)
        body = {
            **bodies[0],
            "choices": [
                {**body["choices"][0], "index": index} for index, body in enumerate(bodies)
            ],
            "usage": answers.usage_object(usage),
            "inferpool": {
                **delivered[0].proof(),
                "cost_pico_usd": cost,
                **({"fee_pico_usd": fee} if fee else {}),
                "prompt_units": usage.prompt_units,
                "output_units": usage.output_units,
                "legs": sum(one.legs for one in delivered),
                "choices": [one.proof() for one in delivered],
            },
        }
        extra = [
            JSON,
            (b"x-request-id", self.client_id.encode()),
            (headers.NODE, to_hex(self.node).encode()),
            (headers.COST, str(cost).encode()),
        ]
        if fee:
            extra.append((headers.FEE, str(fee).encode()))
        await self.request.answer(200, orjson.dumps(body), extra)

    async def fail(self, error: InferpoolError) -> None:
        """One cannot be finished: an honest error event, without [DONE]."""
        await self.request.send(answers.event(error.openai()))
        await self.request.end()


class _Streamed:
    """One choice of a stream."""

    def __init__(self, together: Together, index: int) -> None:
        self._all, self._index = together, index
        self._form, self._tells = together.form, together.parsed.top_logprobs is not None
        self._prefix = f"{call_prefix(together.client_id)}{index}_"
        self._told = 0  # characters of the tokens so far
        self.started = False

    async def begin(self, node: bytes, engine_class: str) -> None:
        """See Answer."""
        self._all.begin(node, engine_class)

    async def _open(self) -> None:
        if not self.started:
            self.started = True
            first = self._form.first(self._all.head)
            if first is not None:
                await self._all.send(self._index, first)

    async def texts(self, texts: Sequence[tuple[str, Tokens]]) -> None:
        """A chunk for each."""
        await self._open()
        for text, tokens in texts:
            value = self._form.piece(self._all.head, text, self._logprobs(tokens))
            await self._all.send(self._index, value)

    async def calls(self, calls: Sequence[CallDelta], tokens: Tokens) -> None:
        """A chunk with all of them."""
        await self._open()
        made, told = delta_objects(calls, self._prefix), self._logprobs(tokens)
        await self._all.send(self._index, self._form.piece(self._all.head, "", told, made))

    def _logprobs(self, tokens: Tokens) -> dict[str, object] | None:
        if not self._tells:
            return None
        told = self._form.logprobs(tokens, self._told)
        self._told += sum(len(token.name) for token in tokens)
        return told

    def forget(self) -> None:
        """Nothing is kept here."""
        assert not self.started, "what was delivered cannot be taken back"

    async def end(self, delivered: Delivered) -> None:
        """This choice is there and paid for."""
        await self._open()
        assert delivered.finish is not None, "the end has a finish reason"
        rest = delivered.take_tokens()
        told = self._logprobs(rest) if rest else None
        last = self._form.last(self._all.head, delivered.finish, told)
        await self._all.send(self._index, {**last, "inferpool": delivered.proof()})

    async def fail(self, error: InferpoolError) -> None:
        """It ends all of them."""
        raise error


class _Whole(WholeAnswer):
    """One choice of a whole answer."""

    def __init__(self, together: Together, index: int) -> None:
        client_id = f"{together.client_id}_{index}"  # its calls have ids of their own
        super().__init__(
            together.request,
            client_id,
            together.parsed.model,
            together.created_s,
            together.form,
            tells=together.parsed.top_logprobs is not None,
        )
        self._all, self._index = together, index

    async def begin(self, node: bytes, engine_class: str) -> None:
        """See Answer."""
        self._all.begin(node, engine_class)
        await super().begin(node, engine_class)

    async def end(self, delivered: Delivered) -> None:
        """Keep it until all are there."""
        body = self.body(delivered)
        self._all.wholes[self._index] = {**self._all.head, **body, "id": self._all.head["id"]}
