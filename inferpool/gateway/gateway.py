"""The gateway: admit -> choose -> pay -> send -> watch -> (elsewhere) -> settle.

`Gateway.chat` and `Gateway.infer` read as these calls in order; each is a module beside this one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from inferpool.clock import Clock
from inferpool.gateway.directory import Directory
from inferpool.gateway.flights import Flight, Flights, OfferEnded
from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.reconcile import Reconciler
from inferpool.gateway.relay import NodeStream, StreamedAnswer, WholeAnswer
from inferpool.gateway.router import Candidate, choose
from inferpool.gateway.treasury import Treasury
from inferpool.payments.budget import Account
from inferpool.payments.checks import ReceiptInvalid
from inferpool.payments.payer_ledger import PayerLedger
from inferpool.protocol import headers
from inferpool.protocol.chat import INTEGER_SAMPLERS, SAMPLERS, ChatRequest
from inferpool.protocol.encoding import sha256, to_hex
from inferpool.protocol.errors import BadRequest, InferpoolError, PaymentRequired, Unavailable
from inferpool.protocol.job import Job
from inferpool.protocol.lifecycle import AttemptState
from inferpool.protocol.limits import (
    ANSWER_MAX,
    ATTEMPTS_MAX,
    FIRST_BYTE_TIMEOUT_S,
    STREAM_HEAD_TIMEOUT_S,
)
from inferpool.protocol.offer import Service
from inferpool.protocol.oip import InferRequest
from inferpool.protocol.receipt import Outcome, SignedReceipt
from inferpool.transport.asgi import HttpRequest, stop_task

_LOG = logging.getLogger("inferpool.gateway")
_SEED_BYTES: Final = 4
JSON_TYPE: Final = (b"content-type", b"application/json")

# After these another node is tried, as long as nothing was delivered.
RETRIED: Final = (Unavailable, PaymentRequired, ReceiptInvalid)

# Neutral sampler numbers, for models whose manifest this gateway does not have.
NEUTRAL: Final[dict[str, float]] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_k": 0,
    "min_p": 0.0,
    "repeat_penalty": 1.0,
}
assert NEUTRAL.keys() == SAMPLERS.keys(), "every sampler has a neutral value"


@dataclass(slots=True)
class Caller:
    """Who asks: an account with the hash of its key."""

    key_hash: bytes
    account: Account


@dataclass(slots=True)
class Hold:
    """The budget's reservation for one client request, settled once, on what was delivered."""

    client_id: str
    caller: Caller


