"""multipart/form-data of a body that is in memory, with limits on parts and their headers.

Source: RFC 7578, and RFC 2046 section 5.1 for the delimiters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NoReturn

from inferpool.protocol.errors import BadRequest
from inferpool.protocol.limits import FORM_HEADER_MAX, FORM_PARTS_MAX, TEXT_MAX

# RFC 2046: 1 to 70 characters, quoted where one of them is special.
_BOUNDARY: Final = re.compile(rb';\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))', re.I)
_PARAMETER: Final = re.compile(r';\s*(name|filename)="((?:[^"\\\r\n]|\\.)*)"', re.I)


@dataclass(frozen=True, slots=True)
class Part:
    """One field. `filename` is None for a plain value."""

    name: str
    filename: str | None
    data: bytes

    def text(self) -> str:
        """The value as text of at most 256 characters. Raises BadRequest that names it."""
        try:
            value = self.data[: 4 * TEXT_MAX + 1].decode()
        except UnicodeDecodeError:
            value = "\0" * (TEXT_MAX + 1)
        if len(value) > TEXT_MAX:
            raise BadRequest(
                f"{self.name} must be text of at most {TEXT_MAX} characters.", param=self.name
            )
        return value


def parse_form(body: bytes, content_type: bytes) -> list[Part]:
    """The parts of a form, in order. Raises BadRequest(invalid_request)."""
    found = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith(b"multipart/form-data") or found is None:
        _fail("the Content-Type must be multipart/form-data with a boundary")
    delimiter = b"--" + (found[1] or found[2])
    # Every delimiter but the first follows a line end, which belongs to it and not to the part.
    at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if not body.startswith(delimiter, at):
        _fail("the body does not hold its boundary")
    parts: list[Part] = []
    at += len(delimiter)
    while not body.startswith(b"--", at):
        if len(parts) >= FORM_PARTS_MAX:
            _fail(f"a form may have at most {FORM_PARTS_MAX} parts")
        end = body.find(b"\r\n" + delimiter, at)
        if end < 0:
            _fail("the body ends within a part")
        parts.append(_part(body, at, end))
        at = end + 2 + len(delimiter)
    return parts


def _part(body: bytes, start: int, end: int) -> Part:
    head_end = body.find(b"\r\n\r\n", start, end)
    if not 0 <= head_end - start <= FORM_HEADER_MAX:
        _fail("a part has no header, or one that is too long")
    for line in body[start:head_end].decode("utf-8", "replace").split("\r\n"):
        title, _, value = line.partition(":")
        if title.strip().lower() == "content-disposition":
            named = {key.lower(): text for key, text in _PARAMETER.findall(value)}
            if "name" in named and len(named["name"]) <= TEXT_MAX:
                return Part(named["name"], named.get("filename"), body[head_end + 4 : end])
    _fail("a part has no name")


def _fail(why: str) -> NoReturn:
    raise BadRequest(f"The form cannot be read: {why}.")
