"""`inferpool keys`, `teams`, `usage`: on the book of a gateway that does not run."""

from __future__ import annotations

import csv
import io
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import orjson
from typer.testing import CliRunner, Result

from inferpool.cli.main import app
from inferpool.home import Home
from inferpool.protocol.errors import InferpoolError


def command(home: Home) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), env={"INFERPOOL_HOME": str(home.root)})

    return run


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return orjson.loads(result.stdout)


def test_keys_and_teams_from_the_command_line(home: Home) -> None:
    run = command(home)
    team = told(run("teams", "create", "research", "--budget-month", "100", "--json"))
    assert team["rules"]["budget_month_usd"] == "100"
    made = told(run("keys", "create", "web", "--team", "research", "--model", "spam", "--json"))
    assert made["key"].startswith("sk-inferpool-")
    assert (made["team"], made["rules"]["models"]) == ("research", ["spam"])
    plain = run("keys", "create", "bot", "--budget-day", "1.50", "--requests", "60")
    assert plain.stdout.startswith("sk-inferpool-")
    changed = told(
        run("keys", "limit", "bot", "--budget-day", "none", "--concurrent", "2", "--json")
    )
    assert changed["rules"]["budget_day_usd"] is None
    assert changed["rules"]["requests_per_minute"] == 60
    names = [item["name"] for item in told(run("keys", "list", "--json"))["keys"]]
    assert names == ["bot", "web"]
    rotated = told(run("keys", "rotate", "web", "--json"))
    assert rotated["key"] != made["key"]
    assert [item["revoked"] for item in rotated["keys"]] == [True, False]
    assert told(run("keys", "revoke", "web", "--json"))["revoked"] is True
    assert told(run("teams", "show", "research", "--json"))["keys"] == ["web"]
    assert "web (revoked)" in run("keys", "list").stdout
    assert "research" in run("teams", "list").stdout
    assert "budget_month_usd" in run("teams", "show", "research").stdout
    with closing(sqlite3.connect(home.ledger("gateway"))) as book:
        dump = "\n".join(book.iterdump())
    assert not any(key in dump for key in (made["key"], rotated["key"], plain.stdout.strip()))


def test_a_key_that_ends_and_one_that_gives_way(home: Home) -> None:
    run = command(home)
    made = told(run("keys", "create", "guest", "--expires", "30d", "--json"))
    life_ms = made["expires_ms"] - made["keys"][0]["created_ms"]
    assert life_ms == 30 * 86_400_000
    listed = run("keys", "list").stdout
    assert "expires" in listed
    assert "UTC" in listed
    rotated = told(run("keys", "rotate", "guest", "--keep-old", "24h", "--json"))
    assert [item["revoked"] for item in rotated["keys"]] == [False, False]
    assert rotated["keys"][0]["expires_ms"] < rotated["keys"][1]["expires_ms"]
    assert "until" in run("keys", "show", "guest").stdout
    forever = told(run("keys", "limit", "guest", "--expires", "none", "--json"))
    assert forever["expires_ms"] is None
    for wrong in ("soon", "0d", "2001-01-01"):
        result = run("keys", "create", "x", "--expires", wrong)
        assert isinstance(result.exception, InferpoolError)
        assert "expires" in result.exception.message


def test_mistakes_are_named(home: Home) -> None:
    run = command(home)
    first = run("keys", "list")
    assert isinstance(first.exception, InferpoolError)
    assert "No gateway has run here" in first.exception.message
    run("keys", "create", "web")
    for arguments, words in (
        (("keys", "create", "web"), "taken"),
        (("keys", "show", "nobody"), "nobody"),
        (("keys", "create", "x", "--budget", "much"), "budget_usd"),
        (("keys", "create", "x", "--team", "none"), "no team"),
        (("usage", "--by", "prompt"), "prompt"),
        (("quote", "spam", "--rows", "3"), "No gateway runs"),
    ):
        result = run(*arguments)
        assert isinstance(result.exception, InferpoolError), arguments
        assert words in result.exception.message
    result = run("keys", "limit", "web", "--concurrent", "many")
    assert result.exit_code == 2


def test_usage_in_its_three_forms(home: Home) -> None:
    run = command(home)
    run("keys", "create", "web")
    found = told(run("usage", "--json"))
    assert found["rows"] == []
    assert found["total"]["total_usd"] == "0"
    rows = list(csv.reader(io.StringIO(run("usage", "--by", "key,day", "--csv").stdout)))
    assert rows[0][:3] == ["key", "day", "requests"]
    assert "total" in run("usage").stdout