@dataclass(slots=True)
class Gateway:
    """Everything that a gateway is made of; each part comes from outside.

    `sampling` gives a manifest's own sampler numbers by its 32-byte id, where known.
    """

    directory: Directory
    treasury: Treasury
    ledger: PayerLedger
    clock: Clock
    sampling: Callable[[bytes], dict[str, float]]
    random: Callable[[int], bytes] = secrets.token_bytes
    value_of_time_pico_usd_per_s: int = 0
    flights: Flights = field(init=False)
    reconciler: Reconciler = field(init=False)
    _draw: Random = field(init=False)

    def __post_init__(self) -> None:
        self.reconciler = Reconciler(self.ledger, self.clock)
        self.flights = Flights(
            self.treasury,
            self.ledger,
            self.clock,
            self.random,
            self.reconciler.soon,
            self.reconciler.ask,
        )
        self.reconciler.flights = self.flights
        self.directory.on_found = self._found
        self._draw = Random(int.from_bytes(self.random(8), "big"))  # noqa: S311 - a draw, no secret

    async def start(self) -> None:
        """Find nodes, read channels, ask for the receipts that an earlier run left open."""
        await self.treasury.refresh()
        await self.directory.start()
        await self.reconciler.recover(list(self.directory.nodes.values()), self.treasury)

    def _found(self, node: KnownNode) -> None:
        """A node that appears: it may hold receipts of an earlier run."""
        channel = self.treasury.known(node.address)
        if channel is not None and self.reconciler.owes(channel):
            self.reconciler.soon(node, channel)

    async def close(self) -> None:
        """Stop; what is in flight is cut."""
        await self.reconciler.close()
        await self.directory.close()

    # -- the path of a request ------------------------------------------------------------------

    async def chat(self, request: HttpRequest, body: bytes, caller: Caller) -> None:
        """`POST /v1/chat/completions`."""
        parsed = ChatRequest.parse(body)
        if parsed.resume:
            raise BadRequest("resume is for gateways.", param="inferpool.resume")
        candidates = self.choose(parsed.job)
        with self.hold(caller, candidates) as hold:
            kind = StreamedAnswer if parsed.stream else WholeAnswer
            created_s = self.clock.now_ms() // 1000
            answer = kind(request, hold.client_id, parsed.model, created_s)
            run = asyncio.create_task(self._chat(answer, parsed, candidates, hold))
            left = asyncio.create_task(request.disconnected())
            try:
                await asyncio.wait([run, left], return_when=asyncio.FIRST_COMPLETED)
            finally:
                await stop_task(left)
                run.cancel()
                await asyncio.wait([run])
            if not run.cancelled():
                run.result()

    async def _chat(
        self,
        answer: StreamedAnswer | WholeAnswer,
        parsed: ChatRequest,
        candidates: list[Candidate],
        hold: Hold,
    ) -> None:
        last: InferpoolError = Unavailable("No node was tried.", code="no_node")
        async for candidate in self._tries(parsed.job, candidates):
            try:
                await self._chat_attempt(answer, parsed, candidate, hold)
            except RETRIED as error:
                _LOG.warning("%s: attempt failed: %s", hold.client_id, error.message)
                last = error
                if answer.delivered:
                    break
                await self._look_again(candidate.node, error)
            else:
                return
        if answer.delivered:
            await answer.fail(last)
            return
        raise _as_ours(last)

    async def _chat_attempt(
        self,
        answer: StreamedAnswer | WholeAnswer,
        parsed: ChatRequest,
        candidate: Candidate,
        hold: Hold,
    ) -> None:
        seed = self._seed(parsed.seed)
        sent = self._explicit(parsed, candidate.service, seed)
        account = hold.caller.account.name
        async with self.flights.open(candidate, sent.job, hold.client_id, account, seed) as flight:
            body = sent.encode()
            response = await self.flights.send(
                flight, "/v1/chat/completions", [JSON_TYPE], body, STREAM_HEAD_TIMEOUT_S
            )
            stream = NodeStream(response)
            await answer.begin(flight.node.address, candidate.service.engine_class)
            async for chunk in stream.chunks():
                if flight.record.state is AttemptState.SENT:
                    flight.record.move(AttemptState.STREAMING)
                    flight.record.first_ms = self.clock.now_ms()
                await answer.chunk(chunk)
            assert stream.signed is not None, "a stream ends with its receipt"
            await self._settle(flight, stream.signed, stream.answer_hash, stream.output_units, hold)
            if stream.signed.receipt.outcome is not Outcome.COMPLETE or stream.finish is None:
                raise Unavailable("The node's engine failed in the middle.", code="engine_failed")
            await answer.end(stream.finish, stream.signed, include_usage=parsed.include_usage)

    async def infer(self, request: HttpRequest, model: str, body: bytes, caller: Caller) -> None:
        """`POST /v2/models/M/infer`: the body passes as it came."""
        length = request.headers.get(headers.INFERENCE_HEADER_LENGTH)
        parsed = InferRequest.parse(model, body, length)
        candidates = self.choose(parsed.job)
        extra = [(headers.INFERENCE_HEADER_LENGTH, length)] if length is not None else [JSON_TYPE]
        last: InferpoolError = Unavailable("No node was tried.", code="no_node")
        with self.hold(caller, candidates) as hold:
            async for candidate in self._tries(parsed.job, candidates):
                try:
                    answer = await self._infer_attempt(candidate, parsed.job, extra, body, hold)
                except RETRIED as error:
                    _LOG.warning("%s: attempt failed: %s", hold.client_id, error.message)
                    last = error
                    await self._look_again(candidate.node, error)
                else:
                    await request.answer(200, *answer)
                    return
            raise _as_ours(last)

    async def _infer_attempt(
        self,
        candidate: Candidate,
        job: Job,
        extra: list[tuple[bytes, bytes]],
        body: bytes,
        hold: Hold,
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        account = hold.caller.account.name
        async with self.flights.open(candidate, job, hold.client_id, account, 0) as flight:
            path = f"/v2/models/{candidate.service.model}/infer"
            response = await self.flights.send(flight, path, extra, body, FIRST_BYTE_TIMEOUT_S)
            answer = await response.read(ANSWER_MAX)
            value = response.header(headers.RECEIPT)
            if value is None:
                raise Unavailable("The node sent no receipt.", code="receipt_invalid")
            signed = SignedReceipt.from_header(value)
            await self._settle(flight, signed, sha256(answer), 0, hold)
            kept = [
                (name, found)
                for name, found in response.headers
                if name in (b"content-type", headers.INFERENCE_HEADER_LENGTH)
            ]
            charge = str(signed.receipt.charge_pico_usd).encode()
            ours = [
                (b"x-request-id", hold.client_id.encode()),
                (headers.NODE, to_hex(flight.node.address).encode()),
                (headers.COST, charge),
                (headers.RECEIPT, value),
            ]
            return answer, [*kept, *ours]

    # -- the steps -------------------------------------------------------------------------------

    def choose(self, job: Job) -> list[Candidate]:
        """Candidates for a job, in the order to try."""
        return choose(
            job,
            self.directory.nodes.values(),
            now_ms=self.clock.now_ms(),
            value_of_time_pico_usd_per_s=self.value_of_time_pico_usd_per_s,
            random=self._draw,
        )

    async def _tries(self, job: Job, candidates: list[Candidate]) -> AsyncIterator[Candidate]:
        """Each node once; and once more the one whose offer had ended, under its new offer."""
        tried: set[tuple[bytes, bytes]] = set()
        for _ in range(ATTEMPTS_MAX):
            fresh = [c for c in candidates if (c.node.address, c.node.offer_hash) not in tried]
            if not fresh:
                return
            tried.add((fresh[0].node.address, fresh[0].node.offer_hash))
            yield fresh[0]
            try:
                candidates = self.choose(job)
            except (Unavailable, BadRequest):
                return

    async def _look_again(self, node: KnownNode, error: InferpoolError) -> None:
        """Fetch a node's offer anew where that is what failed."""
        if isinstance(error, OfferEnded):
            node.blocked_until_ms = 0
            await self.directory.look(node)

    @contextmanager
    def hold(self, caller: Caller, candidates: list[Candidate]) -> Iterator[Hold]:
        """Reserve the dearest candidate's maximum; settle on what was charged, whatever happens.

        Where an attempt is still unresolved when the request ends (the client left, the pipe was
        cut), the hold stays until the reconciler has the receipt or knows that there is none.
        """
        client_id = "req_" + self.random(12).hex()
        most = max(candidate.maximum_pico_usd for candidate in candidates[:ATTEMPTS_MAX])
        caller.account.hold(client_id.encode(), most)
        hold = Hold(client_id, caller)
        try:
            yield hold
        finally:
            if not self.flights.pending(client_id):
                caller.account.release(client_id.encode())

    async def _settle(
        self,
        flight: Flight,
        signed: SignedReceipt,
        response_hash: bytes,
        output_units: int,
        hold: Hold,
    ) -> None:
        """Check, book, and make durable; only then may the client hear of the end."""
        self.flights.settle(flight, signed, response_hash, output_units)
        charge = signed.receipt.charge_pico_usd
        hold.caller.account.spend(hold.client_id.encode(), charge)
        await self.flights.save(flight, hold.caller.key_hash)

    def _seed(self, seed: int | None) -> int:
        return int.from_bytes(self.random(_SEED_BYTES), "big") if seed is None else seed

    def _explicit(self, parsed: ChatRequest, service: Service, seed: int) -> ChatRequest:
        """The request with every number in it, always asked for as a stream."""
        numbers = {**NEUTRAL, **self.sampling(service.manifest), **parsed.sampling}
        return replace(
            parsed,
            model=service.model,
            max_output=parsed.max_output or service.default_max_output,
            sampling={
                name: int(numbers[name]) if name in INTEGER_SAMPLERS else numbers[name]
                for name in SAMPLERS
            },
            seed=seed,
            stream=True,
            include_usage=True,
        )

    def models(self) -> list[tuple[Service, list[KnownNode]]]:
        """Every model that a living node serves, with those nodes."""
        now = self.clock.now_ms()
        found: dict[str, tuple[Service, list[KnownNode]]] = {}
        for node in self.directory.nodes.values():
            if node.alive(now):
                for service in node.offer.services:
                    found.setdefault(service.model, (service, []))[1].append(node)
        return list(found.values())


def _as_ours(error: InferpoolError) -> InferpoolError:
    """A node's refusal of *our* payment is no 402 for the client: it owes nothing."""
    if isinstance(error, PaymentRequired) and error.code != "budget_exceeded":
        return Unavailable(f"No node took this gateway's payment: {error.message}", code="no_node")
    return error
