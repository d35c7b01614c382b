"""One JSON file for each decision, enough to make the decision again years later.

It holds the case itself: keep it where the case may be kept. `replay` computes the model's answer
once more from the file and compares. It is equal bit for bit where the node computed the row alone
in the same engine class, and closely where it was in a batch with others or the class is another.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from inferpool.engines.base import Tensor
from inferpool.engines.tensors import from_numpy, to_numpy
from inferpool.identity.signing import verify
from inferpool.models import catalogue
from inferpool.protocol.encoding import from_hex
from inferpool.protocol.errors import Refused
from inferpool.protocol.receipt import SignedReceipt
from inferpool.recipes.kit.data import Array, Sample
from inferpool.recipes.kit.scorer import Answer, Scorer, difference, request_hash

VERSION: Final = 1
CLOSE: Final = 2e-6  # relative, between two builds or batches of one engine (design D6)


@dataclass(frozen=True, slots=True)
class Reason:
    """One field's part in a score: how much it moves when the field gets its typical value."""

    field: str
    value: str
    effect: float


@dataclass(frozen=True, slots=True)
class Replay:
    """How a decision came out the second time; `same` is the verdict for an auditor.

    `signed`: the receipt bears the node's signature. `about_this`: its request hash is that of this
    very input, as the client sends it. None where the record has nothing to check by.
    """

    same: bool
    bitwise: bool
    difference: float
    class_then: str
    class_now: str
    signed: bool | None
    about_this: bool | None


def record(
    recipe: str,
    model: str,
    name: str,
    row: Array,
    answer: Answer,
    score: float,
    verdict: str,
    reasons: list[Reason],
    time_ms: int,
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """A decision as data. `row` is the one input row, [1, ...]; `left_out` names
    (never values) what identified somebody and stayed here."""
    given = from_numpy(name, row)
    outputs = [from_numpy(key, value) for key, value in sorted(answer.outputs.items())]
    return {
        "version": VERSION,
        "recipe": recipe,
        "model": model,
        "manifest": answer.manifest,
        "class": answer.engine_class,
        "node": answer.node,
        "time_ms": time_ms,
        "left_out": list(left_out),
        "input_sha256": tensor_hash(given),
        "input": _wire(given),
        "outputs_sha256": hashlib.sha256("".join(map(tensor_hash, outputs)).encode()).hexdigest(),
        "outputs": [_wire(tensor) for tensor in outputs],
        "score": score,
        "verdict": verdict,
        "reasons": [asdict(reason) for reason in reasons],
        "receipt": answer.receipt,
        "chain_id": answer.chain_id,
        "reviewer": None,
        "outcome": None,
    }


def write(decision: dict[str, Any], folder: Path) -> Path:
    """Write one decision to a file of its own, which must not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{decision['time_ms']}-{decision['input_sha256'][:16]}.json"
    with (folder / name).open("xb") as file:
        file.write(orjson.dumps(decision, option=orjson.OPT_INDENT_2))
    return folder / name


def replay(decision: dict[str, Any], scorer: Scorer) -> Replay:
    """Make the decision again.

    Raises `Refused(bad_hash)` when the file was altered or is about another model than it says.
    """
    given = _tensor(decision["input"])
    then = {item["name"]: to_numpy(_tensor(item)) for item in decision["outputs"]}
    _check(decision, given)
    row = to_numpy(given)
    now = scorer.infer(decision["model"], given.name, row)
    told = scorer.told(decision["model"], given.name, [row], [now])[0]
    bitwise = _bytes(then) == _bytes(now)
    gap = difference(now, then)
    same = gap <= CLOSE
    signed, about_this = proven(decision, request_hash(given.name, row))
    return Replay(same, bitwise, gap, decision["class"], told.engine_class, signed, about_this)


def proven(decision: Mapping[str, Any], asked: bytes) -> tuple[bool | None, bool | None]:
    """What the receipt says by itself: whether the node signed it, and about this request, whose
    SHA-256 is `asked`."""
    wire = decision["receipt"]
    if wire is None:
        return None, None
    found = SignedReceipt.from_wire(wire)
    about_this = asked == found.receipt.request_hash
    if decision.get("chain_id") is None:
        return None, about_this
    try:
        digest = found.receipt.digest(decision["chain_id"])
        verify(digest, found.signature, from_hex(decision["node"], 20))
    except Refused:
        return False, about_this
    return True, about_this


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 over name, type, shape and content."""
    head = f"{tensor.name}|{tensor.datatype}|{list(tensor.shape)}|".encode()
    return hashlib.sha256(head + tensor.data).hexdigest()


def _check(decision: dict[str, Any], given: Tensor) -> None:
    if tensor_hash(given) != decision["input_sha256"]:
        raise Refused("the decision's input does not have its hash", code="bad_hash")
    outputs = "".join(tensor_hash(_tensor(item)) for item in decision["outputs"])
    if hashlib.sha256(outputs.encode()).hexdigest() != decision["outputs_sha256"]:
        raise Refused("the decision's outputs do not have their hash", code="bad_hash")
    if catalogue.load(decision["model"]).id != decision["manifest"]:
        message = f"{decision['model']} is now another model than the one that decided"
        raise Refused(message, code="bad_hash")
    receipt = decision["receipt"]
    if receipt and receipt["receipt"]["manifest"] != decision["manifest"]:
        raise Refused("the receipt is about another model", code="bad_hash")


def _bytes(outputs: Sample) -> dict[str, bytes]:
    return {key: np.ascontiguousarray(value).tobytes() for key, value in outputs.items()}


def _wire(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "data_base64": base64.b64encode(tensor.data).decode(),
    }


def _tensor(wire: dict[str, Any]) -> Tensor:
    content = base64.b64decode(wire["data_base64"], validate=True)
    return Tensor(wire["name"], wire["datatype"], tuple(wire["shape"]), content)
