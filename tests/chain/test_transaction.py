"""Our transactions are byte for byte what eth-account signs."""

from __future__ import annotations

import rlp as reference_rlp
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from inferpool.chain.transaction import Transaction, rlp, sign_transaction
from inferpool.identity.signing import Key

SECRET = bytes(range(1, 33))
WORDS = st.integers(0, 2**64 - 1)


@given(
    nonce=WORDS,
    gas=WORDS,
    max_fee=WORDS,
    tip=WORDS,
    value=st.integers(0, 2**128),
    data=st.binary(max_size=300),
    to=st.none() | st.binary(min_size=20, max_size=20),
)
def test_signed_bytes_equal_eth_account(
    nonce: int, gas: int, max_fee: int, tip: int, value: int, data: bytes, to: bytes | None
) -> None:
    tip = min(tip, max_fee)
    ours = sign_transaction(
        Transaction(
            chain_id=31337,
            nonce=nonce,
            to=to,
            data=data,
            gas=gas,
            max_fee_wei=max_fee,
            max_priority_fee_wei=tip,
            value=value,
        ),
        Key(SECRET),
    )
    fields = {
        "chainId": 31337,
        "nonce": nonce,
        "gas": gas,
        "maxFeePerGas": max_fee,
        "maxPriorityFeePerGas": tip,
        "value": value,
        "data": data,
    }
    theirs = Account.from_key(SECRET).sign_transaction(fields | ({"to": to} if to else {}))
    assert ours == bytes(theirs.raw_transaction)


@given(st.recursive(st.binary(max_size=80), lambda inner: st.lists(inner, max_size=6)))
def test_rlp_equals_the_reference(value: object) -> None:
    assert rlp(value) == reference_rlp.encode(value)  # type: ignore[arg-type]
