"""The gate: every payment that is not right is a 402 that says why, and no work is done for it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from x402.http.utils import decode_payment_required_header
from x402.schemas import PaymentRequired

from inferpool.identity.signing import Key
from inferpool.payments import x402
from inferpool.protocol import headers
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.encoding import sha256, to_base64, to_hex
from inferpool.protocol.job import Job, Task
from inferpool.protocol.voucher import Voucher
from tests.node.parts import (
    CHAT,
    INFER,
    Answer,
    Pairs,
    Payer,
    World,
    chat_body,
    tensor_body,
    world,
)

N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
JOB = Job(Task.TENSOR, "fake-tensor", rows=2)


async def infer(made: World, pairs: Pairs) -> Answer:
    return await made.send("POST", INFER, pairs, tensor_body())


async def refused(payer: Payer, pairs: Pairs, code: str) -> Answer:
    """The request is refused with that code, no work was done, and a right one still passes."""
    answer = await infer(payer.world, pairs)
    assert (answer.status, answer.code) == (402, code)
    assert answer.reason == x402.REASONS[code]
    assert headers.RECEIPT not in answer.headers
    channel = payer.world.node.node.ledger.channels.get(payer.channel.channel_id)
    assert channel is None or not (channel.held or channel.seq)
    good = await payer.world.payer()
    assert (await good.infer()).status == 200
    return answer


def signature_of(payer: Payer, amount: int, key: Key | None = None) -> Voucher:
    channel = payer.channel
    voucher = Voucher(channel.channel_id, amount)
    signature = (key or payer.key).sign(voucher.digest(channel.chain_id))
    return replace(voucher, signature=signature)


# -- no payment -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, INFER])
async def test_without_payment_the_402_says_what_to_do(path: str) -> None:
    async with world() as made:
        body = chat_body() if path == CHAT else tensor_body()
        answer = await made.send("POST", path, [], body)
        assert (answer.status, answer.code) == (402, "payment_required")
        error = answer.json["error"]
        words = error["message"] if isinstance(error, dict) else error
        for needed in ("base units", "x402", "batch-settlement", "PAYMENT-SIGNATURE"):
            assert needed in words
        offer = (await made.offer()).offer
        found = decode_payment_required_header(answer.headers[headers.PAYMENT_REQUIRED].decode())
        assert isinstance(found, PaymentRequired)
        entry, once = found.accepts
        assert once.scheme == "exact"
        assert entry.scheme == "batch-settlement"
        assert entry.pay_to.lower() == to_hex(offer.terms.payee)
        assert entry.network == offer.terms.network
        assert f"at most {entry.amount} base units" in words
        assert found.resource is not None
        assert found.resource.url == path


@pytest.mark.parametrize(
    "value", [b"", b"x", b"e30=", b"\xff\xfe", to_base64(b"[]").encode(), b"A" * 20_000], ids=len
)
async def test_a_payment_that_cannot_be_read(value: bytes) -> None:
    async with world() as made:
        payer = await made.payer()
        answer = await refused(payer, [(headers.PAYMENT_SIGNATURE, value)], "payment_invalid")
        assert answer.view is None


# -- signatures -----------------------------------------------------------------------------------


def _high_s(signature: bytes) -> bytes:
    s = N - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


FORGED = {
    "another key": lambda payer, v: signature_of(payer, v.max_claimable, Key(sha256(b"liar"))),
    "another amount": lambda payer, v: replace(v, max_claimable=v.max_claimable + 1),
    "high s": lambda payer, v: replace(v, signature=_high_s(v.signature)),
    "v 0 or 1": lambda payer, v: replace(
        v, signature=v.signature[:64] + bytes([v.signature[64] - 27])
    ),
    "the other v": lambda payer, v: replace(
        v, signature=v.signature[:64] + bytes([55 - v.signature[64]])
    ),
    "zeros": lambda payer, v: replace(v, signature=bytes(64) + b"\x1b"),
    "r off the curve": lambda payer, v: replace(v, signature=b"\xff" * 32 + v.signature[32:]),
    "another chain": lambda payer, v: replace(v, signature=payer.key.sign(v.digest(1))),
}


@pytest.mark.parametrize("kind", FORGED)
async def test_a_voucher_that_the_contract_would_refuse(kind: str) -> None:
    async with world() as made:
        payer = await made.payer()
        request_id = payer.next_id()
        honest = payer.channel.authorise(request_id, payer.maximum(JOB), payer.key)
        forged = FORGED[kind](payer, honest)
        pairs = payer.paid(JOB, request_id, voucher=forged)
        await refused(payer, pairs, "voucher_signature")
        assert (await infer(made, payer.paid(JOB, request_id, voucher=honest))).status == 200


# -- amounts --------------------------------------------------------------------------------------


async def test_the_same_header_again_with_another_request_id() -> None:
    """A header that was seen once must not buy a second answer of the same price."""
    async with world() as made:
        payer = await made.payer()
        body = chat_body()
        first, second = payer.next_id(), payer.next_id()
        job = ChatRequest.parse(body).job
        pairs = payer.paid(job, first)
        answer = await made.send("POST", CHAT, pairs, body)
        assert answer.status == 200
        assert answer.charged > 0
        replayed = [(k, to_hex(second).encode() if k == headers.REQUEST_ID else v)
                    for k, v in pairs]  # fmt: skip
        answer = await made.send("POST", CHAT, replayed, body)
        assert (answer.status, answer.code) == (402, "voucher_amount")
        foreign = [(headers.PAYMENT_SIGNATURE, dict(pairs)[headers.PAYMENT_SIGNATURE])]
        answer = await made.send("POST", CHAT, foreign, body)
        assert (answer.status, answer.code) == (402, "voucher_amount")
        assert len((await payer.receipts()).json["receipts"]) == 1


async def test_a_corrective_402_carries_the_state_from_which_a_payer_goes_on() -> None:
    async with world() as made:
        payer = await made.payer(deposit=5000)
        for _ in range(3):
            await payer.chat()
        before = payer.channel
        late = signature_of(payer, before.charged)  # covers nothing more
        request_id = payer.next_id()
        answer = await infer(made, payer.paid(JOB, request_id, voucher=late))
        assert (answer.status, answer.code) == (402, "voucher_amount")
        view = answer.view
        assert view is not None
        assert view.channel_id == before.channel_id
        assert (view.balance, view.charged, view.signed_max) == (
            5000,
            before.charged,
            before.signed_max,
        )
        proof = Voucher(view.channel_id, view.signed_max, view.signature)
        assert proof == signature_of(payer, view.signed_max)
        needed = signature_of(payer, view.charged + payer.maximum(JOB))
        assert (await infer(made, payer.paid(JOB, request_id, voucher=needed))).status == 200


async def test_the_corrective_402_counts_what_is_in_flight() -> None:
    async with world() as made:
        payer = await made.payer()
        streamed = payer.next_id()
        response = await payer.open_chat(streamed)
        held = payer.channel.held[streamed]
        short = signature_of(payer, held)  # as if nothing else were under way
        answer = await infer(made, payer.paid(JOB, payer.next_id(), voucher=short))
        assert answer.code == "voucher_amount"
        assert answer.view is not None
        assert answer.view.charged == held
        await response.close()


async def test_a_voucher_above_the_balance_until_a_top_up_is_mined() -> None:
    async with world() as made:
        payer = await made.payer(deposit=1000)
        over = signature_of(payer, 1001)
        request_id = payer.next_id()
        answer = await infer(made, payer.paid(JOB, request_id, voucher=over))
        assert (answer.status, answer.code) == (402, "voucher_balance")
        assert "top it up" in answer.json["error"]
        await payer.deposit(1)
        assert (await infer(made, payer.paid(JOB, request_id, voucher=over))).status == 200


async def test_no_more_is_admitted_than_vouchers_cover_when_all_come_at_once() -> None:
    """Ten requests under one voucher that covers three of them."""
    async with world() as made:
        payer = await made.payer()
        body = chat_body(stream=True)
        job = ChatRequest.parse(body).job
        covers_three = signature_of(payer, 3 * payer.maximum(job))
        responses = await asyncio.gather(*(
            made.open("POST", CHAT, payer.paid(job, payer.next_id(), voucher=covers_three), body)
            for _ in range(10)
        ))  # fmt: skip
        assert sorted(response.status for response in responses) == [200] * 3 + [402] * 7
        for response in responses:
            await response.read(1 << 20)
        (channel,) = made.node.node.ledger.channels.values()
        assert channel.earned <= channel.best == covers_three.max_claimable


# -- terms ----------------------------------------------------------------------------------------

STRANGER = sha256(b"stranger")[:20]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"receiver": STRANGER}, "receiver"),
        ({"receiver_authorizer": STRANGER}, "receiverAuthorizer"),
        ({"token": STRANGER}, "token"),
        ({"withdraw_delay_s": 901}, "withdrawDelay"),
        ({"payer_authorizer": bytes(20)}, "payerAuthorizer"),
    ],
    ids=str,
)
async def test_each_term_that_differs_is_named(changes: dict[str, Any], word: str) -> None:
    async with world() as made:
        payer = await made.payer(deposit=0, **changes)
        payer.channel.balance = 10_000
        answer = await refused(payer, payer.paid(JOB, payer.next_id()), "payment_terms")
        assert word in answer.json["error"]


async def test_a_channel_that_is_known_lends_its_terms_to_no_other() -> None:
    """Terms are looked up by the channel that was checked with them: all seven count."""
    async with world() as made:
        payer = await made.payer()
        assert (await infer(made, payer.paid(JOB, payer.next_id()))).status == 200
        config, offer = payer.channel.config, payer.offer
        others = [
            replace(config, receiver=STRANGER),
            replace(config, receiver_authorizer=STRANGER),
            replace(config, token=STRANGER),
            replace(config, withdraw_delay_s=901),
            replace(config, payer_authorizer=bytes(20)),
            replace(config, payer_authorizer=STRANGER),
        ]
        for payer.channel.config in others:
            assert hash(payer.channel.config) == hash(config)
            answer = await infer(made, payer.paid(JOB, payer.next_id()))
            assert (answer.status, answer.code) == (402, "payment_terms")
        payer.channel.config = config
        payer.offer = replace(offer, terms=replace(offer.terms, chain_id=1))
        answer = await infer(made, payer.paid(JOB, payer.next_id(), own=False))
        assert (answer.status, answer.code) == (402, "payment_terms")
        assert "network" in answer.json["error"]
        payer.offer = offer
        assert (await infer(made, payer.paid(JOB, payer.next_id()))).status == 200


async def test_another_amount_than_the_maximum() -> None:
    async with world() as made:
        payer = await made.payer()
        for amount in (0, 2, 10**9):
            pairs = payer.paid(JOB, payer.next_id(), amount=amount)
            answer = await refused(payer, pairs, "payment_terms")
            assert "maximum" in answer.json["error"]


async def test_another_network() -> None:
    async with world() as made:
        payer = await made.payer()
        payer.offer = replace(payer.offer, terms=replace(payer.offer.terms, chain_id=1))
        pairs = payer.paid(JOB, payer.next_id(), own=False)
        answer = await refused(payer, pairs, "payment_terms")
        assert "network" in answer.json["error"]


async def test_a_voucher_for_another_channel_than_its_configuration() -> None:
    async with world() as made:
        payer, other = await made.payer(), await made.payer()
        voucher = signature_of(other, 100)
        await refused(payer, payer.paid(JOB, payer.next_id(), voucher=voucher), "payment_terms")


async def test_a_channel_that_was_never_funded() -> None:
    async with world() as made:
        payer = await made.payer(deposit=0)
        payer.channel.balance = 10_000
        answer = await refused(payer, payer.paid(JOB, payer.next_id()), "channel_not_found")
        assert "deposit" in answer.json["error"]
        await payer.deposit(10_000)
        assert (await payer.infer()).status == 200


async def test_a_channel_that_its_payer_withdraws() -> None:
    async with world() as made:
        payer = await made.payer()
        chain = made.chain.with_sender(payer.key)
        await chain.initiate_withdraw(payer.channel.config, 100)
        answer = await refused(payer, payer.paid(JOB, payer.next_id()), "channel_closing")
        assert "withdraw" in answer.json["error"]


# -- deposits -------------------------------------------------------------------------------------


def with_deposit(payer: Payer, pairs: Pairs, amount: int, salt: int, valid: bool = True) -> Pairs:
    """The same payment, with money to open the channel."""
    from inferpool.protocol.encoding import from_base64

    found = dict(pairs)
    body = json.loads(from_base64(found[headers.PAYMENT_SIGNATURE]))
    authorization = payer.authorization(amount if valid else amount + 1, salt)
    body["payload"]["type"] = "deposit"
    body["payload"]["deposit"] = {
        "amount": str(amount),
        "authorization": {
            "erc3009Authorization": {
                "validAfter": str(authorization.valid_after_s),
                "validBefore": str(authorization.valid_before_s),
                "salt": to_hex(authorization.salt.to_bytes(32, "big")),
                "signature": to_hex(authorization.signature),
            }
        },
    }
    found[headers.PAYMENT_SIGNATURE] = to_base64(json.dumps(body).encode()).encode()
    return list(found.items())


async def test_a_deposit_opens_the_channel_with_the_first_request() -> None:
    async with world() as made:
        payer = await made.payer(deposit=0)
        payer.channel.balance = 2000
        made.chain.fund(payer.key.address, 2000)
        pairs = with_deposit(payer, payer.paid(JOB, payer.next_id()), 2000, salt=5)
        answer = await infer(made, pairs)
        assert answer.status == 200
        state = await made.chain.channel(payer.channel.channel_id)
        assert state.balance == 2000


@pytest.mark.parametrize("kind", ["too small", "forged", "no money"])
async def test_a_deposit_that_does_not_go_through(kind: str) -> None:
    async with world() as made:
        payer = await made.payer(deposit=0)
        payer.channel.balance = 5000
        if kind != "no money":
            made.chain.fund(payer.key.address, 10_000)
        amount = 999 if kind == "too small" else 2000
        pairs = payer.paid(JOB, payer.next_id())
        pairs = with_deposit(payer, pairs, amount, salt=6, valid=kind != "forged")
        await refused(payer, pairs, "deposit_failed")


# -- request ids and restarts ---------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
async def test_a_request_id_is_used_once(restart: bool) -> None:
    async with world() as made:
        payer = await made.payer()
        request_id = payer.next_id()
        assert (await payer.chat(request_id)).status == 200
        if restart:
            await made.restart()
            payer.offer = (await made.offer()).offer
        again = await payer.chat(request_id)
        assert (again.status, again.code) == (409, "duplicate_request")
        receipts = (await payer.receipts()).json["receipts"]
        assert [item["receipt"]["requestId"] for item in receipts] == [to_hex(request_id)]
        assert (await payer.chat()).status == 200


async def test_a_request_id_that_is_in_flight_is_not_taken_again() -> None:
    async with world() as made:
        payer = await made.payer()
        request_id = payer.next_id()
        response = await payer.open_chat(request_id)
        voucher = signature_of(payer, 5000)
        body = chat_body(stream=True)
        pairs = payer.paid(ChatRequest.parse(body).job, request_id, voucher=voucher)
        again = await made.send("POST", CHAT, pairs, body)
        assert (again.status, again.code) == (409, "duplicate_request")
        await response.read(1 << 20)
        assert len((await payer.receipts()).json["receipts"]) == 1


async def test_the_books_go_on_after_a_restart() -> None:
    """Voucher, total, carry and numbers are those of before; the balance is read from the chain."""
    async with world() as made:
        payer = await made.payer()
        for _ in range(3):
            await payer.chat()
            await payer.infer()
        (before,) = made.node.node.ledger.channels.values()
        await made.restart()
        payer.offer = (await made.offer()).offer
        answer = await payer.infer()
        assert answer.status == 200
        (after,) = made.node.node.ledger.channels.values()
        assert after.seq == before.seq + 1
        assert after.total_pico_usd == before.total_pico_usd + 2 * 100_000
        assert answer.receipt.receipt.charged_total_pico_usd == payer.channel.total_pico_usd
        assert after.balance == 100_000


async def test_a_channel_claimed_on_chain_is_charged_though_the_node_lost_its_book() -> None:
    """Its disk is gone; the chain remembers what was claimed, and a voucher must go beyond it."""
    async with world() as made:
        payer = await made.payer()
        for _ in range(4):
            await payer.chat()
        await made.node.claimer.claim()
        claimed = (await made.chain.channel(payer.channel.channel_id)).total_claimed
        assert claimed == payer.channel.charged > 0
        from inferpool.payments.journal import MemoryJournal

        await made.node.crash()
        made.node.journal = MemoryJournal()
        await made.node.start()
        from inferpool.transport.memory import MemoryTransport

        made.pipe = MemoryTransport(made.node.app)
        payer.offer = (await made.offer()).offer
        old = signature_of(payer, claimed)
        answer = await infer(made, payer.paid(JOB, payer.next_id(), voucher=old))
        assert (answer.status, answer.code) == (402, "voucher_amount")
        assert (await infer(made, payer.paid(JOB, payer.next_id()))).status == 200
