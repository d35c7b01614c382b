"""Chunks of one answer that differ in text and token ids alone, read without parsing them.

A node writes every chunk of an answer around the same words. Once one was parsed and checked, the
words around its text and its ids are known, and it was tried that other texts and other ids
between the same words are read as just these. A chunk that has those words, with a string that
needs no unescaping and with plain integers between them, says nothing else. Any other is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import orjson

from inferpool.protocol.errors import InferpoolError

Ids = tuple[int, ...]
Plain = tuple[str, Ids]
TRIES: Final = 4  # chunks that are looked at for the words around them
_ID_END: Final = 2**32
_TEXT: Final = re.compile(rb'"([^"\\\x00-\x1f]*)"')
_IDS: Final = re.compile(rb"(?:0|[1-9][0-9]{0,9})(?:,(?:0|[1-9][0-9]{0,9}))*")
# Two: a chunk whose own text is one of them cannot pass for both.
_PROBES: Final[tuple[Plain, ...]] = (
    ("\u00e9 a text in the place of another", (_ID_END - 1, 0)),
    ("and one more", (7,)),
)


class Alike:
    """The words of one answer's chunks. `parse` reads any chunk: its text and ids, or raises."""

    __slots__ = ("_after", "_before", "_between", "_parse", "_tries")

    def __init__(self, parse: Callable[[bytes], Plain]) -> None:
        self._parse, self._tries = parse, TRIES
        self._before, self._between, self._after = b"", b"", b""

    def learn(self, data: bytes, text: str, ids: Ids) -> None:
        """A chunk was parsed and is sound, with this text and these ids and nothing beside."""
        if not self._tries or not text or not ids:
            return
        self._tries -= 1
        around = data.split(orjson.dumps(text))
        if len(around) != 2:
            return
        behind = around[1].split(b"[" + _joined(ids) + b"]")
        if len(behind) != 2:
            return
        before, between, after = around[0], behind[0] + b"[", b"]" + behind[1]
        for probe in _PROBES:
            text, ids = probe
            try:
                found = self._parse(before + orjson.dumps(text) + between + _joined(ids) + after)
            except (InferpoolError, orjson.JSONDecodeError):
                return
            if found != probe:
                return
        self._before, self._between, self._after = before, between, after
        self._tries = 0

    def read(self, data: bytes) -> Plain | None:
        """Text and ids of a chunk that has the known words; None where it has to be parsed."""
        before, after = self._before, self._after
        if not before or not (data.startswith(before) and data.endswith(after)):
            return None
        middle = data[len(before) : len(data) - len(after)]
        said, _, numbers = middle.partition(self._between)
        text = _TEXT.fullmatch(said)
        if text is None or _IDS.fullmatch(numbers) is None:
            return None
        ids = (int(numbers),) if b"," not in numbers else tuple(map(int, numbers.split(b",")))
        if max(ids) >= _ID_END:
            return None
        try:
            return text[1].decode(), ids
        except UnicodeDecodeError:
            return None


def _joined(ids: Ids) -> bytes:
    return b",".join([b"%d" % number for number in ids])
