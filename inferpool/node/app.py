"""The node's routes, as one plain ASGI callable.

| route | what |
| --- | --- |
| POST /v1/chat/completions | OpenAI's chat, streamed or whole; paid |
| POST /v1/completions | OpenAI's plain completions, the same; paid |
| POST /v1/embeddings, /v1/audio/transcriptions, /v1/images/generations | OpenAI's; paid |
| GET /v1/models | the services |
| POST /v2/models/M[/versions/V]/infer | Open Inference Protocol; paid |
| GET /v2, /v2/health/*, /v2/models/M[/ready] | its metadata |
| GET /.well-known/inferpool/offer | the signed offer |
| GET /inferpool/lease | leases, a line each ten seconds |
| GET /inferpool/receipts?channel=&after= | receipts that a payer lost |
| GET /inferpool/refund | a payer's unused money back at once, by x402's refund payload |
| GET /inferpool/evidence/ID | under the payer's signature |
| POST /inferpool/control/claim | claim and settle now; under the control token |
| GET /inferpool/control/status, POST drain, resume, prices, models | `node.control`, the same |
| GET /health | 200 while it serves |
| GET /metrics | for Prometheus; on this machine, else under the control token |
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable

from inferpool import __version__
from inferpool.metrics import CONTENT_TYPE
from inferpool.node.control import CONTROL, Controls
from inferpool.node.node import Node
from inferpool.node.tensors import model_metadata
from inferpool.payments.gate import PaymentNeeded
from inferpool.payments.standing import Channels
from inferpool.protocol import headers, limits
from inferpool.protocol.encoding import from_hex
from inferpool.protocol.errors import BadRequest, InferpoolError, Unauthorized
from inferpool.protocol.job import Task
from inferpool.transport.asgi import (
    ClientLeft,
    HttpRequest,
    Receive,
    Scope,
    Send,
    error_headers,
    unserved,
)

_LOG = logging.getLogger("inferpool.node")
_TENSOR_METHODS = {"": ("GET",), "ready": ("GET",), "infer": ("POST",)}

Claim = Callable[[], Awaitable[dict[str, object]]]


class NodeApp:
    """ASGI application. `claim` claims and settles; `control_token` guards what the owner does."""

    def __init__(
        self,
        node: Node,
        claim: Claim,
        control_token: str,
        controls: Controls | None = None,
        channels: Channels | None = None,
    ) -> None:
        self._node, self._claim, self._controls = node, claim, controls
        self._token = control_token.encode()
        self._paid: dict[str, tuple[int, Callable[[HttpRequest, bytes], Awaitable[None]]]] = {
            "/v1/chat/completions": (limits.BODY_CHAT_MAX, node.chat),
            "/v1/completions": (limits.BODY_CHAT_MAX, node.complete),
            "/v1/embeddings": (limits.BODY_EMBEDDING_MAX, node.embed),
            "/v1/audio/transcriptions": (limits.BODY_AUDIO_MAX, node.transcribe),
            "/v1/images/generations": (limits.BODY_IMAGE_MAX, node.draw),
        }
        self._plain: dict[tuple[str, str], Callable[[HttpRequest], Awaitable[None]]] = {
            ("GET", "/v1/models"): self._models,
            ("GET", "/v2"): self._server,
            ("GET", "/v2/health/live"): self._live,
            ("GET", "/v2/health/ready"): self._ready,
            ("GET", "/health"): self._ready,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/.well-known/inferpool/offer"): self._offer,
            ("GET", "/inferpool/lease"): self._lease,
            ("POST", "/inferpool/control/claim"): self._claim_now,
        }
        if channels is not None:
            self._plain["GET", "/inferpool/refund"] = channels.requested

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. The hot paths are asked for first."""
        if scope["type"] != "http":
            return
        request = HttpRequest(scope, receive, send)
        try:
            await self._route(request)
        except ClientLeft:
            pass
        except InferpoolError as error:
            await self._fail(request, error)
        except Exception:
            _LOG.exception("%s %s failed", request.method, request.path)
            await self._fail(request, InferpoolError("The node failed; its log says why."))

    async def _route(self, request: HttpRequest) -> None:
        method, path = request.method, request.path
        if method == "POST" and path in self._paid:
            limit, serve = self._paid[path]
            await serve(request, await request.body(limit))
        elif path.startswith("/v2/models/"):
            await self._model(request)
        elif (method, path) in self._plain:
            await self._plain[method, path](request)
        elif self._controls is not None and path.startswith(CONTROL):
            if not (request.is_local() and self._is_owner(request)):
                raise Unauthorized("This needs the node's control token, on its own machine.")
            await self._controls.serve(request)
        elif method == "GET" and path == "/inferpool/receipts":
            await request.answer_json(self._node.receipts(request))
        elif method == "GET" and path.startswith("/inferpool/evidence/"):
            await self._evidence(request)
        else:
            allowed = ["POST"] if path in self._paid else []
            allowed += [known for known, plain in self._plain if plain == path]
            raise unserved(request, allowed)

    async def _fail(self, request: HttpRequest, error: InferpoolError) -> None:
        self._node.metrics.refused(error.code)
        body = error.oip() if request.path.startswith("/v2") else error.openai()
        extra = error_headers(error)
        if isinstance(error, PaymentNeeded):
            extra.append((headers.PAYMENT_REQUIRED, error.header))
        try:
            await request.answer_json(body, error.status, extra)
        except RuntimeError:  # the answer had begun: it ends here, without its clean end
            _LOG.warning("%s broke off in mid-answer: %s", request.path, error.message)

    async def _model(self, request: HttpRequest) -> None:
        parts = request.path.split("/")[3:]
        name = parts[0]
        rest = parts[3:] if parts[1:2] == ["versions"] else parts[1:]
        if request.method == "POST" and rest == ["infer"]:
            body = await request.body(limits.BODY_TENSOR_MAX)
            await self._node.infer(request, name, body)
            return
        if request.method != "GET" or rest not in ([], ["ready"]):
            raise unserved(request, _TENSOR_METHODS.get("/".join(rest), ()))
        hosted = self._node.services.find(name, Task.TENSOR)
        if rest:
            await request.answer(200 if hosted.engine.ready() else 503, b"", ())
            return
        await request.answer_json(model_metadata(name, hosted.engine.inputs, hosted.engine.outputs))

    async def _models(self, request: HttpRequest) -> None:
        created = self._node.clock.now_ms() // 1000
        data = [
            {"id": s.model, "object": "model", "created": created, "owned_by": "inferpool"}
            for s in self._node.services.offered()
        ]
        await request.answer_json({"object": "list", "data": data})

    async def _server(self, request: HttpRequest) -> None:
        await request.answer_json(
            {"name": "inferpool-node", "version": __version__, "extensions": ["binary_tensor_data"]}
        )

    async def _live(self, request: HttpRequest) -> None:
        await request.answer_json({"live": True})

    async def _ready(self, request: HttpRequest) -> None:
        ready = bool(self._node.offered())
        await request.answer_json({"ready": ready}, 200 if ready else 503)

    async def _offer(self, request: HttpRequest) -> None:
        await request.answer(200, self._node.offers.current().encode())

    async def _lease(self, request: HttpRequest) -> None:
        """A line of JSON each ten seconds, until the reader leaves."""
        await request.body(0)
        await request.start([(b"content-type", b"application/x-ndjson")])
        left = asyncio.ensure_future(request.disconnected())
        try:
            while not left.done() and not self._node.draining:
                changed = asyncio.ensure_future(self._node.changed.wait())
                try:
                    await request.send(self._node.lease().encode() + b"\n")
                    await asyncio.wait(
                        [left, changed],
                        timeout=limits.LEASE_EVERY_MS / 1000,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    changed.cancel()
            if not left.done():
                await request.end()
        finally:
            left.cancel()

    async def _evidence(self, request: HttpRequest) -> None:
        try:
            request_id = from_hex(request.path.rsplit("/", 1)[1], 32)
            signature = from_hex(request.headers.get(headers.SIGNATURE, b"").decode(), 65)
        except ValueError as error:
            raise BadRequest(f"A request id, and Inferpool-Signature: {error}.") from None
        evidence = self._node.evidence(request_id, signature)
        await request.answer(
            200, evidence.encode(), [(b"content-type", b"application/octet-stream")]
        )

    async def _metrics(self, request: HttpRequest) -> None:
        if not request.is_local() and not self._is_owner(request):
            raise Unauthorized("From another machine this needs the node's control token.")
        await request.answer(200, self._node.metrics.text(), [CONTENT_TYPE])

    def _is_owner(self, request: HttpRequest) -> bool:
        given = request.headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return hmac.compare_digest(given, self._token)

    async def _claim_now(self, request: HttpRequest) -> None:
        if not self._is_owner(request):
            raise Unauthorized("This needs the node's control token.")
        await request.answer_json(await self._claim())
