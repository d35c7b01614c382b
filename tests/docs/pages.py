"""The documentation as the tests read it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
REFERENCE: Final = DOCS / "reference"
PACKAGE: Final = ROOT / "inferpool"


@cache
def generator() -> ModuleType:
    """`docs/generate.py` as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def tree() -> tuple[Path, ...]:
    """Every file of the project: tracked ones and new ones, not what git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    found = (ROOT / name for name in names.split("\0") if name)
    return tuple(sorted(path for path in found if path.is_file()))


def markdown() -> list[Path]:
    """Every page."""
    return [path for path in tree() if path.suffix == ".md"]


def sections(text: str) -> dict[str, str]:
    """A page's sections of the second level, by heading."""
    parts = re.split(r"(?m)^## (.+)$", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings have, as code hosts make them."""
    prose = re.sub(r"(?s)```.*?```", "", text)
    return {
        re.sub(r"[^a-z0-9 _-]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"(?m)^#+ (.+)$", prose)
    }


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table, heads and rulers included."""
    found = []
    for line in text.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip()[1:-1])
            found.append([cell.strip() for cell in cells])
    return found


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", text)
