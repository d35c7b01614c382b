"""Open Inference Protocol bodies on the node: inputs to an engine's tensors, outputs to a body.

numpy is used only for tensors in JSON; binary ones pass as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from struct import error, pack, unpack
from typing import Final

import orjson

from inferpool.engines.base import Tensor, TensorSpec
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.headers import INFERENCE_HEADER_LENGTH
from inferpool.protocol.oip import DATATYPES, InferRequest, InputTensor
from inferpool.transport.asgi import JSON
from inferpool.transport.base import Headers

MODEL_VERSION: Final = "1"
_OCTETS: Final = (b"content-type", b"application/octet-stream")
# numpy's kinds that a JSON number may be read as, for each kind of datatype.
_KINDS: Final = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}
_KIND_NAMES: Final = {"b": "true and false", "i": "integers", "u": "integers", "f": "numbers"}
_NUMPY: Final = {
    "BOOL": "?",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    **{
        f"{sign}INT{8 * n}": f"<{sign.lower() or 'i'}{n}"
        for sign in ("", "U")
        for n in (1, 2, 4, 8)
    },
}

_NUMBERS: Final = frozenset((bool, int, float))
# A flat list of numbers is packed five times as fast by `struct`, which refuses the same.
_PACKED: Final = {"FP32": "f", "FP64": "d"} | {
    f"{sign}INT{8 * size}": code.upper() if sign else code
    for sign in ("", "U")
    for size, code in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))
}
_PACKED_MAX: Final = 4096  # values; they are arguments of one call


def read_inputs(request: InferRequest, specs: Sequence[TensorSpec]) -> list[Tensor]:
    """The request's tensors in raw form. Raises BadRequest(invalid_tensor)."""
    wanted = [spec.name for spec in specs]
    for tensor in request.inputs:
        if tensor.name not in wanted:
            raise BadRequest(
                f"{request.model} has no input {tensor.name!r};"
                f" it has {', '.join(sorted(wanted))}.",
                code="invalid_tensor",
                param=tensor.name,
            )
    return [
        Tensor(item.name, item.datatype, item.shape, _raw(item) if item.raw is None else item.raw)
        for item in request.inputs
    ]


def _raw(item: InputTensor) -> bytes:
    """A JSON tensor's data, packed. Raises BadRequest(invalid_tensor)."""
    data, code = item.data, _PACKED.get(item.datatype)
    if code and type(data) is list and 0 < len(data) <= _PACKED_MAX and type(data[0]) is not bool:
        try:
            if len(data) == prod(item.shape):
                return pack(f"<{len(data)}{code}", *data)
        except (error, OverflowError):
            pass  # nested, or at fault: below it is told which
    return _checked(item)


def _checked(item: InputTensor) -> bytes:
    try:
        flat = _strings(item) if item.datatype == "BYTES" else _numbers(item)
    except (ValueError, TypeError, OverflowError) as fault:
        raise BadRequest(
            f"The data of input {item.name!r} is not {item.datatype}: {fault}.",
            code="invalid_tensor",
            param=item.name,
        ) from None
    return flat


def _numbers(item: InputTensor) -> bytes:
    import numpy as np

    wanted = np.dtype(_NUMPY[item.datatype])
    if not _has_numbers_only(item.data):
        raise TypeError(f"expected {_KIND_NAMES[wanted.kind]} only")
    found = np.array(item.data)
    _check_size(item, found.size)
    # numpy would read "1.5" as a number, null as NaN and 1.5 as the integer 1.
    if found.size and found.dtype.kind not in _KINDS[wanted.kind]:
        if wanted.kind != "u" or not _integers(item.data):
            raise TypeError(f"expected {_KIND_NAMES[wanted.kind]} only")
        found = np.array(item.data, dtype=wanted)  # numpy took 2**63 and more for floats
    with np.errstate(over="ignore"):
        array = found.astype(wanted)
    # JSON has no infinity: one in the result is a number that the datatype does not hold.
    fits = np.isfinite(array).all() if wanted.kind == "f" else np.array_equal(array, found)
    if not fits:
        raise OverflowError("a number is out of range")
    return array.tobytes()


