"""Signatures: the same as eth-account's, and stricter about what is taken."""

from __future__ import annotations

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from inferpool.identity.signing import HALF_ORDER, Key, recover, verify
from inferpool.protocol.eip712 import keccak256
from inferpool.protocol.errors import InferpoolError, Refused
from tests.protocol.vectors import data, vectors

VECTORS = vectors("signature")
ORDER = 2 * HALF_ORDER + 1
secrets = (st.integers(1, ORDER - 1) | st.sampled_from([1, ORDER - 1])).map(
    lambda n: n.to_bytes(32)
)
digests = st.binary(min_size=32, max_size=32)


@given(secrets, digests)
def test_eth_account_agrees(secret: bytes, digest: bytes) -> None:
    key, account = Key(secret), Account.from_key(secret)
    assert key.address == bytes.fromhex(account.address[2:])
    signature = key.sign(digest)
    assert signature == bytes(account.unsafe_sign_hash(digest).signature)
    assert bytes.fromhex(Account._recover_hash(digest, signature=signature)[2:]) == key.address
    assert recover(digest, signature) == key.address
    verify(digest, signature, key.address)
    assert int.from_bytes(signature[32:64]) <= HALF_ORDER


@pytest.mark.parametrize("case", VECTORS["accepted"], ids=range(len(VECTORS["accepted"])))
def test_accepted(case: dict[str, str]) -> None:
    digest, signature = data(case["digest"]), data(case["signature"])
    verify(digest, signature, data(VECTORS["signer"]))
    assert Key(keccak256(VECTORS["secretText"].encode())).sign(digest) == signature


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["why"])
def test_refused(case: dict[str, str]) -> None:
    with pytest.raises(Refused) as caught:
        verify(data(case["digest"]), data(case["signature"]), data(VECTORS["signer"]))
    assert caught.value.code == "bad_signature"


def test_the_zero_address_signs_nothing() -> None:
    digest = bytes(32)
    with pytest.raises(Refused, match="zero address"):
        verify(digest, Key(b"\1" * 32).sign(digest), bytes(20))


def test_another_signer_is_named() -> None:
    liar, operator = Key(b"\1" * 32), Key(b"\2" * 32)
    with pytest.raises(Refused, match=liar.address.hex()):
        verify(bytes(32), liar.sign(bytes(32)), operator.address)


@given(digests, st.binary(max_size=70) | st.binary(min_size=65, max_size=65))
def test_random_bytes_are_refused_or_somebody(digest: bytes, signature: bytes) -> None:
    try:
        address = recover(digest, signature)
    except InferpoolError as error:
        found: object = (type(error), error.code)
    else:
        found = Account._recover_hash(digest, signature=signature).lower() == "0x" + address.hex()
    assert found in (True, (Refused, "bad_signature"))


@given(digests, st.integers(0, 64), st.integers(1, 255))
def test_each_byte_of_a_signature_counts(digest: bytes, place: int, change: int) -> None:
    key = Key(b"\3" * 32)
    signature = bytearray(key.sign(digest))
    signature[place] ^= change
    with pytest.raises(Refused):
        verify(digest, bytes(signature), key.address)


@pytest.mark.parametrize("secret", [bytes(32), ORDER.to_bytes(32), b"\xff" * 32, b"\1" * 33])
def test_what_is_no_secret(secret: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Key(secret)


def test_a_key_does_not_show_its_secret() -> None:
    key = Key(b"\xab" * 32)
    assert "abab" not in repr(key)
    assert key.address.hex() in repr(key)
    assert key.secret == b"\xab" * 32
