"""What a payer signs and books when its node lies, and how it goes on after lost state."""

from __future__ import annotations

import hmac
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferpool.payments.checks import ReceiptInvalid, check_late_receipt, check_receipt
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payer import PayerChannel, TopUpNeeded
from inferpool.payments.request_ids import RequestIds
from inferpool.payments.window import Window
from inferpool.payments.x402 import ChannelView
from inferpool.protocol.encoding import sha256
from inferpool.protocol.errors import PaymentRequired, Refused
from inferpool.protocol.receipt import Outcome, Receipt
from inferpool.protocol.voucher import voucher_digest
from tests.payments.parts import (
    AUTHORIZER,
    CHAIN_ID,
    CHANNEL_ID,
    NODE,
    OFFER,
    PICO,
    STRANGER,
    attempt,
    honest_receipt,
    name,
    payee_channel,
    payer_channel,
    receipt,
    signed,
)

amounts = st.integers(0, 400)
SETTINGS = settings(derandomize=True, deadline=None, database=None, max_examples=150)


@SETTINGS
@given(
    charged=st.integers(0, 50),
    held=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    unresolved=st.lists(st.integers(1, 30), max_size=3),
    views=st.lists(st.tuples(amounts, amounts, amounts), min_size=1, max_size=6),
)
def test_no_corrective_402_makes_a_payer_sign_beyond_its_own_maxima(
    charged: int, held: list[int], unresolved: list[int], views: list[tuple[int, int, int]]
) -> None:
    payer = payer_channel(10_000, total_pico_usd=charged * PICO)
    for number, maximum in enumerate([*unresolved, *held]):
        payer.authorise(name(number), maximum, AUTHORIZER)
        if number < len(unresolved):
            payer.release(name(number), sent=True)
    most = charged + sum(held) + sum(unresolved)
    mine = name(len(unresolved))
    for told, signed_max, balance in views:
        view = ChannelView(CHANNEL_ID, balance, 0, told, signed_max, bytes(65))
        voucher = payer.authorise_again(mine, view, AUTHORIZER)
        assert charged + sum(held) <= voucher.max_claimable <= most
    assert payer.signed_max <= most
    assert payer.exposure <= sum(held) + sum(unresolved)


def test_a_voucher_above_the_deposit_is_not_signed() -> None:
    payer = payer_channel(100)
    payer.authorise(name(1), 60, AUTHORIZER)
    with pytest.raises(TopUpNeeded) as raised:
        payer.authorise(name(2), 41, AUTHORIZER)
    assert raised.value.needed == 101
    assert (payer.held_total, payer.signed_max) == (60, 60), "nothing was held or signed"
    payer.authorise(name(2), 40, AUTHORIZER)


def test_a_charge_proved_only_by_words_is_not_taken() -> None:
    """The node claims charges and shows a voucher that is not above every one we remember."""
    payer = payer_channel(1000)
    ours = payer.authorise(name(1), 50, AUTHORIZER)
    view = ChannelView(CHANNEL_ID, 1000, 0, 50, ours.max_claimable, ours.signature)
    with pytest.raises(Refused):
        payer.resume_from(view, AUTHORIZER.address, name(1))
    assert (payer.charged, payer.signed_max) == (0, 50)


def test_a_voucher_of_another_key_proves_nothing() -> None:
    payer = payer_channel(1000)
    payer.authorise(name(1), 10, AUTHORIZER)
    forged = STRANGER.sign(voucher_digest(CHANNEL_ID, 500, CHAIN_ID))
    view = ChannelView(CHANNEL_ID, 1000, 0, 400, 500, forged)
    with pytest.raises(Refused):
        payer.resume_from(view, AUTHORIZER.address, name(1))
    own = AUTHORIZER.sign(voucher_digest(CHANNEL_ID, 500, CHAIN_ID))
    for unsound in (
        ChannelView(sha256(b"another channel"), 1000, 0, 400, 500, own),
        ChannelView(CHANNEL_ID, 1000, 0, 501, 500, own),
    ):
        with pytest.raises(Refused):
            payer.resume_from(unsound, AUTHORIZER.address, name(1))
    assert payer.charged == 0


