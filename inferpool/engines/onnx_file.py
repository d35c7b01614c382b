"""What an ONNX file contains, read before anything loads it: models are data, never code.

Refused: operators that ONNX Runtime does not ship itself (they need a native library), and
tensors kept in other files (a path chosen by a stranger). A reader of 90 lines for the few
fields that matter; field numbers from onnx/onnx.proto (ONNX 1.20), messages as protocol buffers.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# What ONNX Runtime's CPU build implements itself. Nothing here reaches files or the network.
DOMAINS: Final = frozenset(
    ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
)
MAX_DEPTH: Final = 32  # graphs within If, Loop and Scan; real ones stop at 3
_EXTERNAL: Final = 1  # TensorProto.DataLocation

_VARINT: Final = 0
_BYTES: Final = 2
_FIXED: Final = {1: 8, 5: 4}

Span = tuple[int, int]
Field = tuple[int, int | Span]  # number, value or where it lies


def reason_to_refuse(path: Path) -> str | None:
    """Why this file must not be loaded, or None. OSError where it cannot be read."""
    if path.stat().st_size == 0:
        return "the file is empty"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Reader(data).model((0, len(data)))
        except (ValueError, IndexError, UnicodeDecodeError):
            return "the file is not an ONNX model"


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._domains: set[str] = set()
        self._defined: set[str] = set()  # by functions within the model: data again
        self._external = False

    def model(self, span: Span) -> str | None:
        graphs = 0
        for number, value in self._fields(span):
            if number == 7:
                graphs += 1
                self._graph(_span(value), 0)
            elif number == 8:
                self._domains.add(self._text(_span(value), 1))
            elif number == 25:
                self._function(_span(value))
        if graphs != 1:
            return "the file is not an ONNX model"
        if self._external:
            return "the model keeps tensors in other files"
        foreign = sorted(self._domains - DOMAINS - self._defined)
        return f"the model needs custom operators: {', '.join(foreign)}" if foreign else None

    def _function(self, span: Span) -> None:
        self._defined.add(self._text(span, 10))
        for number, value in self._fields(span):
            if number == 7:
                self._node(_span(value), 0)

    def _graph(self, span: Span, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError("graphs within graphs")
        for number, value in self._fields(span):
            if number == 1:
                self._node(_span(value), depth)
            elif number == 5:
                self._tensor(_span(value))
            elif number == 15:  # sparse: values and indices are tensors
                for inner, tensor in self._fields(_span(value)):
                    if inner in (1, 2):
                        self._tensor(_span(tensor))

    def _node(self, span: Span, depth: int) -> None:
        for number, value in self._fields(span):
            if number == 7:
                start, end = _span(value)
                self._domains.add(self._data[start:end].decode())
            elif number == 5:
                for inner, attribute in self._fields(_span(value)):
                    if inner in (5, 10):
                        self._tensor(_span(attribute))
                    elif inner in (6, 11):
                        self._graph(_span(attribute), depth + 1)

    def _tensor(self, span: Span) -> None:
        for number, value in self._fields(span):
            if number == 13 or (number == 14 and value == _EXTERNAL):
                self._external = True

    def _text(self, span: Span, wanted: int) -> str:
        for number, value in self._fields(span):
            if number == wanted:
                start, end = _span(value)
                return self._data[start:end].decode()
        return ""

    def _fields(self, span: Span) -> Iterator[Field]:
        at, end = span
        while at < end:
            key, at = self._varint(at)
            number, kind = key >> 3, key & 7
            value: int | Span
            if kind == _VARINT:
                value, at = self._varint(at)
            elif kind == _BYTES:
                size, start = self._varint(at)
                at = start + size
                value = (start, at)
            elif kind in _FIXED:
                value, at = 0, at + _FIXED[kind]
            else:
                raise ValueError("an unknown wire type")
            if at > end:
                raise ValueError("a field past its message's end")
            yield number, value

    def _varint(self, at: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise ValueError("a number that does not end")


def _span(value: int | Span) -> Span:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value
