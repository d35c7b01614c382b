"""`inferpool node join` against a real pool: processes, a chain, models without weights."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from inferpool.cli.join import Joining, Stages
from inferpool.cli.status import gateway_status
from inferpool.config import load
from inferpool.daemon.pool import Pool
from inferpool.home import Home

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("join")]
FLAGS: dict[str, object] = {"chain.port": 0, "gateway.port": 0, "gateway.canary": True}
MODELS = ("--model", "fake-chat", "--model", "fake-tensor")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Chain and gateway, no node."""
    found = Pool(Home(tmp_path_factory.mktemp("pool")), FLAGS)
    try:
        for role in ("chain", "gateway"):
            found.start(role)
        yield found
    finally:
        found.close()


def environment(home: Home) -> dict[str, str]:
    kept = {key: text for key, text in os.environ.items() if not key.startswith("INFERPOOL_")}
    return {**kept, "INFERPOOL_HOME": str(home.root), "COLUMNS": "100"}


def inferpool(home: Home, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inferpool", *words],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=environment(home),
    )


def until(what: str, look: Callable[[], Any], within_s: float = 40) -> Any:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    pytest.fail(f"not within {within_s} s: {what}")


def charges(home: Home) -> list[int]:
    with closing(sqlite3.connect(f"file:{home.ledger('node')}?mode=ro", uri=True)) as book:
        query = "SELECT charge_pico_usd FROM payee_receipts"
        return [int(row[0]) for row in book.execute(query)]


def test_a_machine_elsewhere_joins_and_is_paid(pool: Pool, tmp_path: Path) -> None:
    """A home of its own, the pool by its URLs: from the command to the first paid unit."""
    home = Home(tmp_path / "newcomer")
    home.root.mkdir()
    home.config.write_text("# mine\n[node]\nslots = 2  # a small one\n")
    payout = "0x52908400098527886E0F7030069857D2E4169EE7"
    chain, gateway = pool.running["chain"].url, pool.running["gateway"].url
    where = ("--chain", chain, "--gateway", gateway, "--port", "0", "--payout", payout)
    done = inferpool(home, "node", "join", "--yes", "--trial", "--json", *where, *MODELS)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["total_s"] < 60
    assert set(report["stages_s"]) >= {"detect", "measure", "benchmark", "serve", "first job"}
    assert report["upload_bytes_per_s"][gateway] > 0
    low, high = report["expected_net_pico_usd_per_hour"]
    assert low <= high

    text = home.config.read_text()
    assert text.startswith("# mine\n[node]\nslots = 2  # a small one\n")
    written = tomllib.loads(text)
    assert written["node"]["models"] == ["fake-chat", "fake-tensor"]
    assert written["node"]["payout"] == payout
    assert written["node"]["gateways"] == [gateway]
    assert written["chain"]["url"] == chain
    assert [line.split()[0] for line in written["node"]["prices"]] == ["fake-chat", "fake-tensor"]

    (charge,) = charges(home)
    assert report["first_paid"]["charge_pico_usd"] == charge > 0
    earned = json.loads(inferpool(home, "node", "earnings", "--json").stdout)
    assert earned["total"]["earned_pico_usd"] == charge
    assert earned["by_model"]["fake-chat"]["receipts"] == 1
    assert earned["net_pico_usd"] == charge - earned["energy_pico_usd"]
    booked = [item for item in gateway_status(pool.home)["attempts"] if item["account"] == "canary"]
    assert booked[0]["charge_pico_usd"] == charge, "both sides have the same receipt"
    assert "Traceback" not in pool.log("gateway").read_text()
    assert "Traceback" not in (home.root / "logs" / "node.log").read_text()


