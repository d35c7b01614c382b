"""What a tensor must be before an engine sees it: name, datatype, shape, length of its data."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final

from inferpool.engines.base import Tensor, TensorSpec
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.oip import DATATYPES

# Bytes per element, by the Open Inference Protocol's names. BYTES has no fixed width.
WIDTHS: Final[dict[str, int]] = {name: width for name, width in DATATYPES.items() if width}
BYTES_PREFIX: Final = 4  # each element of a BYTES tensor is preceded by its length
MAX_DIMENSIONS: Final = 16  # numpy takes 64; no model here has more than six


def check_inputs(specs: Sequence[TensorSpec], inputs: Sequence[Tensor], rows: int) -> list[Tensor]:
    """The tensors in the order of the specs. Raises BadRequest(invalid_tensor), which names one.

    `rows` is what the call is charged for: the first dimension of every input that has a free one.
    """
    if [tensor.name for tensor in inputs] == [spec.name for spec in specs]:  # as most send them
        for spec, item in zip(specs, inputs, strict=True):
            _check_sized(spec, item, rows)
        return list(inputs)
    given = {tensor.name: tensor for tensor in inputs}
    if len(given) != len(inputs):
        raise invalid(None, "an input is given twice")
    for name in given.keys() - {spec.name for spec in specs}:
        known = ", ".join(spec.name for spec in specs)
        raise invalid(name, f"the model has no input {name!r}; it takes {known}")
    ordered = []
    for spec in specs:
        tensor = given.get(spec.name)
        if tensor is None:
            raise invalid(spec.name, f"the input {spec.name!r} is missing: {describe(spec)}")
        _check_sized(spec, tensor, rows)
        ordered.append(tensor)
    return ordered


def _check_sized(spec: TensorSpec, tensor: Tensor, rows: int) -> None:
    check_tensor(spec, tensor)
    if spec.shape and spec.shape[0] == -1 and tensor.shape[0] != rows:
        got = tensor.shape[0]
        raise invalid(spec.name, f"{spec.name!r} has {got} rows, the request {rows}")


def check_tensor(spec: TensorSpec, tensor: Tensor) -> None:
    """Raises BadRequest(invalid_tensor) where a tensor is not what its spec declares."""
    if tensor.datatype != spec.datatype:
        raise invalid(spec.name, f"{spec.name!r} is {tensor.datatype}, not {describe(spec)}")
    fits = len(tensor.shape) == len(spec.shape) <= MAX_DIMENSIONS
    if fits:
        for size, expected in zip(tensor.shape, spec.shape, strict=True):
            fits = fits and size >= 0 and (expected == size or expected == -1)
    if not fits:
        shape = list(tensor.shape)
        raise invalid(spec.name, f"{spec.name!r} has the shape {shape}, not {describe(spec)}")
    count = prod(tensor.shape)
    if tensor.datatype == "BYTES":
        _check_bytes(tensor, count)
    elif len(tensor.data) != count * WIDTHS[tensor.datatype]:
        expected_bytes = count * WIDTHS[tensor.datatype]
        message = f"{spec.name!r} has {len(tensor.data)} bytes of data, its shape {expected_bytes}"
        raise invalid(spec.name, message)


def describe(spec: TensorSpec) -> str:
    """A spec in words, such as `FP32 [-1, 4]`."""
    return f"{spec.datatype} {list(spec.shape)}"


def invalid(name: str | None, message: str) -> BadRequest:
    """The error for a tensor, to be raised."""
    return BadRequest(message, code="invalid_tensor", param=name)


def _check_bytes(tensor: Tensor, count: int) -> None:
    """Whether the data is exactly `count` elements, each preceded by its length."""
    at, end = 0, len(tensor.data)
    for _ in range(count):
        if at + BYTES_PREFIX > end:
            break
        at += BYTES_PREFIX + int.from_bytes(tensor.data[at : at + BYTES_PREFIX], "little")
    else:
        if at == end:
            return
    raise invalid(tensor.name, f"the data of {tensor.name!r} is not {count} elements with lengths")
