"""Work that is answered whole: embeddings, transcriptions, images.

A caller that leaves in the middle ends the work, and owes nothing: it got nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from inferpool.engines.audio import length_ms
from inferpool.engines.base import EmbeddingEngine, ImageEngine, TranscriptionEngine
from inferpool.node.services import Hosted
from inferpool.protocol import embeddings, images, transcription
from inferpool.protocol.embeddings import EmbeddingsRequest
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.images import ImagesRequest
from inferpool.protocol.job import Task
from inferpool.protocol.preferences import refuse_preferences
from inferpool.protocol.transcription import TranscriptionRequest
from inferpool.transport.asgi import JSON, HttpRequest

if TYPE_CHECKING:
    from inferpool.node.node import Node

T = TypeVar("T")
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")


async def embed(node: Node, request: HttpRequest, body: bytes) -> None:
    """`POST /v1/embeddings`."""
    parsed = EmbeddingsRequest.parse(body)
    refuse_preferences(parsed.preferences)
    hosted = node.services.find(parsed.model, Task.EMBEDDING)
    engine: EmbeddingEngine = hosted.engine
    async with node.admit(request, hosted, parsed.job, body, None) as work:
        found = await _timed(request, hosted, engine.embed(parsed.texts))
        work.prompt_units = found.prompt_units
        tokens = work.charged_usage.prompt_units
        answer = embeddings.answer(parsed.model, found.vectors, tokens, as_base64=parsed.base64)
        await node.answer(request, work, answer, [JSON])


async def transcribe(node: Node, request: HttpRequest, body: bytes) -> None:
    """`POST /v1/audio/transcriptions`: priced by the length of the audio, in whole seconds."""
    parsed = TranscriptionRequest.parse(body, request.headers.get(b"content-type", b""))
    hosted = node.services.find(parsed.model, Task.TRANSCRIPTION)
    engine: TranscriptionEngine = hosted.engine
    audio_ms = await length_ms(parsed.audio)
    async with node.admit(request, hosted, parsed.job(audio_ms), body, None) as work:
        running = engine.transcribe(parsed.audio, parsed.language, audio_ms)
        found = await _timed(request, hosted, running)
        work.prompt_units = -(-found.audio_ms // 1000)
        seconds = work.charged_usage.prompt_units
        answer = transcription.answer(parsed, found, seconds)
        plain = parsed.response_format == "text"
        await node.answer(request, work, answer, [_TEXT if plain else JSON])


async def draw(node: Node, request: HttpRequest, body: bytes) -> None:
    """`POST /v1/images/generations`: priced by images times steps."""
    parsed = ImagesRequest.parse(body)
    refuse_preferences(parsed.preferences)
    hosted = node.services.find(parsed.model, Task.IMAGE)
    engine: ImageEngine = hosted.engine
    if parsed.stream:
        raise BadRequest("A node sends images whole.", code="unsupported_parameter", param="stream")
    own_size = "x".join(map(str, engine.size))
    if parsed.size not in (None, own_size):
        raise BadRequest(f"{parsed.model} draws {own_size} only.", param="size")
    async with node.admit(request, hosted, parsed.job, body, parsed.seed) as work:
        drawing = engine.draw(parsed.prompt, parsed.images, work.seed)
        found = await _timed(request, hosted, drawing)
        work.counted = parsed.images * images.STEPS
        answer = images.answer(work.started_ms // 1000, found)
        await node.answer(request, work, answer, [JSON])


async def _timed(request: HttpRequest, hosted: Hosted, work: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    found = await request.while_here(work)
    spent_ms = 1000 * (loop.time() - begun)
    hosted.pace.add(spent_ms, spent_ms, 1)
    return found
