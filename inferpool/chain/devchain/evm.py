"""The EVM itself: py-evm at Prague, blocks of our own making, calls without a fee.

Only this module knows py-evm's virtual machine. It holds no chain: a header comes in, a header
goes out, and the state lies in the database under the header's root.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import rlp
from eth.abc import ComputationAPI, ReceiptAPI, SignedTransactionAPI
from eth.chains.base import MiningChain
from eth.constants import ZERO_ADDRESS
from eth.db.atomic import AtomicDB
from eth.exceptions import Revert, VMError
from eth.vm.forks.prague import PragueVM
from eth.vm.forks.prague.blocks import PragueBlockHeader
from eth.vm.spoof import SpoofTransaction
from eth_utils.exceptions import ValidationError

from inferpool.chain.abi import revert_reason
from inferpool.chain.devchain.errors import REJECTED, REVERTED, RpcError
from inferpool.chain.devchain.genesis import accounts
from inferpool.chain.devchain.limits import BLOCK_GAS_LIMIT, CALL_GAS_MAX
from inferpool.chain.devchain.store import KeyValues

# py-evm's types leave optional what Prague always has (a base fee, a requests hash).
Header = Any
State = Any


class _Vm(PragueVM):
    """Prague, but for header checks: the blocks are our own, and equal timestamps must pass, or
    100 blocks a second would run ahead of the clock."""

    @classmethod
    def validate_header(cls, header: Header, parent_header: Header) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Message:
    """What eth_call runs: `to` None creates a contract; amounts in wei and gas."""

    sender: bytes = ZERO_ADDRESS
    to: bytes | None = None
    data: bytes = b""
    value: int = 0
    gas: int = CALL_GAS_MAX


@dataclass(frozen=True, slots=True)
class Mined:
    """A new block: its header and, for each transaction, the receipt and the run."""

    header: Header
    receipts: Sequence[ReceiptAPI]
    runs: Sequence[ComputationAPI]


class Evm:
    """One chain id on one database."""

    def __init__(self, kv: KeyValues, chain_id: int) -> None:
        self._db = AtomicDB(kv)
        self._chain_class = _chain_class(chain_id)
        self._chain: Any = None

    def create(self, timestamp: int) -> Header:
        """Write the genesis state and return the first header."""
        params = {
            "coinbase": ZERO_ADDRESS,
            "difficulty": 0,
            "gas_limit": BLOCK_GAS_LIMIT,
            "timestamp": timestamp,
            "nonce": bytes(8),
        }
        self._chain = self._chain_class.from_genesis(self._db, params, accounts())
        return self._chain.get_canonical_head()

    def open(self) -> None:
        """Continue on a database that `create` has filled."""
        self._chain = self._chain_class(self._db)

    def child(self, parent: Header, timestamp: int, extra: bytes = b"") -> Header:
        """The header of a block to be mined on `parent`; `extra` makes siblings differ."""
        header = self._chain.create_header_from_parent(parent)
        return header.copy(timestamp=timestamp, gas_limit=BLOCK_GAS_LIMIT, extra_data=extra)

    def state(self, header: Header) -> State:
        """The state that a header names (of a child: its parent's)."""
        return self._chain.get_vm(header).state

    def decode(self, header: Header, raw: bytes) -> SignedTransactionAPI:
        """A signed transaction from its bytes. Raises RpcError."""
        try:
            builder = self._chain.get_vm(header).get_transaction_builder()
            transaction: SignedTransactionAPI = builder.decode(raw)
            transaction.validate()
            _ = transaction.sender
        except Exception as error:  # py-evm, rlp and eth_keys each raise their own
            raise RpcError(REJECTED, f"invalid transaction: {error}") from None
        return transaction

    def mine(
        self,
        header: Header,
        transactions: Sequence[SignedTransactionAPI],
        change: Callable[[State], None] | None = None,
    ) -> Mined:
        """Run transactions, then `change` the state, and write the block. Raises RpcError."""
        vm = self._chain.get_vm(header)
        try:
            filled, receipts, runs = vm.apply_all_transactions(transactions, header)
        except (ValidationError, VMError) as error:
            raise RpcError(REJECTED, str(error)) from None
        if change is not None:
            change(vm.state)
        block = vm.set_block_transactions_and_withdrawals(
            vm.get_block(), filled, transactions, receipts
        )
        mined = vm.mine_block(block).block.header
        self._chain.chaindb.persist_header(mined)
        return Mined(mined, receipts, runs)

    def call(self, header: Header, message: Message) -> ComputationAPI:
        """Run a message without a fee on the state of `header`; nothing is kept.

        Raises RpcError for what could not even start.
        """
        vm = self._chain.get_vm(header.copy(base_fee_per_gas=0))
        state = vm.state
        transaction = SpoofTransaction(
            vm.create_unsigned_transaction(
                nonce=state.get_nonce(message.sender),
                gas_price=0,
                gas=message.gas,
                to=message.to or b"",
                value=message.value,
                data=message.data,
            ),
            from_=message.sender,
        )
        try:
            run: ComputationAPI = state.costless_execute_transaction(transaction)
        except (ValidationError, VMError) as error:
            raise RpcError(REJECTED, str(error)) from None
        return run

    def output(self, header: Header, message: Message) -> bytes:
        """What a message returns. Raises RpcError with the revert's data."""
        return bytes(checked(self.call(header, message)).output)

    def estimate(self, header: Header, message: Message) -> int:
        """Gas with which a transaction goes through. Raises RpcError where none does.

        The run's own need is tried first, then what the 63/64 rule of inner calls may add.
        """
        run = checked(self.call(header, message))
        need = message.gas - run.get_gas_remaining()
        zeros = message.data.count(0)
        floor = 21_000 + 10 * (zeros + 4 * (len(message.data) - zeros))  # EIP-7623
        need = max(need, floor)
        for gas in (need, need * 64 // 63 + 2_500, need * 5 // 4 + 30_000):
            if gas < message.gas and self._succeeds(header, message, gas):
                return gas
        return message.gas

    def _succeeds(self, header: Header, message: Message, gas: int) -> bool:
        tried = Message(message.sender, message.to, message.data, message.value, gas)
        try:
            return not self.call(header, tried).is_error
        except RpcError:
            return False


def _chain_class(chain_id: int) -> Any:
    """py-evm's chain of one virtual machine from block 0."""
    return type("DevChain", (MiningChain,), {"vm_configuration": ((0, _Vm),), "chain_id": chain_id})


def checked(run: ComputationAPI) -> ComputationAPI:
    """A run that ended well. Raises RpcError in geth's words, with the revert's data."""
    if not run.is_error:
        return run
    if not isinstance(run.error, Revert):
        raise RpcError(REJECTED, f"{type(run.error).__name__}: {run.error}")
    output = bytes(run.output)
    message = "execution reverted"
    if output:
        message += f": {revert_reason(output)}"
    raise RpcError(REVERTED, message, "0x" + output.hex())


def encode_header(header: Header) -> bytes:
    """A header's RLP."""
    encoded: bytes = rlp.encode(header)
    return encoded


def decode_header(data: bytes) -> Header:
    """A header from its RLP."""
    return rlp.decode(data, PragueBlockHeader)


_CONSTRUCT_GAS: Final = 10_000_000


def construct(address: bytes, code: bytes, *, sender: bytes, chain_id: int) -> bytes:
    """Run deploy code (with its arguments) as if `address` were being created, and return the
    runtime code. Our constructors write immutables only, no storage. Raises ValueError."""
    params = {"difficulty": 0, "gas_limit": BLOCK_GAS_LIMIT, "timestamp": 1}
    chain = _chain_class(chain_id).from_genesis(AtomicDB(), params, {})
    vm = chain.get_vm(chain.create_header_from_parent(chain.get_canonical_head()))
    run = vm.execute_bytecode(
        origin=sender,
        gas_price=0,
        gas=_CONSTRUCT_GAS,
        to=address,
        sender=sender,
        value=0,
        data=b"",
        code=code,
    )
    if run.is_error:
        raise ValueError(f"the constructor failed: {run.error}")
    return bytes(run.output)
