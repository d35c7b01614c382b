"""From a node's start to its first paid answer, and its memory before it has a model.

The real process, `inferpool node`, on a development chain that runs; the model's weights are on
disk and the payer's channel was opened in an earlier life of the node.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from bench.drive import Purse
from bench.served import PAYER
from bench.tax import children
from inferpool.chain.authorization import authorize_deposit
from inferpool.chain.client import EvmChain
from inferpool.daemon.pool import Pool
from inferpool.home import Home
from inferpool.protocol.offer import Offer, SignedOffer
from inferpool.protocol.voucher import ChannelConfig
from inferpool.transport.http import open_transport

TEXT = "meeting moved to friday please confirm that you can make it"
CASES = {
    "spam (ONNX)": (
        ("spam",),
        "/v2/models/spam/infer",
        {"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [TEXT]}]},
    ),
    "smollm2-135m-instruct (LLM)": (
        ("smollm2-135m-instruct",),
        "/v1/chat/completions",
        {
            "model": "smollm2-135m-instruct",
            "messages": [{"role": "user", "content": "Say yes."}],
            "max_tokens": 1,
        },
    ),
}
_DEPOSIT = 1_000_000
# USD per million units: so that each of the calls above is at most one base unit, 1e-6 USD.
_PRICES: dict[str, object] = {
    "node.price_row_usd_per_million": "1",
    "node.price_in_usd_per_million": "0.001",
    "node.price_out_usd_per_million": "0.001",
}


def memory_mib(pid: int) -> float:
    """Resident memory of a process, in MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None, "the kernel tells it"
    return int(found[1]) / 1024


async def _offer(url: str) -> Offer:
    pipe = open_transport(url)
    try:
        answer = await pipe.request("GET", "/.well-known/inferpool/offer", [], timeout_s=10)
        return SignedOffer.decode(await answer.read(1 << 20)).offer
    finally:
        await pipe.close()


async def _open_channel(chain_url: str, offer: Offer) -> ChannelConfig:
    terms = offer.terms
    config = ChannelConfig(
        PAYER.address,
        PAYER.address,
        terms.payee,
        terms.receiver_authorizer,
        terms.asset,
        terms.withdraw_delay_s,
        bytes(32),
    )
    chain = await EvmChain.connect((chain_url,), sender=PAYER, registry=None)
    await chain.faucet(PAYER.address, 10**18, _DEPOSIT)
    authorization = authorize_deposit(
        PAYER,
        config,
        _DEPOSIT,
        chain_id=terms.chain_id,
        name=terms.asset_name,
        version=terms.asset_version,
        valid_before_s=2**40,
        salt=1,
    )
    await chain.deposit(config, _DEPOSIT, authorization)
    return config


async def _first(url: str, path: str, body: object, purse: Purse) -> None:
    pipe = open_transport(url)
    try:
        response = await pipe.request(
            "POST", path, purse.headers(), orjson.dumps(body), timeout_s=60
        )
        answer = await response.read(1 << 20)
        assert response.status == 200, answer
    finally:
        await pipe.close()


def measure(rounds: int) -> dict[str, Any]:
    """Seconds to the first answer, median and best, and MiB without a model."""
    report: dict[str, Any] = {"first_s": {}}
    flags: dict[str, object] = {"chain.port": 0, "node.port": 0, **_PRICES}
    with tempfile.TemporaryDirectory(prefix="inferpool-bench-") as folder:
        pool = Pool(Home(Path(folder)), flags)
        try:
            pool.start("chain")
            pool.flags = {**flags, "node.models": ()}
            offer = asyncio.run(_offer(pool.start("node").url))
            config = asyncio.run(_open_channel(pool.running["chain"].url, offer))
            purse = Purse(PAYER, config, offer, 1)
            for name, (models, path, body) in CASES.items():
                pool.flags = {**flags, "node.models": models}
                spent = []
                for _ in range(rounds):
                    pool.stop("node")
                    begun = time.perf_counter()
                    node = pool.start("node")
                    served = time.perf_counter() - begun
                    purse.offer = asyncio.run(_offer(node.url))
                    asyncio.run(_first(node.url, path, body, purse))
                    spent.append((time.perf_counter() - begun, served))
                report["first_s"][name] = [statistics.median(s) for s in zip(*spent, strict=True)]
                report["first_s"][name].append(min(first for first, _ in spent))
            pool.stop("node")
            pool.flags = {**flags, "node.models": ()}
            node = pool.start("node")
            time.sleep(1)
            pid = node.process.pid
            report["idle_mib"] = memory_mib(pid) + sum(map(memory_mib, children(pid)))
        finally:
            pool.close()
    return report


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    if not report:
        return ""
    rows = [f"{'start of a node':32}{'first answer s':>16}{'serves after s':>16}{'best s':>8}"]
    for name, (first, served, best) in report["first_s"].items():
        rows.append(f"{name:32}{first:16.2f}{served:16.2f}{best:8.2f}")
    rows.append(f"memory without a model: {report['idle_mib']:.0f} MiB")
    return "\n".join(rows)
