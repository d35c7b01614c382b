"""Chained receipts: an honest node's are all proved, what a dishonest one changes is refused."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferpool.payments.chains import ChainSigner, ReceiptChain, Unproved
from inferpool.payments.checks import ReceiptInvalid, check_chained
from inferpool.protocol.encoding import sha256
from inferpool.protocol.errors import Refused
from inferpool.protocol.evidence import NO_EVIDENCE
from inferpool.protocol.limits import CHAIN_MS, CHAIN_RECEIPTS_MAX
from inferpool.protocol.receipt import Receipt
from inferpool.protocol.receipt_chain import ChainedReceipt
from tests.payments.parts import CHAIN_ID, CHANNEL_ID, NODE, STRANGER, attempt, honest_receipt, name

SETTINGS = settings(derandomize=True, deadline=None, database=None, max_examples=80)


SIGNER = ChainSigner(NODE.address, CHANNEL_ID, CHAIN_ID)


def numbered(seq: int) -> Receipt:
    return replace(
        honest_receipt(seq, seq), evidence_hash=NO_EVIDENCE, charged_total_pico_usd=9 * seq
    )


def take(book: Unproved, short: ChainedReceipt, made: Receipt) -> None:
    """What a payer does with an answer's chained receipt."""
    book.add(short, made.digest(CHAIN_ID), SIGNER, 0)


@SETTINGS
@given(
    pauses=st.lists(st.sampled_from([0, 1, CHAIN_MS]), min_size=1, max_size=150),
    seed=st.integers(0, 1000),
    disorder=st.integers(0, 6),
)
def test_every_receipt_is_proved_though_answers_overtake_each_other(
    pauses: list[int], seed: int, disorder: int
) -> None:
    chain, book, now = ReceiptChain(), Unproved(), 0
    sent = []
    for seq, pause in enumerate(pauses, 1):
        now += pause
        made = numbered(seq)
        sent.append((chain.append(made, NODE, CHAIN_ID, now), made))
    random = Random(seed)
    order = sorted(range(len(sent)), key=lambda i: i + random.uniform(0, disorder))
    for i in order:
        short, made = sent[i]
        take(book, ChainedReceipt.decode(short.encode()), made)
    last = {made.seq for short, made in sent if short.first_seq == sent[-1][0].first_seq}
    assert set(book.seqs()) == last, "all but the chain that is still open"
    assert book.count == len(last) <= CHAIN_RECEIPTS_MAX
    for _, made in sent:
        book.prove_one(made.seq, made.digest(CHAIN_ID))
    assert (book.count, book.chains) == (0, {})


def test_a_chain_is_signed_after_64_receipts_or_100_ms() -> None:
    chain = ReceiptChain()
    proofs = [chain.append(numbered(i), NODE, CHAIN_ID, 0).proof for i in range(1, 130)]
    signed_at = [i for i, proof in enumerate(proofs) if proof]
    assert signed_at == [CHAIN_RECEIPTS_MAX, 2 * CHAIN_RECEIPTS_MAX]
    first = chain.append(numbered(130), NODE, CHAIN_ID, CHAIN_MS)
    assert first.proof is not None
    assert (first.proof.first_seq, first.proof.count, first.position) == (129, 1, 0)
    back = chain.append(numbered(131), NODE, CHAIN_ID, 0)  # the clock was set back
    assert back.proof is not None


def test_a_chain_without_a_lost_answer_is_proved_by_the_receipts_themselves() -> None:
    chain, book = ReceiptChain(), Unproved()
    made = [numbered(seq) for seq in range(1, 4)]
    shorts = [chain.append(item, NODE, CHAIN_ID, 0) for item in made]
    ended = chain.append(numbered(4), NODE, CHAIN_ID, CHAIN_MS)
    take(book, shorts[0], made[0])
    take(book, shorts[2], made[2])  # the second answer was lost
    take(book, ended, numbered(4))
    assert book.seqs() == [1, 3, 4]
    with pytest.raises(Refused, match="other members"):
        book.prove_one(3, replace(made[2], charge_pico_usd=1).digest(CHAIN_ID))
    for item in made:
        book.prove_one(item.seq, item.digest(CHAIN_ID))
    assert book.seqs() == [4]
    assert book.overdue(0)
    assert not book.overdue(-1)


def test_what_contradicts_its_neighbours_is_refused() -> None:
    chain, book = ReceiptChain(), Unproved()
    made = [numbered(seq) for seq in range(1, 4)]
    shorts = [chain.append(item, NODE, CHAIN_ID, 0) for item in made]
    with pytest.raises(Refused, match="not that of"):
        take(book, replace(shorts[0], link=sha256(b"another")), made[0])
    with pytest.raises(Refused, match="not that of"):
        take(book, shorts[0], replace(made[0], charge_pico_usd=1))
    take(book, shorts[2], made[2])
    with pytest.raises(Refused, match="leaves a receipt out"):
        take(book, replace(shorts[1], link=sha256(b"another")), made[1])
    take(book, shorts[1], made[1])
    with pytest.raises(Refused, match="two receipts"):
        take(book, shorts[1], made[1])
    assert book.count == 2


@pytest.mark.parametrize("fault", ["another key", "too few", "another chain"])
def test_a_proof_that_is_none_is_refused(fault: str) -> None:
    signer = STRANGER if fault == "another key" else NODE
    chain, book = ReceiptChain(), Unproved()
    for seq in range(1, 4):
        item = numbered(seq)
        take(book, chain.append(item, signer, CHAIN_ID, 0), item)
    proof = chain.append(numbered(4), signer, CHAIN_ID, CHAIN_MS).proof
    assert proof is not None
    shown = replace(SIGNER, chain_id=CHAIN_ID + (fault == "another chain"))
    if fault == "too few":
        proof = replace(proof, count=2)
    made = numbered(4)
    short = replace(ReceiptChain().append(made, NODE, CHAIN_ID, 0), proof=proof)
    with pytest.raises(Refused):
        book.add(short, made.digest(CHAIN_ID), shown, 0)
    assert set(book.seqs()) >= {1, 2, 3}, "nothing is proved by it"


def test_only_units_and_charge_are_the_nodes_word_and_both_are_checked() -> None:
    made = replace(honest_receipt(), evidence_hash=NO_EVIDENCE)
    short = ReceiptChain().append(made, NODE, CHAIN_ID, 0)
    seen = {
        "request_hash": sha256(b"body"),
        "response_hash": sha256(b"answer"),
        "output_units": 10,
    }
    assert check_chained(short, attempt(), **seen) == made  # type: ignore[arg-type]
    for change in (
        {"charge_pico_usd": made.charge_pico_usd + 1},
        {"output_units": 9},
        {"prompt_units": 109},
    ):
        with pytest.raises(ReceiptInvalid):
            check_chained(replace(short, **change), attempt(), **seen)  # type: ignore[arg-type]
    other = check_chained(short, attempt(), **(seen | {"response_hash": sha256(b"x")}))  # type: ignore[arg-type]
    with pytest.raises(Refused):
        Unproved().add(short, other.digest(CHAIN_ID), SIGNER, 0)
    assert name(1) == other.request_id


@SETTINGS
@given(st.binary(max_size=260))
def test_no_bytes_crash_the_parser(data: bytes) -> None:
    try:
        short = ChainedReceipt.decode(data)
    except Refused as error:
        assert error.code == "bad_encoding"
    else:
        assert short.encode() == data
