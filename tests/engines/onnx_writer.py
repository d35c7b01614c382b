"""Tiny ONNX models, written by hand as protocol buffers (field numbers from onnx.proto).

Also models that no exporter would make: foreign operators, tensors in other files.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

FLOAT, STRING, BOOL, FLOAT16, INT64 = 1, 8, 9, 10, 7
Shape = Sequence[int | str]


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(data)) + data


def node(
    kind: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    domain: str = "",
    attributes: bytes = b"",
) -> bytes:
    parts = [message(1, name) for name in inputs] + [message(2, name) for name in outputs]
    parts += [message(4, kind), attributes]
    if domain:
        parts.append(message(7, domain))
    return b"".join(parts)


def graph_attribute(name: str, graph: bytes) -> bytes:
    return message(5, message(1, name) + message(6, graph) + number(20, 5))


def value(name: str, kind: int, shape: Shape) -> bytes:
    dims = b"".join(
        message(1, number(1, size) if isinstance(size, int) else message(2, size)) for size in shape
    )
    tensor_type = number(1, kind) + message(2, dims)
    return message(1, name) + message(2, message(1, tensor_type))


def floats(name: str, shape: Sequence[int], numbers: Sequence[float]) -> bytes:
    dims = b"".join(number(1, size) for size in shape)
    raw = struct.pack(f"<{len(numbers)}f", *numbers)
    return dims + number(2, FLOAT) + message(8, name) + message(9, raw)


def external(name: str, path: str) -> bytes:
    entry = message(13, message(1, "location") + message(2, path))
    return number(1, 1) + number(2, FLOAT) + message(8, name) + entry + number(14, 1)


def graph(
    nodes: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    initializers: Sequence[bytes] = (),
) -> bytes:
    parts = [message(1, part) for part in nodes] + [message(2, "g")]
    parts += [message(5, part) for part in initializers]
    parts += [message(11, part) for part in inputs] + [message(12, part) for part in outputs]
    return b"".join(parts)


def model(graph_bytes: bytes, domains: Sequence[str] = ("",), functions: bytes = b"") -> bytes:
    opsets = b"".join(message(8, message(1, domain) + number(2, 17)) for domain in domains)
    return number(1, 8) + opsets + message(7, graph_bytes) + functions


def row_sums(width: int = 4) -> bytes:
    """x FP32 [N, width] -> sum FP32 [N, 1]."""
    return model(
        graph(
            [node("MatMul", ["x", "ones"], ["sum"])],
            [value("x", FLOAT, ["N", width])],
            [value("sum", FLOAT, ["N", 1])],
            [floats("ones", [width, 1], [1.0] * width)],
        )
    )


def identity(kind: int, shape: Shape = ("N", "M")) -> bytes:
    """x -> y, of any type."""
    return model(
        graph(
            [node("Identity", ["x"], ["y"])], [value("x", kind, shape)], [value("y", kind, shape)]
        )
    )
