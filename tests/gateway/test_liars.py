"""Nodes that lie in receipts or streams: nothing is booked, the client is told, it is logged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from inferpool.identity.signing import Key
from inferpool.protocol.encoding import sha256
from inferpool.protocol.receipt import Receipt, SignedReceipt
from tests.gateway.parts import Fake, Liar, Pool, pool, sign

Alter = Callable[[Liar, SignedReceipt], SignedReceipt | None]


def _changed(**changes: Any) -> Alter:
    return lambda liar, s: sign(replace(s.receipt, **changes), liar.key, liar.chain_id)


def _more(name: str, by: int) -> Alter:
    def alter(liar: Liar, signed: SignedReceipt) -> SignedReceipt:
        value = getattr(signed.receipt, name) + by
        return sign(replace(signed.receipt, **{name: value}), liar.key, liar.chain_id)

    return alter


def _all_more(liar: Liar, signed: SignedReceipt) -> SignedReceipt:
    """More units, at their price, in a total that fits."""
    receipt = signed.receipt
    made = replace(
        receipt,
        prompt_units=receipt.prompt_units + 1,
        output_units=receipt.output_units + 5,
        charge_pico_usd=receipt.charge_pico_usd + 5 * 600_000 + 150_000,
        charged_total_pico_usd=receipt.charged_total_pico_usd + 5 * 600_000 + 150_000,
    )
    return sign(made, liar.key, liar.chain_id)


def _replayed(liar: Liar, signed: SignedReceipt) -> SignedReceipt:
    return liar.seen[0]


LIES: dict[str, Alter] = {
    "no receipt": lambda liar, s: None,
    "another request": _changed(request_id=sha256(b"another")),
    "another body": _changed(request_hash=sha256(b"another")),
    "another answer": _changed(response_hash=sha256(b"another")),
    "another manifest": _changed(manifest=sha256(b"another")),
    "another class": _changed(engine_class="fake@1/q2/none"),
    "another offer": _changed(offer_hash=sha256(b"another")),
    "another service": _more("service", 1),
    "another channel": _changed(channel_id=sha256(b"another")),
    "more units": _more("output_units", 1),
    "fewer units": _more("output_units", -1),
    "more of all": _all_more,
    "a higher charge": _more("charge_pico_usd", 1),
    "a huge charge": _changed(charge_pico_usd=2**127),
    "prompt beyond the maximum": _more("prompt_units", 10_000),
    "a wrong total": _more("charged_total_pico_usd", 1),
    "another key": lambda liar, s: sign(s.receipt, Key(sha256(b"stranger")), liar.chain_id),
    "another chain": lambda liar, s: sign(s.receipt, liar.key, 1),
    "a signature of zeros": lambda liar, s: SignedReceipt(s.receipt, bytes(65)),
    "an old receipt": _replayed,
}


async def warmed(made: Pool) -> int:
    """One honest answer before the lies; what it cost."""
    answer = await made.chat()
    assert answer.status == 200
    return int(answer.proof["cost_pico_usd"])


def nothing_was_paid(made: Pool, before: int, caplog: pytest.LogCaptureFixture) -> None:
    assert made.booked() == before
    assert made.account.spent_pico_usd == before
    (known,) = made.known
    assert known.reasons.get("receipt_invalid", 0) >= 1
    assert known.failures > 0
    assert "receipt" in caplog.text


@pytest.mark.parametrize("lie", LIES)
async def test_a_stream_with_a_false_receipt_ends_in_an_error_event(
    lie: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool() as made:
        before = await warmed(made)
        made.liar.on_receipt = lambda signed: LIES[lie](made.liar, signed)
        answer = await made.chat(stream=True)
        if lie == "no receipt":
            assert made.booked() == before
            assert made.account.spent_pico_usd == before
            return  # the answer is whole and cost nothing: what the client hears is the gateway's
        assert answer.status == 200
        assert not answer.done
        assert answer.error == "receipt_invalid"
        nothing_was_paid(made, before, caplog)


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie != "no receipt"])
async def test_a_whole_answer_with_a_false_receipt_is_an_error(
    lie: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool() as made:
        before = await warmed(made)
        made.liar.on_receipt = lambda signed: LIES[lie](made.liar, signed)
        answer = await made.chat()
        assert (answer.status, answer.code) == (502, "receipt_invalid")
        nothing_was_paid(made, before, caplog)


TENSOR_LIES = [
    lie for lie in LIES if lie not in ("fewer units", "another service", "an old receipt")
]


@pytest.mark.parametrize("lie", TENSOR_LIES)
async def test_tensors_with_a_false_receipt_are_an_error(
    lie: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool() as made:
        made.liar.on_receipt = lambda signed: LIES[lie](made.liar, signed)
        answer = await made.infer()
        assert (answer.status, answer.code) == (502, "receipt_invalid")
        assert b"outputs" not in answer.body
        nothing_was_paid(made, 0, caplog)


async def test_an_answer_that_was_altered_does_not_fit_its_receipt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with pool() as made:
        made.liar.on_body = lambda body: body.replace(b"4.0", b"5.0")
        answer = await made.infer()
        assert (answer.status, answer.code) == (502, "receipt_invalid")
        made.liar.on_body = None
        made.liar.on_event = lambda event: [event.replace(b'"content":" w', b'"content":" v')]
        answer = await made.chat(stream=True)
        assert (answer.error, answer.done) == ("receipt_invalid", False)
        # Twice the same: whatever the client makes of it, it costs nothing.
        made.liar.on_event = lambda event: [event, event] if b'"ids"' in event else [event]
        answer = await made.chat(stream=True, max_tokens=5)
        assert answer.error or answer.proof["cost_pico_usd"] == 0
        assert made.booked() == 0


async def test_what_was_refused_is_not_paid_through_the_late_door(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A node that sold a false answer must not be paid by asking for its receipt again later."""
    async with pool() as made:
        made.liar.on_event = lambda event: [event.replace(b'"content":" w', b'"content":" v')]
        answer = await made.chat(stream=True)
        assert answer.error == "receipt_invalid"
        await asyncio.sleep(300)  # every late look is over
        assert made.booked() == 0
        assert made.account.spent_pico_usd == 0
        assert made.account.held_pico_usd == 0, "and the budget is free again"


