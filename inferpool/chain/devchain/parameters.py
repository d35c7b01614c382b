"""Parameters of JSON-RPC calls, parsed once at the edge. Everything here raises RpcError."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inferpool.chain.devchain.errors import INVALID_PARAMS, RpcError
from inferpool.chain.devchain.evm import Message
from inferpool.chain.devchain.limits import CALL_GAS_MAX
from inferpool.protocol.eip712 import UINT64_MAX
from inferpool.protocol.encoding import from_hex

_HEAD_TAGS = frozenset((None, "latest", "pending", "safe", "finalized"))


def number(value: object, maximum: int = 2**256 - 1) -> int:
    """A number: JSON's own, or 0x hex as geth has it, or decimal digits as anvil takes them."""
    try:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError
        parsed = value if isinstance(value, int) else int(value, 0)
    except ValueError:
        raise RpcError(INVALID_PARAMS, f"expected a number, not {value!r:.40}") from None
    if not 0 <= parsed <= maximum:
        raise RpcError(INVALID_PARAMS, f"expected a number from 0 to {maximum}")
    return parsed


def data(value: object) -> bytes:
    """Bytes of any length in 0x hex."""
    if isinstance(value, str) and value[:2] in ("0x", "0X"):
        try:
            return bytes.fromhex(value[2:])
        except ValueError:
            pass
    raise RpcError(INVALID_PARAMS, "expected bytes in 0x hex")


def fixed(value: object, length: int) -> bytes:
    """An address (20 bytes) or a word (32) in 0x hex."""
    try:
        return from_hex(value, length)
    except ValueError as error:
        raise RpcError(INVALID_PARAMS, str(error)) from None


def address(value: object) -> bytes:
    """An address in 0x hex, either case."""
    return fixed(value, 20)


def block_number(tag: object, head: int) -> int:
    """A block's number from a tag or a number; every tag of the head is the head here."""
    if tag in _HEAD_TAGS if isinstance(tag, (str, type(None))) else False:
        return head
    if tag == "earliest":
        return 0
    return number(tag, UINT64_MAX)


def message(query: object) -> Message:
    """The object of eth_call, eth_estimateGas and eth_sendTransaction."""
    if not isinstance(query, dict):
        raise RpcError(INVALID_PARAMS, "expected a transaction object")
    payload = query.get("input", query.get("data", "0x"))
    return Message(
        sender=address(query["from"]) if query.get("from") else bytes(20),
        to=address(query["to"]) if query.get("to") else None,
        data=data(payload or "0x"),
        value=number(query.get("value") or 0),
        gas=min(number(query.get("gas") or CALL_GAS_MAX, UINT64_MAX), CALL_GAS_MAX),
    )


@dataclass(frozen=True, slots=True)
class LogFilter:
    """What eth_getLogs asks for: lower-case hex; None matches everything."""

    addresses: frozenset[str] | None
    topics: tuple[frozenset[str] | None, ...]

    def matches(self, log: dict[str, Any]) -> bool:
        """Whether a log passes."""
        if self.addresses is not None and log["address"].lower() not in self.addresses:
            return False
        if len(self.topics) > len(log["topics"]):
            return False
        return all(
            wanted is None or topic in wanted
            for wanted, topic in zip(self.topics, log["topics"], strict=False)
        )


def log_filter(query: dict[str, Any]) -> LogFilter:
    """The address and topics of a filter object."""
    topics = query.get("topics") or []
    if not isinstance(topics, list) or len(topics) > 4:
        raise RpcError(INVALID_PARAMS, "expected at most four topics")
    wanted = query.get("address")
    return LogFilter(
        addresses=_alternatives(wanted, 20) if wanted else None,
        topics=tuple(None if topic is None else _alternatives(topic, 32) for topic in topics),
    )


def _alternatives(value: object, length: int) -> frozenset[str]:
    values: Sequence[object] = value if isinstance(value, list) else [value]
    return frozenset("0x" + fixed(each, length).hex() for each in values)
