"""The first state of a development chain: our contracts, funded keys, and their test dollars."""

from __future__ import annotations

from typing import Any, Final

from inferpool.chain.abi import contract
from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS, FIXED
from inferpool.chain.devchain.keys import DEV_KEYS
from inferpool.protocol.eip712 import address, keccak256, uint

DEV_BALANCE_WEI: Final = 10_000 * 10**18
DEV_BALANCE_UNITS: Final = 1_000_000 * 10**6  # of the test dollar


def mapping_slot(slot: int, key: bytes) -> int:
    """Storage slot of a Vyper mapping's value for an address."""
    return int.from_bytes(keccak256(uint(slot) + address(key)), "big")


def accounts() -> dict[bytes, dict[str, Any]]:
    """Accounts by address in py-evm's form: balance (wei), nonce, code, storage."""
    state: dict[bytes, dict[str, Any]] = {
        at: {"balance": 0, "nonce": 1, "code": contract(name).runtime, "storage": {}}
        for name, at in FIXED.items()
    }
    for key in DEV_KEYS:
        state[key.address] = {"balance": DEV_BALANCE_WEI, "nonce": 0, "code": b"", "storage": {}}
    # The balances of the test dollar must add up to its supply, or no invariant would hold.
    layout = contract("TestDollar").layout
    storage = state[DEV_DOLLAR_ADDRESS]["storage"]
    storage[layout["totalSupply"]] = DEV_BALANCE_UNITS * len(DEV_KEYS)
    for key in DEV_KEYS:
        storage[mapping_slot(layout["balanceOf"], key.address)] = DEV_BALANCE_UNITS
    return state
