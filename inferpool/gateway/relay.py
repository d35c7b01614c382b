"""Answers that come whole: tensors, embeddings, transcriptions, images. One node, or the next.

An `Errand` is what all of them have in common: a size, a path, a body, and the output units that
an honest receipt must count. Nothing reaches the client before its receipt was checked and booked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import orjson

from inferpool.gateway.admission import Caller, Hold
from inferpool.gateway.flights import RETRIED, Flight, Flights, OfferEnded
from inferpool.gateway.router import Candidate, Route
from inferpool.payments.checks import ReceiptInvalid
from inferpool.protocol import headers
from inferpool.protocol.embeddings import EmbeddingsRequest
from inferpool.protocol.encoding import hex_bytes, sha256
from inferpool.protocol.errors import (
    BadRequest,
    InferpoolError,
    PaymentRequired,
    Refused,
    Unavailable,
)
from inferpool.protocol.images import STEPS, ImagesRequest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.limits import ANSWER_MAX, ATTEMPTS_MAX, FIRST_BYTE_TIMEOUT_S
from inferpool.protocol.oip import InferRequest
from inferpool.protocol.preferences import NO_PREFERENCES, RoutePreferences
from inferpool.protocol.receipt import SignedReceipt
from inferpool.protocol.receipt_chain import ChainedReceipt
from inferpool.protocol.transcription import TranscriptionRequest

if TYPE_CHECKING:
    from inferpool.gateway.gateway import Gateway
from inferpool.protocol.value import value
from inferpool.transport.base import AnswerTimeout, Response
from inferpool.transport.patience import within

_LOG = logging.getLogger("inferpool.gateway")
_JSON: Final = (b"content-type", b"application/json")
HEDGE_LEAST_MS: Final = 10  # below it a second request costs more than it saves
_TELL_USAGE: Final = (Task.EMBEDDING, Task.TRANSCRIPTION)  # in the body, as JSON
_KEPT: Final = (b"content-type", headers.INFERENCE_HEADER_LENGTH)

HeaderList = list[tuple[bytes, bytes]]
Answer = tuple[bytes, HeaderList]


@value
class Errand:
    """One whole answer to fetch. `path` and `body` may name the model as the node calls it."""

    job: Job
    path: Callable[[str], str]
    body: Callable[[str], bytes]
    extra: HeaderList
    output_units: int = 0
    seed: int = 0
    preferences: RoutePreferences = NO_PREFERENCES
    timeout_s: float = FIRST_BYTE_TIMEOUT_S
    chained: bool = True  # unless the client wants a receipt that is signed by itself
    hedge: bool = False


def tensors(
    parsed: InferRequest,
    body: bytes,
    length: bytes | None,
    sent: Mapping[bytes, bytes],
    preferences: RoutePreferences,
) -> Errand:
    """`POST /v2/models/M/infer`. `length`: of the JSON part, where tensors follow it; `sent`: the
    caller's headers. Raises BadRequest."""
    return Errand(
        parsed.job,
        "/v2/models/{}/infer".format,
        lambda _: body,
        [_JSON] if length is None else [(headers.INFERENCE_HEADER_LENGTH, length)],
        preferences=preferences,
        chained=sent.get(headers.RECEIPTS) != headers.SIGNED,
        hedge=_hedge(sent),
    )


def embeddings(parsed: EmbeddingsRequest) -> Errand:
    """`POST /v1/embeddings`."""
    return Errand(
        parsed.job,
        lambda _: "/v1/embeddings",
        lambda model: replace(parsed, model=model).encode(),
        [_JSON],
    )


def transcription(parsed: TranscriptionRequest, body: bytes, form: bytes, audio_ms: int) -> Errand:
    """`POST /v1/audio/transcriptions`. A node slower than the speech itself is given up."""
    return Errand(
        parsed.job(audio_ms),
        lambda _: "/v1/audio/transcriptions",
        lambda _: body,
        [(b"content-type", form)],
        timeout_s=FIRST_BYTE_TIMEOUT_S + audio_ms / 1000,
    )


def images(parsed: ImagesRequest) -> Errand:
    """`POST /v1/images/generations`, with its seed set."""
    assert parsed.seed is not None, "the gateway draws the seed"
    return Errand(
        parsed.job,
        lambda _: "/v1/images/generations",
        lambda model: replace(parsed, model=model).encode(),
        [_JSON],
        output_units=parsed.images * STEPS,
        seed=parsed.seed,
    )


def receipted(errand: Errand, sent: Mapping[bytes, bytes]) -> Errand:
    """The errand, with the kind of receipt that the caller wants."""
    return replace(errand, chained=sent.get(headers.RECEIPTS) != headers.SIGNED)


def hedged(errand: Errand, sent: Mapping[bytes, bytes]) -> Errand:
    """The errand, with the caller's leave to ask a second node if it gave it. Raises BadRequest."""
    return replace(errand, hedge=_hedge(sent))


def _hedge(sent: Mapping[bytes, bytes]) -> bool:
    value = sent.get(headers.HEDGE, b"0")
    if value not in (b"0", b"1"):
        raise BadRequest("The header Inferpool-Hedge is 1 or 0.", param="inferpool-hedge")
    return value == b"1"


