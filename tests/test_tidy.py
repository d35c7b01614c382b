"""The tree keeps to its own rules: sizes, names, and nothing of one machine in it."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
MODULE_LINES_MAX: Final = 500
TEST_LINES_MAX: Final = 800
FUNCTION_LINES_MAX: Final = 70
COLUMNS_MAX: Final = 100
BANNED_NAMES: Final = re.compile(r"manager|helper|utils?$|utils?_|misc|common", re.IGNORECASE)
# In two parts each, so that this file passes its own rules.
LEFTOVERS: Final = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]))
STRANGERS: Final = re.compile(r"\b(ali" + r"ce|bo" + r"b)\b", re.IGNORECASE)
MACHINE: Final = re.compile(r"(?<![\w.])/(ho" + r"me|ro" + r"ot|wo" + r"rk|Use" + r"rs)/\w")
HOSTS: Final = re.compile(
    "|".join(["py" + r"pi\.org", "python" + "hosted", "npm" + r"js\.(org|com)"])
)
PRAGMA: Final = re.compile(r"\s+# (noqa|type: ignore|pragma).*$")  # as ruff measures lines


@cache
def tree() -> tuple[Path, ...]:
    """Every file of the project: tracked ones and new ones, not what git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    found = (ROOT / name for name in names.split("\0") if name)
    return tuple(sorted(path for path in found if path.is_file()))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    """A file's text; empty for one that is not text."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return ""


PYTHON: Final = [path for path in tree() if path.suffix == ".py"]


def test_there_is_something_to_check() -> None:
    assert len(PYTHON) > 100
    assert ROOT / "inferpool" / "protocol" / "limits.py" in PYTHON


def hits(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    return [
        f"{name_of(path)}:{number}: {line.strip()[:80]}"
        for path in paths
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if pattern.search(line)
    ]


def too_wide(line: str) -> bool:
    return len(PRAGMA.sub("", line)) > COLUMNS_MAX


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """A function's lines, without those of classes that it wraps (state machines in tests)."""
    inner = sum(_span(node) for node in function.body if isinstance(node, ast.ClassDef))
    return _span(function) - inner


def _span(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_module_is_short_and_its_functions_fit_a_screen(path: Path) -> None:
    lines = text_of(path).splitlines()
    tests = path.is_relative_to(ROOT / "tests")
    assert len(lines) <= (TEST_LINES_MAX if tests else MODULE_LINES_MAX)
    long = [number for number, line in enumerate(lines, 1) if too_wide(line)]
    assert not long, f"over {COLUMNS_MAX} columns: {long}"
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = lines_of(node)
            assert size <= FUNCTION_LINES_MAX, f"{node.name} has {size} lines"


def test_nothing_is_named_for_being_a_heap() -> None:
    found = []
    for path in PYTHON:
        if BANNED_NAMES.search(path.stem):
            found.append(name_of(path))
        found += [
            f"{name_of(path)}: {node.name}"
            for node in ast.walk(ast.parse(text_of(path)))
            if isinstance(node, ast.ClassDef) and BANNED_NAMES.search(node.name)
        ]
    assert not found


def test_nothing_is_left_for_later() -> None:
    assert not hits(LEFTOVERS, [path for path in tree() if path.suffix not in (".jsonl", ".json")])


def test_actors_in_tests_have_role_names() -> None:
    tests = [path for path in PYTHON if path.is_relative_to(ROOT / "tests")]
    assert not hits(STRANGERS, tests)


def test_no_path_of_one_machine() -> None:
    assert not hits(MACHINE, list(tree()))


def test_no_host_of_a_package_index() -> None:
    assert not hits(HOSTS, list(tree()))


def test_the_patterns_find_what_they_are_for() -> None:
    assert MACHINE.search('"/ho' + 'me/somebody/x"')
    assert not MACHINE.search("https://example.org/ho" + "me/")
    assert LEFTOVERS.search("# TO" + "DO: later")
    assert STRANGERS.search("ali" + "ce = Key()")
    assert not STRANGERS.search("bo" + "bbin")
    assert HOSTS.search("https://files.python" + "hosted.org/packages")
    assert BANNED_NAMES.search("ChannelManager")
    assert not BANNED_NAMES.search("Flights")


def test_no_empty_file_and_every_text_ends_with_a_line() -> None:
    wrong = [
        name_of(path)
        for path in tree()
        if path.suffix in (".py", ".md", ".toml", ".vy", ".sh", ".svg")
        and not text_of(path).endswith("\n")
    ]
    assert not wrong
