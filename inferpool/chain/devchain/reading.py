"""JSON-RPC methods that read the chain, as the Ethereum execution API specifies them."""

from __future__ import annotations

from inferpool.chain.devchain import limits
from inferpool.chain.devchain.blocks import Block, Json, block_json, transaction_json
from inferpool.chain.devchain.errors import INVALID_PARAMS, RpcError
from inferpool.chain.devchain.keys import DEV_KEYS
from inferpool.chain.devchain.node import TIP_WEI, Node
from inferpool.chain.devchain.parameters import (
    address,
    block_number,
    data,
    fixed,
    log_filter,
    message,
    number,
)
from inferpool.chain.devchain.table import method
from inferpool.protocol.eip712 import keccak256
from inferpool.protocol.encoding import to_checksum, to_hex


@method("eth_chainId")
def chain_id(node: Node) -> str:
    return hex(node.chain_id)


@method("net_version")
def net_version(node: Node) -> str:
    return str(node.chain_id)


@method("web3_clientVersion")
def client_version(node: Node) -> str:
    return "inferpool-devchain/py-evm"


@method("web3_sha3")
def sha3(node: Node, value: object) -> str:
    return to_hex(keccak256(data(value)))


@method("net_listening")
def listening(node: Node) -> bool:
    return True


@method("eth_syncing")
def syncing(node: Node) -> bool:
    return False


@method("eth_accounts")
def accounts(node: Node) -> list[str]:
    return [to_checksum(key.address) for key in DEV_KEYS]


@method("eth_blockNumber")
def latest_number(node: Node) -> str:
    return hex(node.head.number)


@method("eth_gasPrice")
def gas_price(node: Node) -> str:
    return hex(node.pending().base_fee_per_gas + TIP_WEI)


@method("eth_maxPriorityFeePerGas")
def priority_fee(node: Node) -> str:
    return hex(TIP_WEI)


@method("eth_feeHistory")
def fee_history(
    node: Node, count: object, newest: object = "latest", percentiles: object = None
) -> Json:
    wanted = number(count, limits.FEE_HISTORY_MAX)
    high = min(block_number(newest, node.head.number), node.head.number)
    low = max(0, high - wanted + 1)
    headers = [_block(node, each).header for each in range(low, high + 1)]
    columns = len(percentiles) if isinstance(percentiles, list) else 0
    following = node.evm.child(headers[-1], node.now_s()) if headers else node.pending()
    return {
        "oldestBlock": hex(low),
        "baseFeePerGas": [hex(h.base_fee_per_gas) for h in [*headers, following]],
        "gasUsedRatio": [h.gas_used / h.gas_limit for h in headers],
        "reward": [[hex(TIP_WEI)] * columns for _ in headers],
        "baseFeePerBlobGas": ["0x1"] * (len(headers) + 1),
        "blobGasUsedRatio": [0.0] * len(headers),
    }


@method("eth_getBlockByNumber")
def block_by_number(node: Node, tag: object, full: object = False) -> Json | None:
    return _shown(node, node.block(block_number(tag, node.head.number)), full)


@method("eth_getBlockByHash")
def block_by_hash(node: Node, hash_: object, full: object = False) -> Json | None:
    return _shown(node, node.block_by_hash(to_hex(fixed(hash_, 32))), full)


@method("eth_getTransactionByHash")
def transaction_by_hash(node: Node, hash_: object) -> Json | None:
    key = to_hex(fixed(hash_, 32))
    mined = node.mined(key)
    if mined is None:
        return None
    return transaction_json(node.raw(key), mined["receipt"], node.chain_id)


@method("eth_getTransactionReceipt")
def receipt(node: Node, hash_: object) -> Json | None:
    mined = node.mined(to_hex(fixed(hash_, 32)))
    return None if mined is None else mined["receipt"]


@method("eth_getBalance")
def balance(node: Node, at: object, tag: object = "latest") -> str:
    return hex(node.state(block_number(tag, node.head.number)).get_balance(address(at)))


@method("eth_getTransactionCount")
def transaction_count(node: Node, at: object, tag: object = "latest") -> str:
    return hex(node.state(block_number(tag, node.head.number)).get_nonce(address(at)))


@method("eth_getCode")
def code(node: Node, at: object, tag: object = "latest") -> str:
    return to_hex(node.state(block_number(tag, node.head.number)).get_code(address(at)))


@method("eth_getStorageAt")
def storage(node: Node, at: object, slot: object, tag: object = "latest") -> str:
    state = node.state(block_number(tag, node.head.number))
    return f"0x{state.get_storage(address(at), number(slot)):064x}"


@method("eth_getLogs")
def logs(node: Node, query: object) -> list[Json]:
    if not isinstance(query, dict):
        raise RpcError(INVALID_PARAMS, "expected a filter object")
    wanted = log_filter(query)
    if query.get("blockHash") is not None:
        block = node.block_by_hash(to_hex(fixed(query["blockHash"], 32)))
        if block is None:
            raise RpcError(INVALID_PARAMS, "unknown block")
        return node.logs(block.number, block.number, wanted)
    head = node.head.number
    low, high = (block_number(query.get(end), head) for end in ("fromBlock", "toBlock"))
    return node.logs(low, high, wanted)


@method("eth_call")
def call(node: Node, query: object, tag: object = "latest") -> str:
    return to_hex(node.call(block_number(tag, node.head.number), message(query)))


@method("eth_estimateGas")
def estimate(node: Node, query: object, tag: object = "latest") -> str:
    return hex(node.evm.estimate(node.at(block_number(tag, node.head.number)), message(query)))


def _block(node: Node, block: int) -> Block:
    found = node.block(block)
    assert found is not None, "a block between genesis and head"
    return found


def _shown(node: Node, block: Block | None, full: object) -> Json | None:
    if block is None:
        return None
    hashes = [entry["receipt"]["transactionHash"] for entry in block.transactions]
    transactions = [transaction_by_hash(node, each) for each in hashes] if full else hashes
    return block_json(block, list(transactions))