# -- late receipts that were invented -------------------------------------------------------------


def invented(liar: Liar, base: Receipt, seq: int, total: int, charge: int) -> SignedReceipt:
    made = replace(base, seq=seq, charge_pico_usd=charge, charged_total_pico_usd=total + charge)
    return sign(made, liar.key, liar.chain_id)


async def test_a_late_receipt_with_a_wrong_total_keeps_no_hold() -> None:
    async with pool() as made:
        alter = _more("charged_total_pico_usd", 1)
        made.liar.on_late = lambda page: [item for one in page if (item := alter(made.liar, one))]
        made.liar.lose_answer = True
        assert (await made.infer()).status == 502
        await asyncio.sleep(300)
        assert made.booked() == made.account.spent_pico_usd == 0
        assert made.account.held_pico_usd == 0, "nothing else will end it"


async def test_a_settled_request_is_not_charged_again_under_another_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The request id is ours, the signature is the node's, the sum fits: but it was booked."""
    async with pool() as made:
        before = await warmed(made)
        made.liar.on_late = lambda page: [
            invented(made.liar, made.liar.seen[0].receipt, 2, before, 900 * 10**6)
        ]
        made.liar.lose_answer = True  # so that the gateway asks
        await made.infer()
        await asyncio.sleep(300)
        assert made.booked() == before
        found = made.gateway.gateway.ledger.attempts(10)
        settled = [item for item in found if item.state.value == "settled"]
        assert [item.account for item in settled] == ["client"], "the record is as it was"


async def test_a_refused_request_is_not_charged_later() -> None:
    """The node said no, took no work, and charges all the same when asked."""
    async with pool() as made:
        before = await warmed(made)
        bodies: list[bytes] = []
        honest = made.liar.inner.request

        async def spy(method: str, path: str, headers: Any, *args: Any, **more: Any) -> Any:
            bodies.extend(v for k, v in headers if k == b"inferpool-request-id")
            return await honest(method, path, headers, *args, **more)

        made.liar.inner.request = spy  # type: ignore[method-assign]
        await made.chat(max_tokens=5000)  # the node answers 400
        refused = bytes.fromhex(bodies[-1].decode()[2:])
        base = replace(made.liar.seen[0].receipt, request_id=refused)
        made.liar.on_late = lambda page: [invented(made.liar, base, 2, before, 900 * 10**6)]
        made.liar.lose_answer = True
        await made.infer()
        await asyncio.sleep(300)
        assert made.booked() == before


async def test_after_a_crash_a_node_cannot_invent_a_charge_beyond_any_voucher() -> None:
    """The gateway forgot what was in flight. A receipt for an id of its own is believed then; but
    not one above every voucher that it can have signed, for the node could not claim it either."""
    async with pool() as made:
        before = await warmed(made)
        channel = next(iter(made.gateway.gateway.ledger.channels.values()))[1]
        signed_max = channel.signed_max
        ids = made.gateway.gateway.treasury.request_ids
        forged = ids.mint(bytes(16), channel.channel_id)  # as if it had been sent before the crash
        base = replace(made.liar.seen[0].receipt, request_id=forged)
        made.liar.on_late = lambda page: [
            invented(made.liar, base, 2, before, 2500 * 10**6)  # of a deposit of 3000
        ]
        await made.restart_gateway()
        await asyncio.sleep(5)
        assert made.booked() <= max(before, signed_max * 10**6)


