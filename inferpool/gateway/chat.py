"""One text request through the gateway: as many legs as it takes, one answer for the client.

A leg that fails before anything was delivered is tried elsewhere. After that another node goes on
from the token ids that were delivered: none is lost, repeated or altered. What continuing costs is
the gateway's; the client pays for one answer.
"""

from __future__ import annotations

import logging
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from inferpool.gateway.admission import Hold
from inferpool.gateway.affinity import Blocks
from inferpool.gateway.answers import Answer, Delivered
from inferpool.gateway.flights import RETRIED, Flight, OfferEnded
from inferpool.gateway.node_stream import NodeStream, Piece
from inferpool.gateway.router import Candidate
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.completion import CompletionRequest
from inferpool.protocol.errors import BadRequest, InferpoolError, PaymentRequired, Unavailable
from inferpool.protocol.forms import form_of
from inferpool.protocol.lifecycle import AttemptState
from inferpool.protocol.limits import (
    ATTEMPTS_MAX,
    HELD_UNITS_MAX,
    READER_STALL_S,
    STREAM_HEAD_TIMEOUT_S,
)
from inferpool.protocol.logprobs import Tokens
from inferpool.protocol.offer import Service
from inferpool.protocol.preferences import NO_PREFERENCES, RoutePreferences
from inferpool.protocol.price import exact_pico_usd
from inferpool.protocol.receipt import Outcome, SignedReceipt
from inferpool.protocol.text import INTEGER_SAMPLERS, SAMPLERS
from inferpool.transport.asgi import ClientLeft
from inferpool.transport.base import AnswerInvalid, TransportError
from inferpool.transport.patience import within

if TYPE_CHECKING:
    from inferpool.gateway.gateway import Gateway

