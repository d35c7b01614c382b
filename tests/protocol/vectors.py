"""Reads the golden vectors."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "vectors"


def vectors(name: str) -> Any:
    """One file."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def cases(name: str) -> list[Any]:
    """The cases of one file."""
    found: list[Any] = vectors(name)["cases"]
    assert found, f"{name}.json holds no cases"
    return found


def data(text: str) -> bytes:
    """Bytes from 0x hex."""
    assert text.startswith("0x")
    return bytes.fromhex(text[2:])


def encoded(case: Any) -> bytes:
    """The case's canonical bytes."""
    return base64.b64decode(case["encoded"], validate=True)
