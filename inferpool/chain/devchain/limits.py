"""Every limit of the development chain, in one place, each with its reason."""

from __future__ import annotations

from typing import Final

BODY_BYTES_MAX: Final = 2 * 2**20  # the largest deployment is 50 kB of hex; a batch of 100 fits
BATCH_MAX: Final = 100  # requests in one body: the worker answers them before anyone else's
BATCH_SECONDS_MAX: Final = 20.0  # of one body; what is left then is refused, not run
BLOCK_GAS_LIMIT: Final = 30_000_000  # a claim of 100 channels takes 2 million
CALL_GAS_MAX: Final = 2**24  # of eth_call and eth_estimateGas (EIP-7825): 4 s of this EVM at worst
LOGS_MAX: Final = 10_000  # as public providers have it; ask for fewer blocks
MINE_MAX: Final = 1_000  # blocks of one anvil_mine
REORG_MAX: Final = 128  # blocks of one anvil_reorg
FEE_HISTORY_MAX: Final = 1_024  # blocks, as geth has it
SNAPSHOTS_MAX: Final = 1_000
CACHE_ENTRIES_MAX: Final = 200_000  # trie nodes in memory: about 60 MB
FAUCET_WEI_MAX: Final = 10**24
FAUCET_UNITS_MAX: Final = 10**18
