"""Whole worlds from one seed: the money rules hold, the same seed gives the same world, and each
rule can fail."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from inferpool.chain.memory import MemoryChain
from inferpool.engines.base import Progress, TextCall
from inferpool.engines.fake import FakeTextEngine
from inferpool.gateway.nodes import KnownNode
from inferpool.identity.signing import Key
from inferpool.payments.budget import Account
from inferpool.payments.journal import MemoryJournal, Write
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.payments.payer import PayerChannel
from inferpool.payments.window import Window
from inferpool.protocol.errors import Refused
from inferpool.protocol.receipt import Receipt
from inferpool.protocol.voucher import Voucher
from inferpool.sim.clients import BrokenAnswer
from inferpool.sim.invariants import Violated
from inferpool.sim.reorgs import ReorgChain, _Sent
from inferpool.sim.world import Options, simulate

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(("seed", "window"), [(1, 1), (2, 8), (3, 1), (4, 32)])
def test_the_money_rules_hold_while_everything_breaks(seed: int, window: int) -> None:
    report = simulate(Options(seed=seed, seconds=60.0, window=window))
    assert report.checks > 100
    assert sum(report.crashes.values()) >= 3
    assert report.outcomes["chat"] > 50
    assert report.outcomes["continued"] > 5
    assert report.claimed_base_units > 0


@pytest.mark.parametrize(("seed", "window"), [(11, 1), (12, 8)])
def test_cheats_and_withdrawals_take_no_more_than_their_bounds(seed: int, window: int) -> None:
    """Payers replay, forge and withdraw, a node claims all that was signed, and all may crash."""
    report = simulate(Options(seed=seed, seconds=60.0, window=window, cheats=True, faults=0.5))
    assert report.withdrawals >= 1
    assert report.leeched >= 5
    assert report.repelled >= 20
    assert report.claimed_base_units > 0


@pytest.mark.parametrize(("seed", "cheats"), [(1, False), (3, True)])
def test_nothing_final_is_lost_where_blocks_are_taken_back(seed: int, cheats: bool) -> None:
    """Deposits, claims, withdrawals and refunds are taken back, reordered, heard of too late; both
    ledgers agree in the end, and every payer's money is in its wallet, its channels or claimed."""
    options = Options(seed, seconds=30.0, clients=2, window=8, faults=0.5, cheats=cheats)
    report = simulate(replace(options, reorgs=True))
    assert report.reorganised >= 2
    assert report.refunds >= 1
    assert report.claimed_base_units > 0


def believes_at_once(_: Callable[..., object]) -> Callable[..., object]:
    async def send(self: ReorgChain, apply: Any) -> Any:
        sent = _Sent(self._sender, apply)
        self._mine(sent)
        return sent.receipt

    return send


def test_money_that_is_not_final_is_no_money(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReorgChain, "_send", believes_at_once(ReorgChain._send))
    monkeypatch.setattr(ReorgChain, "channel", MemoryChain.channel)
    with pytest.raises((Violated, AssertionError, Refused)):
        for seed in range(4, 8):
            options = Options(seed, seconds=30.0, clients=2, faults=0.0, cheats=True)
            simulate(replace(options, reorgs=True))


def test_without_faults_every_request_is_served() -> None:
    report = simulate(Options(seed=5, seconds=20.0, faults=0.0))
    assert set(report.outcomes) == {"chat", "formed", "several", "tensor", "left"}


def test_a_budget_is_never_overdrawn() -> None:
    report = simulate(Options(seed=6, seconds=20.0, faults=0.5, limit_pico_usd=200_000_000))
    assert report.outcomes["error:budget_exceeded"] > 0


