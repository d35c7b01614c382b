"""The Open Inference Protocol over gRPC, in front of the same ASGI app that serves it over REST.

A call's metadata becomes headers (authorisation, payment, `inferpool-*`), the answer's headers
become trailing metadata (receipt, cost, x402's response): whoever pays pays the same way. Errors
are gRPC codes with our stable code first in the details: `rate_limited: Too many ...`.

Plain text on 127.0.0.1 and ::1 only: gRPC's Python server cannot be told to speak TLS 1.3 alone,
and this network knows no other (`daemon.grpc_door` puts TLS before it).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

import orjson

from inferpool.protocol import headers, limits, oip_grpc
from inferpool.protocol.errors import InferpoolError, Refused
from inferpool.protocol.proto import SERVICE, messages
from inferpool.transport.base import Headers, TransportError
from inferpool.transport.memory import App, MemoryAnswer, MemoryTransport

if TYPE_CHECKING:
    import grpc.aio

_LOG = logging.getLogger("inferpool.grpc")
_ENVELOPE: Final = 64 * 1024  # names, shapes and parameters around the tensors' bytes
_ERROR_MAX: Final = 256 * 1024
_STOP_S: Final = 2.0
# gRPC's own names, and those by which an outer caller could set what the front sets itself.
_DROPPED: Final = frozenset(
    (
        b"host",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"transfer-encoding",
        b"connection",
        b"te",
        b"user-agent",
        headers.INFERENCE_HEADER_LENGTH,
    )
)
_RETURNED: Final = frozenset(
    (
        headers.RECEIPT,
        headers.NODE,
        headers.COST,
        headers.PAYMENT_RESPONSE,
        headers.PAYMENT_REQUIRED,
        b"x-request-id",
        b"retry-after",
    )
)
_CODES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    409: "ALREADY_EXISTS",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

Context = Any  # grpc.aio.ServicerContext


class GrpcFront:
    """A gRPC server on loopback. `start` returns its port; `close` cuts what runs after 2 s."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen. Raises Refused(bad_config): no grpcio, or the port is taken."""
        try:
            import grpc
            import grpc.aio
        except ImportError:
            message = "gRPC needs the extra: pip install 'inferpool[grpc]'"
            raise Refused(message, code="bad_config", param="grpc_port") from None
        server = grpc.aio.server(
            maximum_concurrent_rpcs=limits.CONCURRENT_MAX,
            options=[
                ("grpc.max_receive_message_length", limits.BODY_TENSOR_MAX + _ENVELOPE),
                ("grpc.max_send_message_length", limits.ANSWER_MAX + _ENVELOPE),
                ("grpc.max_metadata_size", 2 * limits.PAYMENT_HEADER_MAX),
                ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a twin
            ],
        )
        server.add_generic_rpc_handlers((self._handlers(grpc),))
        try:
            bound = server.add_insecure_port(
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            )
        except RuntimeError as error:
            message = f"the gRPC port {port} on {host} cannot be used: {error}"
            raise Refused(message, code="bad_config", param="grpc_port") from None
        await server.start()
        self._server = server
        return int(bound)

    async def close(self) -> None:
        """Stop; calls under way have two seconds."""
        if self._server is not None:
            await self._server.stop(_STOP_S)
            self._server = None

    def _handlers(self, grpc: Any) -> Any:
        calls: dict[str, Callable[[Any, Context], Awaitable[Any]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }
        known = messages()
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    call,
                    request_deserializer=known[f"{name}Request"].FromString,
                    response_serializer=known[f"{name}Response"].SerializeToString,
                )
                for name, call in calls.items()
            },
        )

    # -- calls -----------------------------------------------------------------------------------

    async def _server_live(self, request: Any, context: Context) -> Any:
        status, _, _ = await self._ask(context, "GET", "/v2/health/live")
        return messages()["ServerLiveResponse"](live=status == 200)

    async def _server_ready(self, request: Any, context: Context) -> Any:
        status, _, _ = await self._ask(context, "GET", "/v2/health/ready")
        return messages()["ServerReadyResponse"](ready=status == 200)

    async def _model_ready(self, request: Any, context: Context) -> Any:
        path = f"{_model_path(request.name, request.version)}/ready"
        status, _, _ = await self._ask(context, "GET", path)
        return messages()["ModelReadyResponse"](ready=status == 200)

    async def _server_metadata(self, request: Any, context: Context) -> Any:
        body, _ = await self._call(context, "GET", "/v2")
        return oip_grpc.metadata("ServerMetadataResponse", body)

    async def _model_metadata(self, request: Any, context: Context) -> Any:
        body, _ = await self._call(context, "GET", _model_path(request.name, request.version))
        return oip_grpc.metadata("ModelMetadataResponse", body)

    async def _model_infer(self, request: Any, context: Context) -> Any:
        try:
            sent, length = oip_grpc.rest_request(request)
            path = f"{_model_path(request.model_name, request.model_version)}/infer"
            extra = [(headers.INFERENCE_HEADER_LENGTH, length)]
            body, found = await self._call(context, "POST", path, extra, sent)
            binary = next((v for k, v in found if k == headers.INFERENCE_HEADER_LENGTH), None)
            return oip_grpc.grpc_response(body, binary)
        except InferpoolError as error:
            await _abort(context, error.status, error.code, error.message)

    # -- the app's side --------------------------------------------------------------------------

    async def _call(
        self, context: Context, method: str, path: str, extra: Headers = (), body: bytes = b""
    ) -> tuple[bytes, Headers]:
        """Body and headers of an answer of status 200; another one ends the call."""
        status, answer, found = await self._ask(context, method, path, extra, body)
        context.set_trailing_metadata(
            [(name.decode(), value.decode("latin-1")) for name, value in found if name in _RETURNED]
        )
        if status != 200:
            await _abort(context, status, *_error_of(answer))
        return answer, found

    async def _ask(
        self, context: Context, method: str, path: str, extra: Headers = (), body: bytes = b""
    ) -> tuple[int, bytes, Headers]:
        """One request to the app, in this process. A caller that leaves cancels us, and so it."""
        transport = MemoryTransport(self._app, client=_peer(context.peer()))
        sent = [*_headers(context.invocation_metadata() or ()), *extra]
        remaining_s = context.time_remaining()
        timeout_s = min(remaining_s or limits.ANSWER_TIMEOUT_S, limits.ANSWER_TIMEOUT_S)
        try:
            answer: MemoryAnswer = await transport.request(
                method, path, sent, body, timeout_s=max(0.001, timeout_s)
            )
            limit = limits.ANSWER_MAX + _ENVELOPE if answer.status == 200 else _ERROR_MAX
            return answer.status, await answer.read(limit), answer.headers
        except TransportError as error:
            return error.status, orjson.dumps(error.oip()), ()
        finally:
            await transport.close()


def _model_path(name: str, version: str) -> str:
    path = f"/v2/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _headers(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """Metadata as headers. gRPC has checked the names; binary values are of no use to HTTP."""
    found = ((key.encode(), value) for key, value in metadata if isinstance(value, str))
    return [
        (key, value.encode("latin-1", "replace")) for key, value in found if key not in _DROPPED
    ]


def _peer(name: str) -> tuple[str, int]:
    """('127.0.0.1', 5) of 'ipv4:127.0.0.1:5' or 'ipv6:%5B::1%5D:5'; empty where it is neither."""
    kind, _, rest = unquote(name).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return "", 0
    return host.strip("[]"), int(port)


def _error_of(body: bytes) -> tuple[str, str]:
    try:
        found = orjson.loads(body)
        return str(found.get("code", "internal")), str(found["error"])
    except (orjson.JSONDecodeError, KeyError, AttributeError):
        return "internal", "The server failed."


async def _abort(context: Context, status: int, code: str, message: str) -> None:
    import grpc

    name = _CODES.get(status, "INTERNAL")
    if code == "budget_exceeded":
        name = "RESOURCE_EXHAUSTED"
    await context.abort(getattr(grpc.StatusCode, name), f"{code}: {message}")
