"""What the demonstration does, step by step: each returns its facts and says them."""

from __future__ import annotations

import asyncio
import json
import lzma
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.markup import escape

from inferpool.chain.client import EvmChain
from inferpool.cli.status import gateway_status
from inferpool.config import Config
from inferpool.daemon.chains import asset_of
from inferpool.daemon.pool import Pool
from inferpool.home import Home
from inferpool.identity.signing import verify
from inferpool.protocol.encoding import from_hex
from inferpool.protocol.receipt import SignedReceipt
from inferpool.protocol.units import base_units_down, format_usd

F1_BAR: Final = 0.97
_BATCH: Final = 20  # mails in one request
_SHOWN: Final = 4
_JOULES_PER_KWH: Final = 3_600_000


@dataclass(slots=True)
class Story:
    """The steps share the running pool and the receipts that were seen."""

    pool: Pool
    home: Home
    config: Config
    say: Callable[[str], None]
    receipts: list[SignedReceipt] = field(default_factory=list)
    energy: dict[str, tuple[int, float]] = field(default_factory=dict)  # units, CPU seconds

    # -- the chain -------------------------------------------------------------------------------

    def chain_state(self, when: str) -> dict[str, int]:
        """Balances on chain in base units."""
        state = asyncio.run(self._read_chain())
        self.say(
            f"\n[bold]chain, {when}[/]: gateway's wallet {state['payer']}, in channels"
            f" {state['deposited']}, claimed from channels {state['claimed']}, node's wallet"
            f" {state['payee']} base units (1 base unit = $0.000001)"
        )
        return state

    async def _read_chain(self) -> dict[str, int]:
        chain = await EvmChain.connect(self.pool.running["chain"].url)
        token = asset_of(self.config.chain)
        payer = from_hex(self.pool.running["gateway"].facts["payer"], 20)
        payee = from_hex(self.pool.running["node"].facts["owner"], 20)
        ids = [from_hex(item["channel"], 32) for item in gateway_status(self.home)["channels"]]
        states = [await chain.channel(channel_id) for channel_id in ids]
        return {
            "payer": await chain.token_balance(token, payer),
            "payee": await chain.token_balance(token, payee),
            "deposited": sum(state.balance for state in states),
            "claimed": sum(state.total_claimed for state in states),
        }

    # -- the clients -----------------------------------------------------------------------------

    def chat(self, prompt: str) -> dict[str, Any]:
        """A streamed answer by openai-python."""
        import openai

        client = openai.OpenAI(
            base_url=f"{self.pool.running['gateway'].url}/v1", api_key=self.home.secret("api-key")
        )
        self.say(f"\n[bold]chat[/] (openai-python {openai.__version__}): {escape(prompt)}")
        model = next(name for name in self.config.node.models if name != "spam")
        cpu_s, begun = self._node_cpu_s(), time.perf_counter()
        first_s, proof, text = 0.0, None, []
        with client:
            stream = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=96,
                stream=True,
            )
            for chunk in stream:
                piece = chunk.choices[0].delta.content if chunk.choices else None
                if piece:
                    first_s = first_s or time.perf_counter() - begun
                    text.append(piece)
                    self._show(piece)
                proof = getattr(chunk, "inferpool", None) or proof
        spent_s = time.perf_counter() - begun
        assert proof is not None, "the last chunk has the receipt"
        signed = self._checked(proof)
        receipt = signed.receipt
        self.energy["chat"] = (receipt.output_units, self._node_cpu_s() - cpu_s)
        facts = {
            "text": "".join(text),
            "first_token_ms": round(1000 * first_s, 1),
            "total_ms": round(1000 * spent_s, 1),
            **_told(proof["node"], signed),
        }
        self.say(
            f"\n  {receipt.prompt_units} tokens in, {receipt.output_units} out; first after"
            f" {facts['first_token_ms']} ms, all after {facts['total_ms']} ms;"
            f" {format_usd(receipt.charge_pico_usd)}; node {proof['node'][:12]}...;"
            " receipt's signature checked"
        )
        return facts

    def _show(self, piece: str) -> None:
        if self.say.__name__ == "_say":
            from inferpool.cli.console import OUT

            OUT.print(piece, end="", markup=False)

    def spam(self, count: int) -> dict[str, Any]:
        """Verdicts on real mails by tritonclient."""
        client = version("tritonclient")
        self.say(
            f"\n[bold]spam[/] (tritonclient {client}, Open Inference Protocol):"
            f" {count} held-out mails of the SpamAssassin corpus"
        )
        mails = list(held_out())[:count]
        cpu_s = self._node_cpu_s()
        alone, verdicts = self._judge_all(mails)
        served_by = self._collect_receipts()
        self.energy["spam"] = (len(mails) + len(alone), self._node_cpu_s() - cpu_s)
        scores = _scores([label for _, label in mails], verdicts)
        rows = sum(item.receipt.prompt_units for item in self.receipts[1:])
        charge = sum(item.receipt.charge_pico_usd for item in self.receipts[1:])
        facts = {
            **scores,
            "mails": len(mails),
            "reached": scores["f1"] >= F1_BAR,
            "one_mail_ms": round(1000 * statistics.median(alone), 2),
            "rows": rows,
            "charge_pico_usd": charge,
            "receipts_checked": len(self.receipts) - 1,
            "node": served_by,
        }
        self.say(
            f"  F1 {scores['f1']:.4f} (bar {F1_BAR}), precision {scores['precision']:.4f}, recall"
            f" {scores['recall']:.4f}, n = {len(mails)}; one mail {facts['one_mail_ms']} ms (median"
            f" of {_SHOWN})\n  {rows} rows, {format_usd(charge)} in all; node"
            f" {served_by[:12]}...; {facts['receipts_checked']} receipts, every signature"
            " checked"
        )
        return facts

    def _judge_all(self, mails: Sequence[tuple[str, int]]) -> tuple[list[float], list[int]]:
        import tritonclient.http as triton

        where = self.pool.running["gateway"].url.removeprefix("http://")
        client = triton.InferenceServerClient(where, network_timeout=60.0)
        try:
            alone = []
            for text, label in _examples(mails):
                begun = time.perf_counter()
                verdict = self._judge(client, [text])[0]
                alone.append(time.perf_counter() - begun)
                first = " ".join(text.split())[:60]
                self.say(
                    f"  [{'red' if verdict else 'green'}]{'spam' if verdict else 'good'}[/]"
                    f" (labelled {'spam' if label else 'good'}): {escape(first)}"
                )
            verdicts: list[int] = []
            for start in range(0, len(mails), _BATCH):
                verdicts += self._judge(client, [text for text, _ in mails[start : start + _BATCH]])
            return alone, verdicts
        finally:
            client.close()

    def _judge(self, client: Any, texts: Sequence[str]) -> list[int]:
        import numpy as np
        import tritonclient.http as triton

        tensor = triton.InferInput("text", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=np.object_))
        headers = {
            "Authorization": f"Bearer {self.home.secret('api-key')}",
            "Inferpool-Receipts": "signed",  # each by itself, as they are checked below
        }
        answer = client.infer("spam", [tensor], headers=headers)
        return [int(label) for label in answer.as_numpy("label").reshape(-1)]

    def _collect_receipts(self) -> str:
        """Check the receipts of all verdicts; returns the node that served.

        tritonclient shows no headers of an answer, but the gateway's book has every proof.
        """
        booked = [item for item in gateway_status(self.home)["attempts"] if item["model"] == "spam"]
        for item in reversed(booked):
            self.receipts.append(self._verify(SignedReceipt.from_wire(item["proof"])))
        return str(booked[0]["node"])

    # -- receipts --------------------------------------------------------------------------------

    def _checked(self, proof: dict[str, Any]) -> SignedReceipt:
        wire = {"receipt": proof["receipt"], "signature": proof["signature"]}
        signed = self._verify(SignedReceipt.from_wire(wire))
        self.receipts.append(signed)
        return signed

    def _verify(self, signed: SignedReceipt) -> SignedReceipt:
        """Check a receipt as its client would: against the node key that the registry names."""
        node = from_hex(self.pool.running["node"].facts["node"], 20)
        chain_id = int(str(self.pool.running["chain"].facts["chain_id"]))
        verify(signed.receipt.digest(chain_id), signed.signature, node)
        return signed

    # -- money -----------------------------------------------------------------------------------

    def costs(self) -> dict[str, Any]:
        """Price to the consumer and electricity to the owner, at the stated tariff."""
        cost = self.config.cost
        watts, tariff = float(cost.watts_per_core), float(cost.tariff_usd_per_kwh)

        def electricity_usd(name: str, units: int) -> float:
            used, cpu_s = self.energy[name]
            return cpu_s / max(1, used) * units * watts / _JOULES_PER_KWH * tariff

        chat = self.receipts[0].receipt
        row_price = self.receipts[-1].receipt
        per_row = row_price.charge_pico_usd // max(1, row_price.prompt_units)
        facts = {
            "tariff_usd_per_kwh": tariff,
            "watts_per_core": watts,
            "price_usd_per_million_tokens_out": self.config.node.price_out_usd_per_million,
            "electricity_usd_per_million_tokens": round(electricity_usd("chat", 10**6), 4),
            "price_usd_per_1000_decisions": per_row * 1000 / 10**12,
            "electricity_usd_per_1000_decisions": round(electricity_usd("spam", 1000), 8),
            "chat_charge_pico_usd": chat.charge_pico_usd,
        }
        self.say(
            f"\n[bold]cost[/] at ${cost.tariff_usd_per_kwh}/kWh and {cost.watts_per_core} W a busy"
            " core:\n"
            f"  1 million tokens: price ${facts['price_usd_per_million_tokens_out']}, electricity"
            f" ${facts['electricity_usd_per_million_tokens']}\n"
            f"  1,000 decisions: price {format_usd(per_row * 1000)}, electricity"
            f" ${facts['electricity_usd_per_1000_decisions']:.8f}"
        )
        return facts

    def sums(self, report: dict[str, Any]) -> dict[str, Any]:
        """Whether receipts, both ledgers and the chain agree to the last base unit."""
        before, after, claim = report["before"], report["after"], report["claim"]
        exact = sum(item.receipt.charge_pico_usd for item in self.receipts)
        book = gateway_status(self.home)["channels"]
        earned = base_units_down(exact, self.config.chain.asset_decimals)
        facts = {
            "receipts": len(self.receipts),
            "receipts_pico_usd": exact,
            "ledger_pico_usd": sum(item["charged_pico_usd"] for item in book),
            "whole_base_units": earned,
            "claimed_base_units": int(claim["claimed_base_units"]),
            "node_received_base_units": after["payee"] - before["payee"],
            "gateway_paid_in_base_units": before["payer"] - after["payer"],
            "left_in_channels_base_units": after["deposited"] - after["claimed"],
            "gas_used": claim["gas_used"],
        }
        facts["agree"] = (
            facts["receipts_pico_usd"] == facts["ledger_pico_usd"]
            and earned == facts["claimed_base_units"] == facts["node_received_base_units"]
            and facts["gateway_paid_in_base_units"]
            == facts["node_received_base_units"] + facts["left_in_channels_base_units"]
        )
        self.say(
            f"\n[bold]sums[/]: {facts['receipts']} receipts add up to {exact} pico-USD; the"
            f" gateway's ledger says {facts['ledger_pico_usd']}\n  whole base units {earned} ="
            f" claimed {facts['claimed_base_units']} = received by the node"
            f" {facts['node_received_base_units']}; {exact - earned * 10**6} pico-USD carried over"
            f"\n  the gateway paid in {facts['gateway_paid_in_base_units']} ="
            f" {facts['node_received_base_units']} paid out +"
            f" {facts['left_in_channels_base_units']} still in its channel\n  one claim and one"
            f" settlement, {facts['gas_used']} gas:"
            f" {'[green]they agree[/]' if facts['agree'] else '[red]they do NOT agree[/]'}"
        )
        return facts

    # -- energy ----------------------------------------------------------------------------------

    def _node_cpu_s(self) -> float:
        """CPU seconds of the node and its engine's child so far; 0.0 where /proc is missing."""
        pids = [self.pool.running["node"].process.pid]
        total = 0.0
        while pids:
            pid = pids.pop()
            total += _cpu_s(pid)
            pids += _children(pid)
        return total


