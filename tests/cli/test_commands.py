"""Every command: help with an example, JSON that parses, mistakes in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from typing import Any

import httpx
import orjson
import pytest
import typer.main
from poolkit import CHAT, SPAM, Running
from typer.testing import CliRunner

from inferpool import __version__
from inferpool.cli.main import app
from inferpool.home import Home
from inferpool.identity.keys import Role

pytestmark = pytest.mark.timeout(60)

Run = Callable[..., CompletedProcess[str]]


def paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command of the tree, groups included."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from paths(child, (*path, name))


COMMANDS = list(paths(typer.main.get_command(app)))


def test_the_commands_that_there_are() -> None:
    names = {
        "up",
        "demo",
        "node",
        "gateway",
        "chain",
        "models",
        "wallet",
        "status",
        "sim",
        "config",
    }
    assert names <= {path[0] for path in COMMANDS if path}
    assert {("node", "claim"), ("models", "pull"), ("config", "show")} <= set(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_an_example(path: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        done = CliRunner().invoke(app, [*path, flag], env={"COLUMNS": "100"})
        assert done.exit_code == 0
        text = " ".join(done.output.split())
        assert "Usage:" in text
        assert " ".join(["inferpool", *path]) in text.partition("Usage:")[2].partition("]")[2], (
            ("an example with the command in it") if path else "inferpool demo" in text
        )


# -- errors --------------------------------------------------------------------------------------


def one_line(done: CompletedProcess[str], *words: str, code: int = 1) -> None:
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def configure(home: Home, text: str) -> None:
    home.root.mkdir(parents=True)
    home.config.write_text(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[node]\nprot = 1\n", ["node.prot", "did you mean node.port?"]),
        ("[gatewy]\nport = 1\n", ["gatewy.port", "did you mean gateway.port?"]),
        ("[node]\nport = 'x'\n", ["node.port must be a whole number", "'x'"]),
        ("[gateway]\nopen = 1\n", ["gateway.open must be true or false"]),
        ("[node]\nmodels = 'spam'\n", ["node.models must be a list of strings"]),
        ("port = 1\n", ["unknown key port"]),
        ("[node\n", ["not valid TOML"]),
        ('["/bold]"]\nx = 1\n', ["unknown key /bold].x"]),  # no markup of the console's
        ("[node]\nmodels = ['a', 1]\n", ["['a', 1]"]),
    ],
)
def test_mistakes_in_the_file_are_named(
    home: Home, run_here: Run, text: str, words: list[str]
) -> None:
    configure(home, text)
    one_line(run_here("config", "show"), str(home.config), "(bad_config)", *words)


def test_mistakes_in_the_environment_and_flags(run_here: Run) -> None:
    for name, text, word in (
        ("INFERPOOL_NODE_PROT", "1", "node.port"),
        ("INFERPOOL_NODE_PORT", "x", "whole number"),
    ):
        one_line(run_here("config", "show", **{name: text}), name, word)
    done = run_here("up", "--prot", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--port" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["node", "claim"], ["No node runs", "inferpool node"]),
        (["gateway", "--port", "0"], ["No chain", "inferpool up"]),
        (["models", "pull", "no-such-model"], ["no-such-model"]),
        (["models", "verify", "no-such-model"], ["no-such-model"]),
        (["node", "--model", "no-such-model"], ["no-such-model"]),
        (["chain", "--port", "70000"], ["70000"]),
        (["node", "--model", "fake-chat", "--port", "0", "--price-in", "abc"], ["abc", "price"]),
        (["gateway", "--port", "0", "--chain", "http://127.0.0.1:1"], ["127.0.0.1:1"]),
    ],
    ids=" ".join,
)
def test_mistakes_are_one_line(run: Run, arguments: list[str], words: list[str]) -> None:
    one_line(run(*arguments), *words)


# -- JSON ----------------------------------------------------------------------------------------


def test_config_show_says_where_each_value_came_from(home: Home, run: Run) -> None:
    configure(home, "[node]\nport = 9001\nprice_in_usd_per_million = 0.2\n")
    found = orjson.loads(run("config", "show", "--json", INFERPOOL_NODE_SLOTS="2").stdout)
    values = {item["key"]: (item["value"], item["origin"]) for item in found["values"]}
    assert found["file"] == str(home.config)
    assert values["node.port"] == (9001, str(home.config))
    assert values["node.price_in_usd_per_million"] == ("0.2", str(home.config))
    assert values["node.slots"] == (2, "INFERPOOL_NODE_SLOTS")
    assert values["gateway.port"] == (8420, "default")
    text = run("config", "show").stdout
    assert all(key in text for key in values), "no key is cut in text either"


def test_models_list(run: Run) -> None:
    found = orjson.loads(run("models", "list", "--json").stdout)
    by_name = {item["name"]: item for item in found}
    assert by_name[SPAM]["task"] == "tensor"
    assert by_name[SPAM]["size_bytes"] > 0
    assert all(len(item["id"]) >= 64 for item in found)
    assert all(item["licence"] for item in found)
    text = run("models", "list").stdout
    assert all(name in text for name in by_name)


def test_sim(run: Run) -> None:
    done = run("sim", "--seed", "1", "--seconds", "5", "--json")
    assert done.returncode == 0, done.stderr
    (report,) = orjson.loads(done.stdout)
    assert report["seed"] == 1
    assert sum(report["outcomes"].values()) > 0
    assert report["checks"] > 0
    assert report["digest"]


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"{__version__}\n"


def test_nothing_runs(run: Run) -> None:
    done = run("status", "--json")
    assert done.returncode == 0
    assert orjson.loads(done.stdout) == {
        "roles": {"chain": None, "node": None, "gateway": None},
        "gateway": None,
    }
    assert run("status").stdout.count("not running") == 3
    assert "inferpool up" in run("wallet").stdout


# -- beside a running pool -----------------------------------------------------------------------


def secrets_of(home: Home) -> list[str]:
    """Every secret of a home, as text that must not be seen."""
    found = [home.secret(name) for name in ("password", "api-key", "control-token")]
    for group in ("node", "gateway"):
        ring = home.keys(group)
        found += [ring.key(Role(role)).secret.hex() for role in ring.addresses()]
    assert len(found) == 3 + 7
    return found


@pytest.mark.parametrize(
    "command", ["wallet", "wallet --json", "status --json", "config show --json"]
)
def test_no_secret_is_shown(pool: Running, run: Run, command: str) -> None:
    done = run(*command.split(), home=pool.home)
    assert done.returncode == 0
    shown = (done.stdout + done.stderr).lower()
    for secret in secrets_of(pool.home):
        assert secret.lower() not in shown


def test_wallet_has_every_key_with_what_it_holds(pool: Running, run: Run) -> None:
    rows = orjson.loads(run("wallet", "--json", home=pool.home).stdout)
    by_key = {(row["role"], row["key"]): row for row in rows}
    assert by_key.keys() == {
        ("node", "owner"),
        ("node", "node"),
        ("node", "gas"),
        ("gateway", "payer"),
        ("gateway", "payer_authorizer"),
        ("gateway", "gas"),
        ("gateway", "node"),  # it sells by x402 in this pool
    }
    payer = by_key["gateway", "payer"]
    assert payer["address"].lower() == pool.pool.running["gateway"].facts["payer"]
    assert payer["base_units"] > 0
    assert payer["wei"] == 0
    assert by_key["node", "owner"]["wei"] > 0
    text = run("wallet", home=pool.home).stdout
    assert all(row["address"] in text for row in rows), "an address is never cut"


def test_status_and_claim_after_work(pool: Running, run: Run) -> None:
    pool.claim()
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [30, 1], "data": ["x"] * 30}]}
    url = f"{pool.url()}/v2/models/{SPAM}/infer"
    assert httpx.post(url, json=body, headers=pool.headers, timeout=30).status_code == 200
    status = orjson.loads(run("status", "--json", home=pool.home).stdout)
    assert status["roles"]["node"]["url"] == pool.url("node")
    attempt = status["gateway"]["attempts"][0]
    assert (attempt["model"], attempt["state"]) == (SPAM, "settled")
    assert attempt["charge_pico_usd"] == 30 * 100_000
    text = run("status", home=pool.home).stdout
    for shown in (pool.url(), status["gateway"]["nodes"][0]["node"], CHAT, "$0.000003", "settled"):
        assert shown in text
    report = orjson.loads(run("node", "claim", "--json", home=pool.home).stdout)
    assert report["claimed_base_units"] == report["settled_base_units"] == "3"
    assert "claimed 0 base units" in run("node", "claim", home=pool.home).stdout


def test_explain_tells_each_factor_and_what_became_of_it(pool: Running, run: Run) -> None:
    request_id = pool.chat("Tell me why.").headers["x-request-id"]
    found = orjson.loads(run("explain", request_id, "--json", home=pool.home).stdout)
    (candidate,) = found["choices"][0]["candidates"]
    assert candidate["price_pico_usd"] > 0
    assert candidate["time_pico_usd"] > 0, "time is worth something by default"
    assert found["attempts"][0]["state"] == "settled"
    text = run("explain", request_id, home=pool.home).stdout
    for shown in (candidate["node"], CHAT, "first: ", "settled"):
        assert shown in text
    assert "Tell me why" not in text
    one_line(run("explain", "req_unknown", home=pool.home), "req_unknown")


def test_one_home_is_not_served_twice(pool: Running, run: Run) -> None:
    """A second pool over the same ledgers would break both."""
    ports = {f"INFERPOOL_{role}_PORT": "0" for role in ("CHAIN", "NODE", "GATEWAY")}
    one_line(run("up", "--json", home=pool.home, **ports), "already", str(pool.home.root))
    one_line(run("gateway", "--port", "0", home=pool.home), "already", str(pool.home.root))
    assert pool.pool.running["chain"].process.poll() is None
    assert httpx.get(f"{pool.url()}/health").status_code == 200
