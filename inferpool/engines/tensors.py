"""Tensors of the Open Inference Protocol to numpy arrays and back, without copies where possible.

Imports numpy: only engines that run tensors import this module.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inferpool.engines.base import Tensor
from inferpool.engines.tensor_check import BYTES_PREFIX, WIDTHS, invalid

Array = NDArray[Any]

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
assert _DTYPES.keys() == WIDTHS.keys()


def to_numpy(tensor: Tensor) -> Array:
    """A tensor that was checked, as an array; it shares the (read-only) data but for BYTES, BOOL.

    BYTES becomes an array of str. Raises BadRequest(invalid_tensor): text that is not UTF-8.
    """
    if tensor.datatype == "BYTES":
        return _strings(tensor)
    array = np.frombuffer(tensor.data, dtype=_DTYPES[tensor.datatype]).reshape(tensor.shape)
    if tensor.datatype == "BOOL":  # any byte but 0 is true, and a kernel may only expect 1
        truth: Array = array.view(np.uint8) != 0
        return truth
    return array


def from_numpy(name: str, array: Array) -> Tensor:
    """An array as a tensor. Raises TypeError for a type that the protocol does not have."""
    datatype = _NAMES.get(array.dtype)
    if datatype is not None:
        return Tensor(name, datatype, array.shape, array.tobytes())
    if array.dtype.kind in "OUS":
        return Tensor(name, "BYTES", array.shape, _packed(array))
    dtype = array.dtype.newbyteorder("<")
    datatype = _NAMES.get(dtype)
    if datatype is None:
        raise TypeError(f"the protocol has no datatype for {array.dtype}")
    return Tensor(name, datatype, array.shape, array.astype(dtype, copy=False).tobytes())


def _strings(tensor: Tensor) -> Array:
    data, at = tensor.data, 0
    texts = np.empty(int(np.prod(tensor.shape)), dtype=object)
    try:
        for index in range(len(texts)):
            start = at + BYTES_PREFIX
            at = start + int.from_bytes(data[at:start], "little")
            texts[index] = data[start:at].decode()
    except UnicodeDecodeError as error:
        raise invalid(tensor.name, f"an element of {tensor.name!r} is not UTF-8 text") from error
    return texts.reshape(tensor.shape)


def _packed(array: Array) -> bytes:
    parts = []
    for element in array.ravel().tolist():
        content = element if isinstance(element, bytes) else str(element).encode()
        parts.append(len(content).to_bytes(BYTES_PREFIX, "little"))
        parts.append(content)
    return b"".join(parts)