async def run(
    gateway: Gateway, errand: Errand, caller: Caller, only: Route | None = None
) -> Answer:
    """The answer of the first node that gives one. Raises BadRequest, Unavailable."""
    preferences = errand.preferences
    route = only or gateway.route(errand.job, caller, preferences=preferences)
    last: InferpoolError | None = None
    async with gateway.hold(caller, route) as hold:
        left = deque(hold.candidates[:ATTEMPTS_MAX])
        while left:
            candidate = left.popleft()
            if not await hold.covers(candidate):
                continue
            try:
                if errand.hedge and left and caller.walk_in is None:  # both would be its to pay
                    return await _first_of_two(gateway, candidate, left, errand, hold)
                answer = await _try(gateway, candidate, errand, hold)
            except RETRIED as error:
                _LOG.warning("%s: attempt failed: %s", hold.client_id, error.message)
                last = error
            else:
                hold.complete = True
                return answer
        if isinstance(last, PaymentRequired):
            last = Unavailable(f"No node took our payment: {last.message}", code="no_node")
        raise last or Unavailable("No node was tried.", code="no_node")


async def _first_of_two(
    gateway: Gateway, candidate: Candidate, left: deque[Candidate], errand: Errand, hold: Hold
) -> Answer:
    """The node's answer, or that of a second one which is asked when the first is late.

    The second takes its place in the order and in the budget. The loser is cancelled; what it
    charges all the same is the client's, who wanted it so: its hold stays until that is known.
    Raises what failed last, when both did.
    """
    asked = [asyncio.create_task(_try(gateway, candidate, errand, hold))]
    try:
        await asyncio.wait(asked, timeout=max(HEDGE_LEAST_MS, candidate.late_ms) / 1000)
        if not asked[0].done() and left and await hold.covers_too(left[0]):
            asked.append(asyncio.create_task(_try(gateway, left.popleft(), errand, hold)))
        running = set(asked)
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            won = [task for task in done if task.exception() is None]
            if won:
                hold.complete = len(asked) == 1
                return won[0].result()
        return asked[-1].result()
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def _try(gateway: Gateway, candidate: Candidate, errand: Errand, hold: Hold) -> Answer:
    """One node, and once more under its new offer where the one we had has ended."""
    try:
        return await _fetch(gateway, candidate, errand, hold)
    except OfferEnded:
        await gateway.directory.look(candidate.node)
        candidate.node.blocked_until_ms = 0
        route = gateway.choose(errand.job, hold.caller, preferences=errand.preferences)
        again = [c for c in route.candidates if c.node is candidate.node]
        if not again or not await hold.covers(again[0]):
            raise
        return await _fetch(gateway, again[0], errand, hold)


async def _fetch(gateway: Gateway, candidate: Candidate, errand: Errand, hold: Hold) -> Answer:
    flights, account = gateway.flights, hold.caller.account.name
    model = candidate.service.model
    async with flights.open(candidate, errand.job, hold.client_id, account, errand.seed) as flight:
        response = await flights.send(
            flight,
            errand.path(model),
            errand.extra,
            errand.body(model),
            errand.timeout_s,
            chained=errand.chained,
        )
        try:
            answer = await within(response.read(ANSWER_MAX), errand.timeout_s)
        except TimeoutError:
            raise AnswerTimeout("The node's answer does not end.") from None
        value, charge = _settle(flights, flight, response, answer, errand)
        await gateway.bill(flight, hold, charge)
        await hold.settle()
        kept = [(name, found) for name, found in response.headers if name in _KEPT]
        ours = [
            (b"x-request-id", hold.client_id.encode()),
            (headers.NODE, hex_bytes(flight.node.address)),
            (headers.COST, b"%d" % charge),
        ]
        if gateway.fee_bps:
            ours.append((headers.FEE, str(flight.record.fee_pico_usd).encode()))
        if value is not None:
            ours.append((headers.RECEIPT, value))
        return answer, [*kept, *ours]


def _settle(
    flights: Flights, flight: Flight, response: Response, answer: bytes, errand: Errand
) -> tuple[bytes | None, int]:
    """Check and book the receipt. Returns the header of a signed one, and the charge in pico-USD.

    Raises Unavailable, ReceiptInvalid.
    """
    value, short = response.header(headers.RECEIPT), response.header(headers.CHAINED_RECEIPT)
    if value is None and short is None:
        raise Unavailable("The node sent no receipt.", code="receipt_invalid")
    hashed, units = sha256(answer), errand.output_units
    try:
        if value is not None:
            signed = SignedReceipt.from_header(value)
            if errand.job.task in _TELL_USAGE:
                _compare_usage(answer, signed.receipt.prompt_units)
            flights.settle(flight, signed, hashed, units)
        else:
            assert short is not None, "one of them came"
            chained = ChainedReceipt.from_header(short)
            if errand.job.task in _TELL_USAGE:
                _compare_usage(answer, chained.prompt_units)
            signed = flights.settle_chained(flight, chained, hashed, units)
    except Refused as error:
        raise ReceiptInvalid(f"The node's receipt is unreadable: {error.message}.") from None
    return value, signed.receipt.charge_pico_usd


def _compare_usage(answer: bytes, prompt_units: int) -> None:
    """A client reads the usage, the node is paid by the receipt: they must say the same.

    Bodies without a usage, such as plain text, tell nothing. Raises ReceiptInvalid.
    """
    try:
        value = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return
    usage = value.get("usage") if isinstance(value, dict) else None
    if isinstance(usage, dict):
        told = usage.get("prompt_tokens", usage.get("seconds"))
        if told != prompt_units:
            raise ReceiptInvalid("The node's usage is not that of its receipt.")
