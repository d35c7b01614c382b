"""The gateway's routes, as one plain ASGI callable.

| route | what |
| --- | --- |
| POST /v1/chat/completions | OpenAI's chat, streamed or whole |
| POST /v1/completions | OpenAI's plain completions, the same |
| POST /v1/embeddings, /v1/audio/transcriptions, /v1/images/generations | OpenAI's |
| GET /v1/models[/M] | models with price, class and nodes now |
| POST /v2/models/M[/versions/V]/infer | Open Inference Protocol, binary extension included |
| GET /v2, /v2/health/*, /v2/models/M[/ready] | its metadata |
| GET /health | 200 while it serves |
| GET /openapi.json | these routes for machines |
| GET /metrics | for Prometheus; on this machine, else under the control token |
| POST /inferpool/offers | a node's signed offer; the answer is this gateway's word on the node |
| GET /inferpool/status | channels, accounts, attempts; under the control token |
| /inferpool/control/... | see `control`; the operator's, on this machine |
| GET, POST /inferpool/admin/... | keys, teams, usage; under the control token (`admin`) |
| GET /inferpool/receipts?channel=&after= | of a caller who pays by x402, to itself |
| GET /inferpool/refund | its unused money back at once, by x402's refund payload |
| POST /inferpool/quote | what a job would cost, and where it would go |
| GET /inferpool/routes/ID | why a request went where it went; under its key or the control token |
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from inferpool import __version__
from inferpool.gateway import openapi
from inferpool.gateway.admin import Admin
from inferpool.gateway.admission import Caller
from inferpool.gateway.control import CONTROL, CapitalControls
from inferpool.gateway.gateway import Gateway
from inferpool.gateway.metrics import KNOWN_TO_ALL
from inferpool.gateway.neighbours import Neighbours, no_twin
from inferpool.gateway.pushes import PushedOffers
from inferpool.gateway.quote import quote
from inferpool.gateway.replay import Replays, may_repeat
from inferpool.gateway.status import explained, model_object, status, together
from inferpool.gateway.upload import Uploads
from inferpool.gateway.walk_ins import WalkIns
from inferpool.metrics import CONTENT_TYPE, added_up
from inferpool.payments.access import Access
from inferpool.payments.expiry import told_time
from inferpool.payments.gate import PaymentNeeded
from inferpool.payments.receipts_page import receipts_page
from inferpool.protocol import headers, limits
from inferpool.protocol.errors import BadRequest, InferpoolError, Unauthorized, Unavailable
from inferpool.protocol.job import Job, Task
from inferpool.transport.asgi import (
    ClientLeft,
    HttpRequest,
    Receive,
    Scope,
    Send,
    error_headers,
    unserved,
)
from inferpool.transport.base import TransportError

_LOG = logging.getLogger("inferpool.gateway")
Serve = Callable[[HttpRequest, bytes, Caller], Awaitable[None]]
_PROXY_MAX = 256 * 1024
_ROUTES = "/inferpool/routes/"
_TENSOR_METHODS = {"": ("GET",), "ready": ("GET",), "infer": ("POST",)}
_ADMIN = "/inferpool/admin/"


class GatewayApp:
    """ASGI application. `anyone` is the account of loopback callers without a key, if allowed."""

    def __init__(
        self,
        gateway: Gateway,
        control_token: str,
        anyone: Caller | None = None,
        controls: CapitalControls | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        self._gateway, self._anyone, self._controls = gateway, anyone, controls
        self._token = control_token.encode()
        access = Access(gateway.ledger.keys, gateway.clock.now_ms, gateway.random)
        self._neighbours = neighbours
        elsewhere = neighbours.answer if neighbours is not None else None
        self._replays = Replays(gateway.clock, gateway.forgive, elsewhere)
        self._admin = Admin(access, gateway.ledger.journal)
        self._paid: dict[str, tuple[int, Serve]] = {
            "/v1/chat/completions": (limits.BODY_CHAT_MAX, gateway.chat),
            "/v1/completions": (limits.BODY_CHAT_MAX, gateway.complete),
            "/v1/embeddings": (limits.BODY_EMBEDDING_MAX, gateway.embed),
            "/v1/audio/transcriptions": (limits.BODY_AUDIO_MAX, gateway.transcribe),
            "/v1/images/generations": (limits.BODY_IMAGE_MAX, gateway.draw),
        }
        self._plain: dict[tuple[str, str], Callable[[HttpRequest], Awaitable[None]]] = {
            ("GET", "/v1/models"): self._models,
            ("GET", "/v2"): self._server,
            ("GET", "/v2/health/live"): self._live,
            ("GET", "/v2/health/ready"): self._ready,
            ("GET", "/health"): self._ready,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/openapi.json"): self._openapi,
            ("GET", "/inferpool/status"): self._status,
            ("POST", "/inferpool/quote"): self._quote,
            ("GET", "/inferpool/receipts"): self._receipts,
            ("GET", "/inferpool/refund"): self._refund,
            ("POST", "/inferpool/offers"): PushedOffers(
                gateway.directory, gateway.clock, neighbours
            ).serve,
            ("POST", "/inferpool/upload"): Uploads(gateway.clock).serve,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. The hot paths are asked for first."""
        if scope["type"] != "http":
            return
        request = HttpRequest(scope, receive, send)
        try:
            if b"origin" in request.headers and not request.path.startswith("/inferpool/"):
                request.open_to_pages()
                if request.is_preflight():
                    await request.allow_page()
                    return
            await self._route(request)
        except ClientLeft:
            pass
        except InferpoolError as error:
            await self._fail(request, error)
        except Exception:
            _LOG.exception("%s %s failed", request.method, request.path)
            await self._fail(request, InferpoolError("The gateway failed; its log says why."))

    async def _route(self, request: HttpRequest) -> None:
        method, path = request.method, request.path
        if method == "POST" and path in self._paid:
            await self._paid_for(request, *self._paid[path])
        elif path.startswith("/v2/models/"):
            await self._model(request)
        elif (method, path) in self._plain:
            await self._plain[method, path](request)
        elif method == "GET" and path.startswith("/v1/models/"):
            await self._one_model(request, path.removeprefix("/v1/models/"))
        elif self._controls is not None and path.startswith(CONTROL):
            if not (request.is_local() and self._is_owner(request)):
                raise Unauthorized("This needs the gateway's control token, on its own machine.")
            await self._controls.serve(request, self._others(request))
        elif path.startswith(_ADMIN):
            if not self._is_owner(request):
                raise Unauthorized("This needs the gateway's control token.")
            if self._gateway.shared is not None:
                await self._gateway.shared.catch_up(spending=True)
            await self._admin.serve(request, path.removeprefix(_ADMIN))
        elif method == "GET" and path.startswith(_ROUTES):
            await self._explain(request, path.removeprefix(_ROUTES))
        else:
            one_model = path.startswith("/v1/models/")
            allowed = ["POST"] if path in self._paid else ["GET"] if one_model else []
            allowed += [known for known, plain in self._plain if plain == path]
            raise unserved(request, allowed)

    async def _paid_for(self, request: HttpRequest, limit: int, serve: Serve) -> None:
        """Once, however often its caller sends it; walk-ins have nothing that tells them apart,
        and pay for each request."""
        caller = self._known(request) or await self._caller(request)
        body = await request.body(limit)
        if caller.walk_in is not None:
            caller.walk_in.read(body)
        elif self._neighbours is not None or may_repeat(request):
            await self._once(request, body, caller, serve)
            return
        await self._admitted(request, body, caller, serve)

    async def _once(self, request: HttpRequest, body: bytes, caller: Caller, serve: Serve) -> None:
        """Serve what may have come before, here or at another process, or may come again."""

        async def work(through: HttpRequest) -> None:
            await self._admitted(through, body, caller, serve)

        neighbour = self._neighbours.asks(request) if self._neighbours is not None else None
        if neighbour is not None and self._neighbours is not None:
            yields = neighbour < self._neighbours.lane.name
            if not await self._replays.serve_neighbour(request, body, caller, yields=yields):
                await no_twin(request)
        else:
            await self._replays.serve(request, body, caller, work)

    async def _fail(self, request: HttpRequest, error: InferpoolError) -> None:
        self._gateway.metrics.refused(error.code)
        if not error.request_id:  # refused before it was admitted: a name to ask about it by
            error.request_id = "req_" + self._gateway.random(12).hex()
        body = error.oip() if request.path.startswith("/v2") else error.openai()
        try:
            extra = error_headers(error)
            if isinstance(error, PaymentNeeded):
                extra.append((headers.PAYMENT_REQUIRED, error.header))
            await request.answer_json(body, error.status, extra)
        except RuntimeError:  # the answer had begun: it ends here, without its clean end
            _LOG.warning("%s broke off in mid-answer: %s", request.path, error.message)

    async def _admitted(
        self, request: HttpRequest, body: bytes, caller: Caller, serve: Serve
    ) -> None:
        """Serve a paid request, within the rate limits of its key, and while what it costs can be
        written down. Raises RateLimited, Unavailable."""
        gateway = self._gateway
        gateway.ledger.journal.check()
        now_ms = gateway.clock.now_ms
        if caller.walk_in is not None:
            request.added = caller.walk_in.headers
        elif caller.tells_rates:
            request.added = lambda: caller.rate_headers(now_ms())
        await caller.begin(now_ms(), gateway.shared)
        try:
            await serve(request, body, caller)
        finally:
            caller.end()

    async def _quote(self, request: HttpRequest) -> None:
        caller = await self._caller(request)
        body = await request.body(limits.BODY_CHAT_MAX)
        await request.answer_json(await quote(self._gateway, caller, body))

    def _known(self, request: HttpRequest) -> Caller | None:
        """The account behind the API key, where this process knows it."""
        key = _key(request)
        now_ms = self._gateway.clock.now_ms()
        found = self._gateway.ledger.account(key, now_ms) if key else None
        return Caller(*found) if found is not None else None

    async def _caller(self, request: HttpRequest) -> Caller:
        """The account behind the API key. Raises Unauthorized."""
        found, key = self._known(request), _key(request)
        if found is None and key and self._gateway.shared is not None:
            await self._gateway.shared.catch_up()  # it may be new, of another process
            found = self._known(request)
        if found is not None:
            return found
        if self._anyone is not None and request.is_local():
            return Caller(self._anyone.account_id, self._anyone.account)
        walk_ins = self._gateway.walk_ins
        if walk_ins is not None and not key:
            return walk_ins.caller(request)
        keys, now_ms = self._gateway.ledger.keys, self._gateway.clock.now_ms()
        if key and (ended_ms := keys.expired_ms(key, now_ms)):
            raise Unauthorized(
                f"This API key ended at {told_time(ended_ms)}. Ask who gave it to you for another.",
                code="key_expired",
            )
        raise Unauthorized(
            "The API key is unknown; send Authorization: Bearer KEY."
            if key
            else "No API key; send Authorization: Bearer KEY."
        )

    async def _model(self, request: HttpRequest) -> None:
        parts = request.path.split("/")[3:]
        name = parts[0]
        rest = parts[3:] if parts[1:2] == ["versions"] else parts[1:]
        if request.method == "POST" and rest == ["infer"]:
            infer = partial(self._gateway.infer, name)
            await self._paid_for(request, limits.BODY_TENSOR_MAX, infer)
        elif request.method == "GET" and rest in ([], ["ready"]):
            await self._proxy(request, name, "/".join(["", *rest]))
        else:
            raise unserved(request, _TENSOR_METHODS.get("/".join(rest), ()))

    async def _proxy(self, request: HttpRequest, name: str, rest: str) -> None:
        """A model's metadata, from a node that serves it."""
        candidate = self._gateway.choose(Job(Task.TENSOR, name, rows=1)).candidates[0]
        path = f"/v2/models/{candidate.service.model}{rest}"
        try:
            response = await candidate.node.transport.request("GET", path, (), timeout_s=5.0)
            try:
                body = await response.read(_PROXY_MAX)
            finally:
                await response.close()
        except TransportError as error:
            raise Unavailable(error.message, code="node_failed") from None
        await request.answer(response.status, body)

    async def _models(self, request: HttpRequest) -> None:
        created = self._gateway.clock.now_ms() // 1000
        data = [
            model_object(service, nodes, created, self._gateway.fee_bps)
            for service, nodes in self._gateway.models()
        ]
        await request.answer_json({"object": "list", "data": data})

    async def _one_model(self, request: HttpRequest, name: str) -> None:
        created = self._gateway.clock.now_ms() // 1000
        for service, nodes in self._gateway.models():
            if service.model == name:
                await request.answer_json(
                    model_object(service, nodes, created, self._gateway.fee_bps)
                )
                return
        raise BadRequest(f"No node offers {name!r} now.", code="model_not_found", param="model")

    async def _server(self, request: HttpRequest) -> None:
        await request.answer_json(
            {
                "name": "inferpool-gateway",
                "version": __version__,
                "extensions": ["binary_tensor_data"],
            }
        )

    async def _live(self, request: HttpRequest) -> None:
        await request.answer_json({"live": True})

    async def _ready(self, request: HttpRequest) -> None:
        ready = bool(self._gateway.models())
        await request.answer_json({"ready": ready}, 200 if ready else 503)

    async def _openapi(self, request: HttpRequest) -> None:
        await request.answer(200, openapi.document())

    async def _metrics(self, request: HttpRequest) -> None:
        if not request.is_local() and not self._is_owner(request):
            raise Unauthorized("From another machine this needs the gateway's control token.")
        page, others = self._gateway.metrics.text(), self._others(request)
        if others is not None:
            page = added_up([page, *await others.all_answer(request)], KNOWN_TO_ALL)
        await request.answer(200, page, [CONTENT_TYPE])

    def _sales(self) -> WalkIns:
        if self._gateway.walk_ins is None:
            raise BadRequest("This gateway takes no payments by x402.")
        return self._gateway.walk_ins

    async def _refund(self, request: HttpRequest) -> None:
        """A walk-in's unused money."""
        await self._sales().channels.requested(request)

    async def _receipts(self, request: HttpRequest) -> None:
        """What a walk-in paid for on its channel."""
        walk_ins = self._sales()
        page = receipts_page(walk_ins.ledger, walk_ins.key, request.query, request.headers)
        await request.answer_json(page)

    def _others(self, request: HttpRequest) -> Neighbours | None:
        """The other processes, unless it is one of them that asks."""
        others = self._neighbours
        return others if others is not None and others.asks(request) is None else None

    def _is_owner(self, request: HttpRequest) -> bool:
        given = request.headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return hmac.compare_digest(given, self._token)

    async def _explain(self, request: HttpRequest, request_id: str) -> None:
        account = None if self._is_owner(request) else (await self._caller(request)).account.name
        found = await explained(self._gateway, request_id)
        if found is None or account not in (None, found[0]):
            raise BadRequest(f"No choice is kept for {request_id[:64]!r}.", code="not_found")
        await request.answer_json(found[1])

    async def _status(self, request: HttpRequest) -> None:
        if not self._is_owner(request):
            raise Unauthorized("This needs the gateway's control token.")
        if self._gateway.shared is not None:
            await self._gateway.shared.catch_up(spending=True)
        found, others = status(self._gateway), self._others(request)
        if others is not None:
            found = together(found, await others.all_say(request))
        await request.answer_json(found)


def _key(request: HttpRequest) -> str:
    """The API key of a request, "" for none."""
    value = request.headers.get(b"authorization", b"").decode("latin-1")
    return value[7:].strip() if value[:7].lower() == "bearer " else ""
