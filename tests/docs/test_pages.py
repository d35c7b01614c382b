"""Pages that lead somewhere, examples that compile, and claims that the tree bears out."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import metadata
from pathlib import Path

import orjson
import pytest
from pages import DOCS, PACKAGE, ROOT, anchors, blocks, markdown, rows, sections

import inferpool

PAGES = {str(path.relative_to(ROOT)): path for path in markdown()}


def test_there_are_pages() -> None:
    assert {"README.md", "AGENTS.md", "CHANGELOG.md", "docs/index.md"} <= PAGES.keys()


def links(text: str) -> list[str]:
    """Targets of links and pictures, outside code."""
    prose = re.sub(r"(?s)```.*?```|`[^`\n]*`(?!\])", "", text)
    inline = re.findall(r"\]\(([^)\s]+)\)", prose)
    return inline + re.findall(r"(?m)^\[[^\]]+\]: (\S+)$", prose)


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    page = PAGES[name]
    text = page.read_text("utf-8")
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name}: {link}"
        assert path.is_relative_to(ROOT), f"{name}: {link} leaves the project"
        if anchor:
            assert anchor in anchors(path.read_text("utf-8")), f"{name}: {link}"


def test_every_page_of_the_documentation_is_reached_from_its_index() -> None:
    index = DOCS / "index.md"
    reached = {(DOCS / link.partition("#")[0]).resolve() for link in links(index.read_text())}
    assert {path for path in DOCS.rglob("*.md") if path != index} <= reached


@pytest.mark.parametrize("name", PAGES)
def test_examples_can_be_read(name: str) -> None:
    text = PAGES[name].read_text("utf-8")
    assert text.count("\n```") % 2 == 0, f"{name}: a code block without an end"
    for code in blocks(text, "python"):
        compile(code, name, "exec")
    for code in blocks(text, "toml"):
        tomllib.loads(code)
    for code in blocks(text, "json"):
        orjson.loads(code)


def makefile_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text("utf-8")
    return set(re.findall(r"(?m)^([a-z][a-z-]*):", text))


@pytest.mark.parametrize("name", PAGES)
def test_every_make_target_that_a_page_names_exists(name: str) -> None:
    text = PAGES[name].read_text("utf-8")
    code = re.findall(r"`(make [^`]+)`", text) + re.findall(r"(?m)^(make [a-z -]+)", text)
    named = {word for line in code for word in line.split()[1:] if re.fullmatch("[a-z-]+", word)}
    assert named <= makefile_targets() | {"sets"}, f"{name}: {named - makefile_targets()}"


def test_the_targets_that_the_readme_promises() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert re.findall(r"(?m)^make (\w+)", readme) == ["demo", "test"]
    agents = (ROOT / "AGENTS.md").read_text("utf-8")
    promised = {"demo", "up", "test", "check", "bench", "docs"}
    promised |= {"test-browser", "test-ray", "test-anvil", "test-nat", "test-whisper"}
    assert promised <= makefile_targets()
    for target in promised:
        assert f"`make {target}`" in agents


def test_configuration_in_examples_is_accepted(tmp_path: Path) -> None:
    from inferpool.config import load

    checked = 0
    for name, page in PAGES.items():
        if name.startswith("docs/howto/"):
            for code in blocks(page.read_text("utf-8"), "toml"):
                path = tmp_path / f"{checked}.toml"
                path.write_text(code, "utf-8")
                load(path, {})
                checked += 1
    assert checked >= 3


def test_the_readme_shows_what_up_prints() -> None:
    """The lines to paste are those of `inferpool up`, but for the key."""
    readme = (ROOT / "README.md").read_text("utf-8")
    source = (PACKAGE / "cli" / "up.py").read_text("utf-8")
    for piece in ("/v1/chat/completions -H ",):
        assert piece in source
        assert piece in readme


# -- versions and dependencies ------------------------------------------------------------------


def test_the_changelogs_newest_version_is_the_packages() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"(?m)^## \[([^\]]+)\]", text)
    assert versions[0] == inferpool.__version__
    assert metadata.version("inferpool") == inferpool.__version__


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def required() -> set[str]:
    """Every package that pyproject.toml asks for, itself apart."""
    found = project()
    table, groups = found["project"], found["dependency-groups"]
    assert isinstance(table, dict)
    assert isinstance(groups, dict)
    lists = [table["dependencies"], *table["optional-dependencies"].values(), *groups.values()]
    names = {
        re.split(r"[^A-Za-z0-9_.-]", item)[0].lower()
        for items in lists
        for item in items
        if isinstance(item, str)
    }
    return names - {"inferpool"}


def documented() -> dict[str, list[str]]:
    text = (DOCS / "explanation" / "dependencies.md").read_text("utf-8")
    return {row[0].strip("`"): row for row in rows(text) if row[0].startswith("`")}


def test_every_dependency_has_a_licence_and_a_reason() -> None:
    table = documented()
    assert table.keys() == required()
    for name, row in table.items():
        assert len(row) == 3
        assert row[1], name
        assert len(row[2]) >= 8, name


@pytest.mark.parametrize("name", sorted(documented()))
def test_a_documented_licence_is_the_packages_own(name: str) -> None:
    try:
        found = metadata.distribution(name).metadata.json
    except metadata.PackageNotFoundError:
        return  # of a group that is installed on demand
    told = " ".join(
        [
            str(found.get("license_expression", "")),
            str(found.get("license", ""))[:80],
            *[str(item) for item in found.get("classifier", []) if str(item).startswith("License")],
        ]
    ).lower()
    words = {
        word.split("-")[0].lower() for word in re.findall(r"[A-Za-z0-9.-]+", documented()[name][1])
    } - {"and", "or", "unlicense"}
    assert words
    for word in words:
        assert word in told, f"{name}: {word} is not in {told!r}"


# -- the threat model ---------------------------------------------------------------------------


def test_every_threat_has_a_guard_and_names_a_test_or_says_open() -> None:
    text = (DOCS / "explanation" / "threat-model.md").read_text("utf-8")
    threats = [
        row
        for section in sections(text).values()
        for row in rows(section)
        if row[0] not in ("threat", "---")
    ]
    assert len(threats) > 30
    for threat in threats:
        assert len(threat) == 3, threat
        assert threat[1], threat
        assert threat[2] == "open" or ".py" in threat[2], threat


# -- docstrings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_module_begins_with_its_contract(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree), "a module begins with its contract"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
