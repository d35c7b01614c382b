"""Either side is killed at every one of its writes, before and after it is on disk.

A small life with every kind of money in it: a deposit, whole answers, a stream, a top-up, claims.
The machine restarts a second later on what its disk has; then both books must agree, and no money
is made, lost or owed twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest

from inferpool.payments.journal import Write
from inferpool.protocol.errors import InferpoolError
from inferpool.sim import invariants
from inferpool.sim.parts import DISK_S, SimGateway, SimNode
from inferpool.transport.base import TransportError
from tests.gateway.parts import Pool, pool

pytestmark = pytest.mark.timeout(120)
Machine = SimNode | SimGateway


class Doom:
    """Counts a machine's writes, and kills it at one of them."""

    def __init__(self, machine: Machine, at: int, *, on_disk: bool) -> None:
        self.machine, self.at, self.on_disk = machine, at, on_disk
        self.count = self.lived = 0
        self.over: asyncio.Task[None] | None = None
        self._write = machine.journal.write
        machine.journal.write = self.write  # type: ignore[method-assign]

    def write(self, writes: Sequence[Write]) -> asyncio.Future[None]:
        """The journal's own, and then perhaps the end."""
        future = self._write(writes)
        self.count += 1
        if self.count == self.at:
            self.over = asyncio.create_task(self._die())
        return future

    async def _die(self) -> None:
        if self.on_disk:
            await asyncio.sleep(1.5 * DISK_S)
        await self.machine.crash()
        await asyncio.sleep(1)
        await self.machine.start()


async def life(made: Pool) -> None:
    """What a client and an operator do; whatever fails is tried no further."""
    for step in (
        made.infer,
        lambda: made.chat(stream=True),
        made.chat,
        lambda: made.chat(max_tokens=1000),
        lambda: made.nodes[0].claimer.claim(),
        lambda: made.chat(max_tokens=1000, stream=True),
        lambda: made.nodes[0].claimer.claim(),
        made.infer,
    ):
        with suppress(InferpoolError, TransportError, asyncio.CancelledError):
            await step()
        await asyncio.sleep(3)  # a machine that died is back


async def at_rest(made: Pool) -> None:
    """Everything that must hold once late receipts were fetched."""
    await asyncio.sleep(400)
    gateway = made.gateway.gateway
    for node in made.known:
        channel = gateway.treasury.known(node.address)
        if channel is not None:
            await gateway.reconciler.ask(node, channel)
    await asyncio.sleep(1)
    invariants.check_node(made.nodes[0])
    invariants.check_node_disk(made.nodes[0])
    invariants.check_gateway(made.gateway)
    invariants.check_both_disks(made.gateway, made.nodes)
    invariants.check_agreed([made.gateway], made.nodes)
    invariants.check_chain(made.chain, 10**9)
    assert (await made.infer(rows=20)).status == 200, "it goes on"
    await asyncio.sleep(1)
    # A claim whose settlement went down with its node is settled with the next one.
    await made.nodes[0].claimer.claim()
    terms = made.nodes[0].node.gate.terms
    received = await made.chain.token_balance(terms.asset, terms.payee)
    earned = [channel.earned for channel in made.nodes[0].node.ledger.channels.values()]
    assert received == sum(earned), "all that was earned is paid, once"


def machine_of(made: Pool, side: str) -> Machine:
    return made.gateway if side == "gateway" else made.nodes[0]


async def one(side: str, at: int, *, on_disk: bool) -> Doom:
    async with pool() as made:
        doom = Doom(machine_of(made, side), at, on_disk=on_disk)
        await life(made)
        doom.at = 0  # what follows is not the life any more
        doom.lived = doom.count
        if doom.over is not None:
            await doom.over
        await at_rest(made)
        return doom


@pytest.mark.parametrize("on_disk", [False, True], ids=["before it is on disk", "after"])
@pytest.mark.parametrize("side", ["node", "gateway"])
async def test_no_write_is_a_bad_moment_to_die(side: str, on_disk: bool) -> None:
    unharmed = await one(side, 0, on_disk=on_disk)
    assert unharmed.lived >= 8
    for at in range(1, unharmed.lived + 1):
        try:
            doom = await one(side, at, on_disk=on_disk)
        except BaseException as error:
            error.add_note(f"the {side} died at write {at}")
            raise
        assert doom.over is not None, f"write {at} was reached"