def digest(seed: int, hash_seed: str) -> str:
    code = (
        "from inferpool.sim.world import Options, simulate;"
        f"print(simulate(Options(seed={seed}, seconds=15.0)).digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_seed_names_one_world() -> None:
    assert digest(7, "1") == digest(7, "2")
    assert digest(7, "1") != digest(8, "1")


def never_checks_cover(
    self: PayeeChannel, request_id: bytes, voucher: object, maximum: int, booked: object
) -> None:
    self.held[request_id] = maximum
    self.held_total += maximum


def charges_twice(charge: Callable[..., int]) -> Callable[..., int]:
    def charge_twice(self: PayeeChannel, request_id: bytes, charge_pico_usd: int) -> int:
        self.total_pico_usd += charge_pico_usd
        return charge(self, request_id, charge_pico_usd)

    return charge_twice


def keeps_holds(book: Callable[..., None]) -> Callable[..., None]:
    def book_and_keep(self: PayerChannel, receipt: Receipt) -> None:
        held = self.held.get(receipt.request_id, 0)
        book(self, receipt)
        self.held_total += held

    return book_and_keep


def acknowledges_early(write: Callable[..., asyncio.Future[None]]) -> Callable[..., object]:
    def write_early(self: MemoryJournal, writes: list[Write]) -> asyncio.Future[None]:
        write(self, writes)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    return write_early


def spends_twice(spend: Callable[..., None]) -> Callable[..., None]:
    def spend_twice(self: Account, request_id: bytes, charge_pico_usd: int) -> None:
        spend(self, request_id, charge_pico_usd)
        spend(self, request_id, charge_pico_usd)

    return spend_twice


def signs_too_much(sign: Callable[..., Voucher]) -> Callable[..., Voucher]:
    def sign_more(self: PayerChannel, amount: int, key: Key) -> Voucher:
        return sign(self, min(self.balance, amount + 500), key)

    return sign_more


def trusts_strangers(_: Callable[..., int]) -> Callable[..., int]:
    return lambda window, earned: window.units


def forgets_receipts(save: Callable[..., object]) -> Callable[..., object]:
    def save_channel_only(self: PayeeLedger, channel: PayeeChannel, *_: object) -> object:
        return self.save_channel(channel)

    return save_channel_only


def stays_busy(ended: Callable[..., None]) -> Callable[..., None]:
    def end_and_count(self: KnownNode) -> None:
        ended(self)
        self.in_flight += 1

    return end_and_count


def repeats_tokens(generate: Callable[..., object]) -> Callable[..., object]:
    def generate_anew(self: FakeTextEngine, call: TextCall, progress: Progress) -> object:
        return generate(self, replace(call, resume=()), progress)

    return generate_anew


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (PayeeChannel, "admit", lambda _: never_checks_cover),
        (PayeeChannel, "charge", charges_twice),
        (PayerChannel, "book", keeps_holds),
        (MemoryJournal, "write", acknowledges_early),
        (Account, "spend", spends_twice),
        (PayerChannel, "_sign", signs_too_much),
        (Window, "limit", trusts_strangers),
        (PayeeLedger, "save_receipt", forgets_receipts),
        (FakeTextEngine, "generate", repeats_tokens),
        (KnownNode, "ended", stays_busy),
    ],
    ids=[
        "work without cover",
        "charge twice",
        "hold kept",
        "acknowledged before it is durable",
        "settled twice",
        "vouchers above what is in flight",
        "a window for strangers",
        "receipts not stored",
        "tokens repeated after a failover",
        "nodes thought busy for ever",
    ],
)
def test_a_broken_rule_is_seen(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, broken: Callable[..., object]
) -> None:
    """The one place where our code is altered: to prove that the simulator can fail."""
    monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
    with pytest.raises((Violated, AssertionError, BrokenAnswer)):
        for seed in range(1, 9):
            simulate(Options(seed=seed, seconds=40.0, window=1 + seed % 2 * 7))


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (PayeeChannel, "check_signature", lambda _: lambda self, voucher: None),
        (Window, "limit", trusts_strangers),
    ],
    ids=["forged vouchers taken", "a window for a thief"],
)
def test_a_cheat_that_gets_through_is_seen(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, broken: Callable[..., object]
) -> None:
    """The same among cheats: what lets one of them through breaks a rule, or is no money: then
    the chain refuses it."""
    monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
    with pytest.raises((Violated, AssertionError, Refused)):
        for seed in range(11, 15):
            simulate(Options(seed=seed, seconds=30.0, window=8, cheats=True, faults=0.0))