_LOG = logging.getLogger("inferpool.gateway")
Parsed = ChatRequest | CompletionRequest
JSON_TYPE: Final = (b"content-type", b"application/json")

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
class TextRun:
    """The legs of one answer."""

    gateway: Gateway
    answer: Answer
    parsed: Parsed
    hold: Hold
    seed: int
    prompt: Blocks = ()
    preferences: RoutePreferences = NO_PREFERENCES
    delivered: Delivered = field(default_factory=Delivered)

    async def run(self, candidates: list[Candidate]) -> None:
        """Serve the request. Raises InferpoolError where nothing was delivered."""
        last: InferpoolError = Unavailable("No node was tried.", code="no_node")
        tried: set[tuple[bytes, bytes]] = set()
        for _ in range(ATTEMPTS_MAX):
            candidate = await self._next(candidates, tried, last)
            if candidate is None:
                break
            tried.add((candidate.node.address, candidate.node.offer_hash))
            try:
                await self._leg(candidate)
            except RETRIED as error:
                _LOG.warning("%s: leg failed: %s", self.hold.client_id, error.message)
                last = error
                if isinstance(error, AnswerInvalid) and self._is_full(candidate):
                    break  # nothing is left to ask another node for
                await self._look_again(candidate, error)
                candidates = self._choose_again()
            except BadRequest as error:  # it would fail at any node
                if not self.answer.started:
                    raise
                await self.answer.fail(error)
                return
            if self.delivered.finish is not None:
                await self.hold.settle(self.delivered.usage)
                await self.answer.end(self.delivered)
                return
        if not self.answer.started:
            raise _as_ours(last)
        await self.answer.fail(last)

    def _choose_again(self) -> list[Candidate]:
        if not self.preferences.allow_fallbacks and not self.preferences.order:
            return []
        try:
            caller = self.hold.caller
            free = caller.account.free_pico_usd  # of a walk-in, its hold covers what it paid for
            free = None if free is None else free + self.hold.most_pico_usd
            route = self.gateway.choose(
                self.parsed.job, caller, free, self.prompt, self.preferences
            )
        except (Unavailable, BadRequest):
            return []
        self.gateway.note(self.hold, route)
        return route.candidates

    async def _next(
        self,
        candidates: list[Candidate],
        tried: set[tuple[bytes, bytes]],
        last: InferpoolError,
    ) -> Candidate | None:
        """The next node: one that was not tried; the same again only where its pipe broke.

        Once text was delivered, only nodes that can go on after it: same manifest, able to resume.
        A stop text may be half held back inside the dead node, and JSON or a call is held to a form
        from its beginning, so that nobody can go on. As long as the client has nothing of it, the
        answer is made again from its beginning instead.
        """
        if self.delivered.text:
            manifest = self.hold.manifest
            able = [c for c in candidates if c.service.resume and c.service.manifest == manifest]
            whole = self.parsed.in_one_piece or self.delivered.calls
            found = None if whole else await self._pick(able, tried, last)
            if found is not None or self.answer.started:
                return found
            self.delivered.forget()
            self.answer.forget()
        return await self._pick(candidates, tried, last)

    async def _pick(
        self,
        candidates: list[Candidate],
        tried: set[tuple[bytes, bytes]],
        last: InferpoolError,
    ) -> Candidate | None:
        for candidate in candidates:
            fresh = (candidate.node.address, candidate.node.offer_hash) not in tried
            if fresh and await self.hold.covers(candidate):
                return candidate
        if candidates and tried and isinstance(last, TransportError):
            return candidates[0] if await self.hold.covers(candidates[0]) else None
        return None

    async def _look_again(self, candidate: Candidate, error: InferpoolError) -> None:
        """Fetch a node's offer anew where that is what failed."""
        if isinstance(error, OfferEnded):
            candidate.node.blocked_until_ms = 0
            await self.gateway.directory.look(candidate.node)

    async def _leg(self, candidate: Candidate) -> None:
        """One attempt at one node; sets `delivered.finish` where the answer is whole."""
        sent = self._explicit(candidate.service)
        flights, delivered = self.gateway.flights, self.delivered
        account = self.hold.caller.account.name
        self.hold.manifest = candidate.service.manifest
        delivered.legs += 1
        flights.superseded(self.hold.client_id)
        if self.prompt and not candidate.warm_units:
            candidate.node.memory.missed(self.gateway.clock.now_ms())
        delivered.begin(candidate.node.address)
        async with flights.open(
            candidate, sent.job, self.hold.client_id, account, self.seed
        ) as flight:
            body = sent.encode()
            form = form_of(sent)
            response = await flights.send(
                flight, form.path, [JSON_TYPE], body, STREAM_HEAD_TIMEOUT_S
            )
            assert sent.max_output is not None, "it is explicit"
            tells = sent.top_logprobs is not None
            stream = NodeStream(response, sent.max_output, form, tells=tells, tools=sent.tools)
            await self.answer.begin(candidate.node.address, candidate.service.engine_class)
            try:
                async with aclosing(stream.pieces()) as pieces:
                    async for together in pieces:
                        if not flight.record.first_ms:
                            self._started(flight)
                        await self._taken(together, candidate.service)
            except AnswerInvalid:
                raise  # what came is not what was asked for, however much of it there is
            except TransportError:
                await self._whole_without_receipt(stream, len(sent.resume) + sent.max_output)
                raise
            assert stream.signed is not None, "a stream ends with its receipt"
            await self._settle(flight, stream, stream.signed, sent)

    def _is_full(self, candidate: Candidate) -> bool:
        most = self.parsed.max_output or candidate.service.default_max_output
        return len(self.delivered.ids) >= most

    def _started(self, flight: Flight) -> None:
        if flight.record.state is AttemptState.SENT:
            flight.record.move(AttemptState.STREAMING)
            flight.record.first_ms = self.gateway.clock.now_ms()

    async def _taken(self, together: list[Piece], service: Service) -> None:
        """Deliver. Raises ClientLeft where it neither reads nor leaves: it holds a node's slot."""
        try:
            await within(self._deliver(together, service), READER_STALL_S)
        except TimeoutError:
            raise ClientLeft from None

    async def _deliver(self, together: list[Piece], service: Service) -> None:
        """Pass text on; ids count as delivered with the text that they stand behind."""
        if self.parsed.shaped or self.preferences.hold:
            await self._hold(together, service)
            return
        delivered = self.delivered
        texts: list[tuple[str, Tokens]] = []
        for piece in together:
            delivered.pending += piece.ids
            if piece.tokens:
                delivered.tokens += piece.tokens
            if piece.text:
                delivered.text = True
                delivered.ids += delivered.pending
                delivered.pending = []
                tokens = delivered.take_tokens() if delivered.tokens else ()
                texts.append((piece.text, tokens))
        if texts:
            await self.answer.texts(texts)

    async def _hold(self, together: list[Piece], service: Service) -> None:
        """The same for what may have to come whole."""
        delivered = self.delivered
        for piece in together:
            delivered.pending += piece.ids
            delivered.tokens += piece.tokens
            if piece.text:
                delivered.held_text.append(piece.text)
            delivered.held_calls += piece.calls
            if not self._holds(service):
                await self._pass_on()

    def _holds(self, service: Service) -> bool:
        """Whether the client gets what came only when the answer is whole: nobody could go on
        with it, so that as long as it is held another node makes it again. Of an answer that may
        be text or calls, what came before the first call goes out at once."""
        if not self.delivered.held_calls and not self.parsed.held_to_form:
            return bool(self.preferences.hold)
        if self.preferences.hold is not None:
            return self.preferences.hold
        return (self.parsed.max_output or service.default_max_output) < HELD_UNITS_MAX

    async def _pass_on(self) -> None:
        """Give the client what came so far."""
        delivered = self.delivered
        if not delivered.held_text and not delivered.held_calls:
            return
        text, calls = "".join(delivered.held_text), delivered.held_calls
        delivered.held_text, delivered.held_calls = [], []
        delivered.text, delivered.calls = True, delivered.calls or bool(calls)
        delivered.ids += delivered.pending
        delivered.pending = []
        tokens = delivered.take_tokens()
        if text:
            await self.answer.texts([(text, () if calls else tokens)])
        if calls:
            await self.answer.calls(calls, tokens)

    async def _whole_without_receipt(self, stream: NodeStream, most: int) -> None:
        """A node that died between its last token and its receipt: the answer is whole."""
        if stream.finish is not None:
            await self._pass_on()
        if stream.finish is not None and self.delivered.text:
            self.delivered.finish = stream.finish
        elif len(self.delivered.ids) >= most:
            self.delivered.finish = "length"

    async def _settle(
        self, flight: Flight, stream: NodeStream, signed: SignedReceipt, sent: Parsed
    ) -> None:
        """Check, book, bill, and make durable; only then may the client hear of the end."""
        delivered, receipt = self.delivered, signed.receipt
        units = stream.output_units if flight.attempt.service.audited else stream.texts
        self.gateway.flights.settle(flight, signed, stream.answer_hash, units)
        delivered.prompt_units = max(0, receipt.prompt_units - len(sent.resume))
        complete = receipt.outcome is Outcome.COMPLETE and stream.finish is not None
        if complete:
            held = delivered.pending  # with text that is held, and ids without one, as the end's
            delivered.ids, delivered.pending = delivered.ids + held, []
        if not flight.attempt.service.audited:  # one leg: without ids nobody can go on
            delivered.counted = receipt.output_units
        # What failed before the client had anything may be made again from its beginning, by a node
        # of another price: it is paid for as a part of the answer that is delivered, or not at all.
        billed = 0
        if complete or self.answer.started:
            whole = exact_pico_usd(delivered.usage, flight.attempt.service)
            billed = max(0, whole - delivered.billed_pico_usd)
            delivered.billed_pico_usd += billed
            delivered.signed = signed
        await self.gateway.bill(flight, self.hold, billed, delivered=self.answer.started)
        delivered.fee_pico_usd = self.hold.fee_pico_usd
        if not complete:
            unknown = Unavailable("The node's engine failed in mid-answer.", code="engine_failed")
            raise stream.failure or unknown
        await self._pass_on()
        delivered.finish = stream.finish
        if self.prompt:
            now = self.gateway.clock.now_ms()
            self.gateway.prefixes.note(self.prompt, flight.node.address, now)

    def _explicit(self, service: Service) -> Parsed:
        """The request with every number in it, as a stream, from where the client is."""
        parsed, done = self.parsed, len(self.delivered.ids)
        numbers = {**NEUTRAL, **self.gateway.sampling(service.manifest), **parsed.sampling}
        most = parsed.max_output or service.default_max_output
        return replace(
            parsed,
            model=service.model,
            max_output=max(1, most - done),
            sampling={
                name: int(numbers[name]) if name in INTEGER_SAMPLERS else numbers[name]
                for name in SAMPLERS
            },
            seed=self.seed,
            stream=True,
            include_usage=True,
            resume=tuple(self.delivered.ids),
        )


def _as_ours(error: InferpoolError) -> InferpoolError:
    """A node's refusal of *our* payment is no 402 for the client: it owes nothing."""
    if isinstance(error, PaymentRequired) and error.code != "budget_exceeded":
        return Unavailable(f"No node took this gateway's payment: {error.message}", code="no_node")
    return error
