"""Contract calls, results and events in the ABI's encoding, from the committed artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, Final

from inferpool.chain.abi_coding import decode, encode
from inferpool.protocol.eip712 import keccak256

__all__ = [
    "Contract",
    "Event",
    "Function",
    "artifacts",
    "contract",
    "decode",
    "encode",
    "revert_reason",
]

Json = dict[str, Any]

PANIC: Final = keccak256(b"Panic(uint256)")[:4]
ERROR: Final = keccak256(b"Error(string)")[:4]

# The public settlement contract and Permit2 revert with these; a Vyper ABI cannot list them.
_SETTLEMENT_ERRORS: Final = (
    "InvalidChannel",
    "ZeroDeposit",
    "DepositOverflow",
    "InvalidSignature",
    "NotReceiverAuthorizer",
    "NotAuthorizedToClaim",
    "NotAuthorizedToRefund",
    "ClaimExceedsCeiling",
    "ClaimExceedsBalance",
    "WithdrawalAlreadyPending",
    "WithdrawalNotPending",
    "NotAuthorizedToFinalizeWithdraw",
    "WithdrawDelayNotElapsed",
    "NothingToWithdraw",
    "WithdrawAmountExceedsAvailable",
    "WithdrawDelayOutOfRange",
    "EmptyBatch",
    "DepositCollectionFailed",
    "InvalidCollector",
    "InvalidRefundNonce",
    "ZeroRefund",
    "InvalidNonce",
    "InvalidSigner",
)
_ERROR_NAMES: Final = {
    **{keccak256(f"{name}()".encode())[:4]: name for name in _SETTLEMENT_ERRORS},
    **{keccak256(f"{n}(uint256)".encode())[:4]: n for n in ("SignatureExpired", "InvalidAmount")},
}


def revert_reason(data: bytes) -> str:
    """The reason in a revert's data: a string, a panic, one of the settlement's errors, or hex."""
    selector, rest = data[:4], data[4:]
    try:
        if selector == ERROR:
            return str(decode(["string"], rest)[0])
        if selector == PANIC:
            return f"panic {decode(['uint256'], rest)[0]:#x}"
    except ValueError:
        pass
    return _ERROR_NAMES.get(selector, "0x" + data.hex())


def _type(parameter: Json) -> str:
    """One parameter's type as signatures spell it, tuples written out."""
    if not parameter["type"].startswith("tuple"):
        return str(parameter["type"])
    inner = ",".join(_type(part) for part in parameter["components"])
    return f"({inner}){parameter['type'][5:]}"


@dataclass(frozen=True, slots=True)
class Function:
    """One function: how to call it and how to read its answer."""

    selector: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def call(self, *args: object) -> bytes:
        """Calldata."""
        return self.selector + encode(self.inputs, args)

    def result(self, data: bytes) -> tuple[Any, ...]:
        """Its decoded answer. Raises ValueError, also for the empty answer of an empty address."""
        return decode(self.outputs, data)


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its topic and how to read a log of it."""

    name: str
    topic: bytes
    inputs: tuple[tuple[str, str, bool], ...]  # name, type, indexed

    def read(self, topics: Sequence[bytes], data: bytes) -> dict[str, Any]:
        """Its members by name. Raises ValueError."""
        indexed = [(name, kind) for name, kind, is_indexed in self.inputs if is_indexed]
        plain = [(name, kind) for name, kind, is_indexed in self.inputs if not is_indexed]
        if len(topics) != 1 + len(indexed) or topics[0] != self.topic:
            raise ValueError(f"not a log of {self.name}")
        members = {
            name: decode([kind], topic)[0]
            for (name, kind), topic in zip(indexed, topics[1:], strict=True)
        }
        values = decode([kind for _, kind in plain], data)
        return members | {name: value for (name, _), value in zip(plain, values, strict=True)}


class Contract:
    """One contract of the artifacts: functions and events by name, and its deploy code."""

    def __init__(self, name: str, artifact: Mapping[str, Any]) -> None:
        self.name = name
        self.abi: list[Json] = artifact["abi"]
        self.bytecode = bytes.fromhex(artifact["bytecode"][2:])
        self.runtime = bytes.fromhex(artifact["runtime"][2:])
        self.layout: dict[str, int] = artifact["layout"]

    @cached_property
    def functions(self) -> dict[str, Function]:
        """All functions by name; none of ours is overloaded."""
        return {
            entry["name"]: Function(
                selector=keccak256(_signature(entry).encode())[:4],
                inputs=tuple(_type(part) for part in entry["inputs"]),
                outputs=tuple(_type(part) for part in entry["outputs"]),
            )
            for entry in self.abi
            if entry["type"] == "function"
        }

    @cached_property
    def events(self) -> dict[str, Event]:
        """All events by name."""
        return {
            entry["name"]: Event(
                name=entry["name"],
                topic=keccak256(_signature(entry).encode()),
                inputs=tuple(
                    (part["name"], _type(part), bool(part["indexed"])) for part in entry["inputs"]
                ),
            )
            for entry in self.abi
            if entry["type"] == "event"
        }

    def call(self, function: str, *args: object) -> bytes:
        """Calldata of one function."""
        return self.functions[function].call(*args)

    def deployment(self, *args: object) -> bytes:
        """Deploy code with the constructor's arguments."""
        inputs = [
            part for entry in self.abi if entry["type"] == "constructor" for part in entry["inputs"]
        ]
        return self.bytecode + encode([_type(part) for part in inputs], args)


def _signature(entry: Json) -> str:
    return f"{entry['name']}({','.join(_type(part) for part in entry['inputs'])})"


@cache
def artifacts() -> dict[str, Any]:
    """The committed artifacts as `build` wrote them."""
    path = files("inferpool.chain").joinpath("contracts", "artifacts.json")
    parsed: dict[str, Any] = json.loads(path.read_bytes())
    return parsed


@cache
def contract(name: str) -> Contract:
    """One contract by the name of its source: `Registry`, `BatchSettlement`, ..."""
    return Contract(name, artifacts()["contracts"][name])
