"""`inferpool demo`: the whole story once, and every number of it checked again."""

from __future__ import annotations

import json
from pathlib import Path

import poolkit
import pytest

from inferpool.home import Home

pytestmark = pytest.mark.timeout(120)


def test_demo_adds_up(tmp_path: Path) -> None:
    poolkit.pull_weights()
    done = poolkit.inferpool("demo", "--json", home=Home(tmp_path), timeout_s=90)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    sums, spam, claim = report["sums"], report["spam"], report["claim"]
    assert report["exit_codes"] == {"gateway": 0, "node": 0, "chain": 0}
    assert report["seconds"] <= 60
    assert sums["agree"] is True
    assert sums["receipts_pico_usd"] == sums["ledger_pico_usd"] > 0
    assert sums["whole_base_units"] == sums["receipts_pico_usd"] // 10**6
    assert sums["claimed_base_units"] == int(claim["claimed_base_units"]) > 0
    assert claim["left_out"] == []
    assert spam["f1"] >= 0.97
    assert spam["mails"] == 500
    assert spam["rows"] == 504, "four alone, and all five hundred in batches"
    assert spam["receipts_checked"] == 4 + 500 // 20
    assert sums["receipts"] == 1 + spam["receipts_checked"]
    assert report["chat"]["text"].strip()
    assert report["chat"]["output_units"] > 0
    received = report["after"]["payee"] - report["before"]["payee"]
    assert received == sums["claimed_base_units"]
    assert not list((tmp_path).glob("*")), "the demonstration leaves the user's home alone"
