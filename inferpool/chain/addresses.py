"""Addresses that are the same on every chain, and those of development chains.

The first three are the public deployments that x402's SDKs and wallets expect. The others exist
at these addresses only in the genesis of a development chain; elsewhere they are deployed
(`deploy.py`) and passed by address.
"""

from __future__ import annotations

from typing import Final

from inferpool.protocol.voucher import (
    CHANNELS_ADDRESS,
    COLLECTOR_3009_ADDRESS,
    COLLECTOR_PERMIT2_ADDRESS,
    PERMIT2_ADDRESS,
)

MULTICALL3_ADDRESS: Final = bytes.fromhex("ca11bde05977b3631167028862be2a173976ca11")

DEV_REGISTRY_ADDRESS: Final = bytes.fromhex("1fe0000000000000000000000000000000000001")
DEV_COURT_ADDRESS: Final = bytes.fromhex("1fe0000000000000000000000000000000000002")
DEV_DOLLAR_ADDRESS: Final = bytes.fromhex("1fe0000000000000000000000000000000000003")

DEV_CHAIN_ID: Final = 31337
DOLLAR_NAME: Final = "Dev Dollar"  # also the name of its signing domain
DOLLAR_VERSION: Final = "1"

FIXED: Final[dict[str, bytes]] = {
    "BatchSettlement": CHANNELS_ADDRESS,
    "Disputes": DEV_COURT_ADDRESS,
    "Erc3009Collector": COLLECTOR_3009_ADDRESS,
    "Multicall3": MULTICALL3_ADDRESS,
    "Permit2": PERMIT2_ADDRESS,
    "Permit2Collector": COLLECTOR_PERMIT2_ADDRESS,
    "Registry": DEV_REGISTRY_ADDRESS,
    "TestDollar": DEV_DOLLAR_ADDRESS,
}
