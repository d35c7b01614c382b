"""Keys are set in a configuration while comments, order and everything else stay."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferpool.protocol.errors import Refused
from inferpool.toml_edit import set_keys, update_file

OWN = """\
# my machine
[chain]
url = "http://127.0.0.1:8545"  # the office

[node]   # sells
port = 9000
models = [
  "spam",  # small
  "smollm2-135m-instruct",
]
hours = "08:00-20:00" # "#" at work

[cost]
tariff_usd_per_kwh = "0.17"
"""


def test_comments_order_and_other_keys_stay() -> None:
    edited = set_keys(OWN, "node", {"models": ["spam"], "payout": "0xab", "hours": "1:00-2:00"})
    assert (
        edited
        == """\
# my machine
[chain]
url = "http://127.0.0.1:8545"  # the office

[node]   # sells
port = 9000
models = ["spam"]
hours = "1:00-2:00"  # "#" at work
payout = "0xab"

[cost]
tariff_usd_per_kwh = "0.17"
"""
    )


def test_a_missing_section_is_added_at_the_end() -> None:
    assert set_keys("", "node", {"port": 1}) == "[node]\nport = 1\n"
    assert set_keys("[a]\nb = 1\n", "node", {"c": True}) == "[a]\nb = 1\n\n[node]\nc = true\n"


keys = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
scalars = (
    st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
)
values = scalars | st.lists(st.text("abc\"\\#[]'\n", max_size=6), max_size=4)
tables = st.dictionaries(keys, values, max_size=5)


@given(tables, tables)
def test_any_keys_are_set_and_read_back(
    first: dict[str, object], second: dict[str, object]
) -> None:
    text = set_keys("# kept\n", "node", first)
    text = set_keys(text, "other", second)
    text = set_keys(text, "node", second)
    assert tomllib.loads(text) == {"node": {**first, **second}, "other": second}
    assert text.startswith("# kept\n")


@pytest.mark.parametrize(
    "text", ["node = 1\n", "[node\n", "node = { port = 1 }\n", "node.port = 1\n"]
)
def test_what_cannot_be_edited_is_left_alone(text: str) -> None:
    with pytest.raises(Refused) as refused:
        set_keys(text, "node", {"port": 2})
    assert refused.value.code == "bad_config"


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "home" / "config.toml"
    update_file(path, "node", {"port": 1})
    path.chmod(0o640)
    update_file(path, "node", {"port": 2})
    assert path.read_text() == "[node]\nport = 2\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [item.name for item in path.parent.iterdir()] == ["config.toml"]