@pytest.fixture(scope="module")
def joined(pool: Pool) -> Iterator[Home]:
    """A node in the pool's own home, without any flag of where; it serves until the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "inferpool", "node", "join", "--yes", "--port", "0", *MODELS],
        env=environment(pool.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until("it runs or ended", lambda: pool.home.running("node") or process.poll() is not None)
        until("it was paid", lambda: pool.home.running("node") and charges(pool.home))
        yield pool.home
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert "first paid unit" in output
    assert pool.home.running("node") is None


def state(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(inferpool(home, "node", "status", "--json").stdout)
    return found


def alive(home: Home, node: str) -> list[str]:
    """What the gateway has of a node."""
    found = [item for item in gateway_status(home)["nodes"] if item["node"] == node]
    return found[0]["models"] if found and found[0]["alive"] else []


def test_the_owner_drains_and_resumes_by_command(joined: Home) -> None:
    node = state(joined)["node"]
    assert alive(joined, node) == ["fake-chat", "fake-tensor"]
    assert inferpool(joined, "node", "drain").returncode == 0
    assert state(joined)["state"] == "draining"
    until("the gateway knows", lambda: alive(joined, node) == [], 10)
    assert inferpool(joined, "node", "resume").returncode == 0
    until("the gateway knows", lambda: len(alive(joined, node)) == 2, 10)


def test_the_owner_changes_a_price_by_command(joined: Home) -> None:
    done = inferpool(joined, "node", "price", "fake-chat", "--in", "3", "--out", "4.5")
    assert "$3/$4.5 per million tokens" in done.stdout
    refused = inferpool(joined, "node", "price", "nothing", "--in", "3")
    assert (refused.returncode, "model must be one of" in refused.stderr) == (1, True)


def test_the_owner_changes_wishes_by_command_and_they_are_written_down(joined: Home) -> None:
    done = inferpool(joined, "node", "set", "hours=00:00-24:00", "window=9")
    assert (done.returncode, done.stderr) == (0, "")
    assert inferpool(joined, "node", "set", "memory_max_mb=50000", "--once").returncode == 0
    now = state(joined)["settings"]
    assert (now["hours"], now["window"], now["memory_max_mb"]) == ("00:00-24:00", 9, 50_000)
    written = tomllib.loads(joined.config.read_text())["node"]
    assert (written["hours"], written["window"]) == ("00:00-24:00", 9)
    assert "memory_max_mb" not in written
    refused = inferpool(joined, "node", "set", "hours=tomorrow", "window=8")
    assert refused.returncode == 1
    assert "not of the form" in refused.stderr
    assert tomllib.loads(joined.config.read_text())["node"] == written
    inferpool(joined, "node", "withhold", "fake-tensor")
    assert [item["withheld"] for item in state(joined)["models"]] == [False, True]
    inferpool(joined, "node", "serve", "fake-tensor")
    assert [item["ready"] for item in state(joined)["models"]] == [True, True]


def test_status_and_doctor_tell_how_it_is(joined: Home) -> None:
    shown = inferpool(joined, "node", "status", "--once").stdout
    assert "offering" in shown
    assert "reaches us" in shown
    doctor = inferpool(joined, "node", "doctor", "--json")
    found = json.loads(doctor.stdout)["findings"]
    assert [item for item in found if item["severity"] == "stops"] == []
    assert doctor.returncode == 0


def test_a_second_node_in_one_home_is_refused(joined: Home) -> None:
    done = inferpool(joined, "node", "join", "--yes", *MODELS)
    assert done.returncode == 1
    assert "runs here already" in done.stderr


def test_a_backup_of_a_running_pool(joined: Home, pool: Pool, tmp_path: Path) -> None:
    """Chain, gateway and node go on; each book is whole, and so is the chain's."""
    file, there = tmp_path / "pool.backup", Home(tmp_path / "elsewhere")
    secret = {"INFERPOOL_BACKUP_PASSWORD": "of the backup"}

    def run(home: Home, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "inferpool", *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environment(home) | secret,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    earned = len(charges(joined))
    held = json.loads(run(joined, "backup", str(file), "--json"))["holds"]
    books = {"node/ledger.sqlite", "gateway/ledger.sqlite", "chain/state.sqlite"}
    assert books <= set(held)
    assert "whole" in run(there, "restore", str(file), "--verify")
    run(there, "restore", str(file))
    assert len(charges(there)) >= earned > 0
    assert all(pool.running[role].process.poll() is None for role in ("chain", "gateway"))
    chain = Pool(there, {"chain.port": 0})
    try:  # the copy is a chain: it starts, with the blocks that there were
        facts = chain.start("chain").facts
        assert facts["chain_id"] == pool.running["chain"].facts["chain_id"]
    finally:
        chain.close()


def test_doctor_on_a_bare_machine_says_what_to_do(tmp_path: Path) -> None:
    home = Home(tmp_path)
    doctor = inferpool(home, "node", "doctor", "--json")
    codes = [item["code"] for item in json.loads(doctor.stdout)["findings"]]
    assert codes[0] == "chain"
    assert "not_running" in codes
    assert doctor.returncode == 1
    asked = inferpool(home, "node", "drain")
    assert (asked.returncode, "node join" in asked.stderr) == (1, True)
    assert "earned nothing" in inferpool(home, "node", "earnings").stderr


def test_a_relay_that_was_named_is_named_at_the_next_start_too(tmp_path: Path) -> None:
    home = Home(tmp_path)
    config = load(None, {}, {"node.relays": ["203.0.113.7:8424"]})
    Joining(config, home, Stages(quiet=True), ask=False)._write([], "")
    assert tomllib.loads(home.config.read_text())["node"]["relays"] == ["203.0.113.7:8424"]


def test_joining_without_a_chain_fails_before_anything_is_done(tmp_path: Path) -> None:
    home = Home(tmp_path)
    done = inferpool(home, "node", "join", "--yes", *MODELS)
    assert (done.returncode, "No chain" in done.stderr) == (1, True)
    assert not home.config.exists()
