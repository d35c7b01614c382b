"""Chat and plain completions on the node: run, meter, stream. And the engine's own heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Final, cast

from inferpool.engines.base import Phase, Progress, Sampling, TextCall, TextChunk, TextEngine
from inferpool.node.services import Hosted
from inferpool.node.work import Work
from inferpool.protocol import answers
from inferpool.protocol.calls import CallReader, delta_objects
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.completion import CompletionRequest
from inferpool.protocol.errors import InferpoolError, Unavailable
from inferpool.protocol.forms import form_of, head
from inferpool.protocol.limits import HEARTBEAT_MS
from inferpool.protocol.text import TextRequest
from inferpool.protocol.tools import Tools
from inferpool.transport.asgi import HttpRequest

_HEARTBEAT_S: Final = HEARTBEAT_MS / 1000


def text_call(request: ChatRequest | CompletionRequest, hosted: Hosted, seed: int) -> TextCall:
    """The engine's call: the caller's numbers, then the manifest's, all explicit."""
    defaults = hosted.manifest.sampling_defaults()
    known = set(Sampling.__slots__) - {"seed"}
    numbers = {name: value for name, value in defaults.items() if name in known}
    numbers |= request.sampling
    top_k = int(numbers.pop("top_k", 0))
    return TextCall(
        messages=request.plain_messages if isinstance(request, ChatRequest) else None,
        prompt=None if isinstance(request, ChatRequest) else request.prompt,
        max_output=request.max_output or hosted.manifest.limits.default_max_output,
        sampling=Sampling(seed=seed, top_k=top_k, **numbers),
        stop=request.stop,
        resume=request.resume,
        logit_bias=request.logit_bias,
        top_logprobs=request.top_logprobs,
        shape=request.shape if isinstance(request, ChatRequest) else None,
        conversation=request.messages if isinstance(request, ChatRequest) else None,
    )


async def generate(
    hosted: Hosted,
    call: TextCall,
    progress: Progress,
    work: Work,
    on_first: Callable[[float], None],
) -> AsyncGenerator[TextChunk, None]:
    """Run the engine and count what it gives; the meter is here and nowhere else.

    `on_first` hears how long the first token took, in ms.
    """
    engine = cast(TextEngine, hosted.engine)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    first_ms = 0.0
    reader = CallReader() if isinstance(call.shape, Tools) else None
    async with aclosing(
        cast(AsyncGenerator[TextChunk, None], engine.generate(call, progress))
    ) as g:
        async for chunk in g:
            if not work.usage.output_units:
                first_ms = 1000 * (loop.time() - begun)
                on_first(first_ms)
            if progress.prompt_units is not None:
                work.prompt_units = progress.prompt_units
            work.ids.extend(chunk.ids)
            work.logprobs.extend(chunk.logprobs)
            work.counted = max(work.counted, chunk.output_units)
            if chunk.prompt_units is not None:
                work.prompt_units = chunk.prompt_units
            yield chunk if reader is None else _with_calls(chunk, reader)
    hosted.pace.add(first_ms, 1000 * (loop.time() - begun), work.usage.output_units)


def _with_calls(chunk: TextChunk, reader: CallReader) -> TextChunk:
    """The chunk with its calls told from its text. Raises Unavailable(engine_failed)."""
    try:
        text, calls = reader.take(chunk.text)
    except ValueError as error:
        message = f"The engine's call of a function makes no sense: {error}"
        raise Unavailable(message, code="engine_failed") from None
    finish = chunk.finish_reason
    if finish is not None:
        text += reader.rest()
        finish = "tool_calls" if finish == "stop" and reader.ended else finish
    return replace(chunk, text=text, calls=tuple(calls), finish_reason=finish)


def call_prefix(work: Work) -> str:
    """How the ids of an answer's calls begin."""
    return f"call_{work.request_id.hex()[:20]}_"


def answer_head(work: Work, parsed: TextRequest) -> dict[str, object]:
    """What all chunks of the answer have in common."""
    made = head(form_of(parsed), work.request_id.hex()[:32], parsed.model, work.started_ms // 1000)
    return {**made, "system_fingerprint": answers.fingerprint(work.service.engine_class)}


class Heartbeat:
    """Comments on an idle stream, one a second, that say where the engine is.

    They go on only while the adapter's progress is its engine's own word (design D12); what the
    gateway does about a state that does not change is the gateway's.
    """

    def __init__(self, request: HttpRequest, progress: Progress) -> None:
        self._request, self._progress = request, progress
        self._last_s = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._run(), name="heartbeat")

    def sent(self) -> None:
        """A chunk went out: the stream is not idle."""
        self._last_s = asyncio.get_running_loop().time()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.01, self._last_s + _HEARTBEAT_S - loop.time()))
            if loop.time() - self._last_s >= _HEARTBEAT_S:
                phase, count = self._progress.phase, self._progress.count
                await self._request.send(f": {Phase(phase).value} {count}\n\n".encode())
                self.sent()

    async def stop(self) -> None:
        """End it before the stream's last bytes."""
        self._task.cancel()
        await asyncio.wait([self._task])


class TextStream:
    """Writes one answer as OpenAI's chunks; for our own payer with the token ids of each.

    `answer_hash` runs over the data of every event before the one with the receipt, each followed
    by a line feed: both sides can compute it from what crossed the wire.
    """

    def __init__(self, request: HttpRequest, work: Work, parsed: TextRequest) -> None:
        self._request, self._work = request, work
        self._form = form_of(parsed)
        self._head = answer_head(work, parsed)
        self._tells = parsed.top_logprobs is not None
        self._told = 0  # characters of the tokens so far

    async def send(self, value: dict[str, object]) -> None:
        """One event that counts as part of the answer."""
        data = answers.event(value)
        self._work.answer_hash.update(data[6:-1])  # without "data: " and the second line feed
        await self._request.send(data)

    async def open(self) -> None:
        """The chunk that comes before any token, where the API has one."""
        first = self._form.first(self._head)
        if first is not None:
            await self.send(first)

    async def token(self, chunk: TextChunk) -> None:
        """What the engine gave, as a chunk; the finish reason comes alone, as OpenAI sends it."""
        if chunk.ids or chunk.text or chunk.calls or chunk.tokens:
            told = self._form.logprobs(chunk.tokens, self._told) if self._tells else None
            self._told += sum(len(token.name) for token in chunk.tokens)
            calls = delta_objects(chunk.calls, call_prefix(self._work))
            value = self._form.piece(self._head, chunk.text, told, calls)
            if self._work.own:
                value["inferpool"] = {"ids": chunk.ids}
            await self.send(value)
        if chunk.finish_reason is not None:
            await self.send(self._form.last(self._head, chunk.finish_reason))

    async def close(self, include_usage: bool, failure: InferpoolError | None = None) -> None:
        """Usage, with the receipt for our own payer and what failed, if anything; and the end."""
        usage: dict[str, object] = {
            **self._head,
            "choices": [],
            "usage": answers.usage_object(self._work.charged_usage),
        }
        if self._work.own:
            assert self._work.signed is not None, "the receipt is signed before it is sent"
            usage["inferpool"] = self._work.signed.to_wire()
            if failure is not None:
                usage |= failure.openai()
            await self._request.send(answers.event(usage))
        elif include_usage:
            await self._request.send(answers.event(usage))
        if failure is None:
            await self._request.send(answers.DONE)
        await self._request.end()

    async def fail(self, body: dict[str, object]) -> None:
        """An error in the middle: OpenAI's error object as an event, and no [DONE]."""
        await self._request.send(answers.event(body))
        await self._request.end()
