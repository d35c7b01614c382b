"""The Open Inference Protocol, V2, from the client's side: specs, requests and answers.

The node's side of the same bodies is `node.tensors`; engines import only what lies below them.
Sources: KServe's Open Inference Protocol and Triton's binary tensor data extension.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Final

import orjson

from inferpool.engines.base import Tensor, TensorSpec
from inferpool.engines.tensor_check import WIDTHS, check_tensor
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.limits import RANK_MAX, TENSORS_MAX, TEXT_MAX
from inferpool.protocol.oip import DATATYPES


def read_specs(metadata: dict[str, Any]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """A model's inputs and outputs. Raises Unavailable(engine_unavailable): no such model."""
    try:
        inputs = tuple(_spec(item) for item in metadata["inputs"])
        outputs = tuple(_spec(item) for item in metadata["outputs"])
    except (KeyError, TypeError, ValueError) as error:
        message = f"the model's metadata cannot be used: {error!r}"
        raise Unavailable(message, code="engine_unavailable") from error
    if not 0 < len(inputs) <= TENSORS_MAX or not 0 < len(outputs) <= TENSORS_MAX:
        message = f"a model must have 1 to {TENSORS_MAX} inputs and outputs"
        raise Unavailable(message, code="engine_unavailable")
    return inputs, outputs


def _spec(item: dict[str, Any]) -> TensorSpec:
    name, datatype = str(item["name"]), str(item["datatype"])
    shape = tuple(-1 if size is None else int(size) for size in item["shape"])
    if datatype not in DATATYPES or len(shape) > RANK_MAX or len(name) > TEXT_MAX:
        raise ValueError(f"{name} is {datatype} {list(shape)}")
    return TensorSpec(name, datatype, shape)


def infer_body(
    inputs: Sequence[Tensor], outputs: Sequence[TensorSpec], *, binary: bool
) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part where raw tensors follow it."""
    entries: list[dict[str, object]] = []
    for tensor in inputs:
        entry: dict[str, object] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if binary:
            entry["parameters"] = {"binary_data_size": len(tensor.data)}
        else:
            entry["data"] = listed(tensor)
        entries.append(entry)
    wished: list[dict[str, object]] = [{"name": spec.name} for spec in outputs]
    if not binary:
        return orjson.dumps({"inputs": entries, "outputs": wished}), None
    wished = [{**wish, "parameters": {"binary_data": True}} for wish in wished]
    head = orjson.dumps({"inputs": entries, "outputs": wished})
    return b"".join([head, *(tensor.data for tensor in inputs)]), len(head)


def read_answer(body: bytes, length: bytes | None, specs: Sequence[TensorSpec]) -> list[Tensor]:
    """The outputs in the order of their specs. Raises Unavailable(engine_failed)."""
    try:
        size = len(body) if length is None else int(length)
        if not 0 <= size <= len(body):
            raise ValueError("the JSON part is longer than the body")
        value = orjson.loads(body[:size])
        found = _tensors(value["outputs"], memoryview(body)[size:])
        tensors = [found[spec.name] for spec in specs]
        for spec, tensor in zip(specs, tensors, strict=True):
            check_tensor(spec, tensor)
    except (BadRequest, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        message = f"the server's answer is not understood: {error!r}"
        raise Unavailable(message, code="engine_failed") from error
    return tensors


def _tensors(entries: list[dict[str, Any]], raw: memoryview) -> dict[str, Tensor]:
    found, at = {}, 0
    for entry in entries[:TENSORS_MAX]:
        name, datatype = str(entry["name"]), str(entry["datatype"])
        shape = tuple(int(size) for size in entry["shape"])
        size = (entry.get("parameters") or {}).get("binary_data_size")
        if size is None:
            data = packed(datatype, shape, entry["data"])
        else:
            if not 0 <= int(size) <= len(raw) - at:
                raise ValueError(f"{name} is longer than the body")
            data = bytes(raw[at : at + int(size)])
            at += int(size)
        found[name] = Tensor(name, datatype, shape, data)
    return found


_NUMPY: Final = {
    name: f"<{'f' if name[0] == 'F' else name[0].lower()}{width}"
    for name, width in WIDTHS.items()
    if name != "BOOL"
} | {"BOOL": "?"}


def listed(tensor: Tensor) -> list[object]:
    """A tensor's elements for JSON, flat."""
    if tensor.datatype != "BYTES":
        import numpy as np

        values: list[object] = np.frombuffer(tensor.data, _NUMPY[tensor.datatype]).tolist()
        return values
    texts: list[object] = []
    at = 0
    while at < len(tensor.data):
        size = int.from_bytes(tensor.data[at : at + 4], "little")
        texts.append(tensor.data[at + 4 : at + 4 + size].decode(errors="replace"))
        at += 4 + size
    return texts


def packed(datatype: str, shape: tuple[int, ...], data: object) -> bytes:
    """Elements from JSON, flat or nested, in raw form. Raises ValueError, TypeError."""
    if datatype != "BYTES":
        import numpy as np

        array = np.array(data, dtype=_NUMPY[datatype])
        if array.size != prod(shape):
            raise ValueError(f"shape {shape} does not hold {array.size} values")
        return array.tobytes()
    parts = []
    for text in _flat(data):
        content = str(text).encode()
        parts.append(len(content).to_bytes(4, "little") + content)
    return b"".join(parts)


def _flat(data: object) -> list[object]:
    if not isinstance(data, list):
        return [data]
    return [leaf for item in data for leaf in _flat(item)]