@pytest.mark.parametrize("others", [0, 1, 3], ids="{} others in flight".format)
def test_a_payer_that_lost_its_book_goes_on_from_its_own_voucher(others: int) -> None:
    """Design section 7: "a gateway that lost its state starts from the corrective 402"."""
    node = payee_channel(10_000)
    before = payer_channel(10_000)
    charged = 0
    for number in range(3):
        node.admit(name(number), before.authorise(name(number), 50, AUTHORIZER), 50)
        charge = 40 * PICO + 300_000
        charged += charge
        node.charge(name(number), charge)
        before.book(receipt(number, number + 1, charge, charged))
    payer = payer_channel(10_000)  # its book is gone, and the node has no receipts to give
    agreed = False
    for number in range(10, 10 + others + 1):
        voucher = payer.authorise(name(number), 20, AUTHORIZER)
        if not agreed:
            with pytest.raises(Exception, match="at least"):
                node.admit(name(number), voucher, 20)
            payer.resume_from(node.view(corrective=True), AUTHORIZER.address, name(number))
            view = node.view(corrective=True)
            voucher = payer.authorise_again(name(number), view, AUTHORIZER)
            agreed = True
        node.admit(name(number), voucher, 20)
    # And it stays in step: the receipts that come now are charged on top of what was lost.
    for number in range(10, 10 + others + 1):
        charge = 7 * PICO + 100_000
        charged += charge
        node.charge(name(number), charge)
        payer.book(receipt(number, node.seq, charge, charged))
    voucher = payer.authorise(name(20), 20, AUTHORIZER)
    node.admit(name(20), voucher, 20)
    assert payer.charged - node.reported <= 1, "no more than the lost fraction above the truth"


def test_a_receipt_is_booked_once() -> None:
    payer = payer_channel(1000)
    payer.authorise(name(1), 50, AUTHORIZER)
    payer.book(receipt(1, 1, 5 * PICO, 5 * PICO))
    for again in (receipt(1, 1, 5 * PICO, 5 * PICO), receipt(2, 1, 9 * PICO, 9 * PICO)):
        with pytest.raises(Refused):
            payer.book(again)
    assert payer.total_pico_usd == 5 * PICO
    payer.book(receipt(3, 3, PICO, 8 * PICO))  # ahead of one that is still missing
    with pytest.raises(Refused):
        payer.book(receipt(4, 3, PICO, 9 * PICO))
    payer.book(receipt(2, 2, 2 * PICO, 7 * PICO))
    assert (payer.next_seq, payer.booked_ahead, payer.total_pico_usd) == (4, set(), 8 * PICO)


@pytest.mark.parametrize("total", [0, 5 * PICO, 11 * PICO, 10**30])
def test_a_total_that_is_not_the_sum_is_refused(total: int) -> None:
    payer = payer_channel(1000)
    payer.book(receipt(1, 1, 5 * PICO, 5 * PICO))
    with pytest.raises(Refused):
        payer.book(receipt(2, 2, 5 * PICO, total))
    assert payer.total_pico_usd == 5 * PICO
    payer.book(receipt(2, 2, 5 * PICO, 10 * PICO))


# -- receipts against what was received -----------------------------------------------------------

SEEN = {"request_hash": sha256(b"body"), "response_hash": sha256(b"answer"), "output_units": 10}


def check(made: Receipt) -> None:
    check_receipt(signed(made), attempt(), **SEEN)  # type: ignore[arg-type]


def test_an_honest_receipt_passes_and_costs_units_times_price() -> None:
    made = honest_receipt()
    check(made)
    assert made.charge_pico_usd == 20 * 150_000 + 10 * 600_000
    check(replace(made, charge_pico_usd=0, charged_total_pico_usd=0))  # less is the node's loss


