"""Blocks and transactions as JSON-RPC shows them.

A mined transaction is kept as plain JSON (raw bytes, receipt); the rest is computed from it and
from the header when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from eth.abc import SignedTransactionAPI

from inferpool.chain.devchain.evm import Header, Mined
from inferpool.protocol.eip712 import keccak256
from inferpool.protocol.encoding import to_checksum, to_hex

Json = dict[str, Any]

_ZERO_WORD: Final = "0x" + "0" * 64


@dataclass(frozen=True, slots=True)
class Block:
    """One block: py-evm's header and its transactions, each `{"raw": hex, "receipt": {...}}`."""

    header: Header
    transactions: list[Json]

    @property
    def number(self) -> int:
        """Its height; genesis is 0."""
        return int(self.header.block_number)

    @property
    def hash(self) -> str:
        """In lower-case 0x hex."""
        return to_hex(self.header.hash)


def record(mined: Mined, raws: list[bytes], transactions: list[SignedTransactionAPI]) -> list[Json]:
    """The transactions of a new block as they are kept."""
    records: list[Json] = []
    gas_before = logs_before = 0
    for index, (raw, transaction) in enumerate(zip(raws, transactions, strict=True)):
        receipt = mined.receipts[index]
        run = mined.runs[index]
        entry = _receipt(mined.header, transaction, keccak256(raw), index)
        entry["logs"] = _logs(entry, receipt.logs, logs_before, int(mined.header.timestamp))
        entry["gasUsed"] = hex(receipt.gas_used - gas_before)
        entry["cumulativeGasUsed"] = hex(receipt.gas_used)
        entry["logsBloom"] = f"0x{receipt.bloom:0512x}"
        entry["status"] = "0x0" if run.is_error else "0x1"
        created = None if transaction.to else to_checksum(run.msg.storage_address)
        entry["contractAddress"] = created
        records.append({"raw": to_hex(raw), "receipt": entry})
        gas_before = receipt.gas_used
        logs_before += len(receipt.logs)
    return records


def _receipt(header: Header, transaction: SignedTransactionAPI, hash_: bytes, index: int) -> Json:
    """The members of a receipt that do not depend on the run."""
    base_fee = header.base_fee_per_gas
    price = min(transaction.max_fee_per_gas, base_fee + transaction.max_priority_fee_per_gas)
    return {
        "transactionHash": to_hex(hash_),
        "transactionIndex": hex(index),
        "blockHash": to_hex(header.hash),
        "blockNumber": hex(header.block_number),
        "from": to_checksum(transaction.sender),
        "to": to_checksum(transaction.to) if transaction.to else None,
        "effectiveGasPrice": hex(price),
        "type": hex(getattr(transaction, "type_id", 0) or 0),
    }


def _logs(receipt: Json, logs: Any, first: int, timestamp: int) -> list[Json]:
    place = {key: receipt[key] for key in ("blockNumber", "blockHash", "transactionHash")}
    return [
        {
            "address": to_checksum(log.address),
            "topics": [to_hex(topic.to_bytes(32, "big")) for topic in log.topics],
            "data": to_hex(log.data),
            "blockTimestamp": hex(timestamp),
            "transactionIndex": receipt["transactionIndex"],
            "logIndex": hex(first + position),
            "removed": False,
            **place,
        }
        for position, log in enumerate(logs)
    ]


def block_json(block: Block, transactions: list[Any]) -> Json:
    """A block with its transactions' hashes or objects."""
    header = block.header
    return {
        "number": hex(block.number),
        "hash": block.hash,
        "parentHash": to_hex(header.parent_hash),
        "timestamp": hex(header.timestamp),
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "baseFeePerGas": hex(header.base_fee_per_gas),
        "miner": to_checksum(header.coinbase),
        "difficulty": "0x0",
        "totalDifficulty": "0x0",
        "extraData": to_hex(header.extra_data),
        "logsBloom": f"0x{header.bloom:0512x}",
        "nonce": "0x" + "0" * 16,
        "sha3Uncles": to_hex(header.uncles_hash),
        "size": hex(len(block.transactions) * 256 + 640),  # nobody computes with it
        "stateRoot": to_hex(header.state_root),
        "receiptsRoot": to_hex(header.receipt_root),
        "transactionsRoot": to_hex(header.transaction_root),
        "mixHash": to_hex(header.mix_hash),
        "uncles": [],
        "withdrawals": [],
        "withdrawalsRoot": to_hex(header.withdrawals_root),
        "blobGasUsed": "0x0",
        "excessBlobGas": "0x0",
        "parentBeaconBlockRoot": _ZERO_WORD,
        "requestsHash": to_hex(header.requests_hash),
        "transactions": transactions,
    }


def transaction_json(transaction: SignedTransactionAPI, receipt: Json, chain_id: int) -> Json:
    """A mined transaction."""
    kind = int(receipt["type"], 16)
    shown = {
        "hash": receipt["transactionHash"],
        "blockHash": receipt["blockHash"],
        "blockNumber": receipt["blockNumber"],
        "transactionIndex": receipt["transactionIndex"],
        "from": receipt["from"],
        "to": receipt["to"],
        "nonce": hex(transaction.nonce),
        "gas": hex(transaction.gas),
        "value": hex(transaction.value),
        "input": to_hex(transaction.data),
        "type": receipt["type"],
        "chainId": hex(chain_id),
        "gasPrice": receipt["effectiveGasPrice"],
        "r": hex(transaction.r),
        "s": hex(transaction.s),
    }
    if kind == 0:
        return shown | {"v": hex(getattr(transaction, "v", 0))}
    parity = hex(transaction.y_parity)
    shown |= {"v": parity, "yParity": parity, "accessList": []}
    if kind >= 2:
        shown["maxFeePerGas"] = hex(transaction.max_fee_per_gas)
        shown["maxPriorityFeePerGas"] = hex(transaction.max_priority_fee_per_gas)
    return shown
