"""The texts that a GGUF model's tokenizer reads as control tokens, such as `<|im_end|>`.

A chat's template writes them around messages; within a message they are a stranger's words. Who
must tell the two apart has to know the list, and no server tells it. Read where the model is read:
in the engine's child, inside its sandbox. Imports nothing of this package: a child loads it by its
path. Format: GGUF 2 and 3, little-endian, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path
from typing import Any, Final

TEXTS_MAX: Final = 20_000  # models reserve some thousands
TEXT_BYTES_MAX: Final = 256  # of one control token
_PAIRS_MAX: Final = 65_536
_ITEMS_MAX: Final = 1 << 24  # of an array
_UNKNOWN, _CONTROL = 2, 3  # of `tokenizer.ggml.token_type`
_STRING, _ARRAY = 8, 9
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# llama.cpp takes some tokens for the end of a turn by their text, whatever type the file gives.
_LOOKS_LIKE: Final = re.compile(r"<[|\uff5c].*[|\uff5c]>|<.*(?:_of_|EOT|eot).*>", re.DOTALL)


def control_texts(path: str | Path) -> list[str]:
    """Sorted; those that are of type control first. Raises ValueError, OSError, struct.error."""
    with (
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return _Reader(data).control()


class _Reader:
    """Walks the pairs of the head, and keeps of each array where it lies."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 24
        magic, version, _, pairs = struct.unpack_from("<4sIQQ", data)
        if magic != b"GGUF" or version not in (2, 3) or pairs > _PAIRS_MAX:
            raise ValueError("not a GGUF file of version 2 or 3")
        self._pairs = pairs
        self._tokens: list[bytes] = []
        self._types: tuple[int, ...] = ()

    def control(self) -> list[str]:
        for _ in range(self._pairs):
            key, kind = self._string(), self._number("<I")
            wanted = key in (b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type")
            self._value(kind, key if wanted else b"")
        types = self._types or (1,) * len(self._tokens)  # a vocabulary without types has none
        if len(types) != len(self._tokens):
            raise ValueError("the vocabulary has other lengths than its types")
        sure, maybe = set(), set()
        for token, kind in zip(self._tokens, types, strict=True):
            if not token or len(token) > TEXT_BYTES_MAX:
                continue
            if kind in (_UNKNOWN, _CONTROL):
                sure.add(token.decode(errors="replace"))
            elif token[:1] == b"<" and _LOOKS_LIKE.fullmatch(
                text := token.decode(errors="replace")
            ):
                maybe.add(text)
        if len(sure | maybe) > TEXTS_MAX:
            raise ValueError(f"more than {TEXTS_MAX} control tokens")
        return [*sorted(sure), *sorted(maybe - sure)]

    def _value(self, kind: int, keep: bytes) -> None:
        if kind in _SIZES:
            self._at += _SIZES[kind]
        elif kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            self._array(keep)
        else:
            raise ValueError(f"a value of the unknown type {kind}")

    def _array(self, keep: bytes) -> None:
        kind, count = self._number("<I"), self._number("<Q")
        if count > _ITEMS_MAX:
            raise ValueError("an array is too long")
        if kind == _STRING:
            found = [self._string() for _ in range(count)]
            if keep == b"tokenizer.ggml.tokens":
                self._tokens = found
        elif kind in _SIZES:
            if keep == b"tokenizer.ggml.token_type" and _SIZES[kind] == 4:
                self._types = struct.unpack_from(f"<{count}i", self._data, self._at)
            self._at += count * _SIZES[kind]
        else:
            raise ValueError("an array of arrays")

    def _string(self) -> bytes:
        size = self._number("<Q")
        end = self._at + size
        if end > len(self._data):
            raise ValueError("a text is longer than the file")
        text = self._data[self._at : end]
        self._at = end
        return text

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value