TAMPERED = {
    "request_id": name(99),
    "request_hash": sha256(b"another body"),
    "response_hash": sha256(b"another answer"),
    "manifest": sha256(b"other manifest"),
    "engine_class": "fake@1/q2/none",
    "offer_hash": replace(OFFER, sequence=2).digest(),
    "service": 0,
    "channel_id": sha256(b"another channel"),
    "output_units": 11,
    "prompt_units": 109,  # one above what 100 bytes in one message can be
    "charge_pico_usd": 20 * 150_000 + 10 * 600_000 + 1,
}


@pytest.mark.parametrize("member", TAMPERED)
def test_each_member_that_differs_is_refused_though_the_node_signed_it(member: str) -> None:
    with pytest.raises(ReceiptInvalid) as raised:
        check(replace(honest_receipt(), **{member: TAMPERED[member]}))
    assert raised.value.code == "receipt_invalid"


def test_a_receipt_of_another_key_or_of_another_chain_is_refused() -> None:
    made = honest_receipt()
    with pytest.raises(ReceiptInvalid):
        check_receipt(signed(made, STRANGER), attempt(), **SEEN)  # type: ignore[arg-type]
    elsewhere = replace(signed(made), signature=NODE.sign(made.digest(CHAIN_ID + 1)))
    with pytest.raises(ReceiptInvalid):
        check_receipt(elsewhere, attempt(), **SEEN)  # type: ignore[arg-type]


def test_the_charge_is_capped_by_the_maximum_even_where_units_would_allow_more() -> None:
    cheap = replace(attempt(), maximum_pico_usd=5_000_000)
    with pytest.raises(ReceiptInvalid):
        check_receipt(signed(honest_receipt()), cheap, **SEEN)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "member", ["request_id", "channel_id", "manifest", "prompt_units", "charge_pico_usd"]
)
def test_a_late_receipt_is_still_bound_to_request_channel_model_and_maximum(member: str) -> None:
    check_late_receipt(signed(honest_receipt()), attempt())
    with pytest.raises(ReceiptInvalid):
        made = replace(honest_receipt(), **{member: TAMPERED[member]})
        check_late_receipt(signed(made), attempt())
    with pytest.raises(ReceiptInvalid):
        check_late_receipt(signed(honest_receipt(), STRANGER), attempt())


def test_a_late_receipt_of_a_cut_answer_names_the_model_too() -> None:
    """A cheap model's tokens must not be sold as another's by cutting the answer short."""
    made = replace(honest_receipt(), manifest=TAMPERED["manifest"], outcome=Outcome.CANCELLED)
    with pytest.raises(ReceiptInvalid):
        check_late_receipt(signed(made), attempt())


# -- request ids ----------------------------------------------------------------------------------


@SETTINGS
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32))
def test_ids_are_recognised_by_their_payer_and_on_their_channel_only(
    random: bytes, noise: bytes
) -> None:
    ids, others = RequestIds.of(AUTHORIZER), RequestIds.of(STRANGER)
    minted = ids.mint(random, CHANNEL_ID)
    secret = sha256(b"inferpool request ids" + AUTHORIZER.secret)
    assert minted == random + hmac.digest(secret, random + CHANNEL_ID, "sha256")[:16]
    assert ids.ours(minted, CHANNEL_ID)
    assert not ids.ours(minted, sha256(b"another channel"))
    assert not others.ours(minted, CHANNEL_ID)
    assert not ids.ours(noise, CHANNEL_ID)
    altered = bytes([minted[0] ^ 1]) + minted[1:]
    assert not ids.ours(altered, CHANNEL_ID)


# -- windows --------------------------------------------------------------------------------------

WIDE = Window(maxima=8, units=60)


