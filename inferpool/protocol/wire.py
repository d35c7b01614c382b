"""A reader for objects that strangers sent: each member once, of its type, nothing left over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NoReturn

from inferpool.protocol import encoding
from inferpool.protocol.errors import Refused
from inferpool.protocol.limits import TEXT_MAX

_CONTROL: Final = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")


class Reader:
    """Takes members out of a parsed object. Every fault raises Refused(bad_encoding) that names
    the member by its path."""

    __slots__ = ("_members", "_path")

    def __init__(self, members: dict[str, object], path: str = "") -> None:
        self._members = dict(members)
        self._path = path

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise for one member."""
        raise Refused(f"{self._path}{name}: {why}", code="bad_encoding", param=self._path + name)

    def _take(self, name: str) -> object:
        if name not in self._members:
            self.refuse(name, "missing")
        return self._members.pop(name)

    def text(self, name: str, maximum: int) -> str:
        """A string of at most `maximum` bytes in UTF-8 (the one length that all languages count
        alike), without control characters: strangers' names reach logs and terminals."""
        value = self._take(name)
        if not isinstance(value, str) or len(value.encode()) > maximum:
            self.refuse(name, f"expected a string of at most {maximum} bytes of UTF-8")
        if _CONTROL.search(value):
            self.refuse(name, "control characters are not allowed")
        return value

    def choice(self, name: str, values: Sequence[str]) -> str:
        """One of some strings."""
        value = self._take(name)
        if not isinstance(value, str) or value not in values:
            self.refuse(name, f"expected one of {', '.join(values)}")
        return value

    def data(self, name: str, length: int) -> bytes:
        """Bytes of an exact length, in lower-case hex."""
        value = self._take(name)
        try:
            data = encoding.from_hex(value, length)
        except ValueError as error:
            self.refuse(name, str(error))
        if encoding.to_hex(data) != value:
            self.refuse(name, "hex must be in lower case")
        return data

    def data_or_none(self, name: str, length: int) -> bytes:
        """Bytes of an exact length, or none at all ("0x")."""
        if self._members.get(name) == "0x":
            del self._members[name]
            return b""
        return self.data(name, length)

    def integer(self, name: str, maximum: int) -> int:
        """An integer from 0 to `maximum`, as canonical JSON writes it."""
        try:
            return encoding.integer(self._take(name), maximum)
        except ValueError as error:
            self.refuse(name, str(error))

    def flag(self, name: str) -> bool:
        """true or false."""
        value = self._take(name)
        if not isinstance(value, bool):
            self.refuse(name, "expected true or false")
        return value

    def texts(self, name: str, count: int, maximum: int) -> list[str]:
        """A list of exactly `count` strings, each as `text` takes one."""
        value = self._take(name)
        if not isinstance(value, list) or len(value) != count:
            self.refuse(name, f"expected a list of {count} strings")
        items = Reader({str(i): item for i, item in enumerate(value)}, f"{self._path}{name}.")
        return [items.text(str(i), maximum) for i in range(count)]

    def has(self, name: str) -> bool:
        """Whether a member that may be left out is there."""
        return name in self._members

    def one(self, name: str) -> Reader:
        """A nested object."""
        value = self._take(name)
        if not isinstance(value, dict):
            self.refuse(name, "expected an object")
        return Reader(value, f"{self._path}{name}.")

    def many(self, name: str, maximum: int) -> list[Reader]:
        """A list of at most `maximum` nested objects."""
        value = self._take(name)
        if not isinstance(value, list) or len(value) > maximum:
            self.refuse(name, f"expected a list of at most {maximum} objects")
        if not all(isinstance(item, dict) for item in value):
            self.refuse(name, "expected objects")
        return [Reader(item, f"{self._path}{name}[{i}].") for i, item in enumerate(value)]

    def done(self) -> None:
        """Refuse members that nobody asked for: one object has one encoding."""
        if self._members:
            self.refuse(min(self._members)[:TEXT_MAX], "unknown member")
