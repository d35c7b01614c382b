"""The real node, crashed at random points, never gives the court a case against itself.

Everything that leaves a node in the simulator is read off the wire: every byte of every answer,
also those that no client got. Then the court's rules are run over all receipts and offers of a
world. That the test has teeth is shown by nodes that break one of the rules.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import orjson
import pytest
from sqlalchemy import select

from inferpool.chain.addresses import DEV_CHAIN_ID
from inferpool.chain.cases import Case, Rule, find_cases
from inferpool.node import work
from inferpool.node.app import NodeApp
from inferpool.payments import gate
from inferpool.payments.journal import MemoryJournal
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.payments.schema import PAYEE_RECEIPTS
from inferpool.protocol.encoding import canonical, from_base64
from inferpool.protocol.offer import SignedOffer
from inferpool.protocol.receipt import SignedReceipt
from inferpool.sim import parts
from inferpool.sim.clients import Client
from inferpool.sim.invariants import Violated
from inferpool.sim.loop import run_virtual
from inferpool.sim.world import Options, World
from inferpool.transport.memory import MemoryTransport

SEEDS = (1, 3, 8)  # worlds in which a crash loses something
SECONDS = 15.0
DISK_S = 0.05  # a slow disk: the moment between signing and durability is often hit


@dataclass
class Wire:
    """All that nodes have let out, and what a crash took with it."""

    receipts: dict[bytes, SignedReceipt] = field(default_factory=dict)
    offers: dict[bytes, SignedOffer] = field(default_factory=dict)
    ways: Counter[str] = field(default_factory=Counter)
    lost: int = 0  # receipts that were signed, and not yet durable at a crash
    crashes: int = 0
    disks_die: bool = False  # with each crash

    def message(self, message: Any) -> None:
        """One ASGI message of a node."""
        for name, value in message.get("headers", ()):
            if bytes(name).lower() == b"inferpool-receipt":
                self._value(orjson.loads(from_base64(bytes(value))), "header")
        body = bytes(message.get("body", b""))
        for line in body.splitlines():
            with suppress(orjson.JSONDecodeError):
                is_event = line.startswith(b"data: ")
                self._value(orjson.loads(line.removeprefix(b"data: ")), "SSE" if is_event else "")

    def _value(self, value: Any, way: str) -> None:
        if isinstance(value, list):
            for item in value:
                self._value(item, way or "page")
        if not isinstance(value, dict):
            return
        if value.keys() == {"receipt", "signature"}:
            signed = SignedReceipt.from_wire(value)
            self.receipts.setdefault(signed.receipt.digest(DEV_CHAIN_ID), signed)
            self.ways[way] += 1
        elif value.keys() >= {"offer", "ownerSignature"}:
            offer = SignedOffer.decode(canonical(value))
            self.offers[offer.offer.digest()] = offer
        else:
            for item in value.values():
                self._value(item, way)

    def cases(self) -> list[Case]:
        """What the court would punish."""
        return list(find_cases(self.receipts.values(), self.offers.values(), DEV_CHAIN_ID))


class CrashingWorld(World):
    """A world whose nodes crash at any moment, two in three seconds."""

    def __init__(self, seed: int, wire: Wire) -> None:
        super().__init__(Options(seed=seed, seconds=SECONDS, window=1 + seed % 2 * 7))
        self._wire, self._moments = wire, Random(seed)

    async def _chaos(self, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            await asyncio.sleep(self._moments.uniform(0.1, 2.5))
            node = self._moments.choice([*self._nodes.values()])
            self._wire.crashes += 1
            await node.crash()
            await asyncio.sleep(self._moments.uniform(0.0, 0.4))
            if self._wire.disks_die:
                node.journal = MemoryJournal()
            await node.start()

    def _check(self) -> None:
        """The simulator's own tests check its invariants; a dishonest world breaks them at once."""

    def disk(self) -> set[bytes]:
        """Digests of the receipts on all nodes' disks."""
        rows = [
            row
            for node in self._nodes.values()
            for row in node.journal.read(select(PAYEE_RECEIPTS))
        ]
        return {SignedReceipt.unpack(row.data).receipt.digest(DEV_CHAIN_ID) for row in rows}


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """A tap on every node of the simulator, and a slow disk under it."""
    tapped = Wire()

    class SlowJournal(MemoryJournal):
        def __init__(self, engine=None, delay_s: float = 0.0) -> None:
            super().__init__(engine, max(delay_s, DISK_S))

        def crash(self) -> None:
            tapped.lost += sum(
                "payee_receipts" in write.statement.sql
                for writes, _ in self._pending
                for write in writes
            )
            super().crash()

    def transport(app):
        if not isinstance(app, NodeApp):
            return MemoryTransport(app)

        async def tap(scope, receive, send) -> None:
            async def seen(message) -> None:
                tapped.message(message)
                await send(message)

            await app(scope, receive, seen)

        return MemoryTransport(tap)

    monkeypatch.setattr(parts, "MemoryJournal", SlowJournal)
    monkeypatch.setattr(parts, "MemoryTransport", transport)
    return tapped


