"""Any server of the Open Inference Protocol, V2, over REST: Triton, KServe, MLServer, OpenVINO.

The model's tensors are read when it starts. Tensors pass as raw bytes both ways where the server
announces the binary extension, else as JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote

import orjson

from inferpool.engines.base import Tensor, TensorSpec
from inferpool.engines.oip_wire import infer_body, read_answer, read_specs
from inferpool.engines.tensor_check import check_inputs
from inferpool.protocol.errors import BadRequest, InferpoolError, Unavailable
from inferpool.protocol.headers import INFERENCE_HEADER_LENGTH
from inferpool.protocol.limits import ANSWER_MAX
from inferpool.transport.base import Transport, TransportError
from inferpool.transport.http import open_transport

ASK_S: Final = 10.0
INFER_S: Final = 60.0
HEALTH_EVERY_S: Final = 5.0
METADATA_MAX: Final = 256 * 1024
BINARY: Final = frozenset({"binary_tensor_data", "binary_data"})  # Triton's name; MLServer's


class OipEngine:
    """A `TensorEngine` at a URL. `model`: its name there. `key`: sent as a bearer token."""

    def __init__(
        self,
        url: str,
        model: str,
        quant: str,
        *,
        key: str = "",
        transport: Transport | None = None,
    ) -> None:
        self.url, self.model = url.rstrip("/").removesuffix("/v2"), model
        self.engine_class = f"oip@unknown/{quant.lower()}/remote"
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._quant = quant.lower()
        self._path = f"/v2/models/{quote(model, safe='')}"
        self._headers = [(b"authorization", b"Bearer " + key.encode())] if key else []
        self._binary = False
        self._given = transport
        self._transport: Transport | None = None
        self._health: asyncio.Task[None] | None = None
        self._up = False

    async def start(self) -> None:
        """Read the metadata. Raises Unavailable(engine_unavailable), Refused(bad_config)."""
        self._transport = self._given or open_transport(self.url)
        try:
            server = await self._ask("/v2")
            self.inputs, self.outputs = read_specs(await self._ask(self._path))
        except InferpoolError:
            await self.close()
            raise
        name = str(server.get("name", "unknown")).split()[0].lower()[:40]
        told = str(server.get("version", "unknown"))[:40]
        self.engine_class = f"oip@{name}-{told}/{self._quant}/remote"
        self._binary = bool(BINARY & set(map(str, server.get("extensions") or [])))
        self._up = True
        self._health = asyncio.create_task(self._watch(), name="oip-health")

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
        """Whether the model was ready when it was last asked."""
        return self._up

    async def infer(self, inputs: Sequence[Tensor], rows: int) -> list[Tensor]:
        """See `base.TensorEngine`. Raises Unavailable: engine_unavailable, engine_failed."""
        if self._transport is None or not self._up:
            message = f"{self.url} does not answer"
            raise Unavailable(message, code="engine_unavailable", retry_after_s=5)
        ordered = check_inputs(self.inputs, inputs, rows)
        body, length = infer_body(ordered, self.outputs, binary=self._binary)
        extra = [(b"content-type", b"application/json")]
        if length is not None:
            extra = [
                (b"content-type", b"application/octet-stream"),
                (INFERENCE_HEADER_LENGTH, b"%d" % length),
            ]
        try:
            response = await self._transport.request(
                "POST", f"{self._path}/infer", [*self._headers, *extra], body, timeout_s=INFER_S
            )
            try:
                answer = await response.read(ANSWER_MAX)
            finally:
                await response.close()
        except TransportError as error:
            raise Unavailable(f"{self.url} failed: {error.message}", code="engine_failed") from None
        if response.status != 200:
            raise _refusal(response.status, answer)
        return read_answer(answer, response.header(INFERENCE_HEADER_LENGTH), self.outputs)

    # -- the server ------------------------------------------------------------------------------

    async def _ask(self, path: str) -> dict[str, Any]:
        assert self._transport is not None, "started"
        try:
            response = await self._transport.request("GET", path, self._headers, timeout_s=ASK_S)
            try:
                body = await response.read(METADATA_MAX)
            finally:
                await response.close()
        except TransportError as error:
            message = f"{self.url} does not answer: {error.message}"
            raise Unavailable(message, code="engine_unavailable") from error
        if response.status != 200:
            message = f"{self.url}{path} answered {response.status}"
            raise Unavailable(message, code="engine_unavailable")
        try:
            value = orjson.loads(body) if body else {}
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            message = f"{self.url}{path} did not answer a JSON object"
            raise Unavailable(message, code="engine_unavailable")
        return value

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_EVERY_S)
            try:
                await self._ask(f"{self._path}/ready")
            except InferpoolError:
                self._up = False
            else:
                self._up = True


def _refusal(status: int, body: bytes) -> BadRequest | Unavailable:
    """The server's error as one of ours, to be raised."""
    try:
        told = str(orjson.loads(body).get("error"))[:2000]
    except (orjson.JSONDecodeError, AttributeError):
        told = body[:200].decode(errors="replace")
    if status in (400, 422):
        return BadRequest(f"The server refuses the tensors: {told}", code="invalid_tensor")
    return Unavailable(f"The server answered {status}: {told}", code="engine_failed")
