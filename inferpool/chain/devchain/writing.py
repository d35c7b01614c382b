"""JSON-RPC methods that change the chain: transactions, and the steering names of anvil and
hardhat."""

from __future__ import annotations

from inferpool.chain.devchain import limits
from inferpool.chain.devchain.blocks import Json
from inferpool.chain.devchain.errors import INVALID_PARAMS, RpcError
from inferpool.chain.devchain.evm import Message
from inferpool.chain.devchain.keys import DEV_KEYS
from inferpool.chain.devchain.node import TIP_WEI, Node
from inferpool.chain.devchain.parameters import address, data, fixed, message, number
from inferpool.chain.devchain.table import method
from inferpool.chain.transaction import Transaction, sign_transaction
from inferpool.protocol.eip712 import UINT64_MAX


@method("eth_sendRawTransaction")
def send_raw(node: Node, raw: object) -> str:
    return node.send_raw(data(raw))


@method("eth_sendTransaction")
def send(node: Node, query: object) -> str:
    """From one of the development keys, as `eth_accounts` lists them."""
    wanted = message(query)
    assert isinstance(query, dict)
    key = next((each for each in DEV_KEYS if each.address == wanted.sender), None)
    if key is None:
        raise RpcError(INVALID_PARAMS, "no key for this sender")
    pending = node.pending()
    price = query.get("gasPrice")
    tip = number(query.get("maxPriorityFeePerGas", price if price is not None else TIP_WEI))
    default_fee = price if price is not None else 2 * pending.base_fee_per_gas + tip
    nonce = query.get("nonce", node.evm.state(pending).get_nonce(key.address))
    transaction = Transaction(
        chain_id=node.chain_id,
        nonce=number(nonce, UINT64_MAX),
        to=wanted.to,
        data=wanted.data,
        value=wanted.value,
        gas=_gas(node, query, wanted),
        max_fee_wei=number(query.get("maxFeePerGas", default_fee)),
        max_priority_fee_wei=tip,
    )
    return node.send_raw(sign_transaction(transaction, key))


def _gas(node: Node, query: Json, wanted: Message) -> int:
    if query.get("gas") is not None:
        return wanted.gas
    return node.evm.estimate(node.pending(), wanted)


@method("evm_mine")
def mine(node: Node, timestamp: object = None) -> str:
    if timestamp is not None:
        node.set_next_timestamp(number(timestamp, UINT64_MAX))
    node.mine()
    return "0x0"


@method("anvil_mine", "hardhat_mine")
def mine_many(node: Node, count: object = 1) -> None:
    for _ in range(number(count, limits.MINE_MAX)):
        node.mine()


@method("evm_increaseTime")
def increase_time(node: Node, seconds: object) -> str:
    return hex(node.increase_time(number(seconds, 2**40)))


@method("evm_setNextBlockTimestamp")
def set_next_timestamp(node: Node, timestamp: object) -> None:
    node.set_next_timestamp(number(timestamp, 2**40))


@method("evm_snapshot")
def snapshot(node: Node) -> str:
    return hex(node.snapshot())


@method("evm_revert")
def revert(node: Node, snapshot_number: object) -> bool:
    return node.revert(number(snapshot_number))


@method("anvil_reorg")
def reorg(node: Node, depth: object, transactions: object = None) -> None:
    if transactions:
        raise RpcError(INVALID_PARAMS, "only empty blocks can replace others")
    node.reorg(number(depth, limits.REORG_MAX))


@method("anvil_setCode", "hardhat_setCode")
def set_code(node: Node, at: object, value: object) -> None:
    node.mine(change=lambda state: state.set_code(address(at), data(value)))


@method("anvil_setBalance", "hardhat_setBalance")
def set_balance(node: Node, at: object, wei: object) -> None:
    node.mine(change=lambda state: state.set_balance(address(at), number(wei)))


@method("anvil_setStorageAt", "hardhat_setStorageAt")
def set_storage(node: Node, at: object, slot: object, value: object) -> None:
    word = int.from_bytes(fixed(value, 32), "big")
    node.mine(change=lambda state: state.set_storage(address(at), number(slot), word))


@method("inferpool_faucet")
def faucet(node: Node, to: object, wei: object, units: object) -> None:
    """Test ETH (wei) and test dollars (base units) for an address, in one block."""
    node.faucet(
        address(to), number(wei, limits.FAUCET_WEI_MAX), number(units, limits.FAUCET_UNITS_MAX)
    )
