"""The chain itself: blocks in order, the clock, transactions, reorgs and snapshots.

Used by one thread at a time. Every change of the chain is one transaction of the store; what is in
memory follows after it, and is read anew from the file where it failed.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from eth.abc import SignedTransactionAPI

from inferpool.chain.abi import contract
from inferpool.chain.addresses import DEV_CHAIN_ID, DEV_DOLLAR_ADDRESS
from inferpool.chain.devchain.blocks import Block, Json, record
from inferpool.chain.devchain.errors import INVALID_PARAMS, LIMIT_EXCEEDED, REJECTED, RpcError
from inferpool.chain.devchain.evm import (
    Evm,
    Header,
    Message,
    State,
    decode_header,
    encode_header,
)
from inferpool.chain.devchain.keys import DEV_KEYS
from inferpool.chain.devchain.limits import LOGS_MAX, SNAPSHOTS_MAX
from inferpool.chain.devchain.parameters import LogFilter
from inferpool.chain.devchain.store import Store
from inferpool.chain.transaction import Transaction, sign_transaction
from inferpool.protocol.encoding import from_hex, to_hex

_FAUCET_GAS = 100_000
TIP_WEI = 10**9  # what a transaction without a price of its own offers


@dataclass(frozen=True, slots=True)
class _Snapshot:
    number: int
    skew_s: int


def _wall_clock_s() -> int:
    return int(time.time())


class Node:
    """A development chain on a file, or in memory; `clock_s` gives UNIX seconds."""

    def __init__(
        self,
        path: str = ":memory:",
        chain_id: int = DEV_CHAIN_ID,
        clock_s: Callable[[], int] = _wall_clock_s,
    ) -> None:
        self.chain_id = chain_id
        self.evm: Evm
        self._clock_s = clock_s
        self._store = Store(path)
        self._snapshots: list[_Snapshot] = []
        self._next_timestamp: int | None = None
        try:
            self._open()
        except BaseException:
            self._store.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    # -- what is

    @property
    def head(self) -> Block:
        """The latest block."""
        return self._blocks[-1]

    def now_s(self) -> int:
        """The chain's clock: the time of a block that would be mined now."""
        if self._next_timestamp is not None:
            return self._next_timestamp
        return max(self._clock_s() + self._skew_s, int(self.head.header.timestamp))

    def block(self, number: int) -> Block | None:
        """A block by number."""
        return self._blocks[number] if number < len(self._blocks) else None

    def block_by_hash(self, hash_: str) -> Block | None:
        """A block by its hash in lower-case hex."""
        number = self._numbers.get(hash_)
        return None if number is None else self._blocks[number]

    def mined(self, transaction_hash: str) -> Json | None:
        """A mined transaction as it is kept, by its hash in lower-case hex."""
        return self._mined.get(transaction_hash)

    def pending(self) -> Header:
        """The header of the next block, were it mined now."""
        extra = self._reorgs.to_bytes(4, "big") if self._reorgs else b""
        return self.evm.child(self.head.header, self.now_s(), extra)

    def at(self, number: int) -> Header:
        """The header under which a call sees the state after a block: the next one at the head,
        so that a call sees the time that its transaction would see. Raises RpcError."""
        block = self.block(number)
        if block is None:
            raise RpcError(REJECTED, "header not found")
        return self.pending() if block is self.head else block.header

    def logs(self, low: int, high: int, wanted: LogFilter) -> list[Json]:
        """Logs of blocks `low` to `high` that pass. Raises RpcError for more than LOGS_MAX."""
        start = bisect.bisect_left(self._logs, low, key=lambda entry: entry[0])
        found: list[Json] = []
        for number, log in self._logs[start:]:
            if number > high:
                break
            if wanted.matches(log):
                if len(found) == LOGS_MAX:
                    raise RpcError(LIMIT_EXCEEDED, f"query returned more than {LOGS_MAX} results")
                found.append(log)
        return found

    # -- transactions

    def send_raw(self, raw: bytes) -> str:
        """Mine a signed transaction in a block of its own; its hash. Raises RpcError."""
        header = self.pending()
        transaction = self.evm.decode(header, raw)
        self._check(header, transaction)
        self.mine([raw])
        return to_hex(transaction.hash)

    def mine(
        self, raws: list[bytes] | None = None, change: Callable[[State], None] | None = None
    ) -> Block:
        """Mine one block of transactions, then of a change by hand. Raises RpcError."""
        with self._transaction():
            return self._mine(raws or [], change)

    def faucet(self, to: bytes, wei: int, units: int) -> None:
        """Give test ETH and test dollars in one block."""
        raws = []
        if units:
            owner = DEV_KEYS[0]
            minting = Transaction(
                chain_id=self.chain_id,
                nonce=self.evm.state(self.pending()).get_nonce(owner.address),
                to=DEV_DOLLAR_ADDRESS,
                data=contract("TestDollar").call("mint", to, units),
                gas=_FAUCET_GAS,
                max_fee_wei=2 * self.pending().base_fee_per_gas + TIP_WEI,
                max_priority_fee_wei=TIP_WEI,
            )
            raws.append(sign_transaction(minting, owner))
        self.mine(raws, lambda state: state.delta_balance(to, wei))

    # -- the clock and the past

    def increase_time(self, seconds: int) -> int:
        """Move the clock forward for good; the whole shift in seconds."""
        with self._transaction():
            self._shift(self._skew_s + seconds)
        return self._skew_s

    def set_next_timestamp(self, timestamp: int) -> None:
        """The next block's time; the clock goes on from there. Raises RpcError for the past."""
        if timestamp < self.head.header.timestamp:
            raise RpcError(INVALID_PARAMS, "timestamp lower than the latest block's")
        with self._transaction():
            self._shift(timestamp - self._clock_s())
        self._next_timestamp = timestamp

    def snapshot(self) -> int:
        """Remember head and clock; a number for `revert`. Snapshots end with the process."""
        if len(self._snapshots) >= SNAPSHOTS_MAX:
            raise RpcError(LIMIT_EXCEEDED, f"more than {SNAPSHOTS_MAX} snapshots")
        self._snapshots.append(_Snapshot(self.head.number, self._skew_s))
        return len(self._snapshots)

    def revert(self, number: int) -> bool:
        """Go back to a snapshot, which is used up with those after it."""
        if not 1 <= number <= len(self._snapshots):
            return False
        snapshot = self._snapshots[number - 1]
        with self._transaction():
            self._rewind(snapshot.number)
            self._shift(snapshot.skew_s)
        del self._snapshots[number - 1 :]
        self._next_timestamp = None
        return True

    def reorg(self, depth: int) -> None:
        """Replace the last `depth` blocks by empty ones with other hashes."""
        if depth > self.head.number:
            raise RpcError(INVALID_PARAMS, "deeper than the chain")
        with self._transaction():
            self._rewind(self.head.number - depth)
            self._reorgs += 1
            self._store.keep_number("reorgs", self._reorgs)
            for _ in range(depth):
                self._mine([], None)
        self._snapshots = [s for s in self._snapshots if s.number <= self.head.number - depth]

    # -- inside

    def _open(self) -> None:
        """Fill memory from the file, or create the chain where the file is new."""
        self._blocks: list[Block] = []
        self._numbers: dict[str, int] = {}
        self._mined: dict[str, Json] = {}
        self._logs: list[tuple[int, Json]] = []
        self._skew_s = self._store.number("skew_s", 0)
        self._reorgs = self._store.number("reorgs", 0)
        self.evm = Evm(self._store.kv, self.chain_id)
        rows = self._store.blocks()
        if not rows:
            with self._store.transaction():
                genesis = Block(self.evm.create(self._clock_s() - 1), [])
                self._store.keep_number("chain_id", self.chain_id)
                self._store.save_block(0, encode_header(genesis.header), [])
            self._add(genesis)
            return
        if self._store.number("chain_id", self.chain_id) != self.chain_id:
            raise ValueError("this file holds a chain with another chain id")
        self.evm.open()
        for header, transactions in rows:
            self._add(Block(decode_header(header), transactions))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One change of file and memory. Memory is filled while the file is still open to
        rollback, hence the reload: both say the same whatever happens."""
        try:
            with self._store.transaction():
                yield
        except BaseException:
            self._open()
            raise

    def _mine(self, raws: list[bytes], change: Callable[[State], None] | None) -> Block:
        header = self.pending()
        transactions = [self.evm.decode(header, raw) for raw in raws]
        mined = self.evm.mine(header, transactions, change)
        block = Block(mined.header, record(mined, raws, transactions))
        self._store.save_block(block.number, encode_header(block.header), block.transactions)
        self._next_timestamp = None
        self._add(block)
        return block

    def _add(self, block: Block) -> None:
        self._numbers[block.hash] = block.number
        self._blocks.append(block)
        for entry in block.transactions:
            self._mined[entry["receipt"]["transactionHash"]] = entry
            self._logs += [(block.number, log) for log in entry["receipt"]["logs"]]

    def _rewind(self, number: int) -> None:
        """Make block `number` the head; what came after is gone, as after a reorg."""
        self._store.delete_blocks_after(number)
        while self.head.number > number:
            block = self._blocks.pop()
            del self._numbers[block.hash]
            for entry in block.transactions:
                del self._mined[entry["receipt"]["transactionHash"]]
        self._logs = [entry for entry in self._logs if entry[0] <= number]

    def _shift(self, skew_s: int) -> None:
        self._skew_s = skew_s
        self._store.keep_number("skew_s", skew_s)

    def _check(self, header: Header, transaction: SignedTransactionAPI) -> None:
        """What geth's pool checks, in its words. There is no queue: a nonce too high is refused
        rather than kept, since its block could only be mined later."""
        if transaction.chain_id not in (None, self.chain_id):  # None: from before EIP-155
            text = f"invalid chain id for signer: have {transaction.chain_id} want {self.chain_id}"
            raise RpcError(REJECTED, text)
        sender = transaction.sender
        state = self.evm.state(header)
        nonce = state.get_nonce(sender)
        if to_hex(transaction.hash) in self._mined:
            raise RpcError(REJECTED, "already known")
        if transaction.nonce != nonce:
            word = "low" if transaction.nonce < nonce else "high"
            text = f"nonce too {word}: next nonce {nonce}, tx nonce {transaction.nonce}"
            raise RpcError(REJECTED, text)
        if transaction.gas > header.gas_limit:
            raise RpcError(REJECTED, "exceeds block gas limit")
        if transaction.max_fee_per_gas < header.base_fee_per_gas:
            raise RpcError(REJECTED, "max fee per gas less than block base fee")
        cost = transaction.gas * transaction.max_fee_per_gas + transaction.value
        if state.get_balance(sender) < cost:
            raise RpcError(REJECTED, "insufficient funds for gas * price + value")
        if transaction.gas < transaction.intrinsic_gas:
            raise RpcError(REJECTED, "intrinsic gas too low")

    def call(self, number: int, message: Message) -> bytes:
        """What a message returns on the state after a block. Raises RpcError."""
        return self.evm.output(self.at(number), message)

    def raw(self, transaction_hash: str) -> SignedTransactionAPI:
        """The signed transaction of a mined one."""
        text = self._mined[transaction_hash]["raw"]
        return self.evm.decode(self.pending(), from_hex(text, (len(text) - 2) // 2))

    def state(self, number: int) -> Any:
        """The state after a block."""
        return self.evm.state(self.at(number))