# -- streams that are none ------------------------------------------------------------------------


def events(*values: Any) -> list[bytes]:
    return [b"data: " + (v if isinstance(v, bytes) else json.dumps(v).encode()) + b"\n\n"
            for v in values]  # fmt: skip


def piece(text: str = " w1", ids: Any = (1,), finish: Any = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return {"choices": [choice], "inferpool": {"ids": list(ids)}}


async def endless(chunk: bytes, pause_s: float = 0.0) -> AsyncIterator[bytes]:
    while True:
        await asyncio.sleep(pause_s)
        yield chunk


STREAMS: dict[str, Callable[[], Fake]] = {
    "nothing": lambda: Fake([], hang=True),
    "an empty answer": lambda: Fake([]),
    "cut at once": lambda: Fake([], cut=True),
    "garbage": lambda: Fake([b"\x00\xff garbage \r\n\r\n\x00"]),
    "HTML": lambda: Fake([b"<html>proxy error</html>"]),
    "events that are no JSON": lambda: Fake(events(b"{")),
    "events that are no chunks": lambda: Fake(events([1], 7)),
    "no choices": lambda: Fake(events({"choices": []})),
    "two choices": lambda: Fake(events({"choices": [{}, {}]})),
    "half an event": lambda: Fake([b'data: {"choices": ['], hang=True),
    "half an event, then the end": lambda: Fake([b'data: {"choices": [']),
    "an event without end": lambda: Fake(endless(b"data: " + b"x" * 65536)),
    "an unknown finish": lambda: Fake(events(piece(finish="because"))),
    "ids that are none": lambda: Fake(events(piece(ids=["1"]))),
    "a receipt that is none": lambda: Fake(events({"choices": [], "inferpool": {"receipt": 1}})),
    "done without receipt": lambda: Fake(events(b"[DONE]")),
    "a flood of text without ids": lambda: Fake(endless(events(piece("w" * 900_000, ()))[0])),
    "a drip of text without ids": lambda: Fake(endless(events(piece(ids=()))[0], 1.0)),
    "empty chunks for ever": lambda: Fake(endless(events(piece("", ()))[0], 1.0)),
    "heartbeats of tokens that stand still": lambda: Fake(endless(b": tokens 3\n\n", 1.0)),
    "heartbeats of prefill for ever": lambda: Fake(endless(b": prefill 3\n\n", 1.0)),
    "heartbeats that move and give nothing": lambda: Fake(_moving()),
}


async def _moving() -> AsyncIterator[bytes]:
    count = 0
    while True:
        await asyncio.sleep(1.0)
        count += 1
        yield b": queued %d\n\n" % count


# A flood is 64 MiB a leg: once is enough, without sending it on to a client.
BOTH = [
    pytest.param(
        kind,
        stream,
        id=f"{kind}, {'stream' if stream else 'whole'}",
    )
    for kind in STREAMS
    for stream in (True, False)
    if not (stream and "flood" in kind)
]


@pytest.mark.parametrize(("kind", "stream"), BOTH)
async def test_a_node_that_streams_nonsense_ends_in_an_error(kind: str, stream: bool) -> None:
    async with pool() as made:
        before = await warmed(made)
        asked: list[Fake] = []

        def instead(method: str, path: str) -> Fake | None:
            if method != "POST":
                return None
            asked.append(STREAMS[kind]())
            return asked[-1]

        made.liar.instead = instead
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with asyncio.timeout(1000):
            answer = await made.chat(stream=stream)
        if stream and answer.status == 200:
            assert not answer.done
            assert answer.error in ("node_failed", "timeout", "engine_failed")
        else:
            assert answer.status in (502, 503, 504)
            assert answer.code
        if "stand still" in kind:
            assert loop.time() - begun < 4 * 4.5, "three seconds a try, and at most four tries"
        assert asked
        assert all(item.closed for item in asked), "no answer is left open"
        assert (made.booked(), made.account.spent_pico_usd) == (before, before)
        made.liar.instead = lambda method, path: None
        made.known[0].blocked_until_ms = 0
        assert (await made.chat()).status == 200


TENSORS: dict[str, Callable[[], Fake]] = {
    "an empty answer": lambda: Fake([]),
    "cut": lambda: Fake([b'{"outp'], cut=True),
    "half an answer, then nothing": lambda: Fake([b'{"outp'], hang=True),
    "an endless body": lambda: Fake(endless(b"x" * (1 << 22))),
    "a drop every second for ever": lambda: Fake(endless(b"x", 1.0)),
    "a receipt that is none": lambda: Fake([b"{}"], headers=[(b"inferpool-receipt", b"e30=")]),
    "an unknown status": lambda: Fake([b"teapot"], status=418),
    "a redirect": lambda: Fake([], status=302, headers=[(b"location", b"http://10.0.0.1/")]),
    "a 402 that cannot be read": lambda: Fake(
        [b"{}"], status=402, headers=[(b"payment-required", b"e30=")]
    ),
    "an error without end": lambda: Fake(endless(b"x" * 4096), status=500),
    "an error that hangs": lambda: Fake([b"{"], status=500, hang=True),
}


@pytest.mark.parametrize("kind", TENSORS)
async def test_a_node_that_answers_tensors_with_nonsense(kind: str) -> None:
    async with pool() as made:
        made.liar.instead = lambda method, path: TENSORS[kind]() if method == "POST" else None
        async with asyncio.timeout(1000):
            answer = await made.infer()
        assert answer.status in (502, 503, 504)
        assert answer.code
        assert (made.booked(), made.account.spent_pico_usd) == (0, 0)
        made.liar.instead = lambda method, path: None
        made.known[0].blocked_until_ms = 0
        assert (await made.infer()).status == 200


async def test_a_node_that_never_stops_is_cut_at_what_was_asked_for_and_not_paid() -> None:
    async with pool() as made:
        made.liar.instead = lambda method, path: (
            Fake(endless(events(piece())[0], 0.1)) if method == "POST" else None
        )
        answer = await made.chat(stream=True, max_tokens=7)
        assert answer.text == " w1" * 7
        assert (answer.error, answer.done) == ("node_failed", False)
        whole = await made.chat(max_tokens=7)
        assert (whole.status, whole.code) == (502, "node_failed")
        assert (made.booked(), made.account.spent_pico_usd) == (0, 0)
        assert made.known[0].reasons["node_failed"] >= 1
        made.liar.instead = lambda method, path: None
        await asyncio.sleep(300)
        assert (made.booked(), made.account.held_pico_usd) == (0, 0)


@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
async def test_a_usage_that_is_not_the_receipts_is_refused(name: str) -> None:
    async with pool() as made:

        def alter(value: dict[str, Any]) -> None:
            value["usage"][name] -= 1

        made.liar.on_last = alter
        answer = await made.chat(stream=True)
        assert (answer.error, answer.done) == ("receipt_invalid", False)
        assert (await made.chat()).code == "receipt_invalid"
        assert made.booked() == 0


def test_a_usage_in_a_body_is_compared_where_there_is_one() -> None:
    from inferpool.gateway.relay import _compare_usage
    from inferpool.payments.checks import ReceiptInvalid

    for body in (b"plain text", b"[1]", b'{"text": "x"}', b'{"usage": {"prompt_tokens": 7}}'):
        _compare_usage(body, 7)
    for body in (b'{"usage": {"prompt_tokens": 8}}', b'{"usage": {"seconds": 6}}'):
        with pytest.raises(ReceiptInvalid):
            _compare_usage(body, 7)


# -- corrective 402s ------------------------------------------------------------------------------


@pytest.mark.parametrize("claimed", [1, 40, 2_000, 10**9])
async def test_a_node_that_claims_to_have_charged_more_gets_no_higher_voucher(claimed: int) -> None:
    """It answers each payment with a corrective 402 that names a higher charge, proved by the
    best voucher it has. What is signed stays within what is in flight."""
    from inferpool.payments import x402
    from inferpool.protocol.errors import PaymentRequired

    async with pool() as made:
        before = await warmed(made)
        node = made.nodes[0].node
        (theirs,) = node.ledger.channels.values()
        _, ours = next(iter(made.gateway.gateway.ledger.channels.values()))

        def instead(method: str, path: str) -> Fake | None:
            if method != "POST":
                return None
            view = replace(theirs.view(), charged=theirs.reported + claimed)
            error = PaymentRequired("more", code="voucher_amount")
            header = x402.payment_required(node.gate.terms, 25, path, error, view)
            return Fake([b"{}"], status=402, headers=[(b"payment-required", header)])

        made.liar.instead = instead
        answer = await made.chat()
        assert answer.status in (502, 503)
        assert ours.signed_max - ours.charged <= ours.peak
        assert ours.balance == 3000, "and no deposit follows its word"
        assert made.booked() == before
        made.liar.instead = lambda method, path: None
        made.known[0].blocked_until_ms = 0
        assert (await made.chat()).status == 200, "an honest node goes on"
