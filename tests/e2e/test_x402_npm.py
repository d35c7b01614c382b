"""The unmodified `@x402/fetch` pays the node, viem reads the chain (make test-x402-npm)."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from poolkit import SPAM, Running

from inferpool.chain.client import EvmChain
from inferpool.identity.signing import verify
from inferpool.protocol.encoding import from_hex
from inferpool.protocol.receipt import Receipt, SignedReceipt

pytestmark = [pytest.mark.npm, pytest.mark.timeout(120)]

SCRIPT = Path(__file__).with_name("x402_fetch.mjs")
FUNDS = 5_000_000  # base units: five test dollars
ROWS = 25  # 2.5 base units: fractions are carried


def bought(pool: Running, key: str) -> list[dict[str, Any]]:
    """What the npm client got for its money, step by step."""
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [ROWS, 1]}]}
    body["inputs"][0]["data"] = ["win a prize now"] * ROWS
    url = f"{pool.url('node')}/v2/models/{SPAM}/infer"
    folder = os.environ["INFERPOOL_TEST_NPM"]
    command = [os.environ["INFERPOOL_TEST_NODE"], "--input-type=module", "-"]
    done = subprocess.run(
        [*command, url, pool.url("chain"), key, json.dumps(body)],
        input=SCRIPT.read_text("utf-8"),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def receipt_of(pool: Running, step: dict[str, Any]) -> Receipt:
    signed = SignedReceipt.from_header(step["receipt"].encode())
    verify(signed.receipt.digest(pool.chain_id), signed.signature, pool.node_address)
    return signed.receipt


def test_the_npm_client_deposits_pays_and_recovers(pool: Running) -> None:
    account = Account.create()

    async def fund() -> EvmChain:
        chain = await EvmChain.connect(pool.url("chain"))
        await chain.faucet(from_hex(account.address.lower(), 20), 0, FUNDS)
        return chain

    chain = asyncio.run(fund())
    steps = bought(pool, "0x" + bytes(account.key).hex())
    assert [(step["name"], step["status"]) for step in steps] == [
        ("deposit", 200),
        ("voucher", 200),
        ("voucher again", 200),
        ("state lost", 200),
    ], steps
    trips = [step["trips"] for step in steps]
    assert trips[:3] == [2, 2, 2], "a 402, then paid"
    assert trips[3] in (2, 3), "the corrective 402 where the chain lags behind the books"
    receipts = [receipt_of(pool, step) for step in steps]
    assert [receipt.seq for receipt in receipts] == [1, 2, 3, 4]
    assert len({receipt.channel_id for receipt in receipts}) == 1, "also without its state"
    total = sum(int(step["charged"]) for step in steps)
    exact = sum(receipt.charge_pico_usd for receipt in receipts)
    assert total == exact // 10**6 == 10
    report = pool.claim()
    assert report["left_out"] == []
    state = asyncio.run(chain.channel(receipts[0].channel_id))
    assert state.total_claimed == total
