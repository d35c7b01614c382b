"""The unmodified `@x402/fetch` pays a node and a gateway, viem reads the chain.

It runs by `make test-x402-npm`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from poolkit import CHAT, LONG_STORY, SPAM, Running

from inferpool.chain.client import EvmChain
from inferpool.cli.owner import ask_gateway
from inferpool.identity.keys import Role
from inferpool.identity.signing import verify
from inferpool.protocol.encoding import from_hex
from inferpool.protocol.receipt import Receipt, SignedReceipt

pytestmark = [pytest.mark.npm, pytest.mark.timeout(120)]

SCRIPT = Path(__file__).with_name("x402_fetch.mjs")
FUNDS = 5_000_000  # base units: five test dollars
ROWS = 25  # 2.5 base units: fractions are carried


def bought(pool: Running, seller: str, key: str) -> list[dict[str, Any]]:
    """What the npm client got for its money, step by step."""
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [ROWS, 1]}]}
    body["inputs"][0]["data"] = ["win a prize now"] * ROWS
    url = f"{pool.url(seller)}/v2/models/{SPAM}/infer"
    chat = f"{pool.url(seller)}/v1/chat/completions"
    asked = {"model": CHAT, "messages": LONG_STORY, "max_tokens": 8}
    folder = os.environ["INFERPOOL_TEST_NPM"]
    command = [os.environ["INFERPOOL_TEST_NODE"], "--input-type=module", "-"]
    done = subprocess.run(
        [*command, url, pool.url("chain"), key, json.dumps(body), chat, json.dumps(asked)],
        input=SCRIPT.read_text("utf-8"),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def receipt_of(pool: Running, seller: str, step: dict[str, Any]) -> Receipt:
    signed = SignedReceipt.from_header(step["receipt"].encode())
    key = pool.node_address
    if seller == "gateway":
        key = pool.home.keys("gateway").key(Role.NODE).address
    verify(signed.receipt.digest(pool.chain_id), signed.signature, key)
    return signed.receipt


@pytest.mark.parametrize("seller", ["node", "gateway"])
def test_the_npm_client_deposits_pays_and_recovers(pool: Running, seller: str) -> None:
    account = Account.create()

    async def fund() -> EvmChain:
        chain = await EvmChain.connect(pool.url("chain"))
        await chain.faucet(from_hex(account.address.lower(), 20), 0, FUNDS)
        return chain

    chain = asyncio.run(fund())
    steps = bought(pool, seller, "0x" + bytes(account.key).hex())
    names = ["deposit", "voucher", "voucher again", "state lost"]
    names += ["chat", "stream", "after the stream", "and its credit"]
    assert [(step["name"], step["status"]) for step in steps] == [(n, 200) for n in names], steps
    trips = {step["name"]: step["trips"] for step in steps}
    assert {trips[name] for name in names[:3]} == {2}, "a 402, then paid"
    assert trips["state lost"] in (2, 3), "the corrective 402 where the chain lags behind the books"
    assert steps[5]["body"].rstrip().endswith("data: [DONE]")
    receipts = [receipt_of(pool, seller, step) for step in steps if step["name"] != "stream"]
    assert [receipt.seq for receipt in receipts] == [1, 2, 3, 4, 5, 7, 8]
    assert len({receipt.channel_id for receipt in receipts}) == 1, "also without its state"
    total = sum(int(step["charged"]) for step in steps)
    exact = receipts[-1].charged_total_pico_usd // 10**6
    assert sum(int(step["charged"]) for step in steps[:4]) == 10
    assert total >= exact, "what a stream did not use of its maximum is a credit"
    report = pool.claim() if seller == "node" else ask_gateway(pool.home, "POST", "claim")
    assert report["left_out"] == []
    state = asyncio.run(chain.channel(receipts[0].channel_id))
    assert state.total_claimed == exact, "the unused credit is never claimed"