def _has_numbers_only(data: object) -> bool:
    """Asked before numpy sees it, which gives every value the room of the longest string: 45 kB of
    JSON would take 900 MB."""
    stack: list[object] = [data]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            if not _NUMBERS.issuperset(map(type, value)):
                stack.extend(value)
        elif type(value) not in _NUMBERS:
            return False
    return True


def _integers(data: object) -> bool:
    if isinstance(data, list):
        return all(_integers(value) for value in data)
    return isinstance(data, int)  # true and false too, as numpy reads them among integers


def _strings(item: InputTensor) -> bytes:
    values: list[object] = []
    stack: list[object] = [item.data]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(reversed(value))
        elif isinstance(value, str):
            values.append(value)
        else:
            raise TypeError("expected strings")
    _check_size(item, len(values))
    parts = []
    for text in values:
        data = str(text).encode()
        parts.append(len(data).to_bytes(4, "little") + data)
    return b"".join(parts)


def _check_size(item: InputTensor, size: int) -> None:
    if size != prod(item.shape):
        raise ValueError(f"shape {list(item.shape)} holds {prod(item.shape)} values, not {size}")


def check_outputs(request: InferRequest, specs: Sequence[TensorSpec]) -> None:
    """Refuse an output that the model has not, before any work. Raises BadRequest."""
    if request.outputs:
        known = [spec.name for spec in specs]
        for wish in request.outputs:
            if wish.name not in known:
                raise _no_output(request.model, wish.name, known)


def _no_output(model: str, name: str, known: Sequence[str]) -> BadRequest:
    return BadRequest(
        f"{model} has no output {name!r}; it has {', '.join(known)}.",
        code="invalid_tensor",
        param=name,
    )


def write_answer(request: InferRequest, outputs: Sequence[Tensor]) -> tuple[bytes, Headers]:
    """The answer's body and headers; binary where the caller asked for it."""
    by_name = {tensor.name: tensor for tensor in outputs}
    wishes = [(wish.name, wish.binary) for wish in request.outputs] or [
        (tensor.name, request.binary_outputs) for tensor in outputs
    ]
    entries, parts = [], []
    for name, binary in wishes:
        tensor = by_name.get(name)
        if tensor is None:
            raise _no_output(request.model, name, list(by_name))
        entry: dict[str, object] = {
            "name": name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if binary:
            entry["parameters"] = {"binary_data_size": len(tensor.data)}
            parts.append(tensor.data)
        else:
            entry["data"] = _listed(tensor)
        entries.append(entry)
    body: dict[str, object] = {
        "model_name": request.model,
        "model_version": MODEL_VERSION,
        "outputs": entries,
    }
    if request.id:
        body["id"] = request.id
    head = orjson.dumps(body)
    if not parts:
        return head, [JSON]
    length = (INFERENCE_HEADER_LENGTH, str(len(head)).encode())
    return b"".join([head, *parts]), [_OCTETS, length]


def _listed(tensor: Tensor) -> list[object]:
    """Flat data for JSON. FP16 has no exact JSON form in the protocol, but reads as numbers."""
    code = _PACKED.get(tensor.datatype)
    if code:
        count, rest = divmod(len(tensor.data), DATATYPES[tensor.datatype])
        if count <= _PACKED_MAX and not rest:
            return list(unpack(f"<{count}{code}", tensor.data))
    if tensor.datatype != "BYTES":
        import numpy as np

        values: list[object] = np.frombuffer(tensor.data, dtype=_NUMPY[tensor.datatype]).tolist()
        return values
    texts: list[object] = []
    offset = 0
    while offset < len(tensor.data):
        size = int.from_bytes(tensor.data[offset : offset + 4], "little")
        texts.append(tensor.data[offset + 4 : offset + 4 + size].decode(errors="replace"))
        offset += 4 + size
    return texts


def model_metadata(
    name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> dict[str, object]:
    """`GET /v2/models/M`."""

    def listed(specs: Sequence[TensorSpec]) -> list[dict[str, object]]:
        return [
            {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
            for spec in specs
        ]

    return {
        "name": name,
        "versions": [MODEL_VERSION],
        "platform": "onnxruntime_onnx",
        "inputs": listed(inputs),
        "outputs": listed(outputs),
    }


assert set(_NUMPY) | {"BYTES"} == set(DATATYPES), "every datatype has a numpy form"
