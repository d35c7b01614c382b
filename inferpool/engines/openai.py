"""Any server that speaks OpenAI's API: vLLM, llama-server, Ollama, LM Studio, a cloud.

Such a server keeps its token ids to itself, so that an answer can neither be continued elsewhere
nor audited: `tells_ids` is False, and the node offers the service so. Output units are the
server's own usage, at least one for each chunk with text and at most what was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from typing import Any, Final

import orjson

from inferpool.engines.base import Phase, Progress, TextCall, TextChunk
from inferpool.engines.openai_wire import AnswerReader, Dialect, dialect_of, refusal, request_of
from inferpool.engines.slots import Slots
from inferpool.protocol.errors import BadRequest, InferpoolError, Unavailable
from inferpool.transport.base import Transport, TransportError
from inferpool.transport.http import open_transport

FIRST_WORD_S: Final = 120.0  # some servers load a model for the first call
ASK_S: Final = 10.0
HEALTH_EVERY_S: Final = 5.0
MODELS_MAX: Final = 4 * 1024 * 1024  # bytes of the list of models


class OpenAiEngine:
    """A `TextEngine` at a URL. `model`: its name there. `key`: sent as a bearer token.

    `parameters`: what the server takes beyond the common, as its owner declares it.
    """

    tells_ids = False

    def __init__(
        self,
        url: str,
        model: str,
        quant: str,
        *,
        key: str = "",
        slots: int = 4,
        parameters: Iterable[str] = (),
        transport: Transport | None = None,
    ) -> None:
        self.parameters = frozenset(parameters)
        self.url, self.model, self.slots = url.rstrip("/").removesuffix("/v1"), model, slots
        self.engine_class = f"openai@unknown/{quant.lower()}/remote"
        self._quant = quant.lower()
        self._headers = [(b"content-type", b"application/json")]
        if key:
            self._headers.append((b"authorization", b"Bearer " + key.encode()))
        self._dialect = Dialect.PLAIN
        self._slots = Slots(slots)
        self._given = transport
        self._transport: Transport | None = None
        self._health: asyncio.Task[None] | None = None
        self._up = False

    async def start(self) -> None:
        """Ask for the model. Raises Unavailable(engine_unavailable), Refused(bad_config)."""
        self._transport = self._given or open_transport(self.url)
        try:
            await self._look()
        except InferpoolError:
            await self.close()
            raise
        self._health = asyncio.create_task(self._watch(), name="openai-health")

    async def close(self) -> None:
        """Leave the server; calls under way are cut."""
        health, self._health = self._health, None
        if health is not None:
            health.cancel()
            with suppress(asyncio.CancelledError):
                await health
        transport, self._transport, self._up = self._transport, None, False
        if transport is not None:
            await transport.close()

    def ready(self) -> bool:
        """Whether the server answered when it was last asked."""
        return self._up

    async def generate(self, call: TextCall, progress: Progress) -> AsyncGenerator[TextChunk, None]:
        """See `base.TextEngine`. Raises BadRequest for what the server refuses or cannot take."""
        if call.resume:
            raise BadRequest(
                f"{self.model} cannot go on from token ids.", code="unsupported_parameter"
            )
        path, body = request_of(call, self.model, self._dialect, self.parameters)
        async with self._slots.hold(progress):
            transport, response, started = self._running(), None, False
            try:
                response = await transport.request(
                    "POST", path, self._headers, body, timeout_s=FIRST_WORD_S
                )
                if response.status != 200:
                    raise await refusal(response)
                progress.phase, progress.count = Phase.PREFILL, 0
                reader = AnswerReader(call)
                async with aclosing(reader.chunks(response)) as chunks:
                    async for chunk in chunks:
                        started = True
                        progress.phase, progress.count = Phase.TOKENS, chunk.output_units
                        yield chunk
            except TransportError as error:
                if not error.sent:
                    self._up = False
                code = "engine_failed" if started else "engine_unavailable"
                raise Unavailable(f"{self.url} went away: {error}", code=code) from error
            finally:
                if response is not None:  # cut in the middle: the server frees its slot
                    await response.close()

    # -- the server ------------------------------------------------------------------------------

    def _running(self) -> Transport:
        if self._transport is None or not self._up:
            raise Unavailable(
                f"{self.url} does not answer", code="engine_unavailable", retry_after_s=5
            )
        return self._transport

    async def _look(self) -> None:
        """Ask for the list of models: is the server there, and is ours among them?"""
        transport = self._transport
        assert transport is not None, "started"
        try:
            response = await transport.request("GET", "/v1/models", self._headers, timeout_s=ASK_S)
            try:
                if response.status != 200:
                    raise await refusal(response)
                listed = _listed(await response.read(MODELS_MAX))
            finally:
                await response.close()
        except TransportError as error:
            raise Unavailable(
                f"{self.url} does not answer: {error.message}", code="engine_unavailable"
            ) from error
        found = listed.get(self.model)
        if found is None:
            names = ", ".join(sorted(listed)[:20]) or "none"
            message = f"{self.url} has no model {self.model!r}; it has {names}"
            raise Unavailable(message, code="engine_unavailable")
        self._dialect = dialect_of(found)
        self.engine_class = f"openai@{self._dialect.value}/{self._quant}/remote"
        self._up = True

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_EVERY_S)
            try:
                await self._look()
            except InferpoolError:
                self._up = False


def _listed(body: bytes) -> dict[str, str]:
    """Model names with their `owned_by`. Raises Unavailable(engine_unavailable)."""
    try:
        value: Any = orjson.loads(body)
        return {str(item["id"]): str(item.get("owned_by", "")) for item in value["data"]}
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        message = f"the list of models is not understood: {error!r}"
        raise Unavailable(message, code="engine_unavailable") from error
