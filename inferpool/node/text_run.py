"""One text request on the node, whole or streamed, from its admission to its receipt."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

import orjson

from inferpool.engines.base import Progress, TextCall
from inferpool.node.chat import Heartbeat, TextStream, answer_head, call_prefix, generate, text_call
from inferpool.node.services import Hosted
from inferpool.node.work import Work
from inferpool.protocol.calls import CallDelta, whole_objects
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.completion import CompletionRequest
from inferpool.protocol.errors import BadRequest, InferpoolError
from inferpool.protocol.forms import form_of
from inferpool.protocol.limits import READER_STALL_S
from inferpool.protocol.logprobs import TokenLogprob
from inferpool.protocol.preferences import refuse_preferences
from inferpool.protocol.receipt import Outcome
from inferpool.transport.asgi import EVENT_STREAM, JSON, HttpRequest, stop_task
from inferpool.transport.patience import within

if TYPE_CHECKING:
    from inferpool.node.node import Node

_LOG = logging.getLogger("inferpool.node")

Parsed = ChatRequest | CompletionRequest


async def serve(node: Node, request: HttpRequest, body: bytes, parsed: Parsed) -> None:
    """Admit, run, meter, sign, answer. Raises what `Node.admit` raises."""
    refuse_preferences(parsed.preferences)
    if parsed.choices > 1:
        raise BadRequest(
            "A node gives one answer an attempt; send each by itself.",
            code="unsupported_parameter",
            param="n",
        )
    hosted = node.services.find(parsed.model, parsed.job.task)
    if parsed.resume and not hosted.service().resume:
        raise BadRequest(
            f"{parsed.model} cannot go on from token ids.",
            code="unsupported_parameter",
            param="inferpool.resume",
        )
    async with node.admit(request, hosted, parsed.job, body, parsed.seed) as work:
        if parsed.stream:
            await _stream(node, request, hosted, parsed, work)
        else:
            await _whole(node, request, hosted, parsed, work)


async def _whole(
    node: Node, request: HttpRequest, hosted: Hosted, parsed: Parsed, work: Work
) -> None:
    texts, finish = [], "stop"
    tokens: list[TokenLogprob] = []
    calls: list[CallDelta] = []
    call = text_call(parsed, hosted, work.seed)
    on_first = partial(node.metrics.first_token, hosted.manifest.name)
    async for chunk in generate(hosted, call, Progress(), work, on_first):
        texts.append(chunk.text)
        tokens += chunk.tokens
        calls += chunk.calls
        finish = chunk.finish_reason or finish
    form = form_of(parsed)
    told = None if parsed.top_logprobs is None else form.logprobs(tokens, 0)
    made = whole_objects(calls, call_prefix(work))
    usage = work.charged_usage
    value = form.whole(answer_head(work, parsed), "".join(texts), finish, usage, told, made)
    await node.answer(request, work, orjson.dumps(value), [JSON])


async def _stream(
    node: Node, request: HttpRequest, hosted: Hosted, parsed: Parsed, work: Work
) -> None:
    """Stream; whatever ends it early is still metered and receipted for what was sent."""
    extra = []
    if not work.own:
        work.reported = work.channel.report_maximum(work.request_id)
        extra = node.answer_headers(work)
    # The voucher is the money: on disk before the first byte of work that it pays leaves.
    saved = node.ledger.save_channel(work.channel)
    stream, progress = TextStream(request, work, parsed), Progress()
    await saved
    await request.start([*EVENT_STREAM, *extra])
    await stream.open()
    heartbeat = Heartbeat(request, progress)
    call = text_call(parsed, hosted, work.seed)
    run = asyncio.create_task(_run(node, hosted, call, progress, work, stream, heartbeat))
    left = asyncio.create_task(request.disconnected())
    try:
        await asyncio.wait([run, left], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await heartbeat.stop()
        await stop_task(left)
        failure = await _end(run)
    if failure is not None and not isinstance(failure, InferpoolError | asyncio.CancelledError):
        _LOG.error("an engine failed in mid-stream", exc_info=failure)
        failure = InferpoolError("The node failed; its log says why.")
    if isinstance(failure, InferpoolError):
        await node.finish(work, Outcome.FAILED)
        if work.own:
            await stream.close(parsed.include_usage, failure)
        else:
            await stream.fail(failure.openai())
    elif failure is not None:
        await asyncio.shield(node.finish(work, Outcome.CANCELLED))
    else:
        await node.finish(work, Outcome.COMPLETE)
        await stream.close(parsed.include_usage)


async def _run(
    node: Node,
    hosted: Hosted,
    call: TextCall,
    progress: Progress,
    work: Work,
    stream: TextStream,
    heartbeat: Heartbeat,
) -> None:
    on_first = partial(node.metrics.first_token, hosted.manifest.name)
    async for chunk in generate(hosted, call, progress, work, on_first):
        try:
            await within(stream.token(chunk), READER_STALL_S)
        except TimeoutError:  # it neither reads nor leaves, and holds a slot
            raise asyncio.CancelledError from None
        heartbeat.sent()


async def _end(run: asyncio.Task[None]) -> BaseException | None:
    """The end of a run: None, its error, or CancelledError where the caller left."""
    run.cancel()
    await asyncio.wait([run])
    return asyncio.CancelledError() if run.cancelled() else run.exception()
