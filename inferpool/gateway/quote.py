"""What a job would cost, how long it would take, and where it would go; nothing is sent or held."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import orjson

from inferpool.gateway.admission import Caller
from inferpool.payments.fees import fee_down, fee_up
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.completion import CompletionRequest
from inferpool.protocol.embeddings import EmbeddingsRequest
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.images import ImagesRequest
from inferpool.protocol.job import Job
from inferpool.protocol.oip import InferRequest
from inferpool.protocol.units import format_usd

if TYPE_CHECKING:
    from inferpool.gateway.gateway import Gateway

_JOBS: Final[dict[str, Callable[[bytes], Job]]] = {
    "/v1/chat/completions": lambda body: ChatRequest.parse(body).job,
    "/v1/completions": lambda body: CompletionRequest.parse(body).job,
    "/v1/embeddings": lambda body: EmbeddingsRequest.parse(body).job,
    "/v1/images/generations": lambda body: ImagesRequest.parse(body).job,
}


async def quote(gateway: Gateway, caller: Caller, body: bytes) -> dict[str, object]:
    """The answer to `{"path": ..., "request": {...}}`: the request as it would be sent to that
    path. Raises what the request itself would meet before anything is sent."""
    job = _job(body)
    route = gateway.route(job, caller, tallied=False)
    bps = gateway.fee_bps
    prices = [candidate.price_pico_usd for candidate in route.candidates]
    maxima = [candidate.maximum_pico_usd for candidate in route.candidates]
    first = route.candidates[0]
    return {
        "model": job.model,
        "task": job.task.value,
        "units_in": route.units_in,
        "units_out": route.units_out,
        "price_usd": {
            "expected": _usd(first.price_pico_usd),
            "least": _usd(min(prices)),
            "most": _usd(max(prices)),
        },
        "fee_usd": _usd(fee_down(first.price_pico_usd, bps)),
        "fee_bps": bps,
        "held_usd": _usd(max(maxima) + fee_up(max(maxima), bps)),  # at most, while it runs
        "first_ms": first.first_ms,
        "whole_ms": first.whole_ms,
        "late_ms": first.late_ms,
        "route": route.trace(),
    }


def _job(body: bytes) -> Job:
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        raise BadRequest('Send {"path": ..., "request": {...}}.', param="path")
    path, request = value["path"], orjson.dumps(value.get("request"))
    parts = path.split("/")
    if path.startswith("/v2/models/") and parts[-1] == "infer" and len(parts) in (5, 7):
        return InferRequest.parse(parts[3], request, None).job
    if path not in _JOBS:
        raise BadRequest(f"No price can be told for {path[:64]!r}.", param="path")
    return _JOBS[path](request)


def _usd(pico_usd: int) -> str:
    return format_usd(pico_usd).removeprefix("$")
