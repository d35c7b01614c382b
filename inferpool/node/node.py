"""The node: what happens to a paid request, in order. No sockets here: `app` has the routes."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import orjson

from inferpool.clock import Clock
from inferpool.engines.base import Progress, TensorEngine, TextCall
from inferpool.identity.signing import Key, verify
from inferpool.node.chat import ChatStream, Heartbeat, generate, text_call
from inferpool.node.offers import OfferBook
from inferpool.node.payment import Disagreement, PaymentGate
from inferpool.node.services import Hosted, Services
from inferpool.node.tensors import read_inputs, write_answer
from inferpool.node.work import Work, sign_receipt
from inferpool.payments import x402
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.protocol import answers, headers
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.encoding import from_hex, sha256
from inferpool.protocol.errors import BadRequest, InferpoolError, PaymentRequired, Unavailable
from inferpool.protocol.evidence import Evidence, evidence_request_digest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.lease import Lease
from inferpool.protocol.limits import EVIDENCE_KEPT_MAX, EVIDENCE_KEPT_MS
from inferpool.protocol.offer import Offer
from inferpool.protocol.oip import InferRequest
from inferpool.protocol.price import maximum, maximum_usage
from inferpool.protocol.receipt import Outcome, SignedReceipt, receipts_request_digest
from inferpool.transport.asgi import EVENT_STREAM, JSON, HttpRequest, stop_task

_SEED_MASK: Final = 2**32 - 1


class PaymentNeeded(PaymentRequired):
    """A 402 with the x402 header that lets a payer go on."""

    def __init__(self, error: PaymentRequired, header: bytes) -> None:
        super().__init__(error.message, code=error.code)
        self.header = header


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
    draining: bool = False
    _running: set[bytes] = field(default_factory=set)
    _evidence: OrderedDict[bytes, tuple[int, Evidence, bytes]] = field(default_factory=OrderedDict)

    # -- the path of a request ------------------------------------------------------------------

    async def chat(self, request: HttpRequest, body: bytes) -> None:
        """`POST /v1/chat/completions`: admit, run, meter, sign, answer."""
        parsed = ChatRequest.parse(body)
        hosted = self.services.find(parsed.model, Task.CHAT)
        async with self.admit(request, hosted, parsed.job, body, parsed.seed) as work:
            if parsed.stream:
                await self._chat_stream(request, hosted, parsed, work)
            else:
                await self._chat_whole(request, hosted, parsed, work)

    async def infer(self, request: HttpRequest, model: str, body: bytes) -> None:
        """`POST /v2/models/M/infer`: one batch of tensors."""
        length = request.headers.get(headers.INFERENCE_HEADER_LENGTH)
        parsed = InferRequest.parse(model, body, length)
        hosted = self.services.find(model, Task.TENSOR)
        engine: TensorEngine = hosted.engine
        inputs = read_inputs(parsed, engine.inputs)
        async with self.admit(request, hosted, parsed.job, body, None) as work:
            begun = asyncio.get_running_loop().time()
            outputs = await engine.infer(inputs, parsed.rows)
            spent_ms = 1000 * (asyncio.get_running_loop().time() - begun)
            hosted.pace.add(spent_ms, spent_ms, 1)
            work.prompt_units = parsed.rows
            answer, extra = write_answer(parsed, outputs)
            work.answer_hash.update(answer)
            await self._finish(work, Outcome.COMPLETE)
            await request.answer(200, answer, [*extra, *self._answer_headers(work)])

    @asynccontextmanager
    async def admit(
        self, request: HttpRequest, hosted: Hosted, job: Job, body: bytes, seed: int | None
    ) -> AsyncIterator[Work]:
        """Check and hold the payment; what leaves without a receipt owes nothing.

        Raises PaymentNeeded, BadRequest, Unavailable.
        """
        if self.draining:
            raise Unavailable("This node is going down.", code="shutting_down", retry_after_s=5)
        own, request_id = self._identify(request)
        offer, offer_hash = self._accepted(request, own)
        service = offer.service(job.model) or hosted.service()
        hosted.check(job)
        if request_id in self._running or self.ledger.receipted(request_id):
            raise BadRequest(
                "This request id was used before; each attempt needs its own.",
                code="duplicate_request",
            )
        units = maximum(job, service, offer.terms.asset_decimals)
        self._running.add(request_id)
        try:
            with hosted.place():
                channel = await self._pay(request, request_id, units)
                work = Work(
                    request_id=request_id,
                    request_hash=sha256(body),
                    offer=offer,
                    offer_hash=offer_hash,
                    service=service,
                    maximum_usage=maximum_usage(job, service),
                    channel=channel,
                    seed=self._seed(seed),
                    own=own,
                    started_ms=self.clock.now_ms(),
                )
                try:
                    yield work
                finally:
                    if work.signed is None:
                        channel.release(request_id)
        finally:
            self._running.discard(request_id)

    def _identify(self, request: HttpRequest) -> tuple[bool, bytes]:
        """Whether the payer speaks our version, and the request id: its own, or a random one."""
        version = request.headers.get(headers.VERSION)
        if version is None:
            return False, self.random(32)
        if version != headers.VERSION_SPOKEN:
            raise BadRequest("Inferpool-Version must be 1.", code="unsupported_version")
        try:
            value = request.headers.get(headers.REQUEST_ID, b"").decode()
            return True, from_hex(value, 32)
        except ValueError as error:
            raise BadRequest(f"Inferpool-Request-Id: {error}.") from None

    def _accepted(self, request: HttpRequest, own: bool) -> tuple[Offer, bytes]:
        value = request.headers.get(headers.OFFER)
        if own and value is not None:
            try:
                offer_hash = from_hex(value.decode(), 32)
            except ValueError as error:
                raise BadRequest(f"Inferpool-Offer: {error}.") from None
            return self.offers.accepted(offer_hash), offer_hash
        offer = self.offers.current().offer
        return offer, offer.digest()

    def _seed(self, seed: int | None) -> int:
        if seed is None:
            return int.from_bytes(self.random(4), "big")
        return seed & _SEED_MASK

    async def _pay(self, request: HttpRequest, request_id: bytes, units: int) -> PayeeChannel:
        header = request.headers.get(headers.PAYMENT_SIGNATURE)
        try:
            if header is None:
                raise PaymentRequired(
                    f"This request costs at most {units} base units of"
                    f" {self.gate.terms.asset_name}. Pay by x402, scheme batch-settlement: send"
                    " the header PAYMENT-SIGNATURE, made from the header PAYMENT-REQUIRED of this"
                    " answer."
                )
            return await self.gate.admit(header, request_id, units)
        except PaymentRequired as error:
            view = error.channel.view(corrective=True) if isinstance(error, Disagreement) else None
            terms = self.gate.terms
            required = x402.payment_required(terms, units, request.path, error, view)
            raise PaymentNeeded(error, required) from None

    # -- answers ---------------------------------------------------------------------------------

    async def _chat_whole(
        self, request: HttpRequest, hosted: Hosted, parsed: ChatRequest, work: Work
    ) -> None:
        texts, finish = [], "stop"
        call = text_call(parsed, hosted, work.seed)
        async for chunk in generate(hosted, call, Progress(), work):
            texts.append(chunk.text)
            finish = chunk.finish_reason or finish
        created_s = work.started_ms // 1000
        head = answers.head(work.request_id, parsed.model, work.service.engine_class, created_s)
        body = orjson.dumps(answers.whole(head, "".join(texts), finish, work.usage))
        work.answer_hash.update(body)
        await self._finish(work, Outcome.COMPLETE)
        await request.answer(200, body, [JSON, *self._answer_headers(work)])

    async def _chat_stream(
        self, request: HttpRequest, hosted: Hosted, parsed: ChatRequest, work: Work
    ) -> None:
        """Stream; whatever ends it early is still metered and receipted for what was sent."""
        extra = []
        if not work.own:
            work.reported = work.channel.report_maximum(work.request_id)
            extra = self._answer_headers(work)
        # The voucher is the money: on disk before the first byte of work that it pays leaves.
        saved = self.ledger.save_channel(work.channel)
        stream, progress = ChatStream(request, work, parsed.model), Progress()
        await saved
        await request.start([*EVENT_STREAM, *extra])
        await stream.open()
        heartbeat = Heartbeat(request, progress)
        call = text_call(parsed, hosted, work.seed)
        run = asyncio.create_task(self._run_stream(hosted, call, progress, work, stream, heartbeat))
        left = asyncio.create_task(request.disconnected())
        try:
            await asyncio.wait([run, left], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await heartbeat.stop()
            await stop_task(left)
            failure = await self._end(run)
        if isinstance(failure, InferpoolError):
            await self._finish(work, Outcome.FAILED)
            if work.own:
                await stream.close(parsed.include_usage, done=False)
            else:
                await stream.fail(failure.openai())
        elif failure is not None:
            await asyncio.shield(self._finish(work, Outcome.CANCELLED))
        else:
            await self._finish(work, Outcome.COMPLETE)
            await stream.close(parsed.include_usage)

    @staticmethod
    async def _run_stream(
        hosted: Hosted,
        call: TextCall,
        progress: Progress,
        work: Work,
        stream: ChatStream,
        heartbeat: Heartbeat,
    ) -> None:
        async for chunk in generate(hosted, call, progress, work):
            await stream.token(chunk)
            heartbeat.sent()

    @staticmethod
    async def _end(run: asyncio.Task[None]) -> BaseException | None:
        """The end of a run: None, its error, or CancelledError where the caller left."""
        run.cancel()
        await asyncio.wait([run])
        return asyncio.CancelledError() if run.cancelled() else run.exception()

    async def _finish(self, work: Work, outcome: Outcome) -> None:
        await sign_receipt(work, self.key, self.ledger, self.clock, outcome)
        evidence = work.evidence()
        if evidence is not None:
            payer = work.channel.config.payer_authorizer
            self._evidence[work.request_id] = (self.clock.now_ms(), evidence, payer)
            while len(self._evidence) > EVIDENCE_KEPT_MAX:
                self._evidence.popitem(last=False)

    def _answer_headers(self, work: Work) -> list[tuple[bytes, bytes]]:
        channel = work.channel
        response = x402.payment_response(
            self.gate.terms, channel.config.payer, channel.view(), work.reported
        )
        found = [(headers.PAYMENT_RESPONSE, response)]
        if work.signed is not None:
            found.append((headers.RECEIPT, work.signed.header()))
        return found

    # -- what others may ask ---------------------------------------------------------------------

    def lease(self) -> Lease:
        """What the node can take now."""
        paces = [item.pace for item in self.services.hosted if item.pace.first_unit_ms]
        slowest = max(paces, key=lambda pace: pace.first_unit_ms, default=None)
        waiting = sum(max(0, item.running - item.slots) for item in self.services.hosted)
        first_ms = int(slowest.first_unit_ms) if slowest else 0
        return Lease(
            epoch=self.offers.epoch,
            sequence=self.offers.sequence,
            free_slots=0 if self.draining else self.services.free_slots,
            expected_wait_ms=waiting * first_ms,
            first_unit_ms=first_ms,
            unit_us=int(slowest.unit_us) if slowest else 0,
        )

    def receipts(
        self, channel_id: bytes, after: int, signature: bytes
    ) -> tuple[list[SignedReceipt], list[bytes]]:
        """A page of a channel's receipts and the request ids in flight, for its payer only.

        Raises BadRequest(not_found), Refused(bad_signature).
        """
        channel = self.ledger.channels.get(channel_id)
        if channel is None:
            raise BadRequest("This node has no such channel.", code="not_found")
        digest = receipts_request_digest(self.key.address, channel_id, channel.chain_id)
        verify(digest, signature, channel.config.payer_authorizer)
        return self.ledger.receipts(channel_id, after), list(channel.held)

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
