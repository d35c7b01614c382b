"""Setting keys in a TOML file while everything else in it stays: comments, order, other keys.

A small writer for flat sections of scalars and lists of strings, which is all that the
configuration has. The result is read back and compared, so that a file is never made worse.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from inferpool.protocol.errors import Refused

_HEADER: Final = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]\s*(?:#.*)?")
_ANY_HEADER: Final = re.compile(r"\s*\[")
_KEY: Final = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")


def set_keys(text: str, section: str, values: Mapping[str, object]) -> str:
    """The text with the section's keys set. Raises Refused(bad_config) for what it cannot edit."""
    expected = _parsed(text)
    table = expected.setdefault(section, {})
    if not isinstance(table, dict):
        raise Refused(f"{section} is no section", code="bad_config")
    table.update({name: _plain(value) for name, value in values.items()})
    edited = _edit(text, section, values)
    if _parsed(edited) != expected:
        raise Refused(
            f"[{section}] is written in a way that is not edited here; set by hand: "
            + ", ".join(f"{name} = {_written(value)}" for name, value in values.items()),
            code="bad_config",
        )
    return edited


def update_file(path: Path, section: str, values: Mapping[str, object]) -> None:
    """Set keys in a file, made if it is not there; whole or not at all."""
    text = path.read_text("utf-8") if path.exists() else ""
    edited = set_keys(text, section, values)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(edited, "utf-8")
    if path.exists():
        fresh.chmod(path.stat().st_mode & 0o777)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(path)


def _edit(text: str, section: str, values: Mapping[str, object]) -> str:
    # TOML ends lines with these two only; `splitlines` knows more, which may stand in strings.
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    begin = next((at for at, line in enumerate(lines) if _is_header(line, section)), None)
    left = dict(values)
    if begin is None:
        gap = [""] if lines and lines[-1].strip() else []
        return "\n".join([*lines, *gap, f"[{section}]", *_new(left)]) + "\n"
    end = begin + 1
    out = lines[: begin + 1]
    while end < len(lines) and not _ANY_HEADER.match(lines[end]):
        match = _KEY.match(lines[end])
        size = _size(lines, end) if match else 1
        if match and match[1] in left:
            out.append(f"{match[1]} = {_written(left.pop(match[1]))}{_comment(lines, end, size)}")
        else:
            out += lines[end : end + size]
        end += size
    while out and not out[-1].strip():
        out.pop()
    rest = lines[end:]
    return "\n".join([*out, *_new(left), *([""] if rest else []), *rest]) + "\n"


def _is_header(line: str, section: str) -> bool:
    match = _HEADER.fullmatch(line)
    return match is not None and match[1] == section


def _new(values: Mapping[str, object]) -> list[str]:
    return [f"{name} = {_written(value)}" for name, value in values.items()]


def _size(lines: list[str], at: int) -> int:
    """Lines that one key takes: a list may go over several."""
    for size in range(1, len(lines) - at + 1):
        try:
            tomllib.loads("\n".join(lines[at : at + size]))
        except tomllib.TOMLDecodeError:
            continue
        return size
    return 1


def _comment(lines: list[str], at: int, size: int) -> str:
    """The comment behind a value of one line."""
    if size != 1:
        return ""
    line = lines[at]
    for found in re.finditer("#", line):
        try:
            tomllib.loads(line[: found.start()])
        except tomllib.TOMLDecodeError:
            continue  # a # inside a string
        return "  " + line[found.start() :]
    return ""


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_written(item) for item in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in text) + '"'


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"the configuration is not valid TOML: {error}", code="bad_config") from None