def served(payer: PayerChannel, node: PayeeChannel, number: int, charge: int) -> bytes:
    """One honest call of at most 10 base units; returns its voucher's signature."""
    voucher = payer.authorise(name(number), 10, AUTHORIZER, WIDE)
    node.admit(name(number), voucher, 10)
    node.charge(name(number), charge)
    payer.book(receipt(number, node.seq, charge, node.total_pico_usd))
    payer.trust(charge)
    return voucher.signature


def test_a_voucher_is_sent_again_once_its_node_has_earned_the_slack() -> None:
    payer, node = payer_channel(10_000), payee_channel(10_000)
    signatures = [served(payer, node, number, 4 * PICO) for number in range(60)]
    assert len(set(signatures[:2])) == 2, "a stranger gets one maximum at a time"
    assert len(set(signatures[20:])) <= 8, "8 maxima of 10 in slack of 60: six calls that use 10"
    assert payer.exposure <= 60
    payer.distrust()
    voucher = payer.authorise(name(99), 10, AUTHORIZER, WIDE)
    assert voucher.max_claimable == payer.charged + 10, "caught, it is a stranger again"


def test_a_node_takes_the_best_voucher_again_and_no_byte_less() -> None:
    payer, node = payer_channel(10_000), payee_channel(10_000)
    for number in range(10):
        served(payer, node, number, 10 * PICO)
    voucher = payer.authorise(name(10), 10, AUTHORIZER, WIDE)
    node.admit(name(10), voucher, 10)
    forged = replace(voucher, signature=bytes([voucher.signature[0] ^ 1]) + voucher.signature[1:])
    with pytest.raises(PaymentRequired, match="not signed"):
        node.admit(name(11), forged, 10)
    node.admit(name(11), voucher, 10)
    assert node.held_total == 20


# -- a node that lost its book --------------------------------------------------------------------


def test_a_node_takes_its_payers_word_only_for_what_it_has_forgotten_and_is_covered() -> None:
    payer, node = payer_channel(1_000), payee_channel(1_000)
    for number in range(5):
        served(payer, node, number, 7 * PICO)
    known = (node.seq, node.total_pico_usd)
    voucher = payer.authorise(name(9), 10, AUTHORIZER)
    node.admit(name(9), voucher, 10, (5, 9 * PICO))
    assert (node.seq, node.total_pico_usd) == known, "a node with its book believes nobody"
    for booked, seq, total in (
        (payer.booked, 5, 35 * PICO),  # the truth: nothing is lost
        ((9, 0), 9, 0),  # a payer that lies low: the node loses what it had not claimed
        ((5, 35 * PICO - 1), 5, 35 * PICO - 1),
    ):
        fresh = payee_channel(1_000)
        fresh.admit(name(9), voucher, 10, booked)
        assert (fresh.seq, fresh.total_pico_usd) == (seq, total)
        assert fresh.reported + fresh.held_total <= fresh.best
    fresh = payee_channel(1_000)
    with pytest.raises(PaymentRequired, match="at least"):  # high: beyond its own voucher
        fresh.admit(name(9), voucher, 10, (5, 36 * PICO))
    assert (fresh.seq, fresh.total_pico_usd, fresh.reported, fresh.best) == (0, 0, 0, 0)


def test_numbers_that_went_down_are_closed_only_when_nothing_is_in_flight() -> None:
    payer = payer_channel(1_000)
    payer.book(receipt(1, 1, PICO, PICO))
    payer.book(receipt(3, 3, PICO, 3 * PICO))
    payer.authorise(name(2), 10, AUTHORIZER)
    payer.close_gaps()
    assert (payer.next_seq, payer.booked) == (2, (3, 2 * PICO)), "its answer may be on the way"
    payer.release(name(2), sent=False)
    payer.close_gaps()
    assert (payer.next_seq, payer.booked_ahead) == (4, set())
    with pytest.raises(Refused):
        payer.book(receipt(2, 2, PICO, 2 * PICO))