@pytest.fixture
def dishonest(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """For worlds with liars: what their clients get is the gateway's matter, and not seen here."""
    monkeypatch.setattr(Client, "_check_text", staticmethod(lambda got, text, body: None))
    return monkeypatch


def live(seed: int, wire: Wire) -> set[bytes]:
    """One world's life; the digests on its disks."""

    async def main() -> set[bytes]:
        world = CrashingWorld(seed, wire)
        await world.run()
        return world.disk()

    return run_virtual(main())


@pytest.mark.parametrize("seed", SEEDS)
def test_an_honest_node_that_crashes_is_never_caught(seed: int, wire: Wire) -> None:
    disk = live(seed, wire)
    assert wire.cases() == []
    assert wire.receipts.keys() <= disk  # what has left is durable
    # The world was bad enough to prove something.
    assert wire.crashes >= 5
    assert len(wire.receipts) >= 40
    assert wire.lost >= 1
    assert {receipt.receipt.offer_hash for receipt in wire.receipts.values()} <= wire.offers.keys()
    assert wire.ways["header"] and wire.ways["SSE"] and wire.ways["page"]  # noqa: PT018


def test_a_node_that_answers_before_its_disk_is_caught(wire: Wire, dishonest) -> None:
    save = PayeeLedger.save_receipt

    def hasty(self, channel, signed, model):
        save(self, channel, signed, model)
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    dishonest.setattr(PayeeLedger, "save_receipt", hasty)
    dishonest.setattr(gate, "_booked", lambda value: (0, 0))
    with suppress(Violated):
        live(4, wire)  # where a crash falls into that moment
    assert {case.rule for case in wire.cases()} == {Rule.TWO_RECEIPTS}


def test_a_node_that_charges_more_than_it_offered_is_caught(wire: Wire, dishonest) -> None:
    honest = work.exact_pico_usd
    dishonest.setattr(work, "exact_pico_usd", lambda used, service: honest(used, service) + 1)
    with suppress(Violated):
        live(2, wire)
    assert {case.rule for case in wire.cases()} == {Rule.OVERCHARGE}


def test_a_node_that_names_another_service_is_caught(wire: Wire, dishonest) -> None:
    dishonest.setattr("inferpool.protocol.offer.Offer.index", lambda self, service: 0)
    with suppress(Violated):
        live(2, wire)
    assert Rule.OTHER_MANIFEST in {case.rule for case in wire.cases()}


def test_a_key_that_outlives_its_disk_is_caught(wire: Wire, dishonest) -> None:
    """The limit of the promise: without the disk an honest node counts from one again, unless its
    payers tell where they are, as honest ones do; these here do not. Whoever loses the disk, or
    goes back to an old copy, must put a new key into service first."""
    wire.disks_die = True
    dishonest.setattr(gate, "_booked", lambda value: (0, 0))
    with suppress(Violated):
        live(2, wire)
    assert {case.rule for case in wire.cases()} == {Rule.TWO_RECEIPTS}
