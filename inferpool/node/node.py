"""The node: what happens to a paid request, in order. No sockets here: `app` has the routes."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from inferpool.clock import Clock
from inferpool.engines.base import TensorEngine
from inferpool.identity.signing import Key, verify
from inferpool.node import text_run, whole
from inferpool.node.metrics import NodeMetrics
from inferpool.node.offers import OfferBook
from inferpool.node.services import Hosted, Services
from inferpool.node.tensors import check_outputs, read_inputs, write_answer
from inferpool.node.work import Work, sign_receipt
from inferpool.payments.chains import ReceiptChain
from inferpool.payments.gate import PaymentGate, identify
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.payments.receipts_page import receipts_page
from inferpool.protocol import headers
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.completion import CompletionRequest
from inferpool.protocol.encoding import from_hex, sha256
from inferpool.protocol.errors import BadRequest, PaymentRequired, Unavailable
from inferpool.protocol.evidence import Evidence, evidence_request_digest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.lease import Lease
from inferpool.protocol.limits import CHAINED_UNITS_MAX, EVIDENCE_KEPT_MAX, EVIDENCE_KEPT_MS
from inferpool.protocol.offer import Offer, Service
from inferpool.protocol.oip import InferRequest
from inferpool.protocol.price import amount, exact_pico_usd, maximum_usage
from inferpool.protocol.receipt import Outcome, SignedReceipt
from inferpool.protocol.usage import Usage
from inferpool.transport.asgi import HttpRequest
from inferpool.transport.base import Headers

_SEED_MASK: Final = 2**32 - 1
_LOADING_S: Final = 3  # after which a caller of a model that is out of memory asks again


@dataclass(slots=True)
class Asked:
    """A request as it was checked; `most`: its maximum, `units`: the same in base units."""

    own: bool
    request_id: bytes
    offer: Offer
    offer_hash: bytes
    service: Service
    most: Usage
    units: int


@dataclass(slots=True)
class Admission:
    """A place and a hold, for as long as the block runs: see `Node.admit`."""

    node: Node
    request: HttpRequest
    hosted: Hosted
    job: Job
    body: bytes
    seed: int | None
    _request_id: bytes = b""
    _work: Work | None = None

    async def __aenter__(self) -> Work:
        node, asked = self.node, self.node.check(self.request, self.hosted, self.job)
        if self.hosted.cold:
            await node.want(self, asked)
        self.hosted.take_place()
        self.hosted.used_ms = node.clock.now_ms()
        self._request_id = asked.request_id
        node.running.add(asked.request_id)
        try:
            self._work = await node.start(self, asked)
        except BaseException:
            self._leave()
            raise
        return self._work

    async def __aexit__(self, *raised: object) -> None:
        work = self._work
        assert work is not None, "left as it was entered"
        try:
            if work.signed is None:
                work.channel.release(work.request_id)
        finally:
            self._leave()

    def _leave(self) -> None:
        self.node.running.discard(self._request_id)
        self.hosted.leave_place()
        self.hosted.used_ms = self.node.clock.now_ms()


@dataclass(slots=True)
class Node:
    """Everything that a node is made of; each part comes from outside."""

    key: Key
    services: Services
    offers: OfferBook
    gate: PaymentGate
    ledger: PayeeLedger
    clock: Clock
    random: Callable[[int], bytes] = secrets.token_bytes
    draining: bool = False  # the process ends
    withheld: str = ""  # why nothing is offered now: the owner's wish, in words
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # what is offered changed
    metrics: NodeMetrics = field(init=False)
    running: set[bytes] = field(default_factory=set)  # request ids, admitted and not ended
    _chains: dict[bytes, ReceiptChain] = field(default_factory=dict)  # by channel, of this run
    _evidence: OrderedDict[bytes, tuple[int, Evidence, bytes]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.metrics = NodeMetrics(self.services, self.ledger)

    # -- the path of a request ------------------------------------------------------------------

    async def chat(self, request: HttpRequest, body: bytes) -> None:
        """`POST /v1/chat/completions`: admit, run, meter, sign, answer."""
        await text_run.serve(self, request, body, ChatRequest.parse(body))

    async def complete(self, request: HttpRequest, body: bytes) -> None:
        """`POST /v1/completions`: the same for a plain prompt."""
        await text_run.serve(self, request, body, CompletionRequest.parse(body))

    async def embed(self, request: HttpRequest, body: bytes) -> None:
        """`POST /v1/embeddings`."""
        await whole.embed(self, request, body)

    async def transcribe(self, request: HttpRequest, body: bytes) -> None:
        """`POST /v1/audio/transcriptions`."""
        await whole.transcribe(self, request, body)

    async def draw(self, request: HttpRequest, body: bytes) -> None:
        """`POST /v1/images/generations`."""
        await whole.draw(self, request, body)

    async def infer(self, request: HttpRequest, model: str, body: bytes) -> None:
        """`POST /v2/models/M/infer`: one batch of tensors."""
        length = request.headers.get(headers.INFERENCE_HEADER_LENGTH)
        parsed = InferRequest.parse(model, body, length)
        hosted = self.services.find(model, Task.TENSOR)
        engine: TensorEngine = hosted.engine
        job, loop = parsed.job, asyncio.get_running_loop()
        ready = engine.ready()  # before it was loaded once, nobody knows what it takes
        if ready:
            inputs = read_inputs(parsed, engine.inputs)
            check_outputs(parsed, engine.outputs)
        async with self.admit(request, hosted, job, body, 0) as work:  # nothing here is drawn
            if not ready:  # it was loaded meanwhile
                inputs = read_inputs(parsed, engine.inputs)
                check_outputs(parsed, engine.outputs)
            begun = loop.time()
            outputs = await engine.infer(inputs, job.rows)
            spent_ms = 1000 * (loop.time() - begun)
            hosted.pace.add(spent_ms, spent_ms, 1)
            work.prompt_units = job.rows
            answer, extra = write_answer(parsed, outputs)
            await self.answer(request, work, answer, extra)

    def admit(
        self, request: HttpRequest, hosted: Hosted, job: Job, body: bytes, seed: int | None
    ) -> Admission:
        """Check and hold the payment; what leaves without a receipt owes nothing.

        Entering it raises PaymentNeeded, BadRequest, Unavailable.
        """
        return Admission(self, request, hosted, job, body, seed)

    def check(self, request: HttpRequest, hosted: Hosted, job: Job) -> Asked:
        """Everything that a request must be before its payment is looked at.

        Raises PaymentRequired, BadRequest, Unavailable.
        """
        if self.draining:
            raise Unavailable("This node is going down.", code="shutting_down", retry_after_s=5)
        if self.withheld:
            raise Unavailable(f"This node takes no work now: {self.withheld}.", retry_after_s=30)
        own, request_id = identify(request.headers, self.random)
        offer, offer_hash = self._accepted(request, own)
        service = self.offers.sold(offer, offer_hash, job.model)
        if service is None and hosted.open:
            raise PaymentRequired(
                f"The offer that was taken does not sell {job.model!r};"
                " fetch /.well-known/inferpool/offer.",
                code="payment_terms",
            )
        service = service or hosted.service()  # not ready: refused below, in those words
        hosted.check(job)
        if request_id in self.running or self.ledger.receipted(request_id):
            raise BadRequest(
                "This request id was used before; each attempt needs its own.",
                code="duplicate_request",
            )
        most = maximum_usage(job, service)
        units = amount(exact_pico_usd(most, service), offer.terms.asset_decimals)
        return Asked(own, request_id, offer, offer_hash, service, most, units)

    async def start(self, admission: Admission, asked: Asked) -> Work:
        """Hold the payment of a request that has its place. Raises PaymentNeeded."""
        request = admission.request
        channel = await self._pay(request, asked.request_id, asked.units, own=asked.own)
        return Work(
            request_id=asked.request_id,
            request_hash=sha256(admission.body),
            offer=asked.offer,
            offer_hash=asked.offer_hash,
            service=asked.service,
            maximum_usage=asked.most,
            channel=channel,
            seed=self._seed(admission.seed),
            own=asked.own,
            started_ms=self.clock.now_ms(),
            chained=asked.own and self._chained(request, asked.units),
        )

    async def want(self, admission: Admission, asked: Asked) -> NoReturn:
        """Note that a model which is out of memory is asked for by somebody who can pay.

        Raises Unavailable, PaymentNeeded. A caller who cannot pay turns nobody out of memory.
        """
        channel = await self._pay(admission.request, asked.request_id, asked.units, own=asked.own)
        channel.release(asked.request_id)
        admission.hosted.wanted_ms = self.clock.now_ms()
        raise Unavailable(
            f"{admission.hosted.manifest.name} left this node's memory to others; it is loaded"
            " again where there can be room. Ask again in a moment.",
            code="engine_unavailable",
            retry_after_s=_LOADING_S,
        )

    def _accepted(self, request: HttpRequest, own: bool) -> tuple[Offer, bytes]:
        value = request.headers.get(headers.OFFER)
        if own and value is not None:
            try:
                offer_hash = from_hex(value.decode(), 32)
            except ValueError as error:
                raise BadRequest(f"Inferpool-Offer: {error}.") from None
            return self.offers.accepted(offer_hash), offer_hash
        offer = self.offers.current().offer
        return offer, self.offers.digest

    def _chained(self, request: HttpRequest, units: int) -> bool:
        wanted = request.headers.get(headers.RECEIPTS) == headers.CHAINED
        return wanted and units <= CHAINED_UNITS_MAX and self.gate.terms.window > 1

    def _seed(self, seed: int | None) -> int:
        if seed is None:
            return int.from_bytes(self.random(4), "big")
        return seed & _SEED_MASK

    async def _pay(
        self, request: HttpRequest, request_id: bytes, units: int, *, own: bool
    ) -> PayeeChannel:
        header = request.headers.get(headers.PAYMENT_SIGNATURE)
        try:
            if header is None:
                raise self.gate.unpaid(units)
            booked = request.headers.get(headers.BOOKED, b"") if own else b""
            now_ms = self.clock.now_ms()
            return await self.gate.admit(header, request_id, units, booked, now_ms)
        except PaymentRequired as error:
            raise self.gate.needed(error, units, request.path) from None

    # -- answers ---------------------------------------------------------------------------------

    async def answer(self, request: HttpRequest, work: Work, body: bytes, extra: Headers) -> None:
        """Sign for a whole answer and send it."""
        work.answer_hash.update(body)
        chain = None
        if work.chained and not work.ids:  # evidence takes a receipt of its own
            channel_id = work.channel.channel_id
            chain = self._chains.get(channel_id)
            if chain is None:
                chain = self._chains[channel_id] = ReceiptChain()
        await self.finish(work, Outcome.COMPLETE, chain)
        await request.answer(200, body, [*extra, *self.answer_headers(work)])

    async def finish(self, work: Work, outcome: Outcome, chain: ReceiptChain | None = None) -> None:
        """Sign and keep the receipt, and the evidence for a while."""
        await sign_receipt(work, self.key, self.ledger, self.clock, outcome, chain)
        self.metrics.finished(work, outcome)
        evidence = work.evidence()
        if evidence is not None:
            payer = work.channel.config.payer_authorizer
            self._evidence[work.request_id] = (self.clock.now_ms(), evidence, payer)
            while len(self._evidence) > EVIDENCE_KEPT_MAX:
                self._evidence.popitem(last=False)

    def answer_headers(self, work: Work) -> list[tuple[bytes, bytes]]:
        """What tells the payer the charge: x402's header, and ours where it is signed; or ours
        alone, for a payer that asked for chained receipts."""
        if work.short is not None:
            return [(headers.CHAINED_RECEIPT, work.short.header())]
        response = self.gate.response(work.channel, work.reported)
        found = [(headers.PAYMENT_RESPONSE, response)]
        if work.signed is not None:
            found.append((headers.RECEIPT, work.signed.header()))
        return found

    # -- what others may ask ---------------------------------------------------------------------

    def offered(self) -> list[Service]:
        """What an offer may name now: nothing while the owner withholds the machine."""
        return [] if self.draining or self.withheld else self.services.offered()

    @property
    def busy(self) -> int:
        """Requests that were admitted and have not ended."""
        return len(self.running)

    def announce(self) -> None:
        """Sign an offer for what is served now, and tell it to everyone who follows the lease."""
        self.offers.current()
        before, self.changed = self.changed, asyncio.Event()
        before.set()

    def lease(self) -> Lease:
        """What the node can take now."""
        paces = [item.pace for item in self.services.hosted if item.pace.first_unit_ms]
        slowest = max(paces, key=lambda pace: pace.first_unit_ms, default=None)
        waiting = sum(max(0, item.running - item.slots) for item in self.services.hosted)
        first_ms = int(slowest.first_unit_ms) if slowest else 0
        return Lease(
            epoch=self.offers.epoch,
            sequence=self.offers.sequence,
            free_slots=0 if self.draining or self.withheld else self.services.free_slots,
            expected_wait_ms=waiting * first_ms,
            first_unit_ms=first_ms,
            unit_us=int(slowest.unit_us) if slowest else 0,
        )

    def receipts(self, request: HttpRequest) -> dict[str, object]:
        """A page of a channel's receipts, for its payer only. Raises BadRequest, Refused."""
        return receipts_page(self.ledger, self.key, request.query, request.headers, self._signed)

    def _signed(self, receipts: list[SignedReceipt]) -> list[SignedReceipt]:
        """Chained ones get a signature of their own when they are asked for."""
        chain_id = self.gate.terms.chain_id
        return [
            item
            if item.signature
            else SignedReceipt(item.receipt, self.key.sign(item.receipt.digest(chain_id)))
            for item in receipts
        ]

    def evidence(self, request_id: bytes, signature: bytes) -> Evidence:
        """Evidence that is still kept, for the payer's authoriser only.

        Raises BadRequest(not_found), Refused(bad_signature).
        """
        horizon = self.clock.now_ms() - EVIDENCE_KEPT_MS
        while self._evidence and next(iter(self._evidence.values()))[0] < horizon:
            self._evidence.popitem(last=False)
        found = self._evidence.get(request_id)
        if found is None:
            raise BadRequest("No evidence is kept for this request.", code="not_found")
        _, evidence, payer = found
        digest = evidence_request_digest(self.key.address, request_id, self.gate.terms.chain_id)
        verify(digest, signature, payer)
        return evidence