def held_out() -> Iterator[tuple[str, int]]:
    """The committed held-out mails: cleaned text, 1 for spam."""
    path = resources.files("inferpool.models").joinpath("data/spam-heldout.jsonl.xz")
    for line in lzma.decompress(path.read_bytes()).decode().splitlines():
        item = json.loads(line)
        yield item["text"], int(item["label"])


def _examples(mails: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The first good mails and the first spam, to be judged one by one."""
    good = [mail for mail in mails if not mail[1]][: _SHOWN // 2]
    return good + [mail for mail in mails if mail[1]][: _SHOWN - len(good)]


def _told(node: str, signed: SignedReceipt) -> dict[str, Any]:
    receipt = signed.receipt
    return {
        "prompt_units": receipt.prompt_units,
        "output_units": receipt.output_units,
        "charge_pico_usd": receipt.charge_pico_usd,
        "class": receipt.engine_class,
        "node": node,
        "receipt": signed.to_wire(),
    }


def _scores(labels: Sequence[int], verdicts: Sequence[int]) -> dict[str, float]:
    pairs = list(zip(labels, verdicts, strict=True))
    hits = pairs.count((1, 1))
    false_alarms, misses = pairs.count((0, 1)), pairs.count((1, 0))
    precision = hits / max(1, hits + false_alarms)
    recall = hits / max(1, hits + misses)
    f1 = 2 * hits / max(1, 2 * hits + false_alarms + misses)
    return {"f1": round(f1, 4), "precision": round(precision, 4), "recall": round(recall, 4)}


def _cpu_s(pid: int) -> float:
    try:
        parts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return 0.0
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(item) for item in text.split()]
