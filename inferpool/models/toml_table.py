"""Reading a TOML table key by key, strictly: every refusal names the place and the key."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar, cast

from inferpool.protocol.errors import Refused

T = TypeVar("T")


def refuse(where: str, what: str) -> NoReturn:
    raise Refused(f"{where} {what}", code="bad_manifest")


class Table:
    """A TOML table from which keys are taken; what is left at the end is an unknown key."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            refuse(where, "must be a table")
        self._left = dict(cast(Mapping[str, object], value))
        self.where = where

    def refuse(self, key: str, what: str) -> NoReturn:
        """Raises `Refused(bad_manifest)` about one key."""
        refuse(self.where, f"key {key!r} {what}")

    def text(self, key: str, default: str | None = None) -> str:
        """A string of 1 to 1000 characters."""
        value = self._left.pop(key, default)
        if not isinstance(value, str) or not 1 <= len(value) <= 1000:
            self.refuse(key, "must be a string of 1 to 1000 characters")
        return value

    def match(self, key: str, pattern: re.Pattern[str], default: str | None = None) -> str:
        """A string that matches the whole pattern."""
        value = self.text(key, default)
        if not pattern.fullmatch(value):
            self.refuse(key, f"has the value {value!r}, which is not of the form {pattern.pattern}")
        return value

    def choice(self, key: str, allowed: frozenset[str], default: str | None = None) -> str:
        """One of a few strings."""
        value = self.text(key, default)
        if value not in allowed:
            self.refuse(key, f"has the value {value!r}; it is one of {', '.join(sorted(allowed))}")
        return value

    def whole(self, key: str, most: int, default: int | None = None, least: int = 0) -> int:
        """An integer within bounds."""
        value = self._left.pop(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(key, f"must be a whole number from {least} to {most}")
        return value

    def rows(self, key: str, read: Callable[[Table], T], most: int = 64) -> tuple[T, ...]:
        """An array of tables, perhaps absent."""
        return tuple(read(Table(item, f"{self.where}: {key}")) for item in self.items(key, most))

    def items(self, key: str, most: int) -> list[object]:
        """An array, perhaps absent."""
        value = self._left.pop(key, [])
        if not isinstance(value, list) or len(value) > most:
            self.refuse(key, f"must be an array of at most {most}")
        return cast(list[object], value)

    def table(self, key: str, required: bool = False) -> Table:
        """A table inside this one; absent is empty."""
        if required and key not in self._left:
            self.refuse(key, "is missing")
        return Table(self._left.pop(key, {}), f"{self.where}: {key}")

    def has(self, key: str) -> bool:
        """Whether the key is there and was not taken yet."""
        return key in self._left

    def numbers(self, allowed: frozenset[str]) -> tuple[tuple[str, float], ...]:
        """All that is left, as sorted pairs of an allowed name and a finite number."""
        pairs = sorted(self._left.items())
        for key, value in pairs:
            if key not in allowed:
                self.refuse(key, "is unknown")
            if isinstance(value, bool) or not isinstance(value, int | float):
                self.refuse(key, "must be a number")
            plain = value == 0 or 1e-4 <= abs(value) < 1e15
            if not math.isfinite(value) or not plain:
                self.refuse(key, "must be zero or of a size from 0.0001 to 1e15")
        self._left.clear()
        return tuple((key, float(cast(float, value))) for key, value in pairs)

    def end(self) -> None:
        """Raises `Refused(bad_manifest)` if a key was not taken."""
        for key in sorted(self._left):
            self.refuse(key, "is unknown")
