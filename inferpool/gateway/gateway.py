"""The gateway: admit -> choose -> pay -> send -> watch -> (elsewhere) -> settle.

Every route starts here; each step is a module beside this one: `router` chooses, `treasury` and
`flights` pay and send, `node_stream` watches, `chat` goes on elsewhere, `relay` fetches whole
answers, `reconcile` fetches what came late.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from inferpool.clock import Clock
from inferpool.engines.audio import length_ms
from inferpool.gateway import choices, relay
from inferpool.gateway.admission import Caller, Hold, SharedLimits, both
from inferpool.gateway.affinity import Blocks, PrefixMap, blocks, texts
from inferpool.gateway.answers import Answer, StreamedAnswer, WholeAnswer
from inferpool.gateway.chat import Parsed, TextRun
from inferpool.gateway.directory import Directory
from inferpool.gateway.feedback import tally
from inferpool.gateway.flights import Flight, Flights
from inferpool.gateway.metrics import GatewayMetrics
from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.preferences import allows, arrange, value_of_time
from inferpool.gateway.reconcile import Reconciler
from inferpool.gateway.remembered import Remembered
from inferpool.gateway.route_book import RouteBook
from inferpool.gateway.router import Route, Wanted, choose
from inferpool.gateway.treasury import Treasury
from inferpool.gateway.walk_ins import WalkIns
from inferpool.payments.budget import Account
from inferpool.payments.fees import fee_down, fee_up, without_fee
from inferpool.payments.payer_ledger import PayerLedger
from inferpool.payments.request_ids import unique
from inferpool.protocol import headers, images
from inferpool.protocol.answers import event
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.completion import CompletionRequest
from inferpool.protocol.embeddings import EmbeddingsRequest
from inferpool.protocol.errors import BadRequest, InferpoolError, PaymentRequired, Unavailable
from inferpool.protocol.forms import form_of
from inferpool.protocol.images import ImagesRequest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.limits import LEDGER_PATIENCE_S, UNRESOLVED_HOLD_S
from inferpool.protocol.offer import Service
from inferpool.protocol.oip import InferRequest
from inferpool.protocol.preferences import NO_PREFERENCES, RoutePreferences, preferences_of
from inferpool.protocol.receipt import Outcome, SignedReceipt
from inferpool.protocol.transcription import TranscriptionRequest
from inferpool.transport.asgi import EVENT_STREAM, HttpRequest, stop_task
from inferpool.transport.patience import Deadline

_LOG = logging.getLogger("inferpool.gateway")
_SEED_BYTES: Final = 4
FORGIVE_S: Final = 4.0 * UNRESOLVED_HOLD_S  # longer than any hold waits for a late receipt


@dataclass(slots=True)
class Gateway:
    """Everything that a gateway is made of; each part comes from outside.

    `sampling` gives a manifest's own sampler numbers by its 32-byte id, where known.
    """

    directory: Directory
    treasury: Treasury
    ledger: PayerLedger
    routes: RouteBook
    clock: Clock
    sampling: Callable[[bytes], dict[str, float]]
    random: Callable[[int], bytes] = os.urandom
    value_of_time_pico_usd_per_s: int = 0
    fee_bps: int = 0  # on top of what nodes charge, in hundredths of a percent
    shared: SharedLimits | None = None  # where other processes use the same accounts
    walk_ins: WalkIns | None = None  # where it is paid by x402
    remembered: Remembered | None = None  # what an earlier run learned of nodes
    metrics: GatewayMetrics = field(init=False)
    flights: Flights = field(init=False)
    reconciler: Reconciler = field(init=False)
    prefixes: PrefixMap = field(default_factory=PrefixMap)
    _written: Deadline = field(default_factory=lambda: Deadline(LEDGER_PATIENCE_S))
    _draw: Random = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = GatewayMetrics(self.ledger, self.directory, lambda: self.flights)
        self.reconciler = Reconciler(self.ledger, self.clock, self.free, self.fee_bps)
        self.flights = Flights(
            self.treasury,
            self.ledger,
            self.clock,
            self.random,
            self.reconciler.soon,
            self.reconciler.ask,
            self.reconciler.prove_later,
            lambda node: self.directory.index.touch(node.address),
        )
        self.reconciler.flights = self.flights
        self.reconciler.walk_ins = self.walk_ins
        self.directory.on_found = self._found
        self._draw = Random(int.from_bytes(self.random(8), "big"))  # noqa: S311 - a draw, no secret

    async def start(self) -> None:
        """Find nodes, read channels, ask for the receipts that an earlier run left open."""
        await self.treasury.refresh()
        if self.remembered is not None:
            self.remembered.load()
        await self.directory.start()
        if self.remembered is not None:
            self.remembered.start(self.directory.nodes.values)
        await self.reconciler.recover(list(self.directory.nodes.values()), self.treasury)

    def _found(self, node: KnownNode) -> None:
        """A node that appears: it may be known, and hold receipts of an earlier run."""
        if self.remembered is not None and self.remembered.recall(node):
            self.directory.index.touch(node.address)
        channel = self.treasury.known(node.address)
        if channel is not None and self.reconciler.owes(channel):
            self.reconciler.soon(node, channel)

    async def close(self) -> None:
        """Stop; what is in flight is cut."""
        self.routes.flush()
        await self.reconciler.close()
        if self.remembered is not None:
            await self.remembered.close(self.directory.nodes.values())
        await self.directory.close()

    # -- the path of a request ------------------------------------------------------------------

    async def chat(self, request: HttpRequest, body: bytes, caller: Caller) -> None:
        """`POST /v1/chat/completions`. A caller that leaves ends the work at its node."""
        await self._text(request, ChatRequest.parse(body), caller)

    async def complete(self, request: HttpRequest, body: bytes, caller: Caller) -> None:
        """`POST /v1/completions`: the same for a plain prompt."""
        await self._text(request, CompletionRequest.parse(body), caller)

    async def _text(self, request: HttpRequest, parsed: Parsed, caller: Caller) -> None:
        if parsed.resume:
            raise BadRequest("resume is for gateways.", param="inferpool.resume")
        prompt = blocks(texts(parsed))
        preferences = _preferences(request, parsed.preferences)
        if parsed.choices > 1:
            await choices.serve(self, request, parsed, caller, prompt, preferences)
            return
        route = self.route(parsed.job, caller, prompt, preferences)
        try:
            async with self.hold(caller, route) as hold:
                answer = self._answer(request, parsed, hold)
                seed = self.seed(parsed.seed)
                run = TextRun(self, answer, parsed, hold, seed, prompt, preferences)
                work = asyncio.create_task(run.run(hold.candidates))
                left = asyncio.create_task(request.disconnected())
                try:
                    await asyncio.wait([work, left], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await stop_task(left)
                    work.cancel()
                    await asyncio.wait([work])
                signed = run.delivered.signed is not None
                hold.complete = run.delivered.finish is not None and signed
                if not work.cancelled():
                    work.result()
        except InferpoolError as error:  # before the client had anything: what it cost is ours
            if caller.walk_in is None and error.request_id:
                await self.forgive(caller, [error.request_id])
            raise

    def _answer(self, request: HttpRequest, parsed: Parsed, hold: Hold) -> Answer:
        created_s, form = self.clock.now_ms() // 1000, form_of(parsed)
        tells = parsed.top_logprobs is not None
        if parsed.stream:
            return StreamedAnswer(
                request,
                hold.client_id,
                parsed.model,
                created_s,
                form,
                include_usage=parsed.include_usage,
                tells=tells,
                walk_in=hold.caller.walk_in,
            )
        return WholeAnswer(request, hold.client_id, parsed.model, created_s, form, tells=tells)

    async def infer(self, model: str, request: HttpRequest, body: bytes, caller: Caller) -> None:
        """`POST /v2/models/M/infer`: the body passes as it came."""
        length = request.headers.get(headers.INFERENCE_HEADER_LENGTH)
        parsed = InferRequest.parse(model, body, length)
        errand = relay.tensors(parsed, body, length, request.headers, _preferences(request))
        answer, extra = await relay.run(self, errand, caller)
        await request.answer(200, answer, extra)

    async def embed(self, request: HttpRequest, body: bytes, caller: Caller) -> None:
        """`POST /v1/embeddings`."""
        parsed = EmbeddingsRequest.parse(body)
        errand = relay.hedged(relay.embeddings(parsed), request.headers)
        errand = relay.receipted(errand, request.headers)
        errand = replace(errand, preferences=_preferences(request, parsed.preferences))
        answer = await request.while_here(relay.run(self, errand, caller))
        await request.answer(200, *answer)

    async def transcribe(self, request: HttpRequest, body: bytes, caller: Caller) -> None:
        """`POST /v1/audio/transcriptions`: the form passes as it came."""
        form = request.headers.get(b"content-type", b"")
        parsed = TranscriptionRequest.parse(body, form)
        errand = relay.transcription(parsed, body, form, await length_ms(parsed.audio))
        errand = relay.receipted(errand, request.headers)
        errand = replace(errand, preferences=_preferences(request))
        answer = await request.while_here(relay.run(self, errand, caller))
        await request.answer(200, *answer)

    async def draw(self, request: HttpRequest, body: bytes, caller: Caller) -> None:
        """`POST /v1/images/generations`."""
        parsed = ImagesRequest.parse(body)
        model = parsed.model or self._cheapest(Task.IMAGE)
        seeded = replace(parsed, model=model, seed=self.seed(parsed.seed), stream=False)
        errand = relay.receipted(relay.images(seeded), request.headers)
        errand = replace(errand, preferences=_preferences(request, parsed.preferences))
        whole, extra = await request.while_here(relay.run(self, errand, caller))
        if not parsed.stream:
            await request.answer(200, whole, extra)
            return
        try:
            found = images.events(whole)
        except (ValueError, LookupError, TypeError):
            message = "The node's answer holds no images; its receipt is in the headers."
            raise Unavailable(message, code="node_failed") from None
        kept = [item for item in extra if item[0] != b"content-type"]
        await request.answer(200, b"".join(map(event, found)), [*EVENT_STREAM, *kept])

    def _cheapest(self, task: Task) -> str:
        """The model to take where a request may name none. Raises BadRequest(model_not_found)."""
        prices = [
            (
                service.price_in_pico_usd_per_unit + service.price_out_pico_usd_per_unit,
                service.model,
            )
            for service, _ in self.models()
            if service.task is task
        ]
        if not prices:
            message = f"No node offers a model for {task.value} now."
            raise BadRequest(message, code="model_not_found", param="model")
        return min(prices)[1]

    # -- the steps -------------------------------------------------------------------------------

    def route(
        self,
        job: Job,
        caller: Caller,
        prompt: Blocks = (),
        preferences: RoutePreferences = NO_PREFERENCES,
        *,
        tallied: bool = True,
    ) -> Route:
        """Candidates that a caller may use and pay.

        Raises Unauthorized, BadRequest, Unavailable.
        """
        caller.check_model(job.model)
        caller.account.at(self.clock.now_ms())
        free = caller.free_pico_usd
        try:
            return self.choose(job, caller, free, prompt, preferences, tallied=tallied)
        except BadRequest as error:
            if error.code == "model_not_found":
                self.directory.unmet.note(job.model, self.clock.now_ms())
            raise

    def choose(
        self,
        job: Job,
        caller: Caller | None = None,
        free_pico_usd: int | None = None,
        prompt: Blocks = (),
        preferences: RoutePreferences = NO_PREFERENCES,
        *,
        tallied: bool = True,
    ) -> Route:
        """Candidates for a job, in the order to try. Raises BadRequest, Unavailable."""
        now = self.clock.now_ms()
        free = None if free_pico_usd is None else without_fee(free_pico_usd, self.fee_bps)
        theirs = caller.allows(job, now) if caller is not None else None
        wanted = Wanted(
            now,
            value_of_time(preferences, self.value_of_time_pico_usd_per_s),
            free,
            prompt,
            both(theirs, allows(preferences, job, now)),
            preferences.order,
        )
        route = choose(job, self.directory.index, wanted, self._draw, self.prefixes)
        route.candidates = arrange(route.candidates, preferences)
        if not route.candidates:
            raise Unavailable("None of provider.order takes this now.", code="no_node")
        if tallied:
            tally(route.candidates)
        return route

    def hold(self, caller: Caller, route: Route) -> _Holding:
        """While a request is served: its hold on the budget.

        Reserves the first candidate's maximum that the budget covers, and more where a dearer one
        is tried; settles on what was delivered. Raises PaymentRequired where it covers none,
        RateLimited where the tokens that are expected are too many.

        Where an attempt is still unresolved when the request ends without a final bill (the client
        left, the pipe was cut), the hold stays until the reconciler has the receipt or knows that
        there is none.
        """
        return _Holding(self, caller, route)

    async def begin(self, caller: Caller, route: Route) -> Hold:
        """Reserve for a request, and count what it may use."""
        if caller.walk_in is not None:
            await caller.walk_in.pay(route, self.fee_bps)
        now_ms = self.clock.now_ms()
        client_id = "req_" + unique(now_ms, self.random).hex()
        try:
            hold = await self._held(caller, route, client_id)
            hold.expected_units = route.units_in + route.units_out
            await caller.take_tokens(hold.expected_units, now_ms)
        except BaseException:
            await asyncio.shield(self._end(caller, client_id))
            raise
        self.note(hold, route)
        caller.client_ids.append(client_id)
        self.flights.serving.add(client_id)
        return hold

    async def end(self, hold: Hold, error: BaseException | None) -> None:
        """A request is over; `error`: where it ended by one."""
        caller, client_id = hold.caller, hold.client_id
        walk_in = caller.walk_in
        if isinstance(error, InferpoolError):
            error.request_id = client_id
            if walk_in is not None:
                walk_in.failed = True
        self.flights.serving.discard(client_id)
        caller.correct_tokens(hold.units - hold.expected_units)
        # A walk-in that was told an error pays nothing, whatever its nodes charge later.
        forgiven = walk_in is not None and walk_in.failed
        if hold.complete or forgiven or not self.flights.pending(client_id):
            if walk_in is None:
                self.free(caller.account, client_id)
            else:
                await asyncio.shield(self._end(caller, client_id))
        elif walk_in is not None and self.walk_ins is not None:
            self.walk_ins.waiting[client_id] = walk_in

    async def _held(self, caller: Caller, route: Route, client_id: str) -> Hold:
        account, bps = caller.account, self.fee_bps
        free, covered = caller.free_pico_usd, route.candidates
        if free is not None:
            free = without_fee(free, bps)
            covered = [c for c in route.candidates if c.maximum_pico_usd <= free]
        most = (
            min(c.maximum_pico_usd for c in route.candidates)
            if not covered
            else (covered[0].maximum_pico_usd)
        )
        with_fee = most + fee_up(most, bps)
        shared = caller.shared
        if shared is not None and not await shared.reserve(account, client_id, with_fee):
            raise account.refusal(account.tightest_purse, with_fee)
        try:
            account.hold(client_id.encode(), with_fee)
        except PaymentRequired:
            self.free(account, client_id)
            raise
        return Hold(client_id, caller, covered, most, fee_bps=bps)

    async def _end(self, caller: Caller, client_id: str) -> None:
        self.free(caller.account, client_id)
        if caller.walk_in is not None:
            await caller.walk_in.settle(Outcome.CANCELLED)

    def free(self, account: Account, client_id: str) -> None:
        """End a hold, here and in the common book."""
        account.release(client_id.encode())
        if self.shared is not None:
            self.shared.release(account, client_id)

    def note(self, hold: Hold, route: Route) -> None:
        """Keep the trace of a request's choice."""
        self.routes.note(hold.client_id, hold.choices, hold.caller.account.name, route)
        hold.choices += 1

    async def bill(
        self, flight: Flight, hold: Hold, billed_pico_usd: int, *, delivered: bool = False
    ) -> None:
        """Bill the client for a settled attempt and make all of it durable in one unit.

        Raises Unavailable where the database stays away: the client is told so, and not billed
        for what it was not given. What was `delivered` is booked when the database is back.
        """
        record, account = flight.record, hold.caller.account
        account.at(self.clock.now_ms())
        record.billed_pico_usd = billed_pico_usd
        record.fee_pico_usd = fee_down(billed_pico_usd, self.fee_bps)
        hold.fee_pico_usd += record.fee_pico_usd
        hold.units += record.prompt_units + record.output_units
        account.spend(hold.client_id.encode(), billed_pico_usd + record.fee_pico_usd)
        if hold.caller.walk_in is not None:
            signed = SignedReceipt.unpack(record.receipt)
            hold.caller.walk_in.bill(signed, billed_pico_usd + record.fee_pico_usd)
        self.metrics.settled(record)
        saved = self.flights.save(flight, hold.caller.account_id)
        try:
            await self._written.wait(saved)
        except TimeoutError:
            if not delivered:
                account.refund(billed_pico_usd + record.fee_pico_usd)
                record.billed_pico_usd = record.fee_pico_usd = 0
                self.flights.save(flight, hold.caller.account_id)
            raise Unavailable(
                "The answer is there and its bill cannot be written: it is not billed.",
                code="ledger_unavailable",
                retry_after_s=1,
            ) from None

    async def forgive(self, caller: Caller, client_ids: list[str]) -> None:
        """Bill nothing for requests whose caller was told nothing: what they cost is our own."""
        forgiven = self.flights.forgiven
        for client_id in client_ids:
            if client_id in self.flights.serving or self.flights.pending(client_id):
                forgiven.add(client_id)  # a receipt that comes late is nobody's bill
                asyncio.get_running_loop().call_later(FORGIVE_S, forgiven.discard, client_id)
            await self.ledger.settled()
            for record in self.ledger.attempts_of(client_id):
                billed = record.billed_pico_usd + record.fee_pico_usd
                if billed:
                    caller.account.refund(billed)
                    record.billed_pico_usd = record.fee_pico_usd = 0
                    await self.ledger.save_attempt(record, None, caller.account_id)

    def seed(self, seed: int | None) -> int:
        """The caller's seed, or one drawn for it."""
        return int.from_bytes(self.random(_SEED_BYTES), "big") if seed is None else seed

    def models(self) -> list[tuple[Service, list[KnownNode]]]:
        """Every model that a living node serves, with those nodes."""
        now = self.clock.now_ms()
        found: dict[str, tuple[Service, list[KnownNode]]] = {}
        for node in self.directory.nodes.values():
            if node.alive(now):
                for service in node.offer.services:
                    found.setdefault(service.model, (service, []))[1].append(node)
        return list(found.values())


class _Holding:
    """The context of `Gateway.hold`."""

    __slots__ = ("_caller", "_gateway", "_hold", "_route")

    def __init__(self, gateway: Gateway, caller: Caller, route: Route) -> None:
        self._gateway, self._caller, self._route = gateway, caller, route
        self._hold: Hold | None = None

    async def __aenter__(self) -> Hold:
        self._hold = hold = await self._gateway.begin(self._caller, self._route)
        return hold

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._hold is not None, "it was entered"
        await self._gateway.end(self._hold, error)


def _preferences(
    request: HttpRequest, found: RoutePreferences = NO_PREFERENCES
) -> RoutePreferences:
    """The body's, else the header's."""
    if found is not NO_PREFERENCES and found != NO_PREFERENCES:
        return found
    return preferences_of(request.headers.get(headers.PROVIDER))
