"""Yesterday's backup is restored, at a node, at a gateway, or at both: what comes back, and the
bound of what does not. What each side can lose is stated in docs/explanation/money-path.md."""

from __future__ import annotations

import asyncio

from sqlalchemy.engine import Engine

from inferpool.payments.journal import MemoryJournal, open_engine
from inferpool.sim.parts import SimGateway, SimNode
from tests.gateway.parts import Pool, pool

Machine = SimNode | SimGateway


def backup(machine: Machine) -> Engine:
    """A copy of a machine's disk, as `inferpool backup` takes it of a ledger."""
    copy = open_engine(None)
    source, target = machine.journal.engine.raw_connection(), copy.raw_connection()
    try:
        source.driver_connection.backup(target.driver_connection)  # type: ignore[union-attr]
    finally:
        source.close()
        target.close()
    return copy


async def restore(machine: Machine, disk: Engine) -> None:
    await machine.crash()
    machine.journal = MemoryJournal(disk)
    await machine.start()
    await asyncio.sleep(60)  # virtual: until the gateway has seen the node again


async def work(made: Pool, count: int) -> None:
    for at in range(count):
        answer = await (made.infer(rows=50) if at % 2 else made.chat())
        assert answer.status == 200, answer.body


async def rested(made: Pool) -> None:
    """Late receipts are fetched."""
    gateway = made.gateway.gateway
    for node in made.known:
        channel = gateway.treasury.known(node.address)
        assert channel is not None
        await gateway.reconciler.ask(node, channel)


async def received(made: Pool) -> int:
    terms = made.nodes[0].node.gate.terms
    return await made.chain.token_balance(terms.asset, terms.payee)


async def test_a_gateway_restored_from_yesterday_books_all_that_it_had_forgotten() -> None:
    async with pool() as made:
        await work(made, 4)
        yesterday, then = backup(made.gateway), made.booked()
        await work(made, 6)
        today = made.booked()
        assert today > then
        await restore(made.gateway, yesterday)
        await rested(made)
        assert made.booked() == made.earned() == today, "nothing is lost"
        await work(made, 2)
        assert made.booked() == made.earned() > today


async def test_a_node_restored_from_yesterday_earns_on_from_where_its_payer_is() -> None:
    async with pool() as made:
        await work(made, 4)
        yesterday, then = backup(made.nodes[0]), made.earned()
        await work(made, 6)
        today = made.earned()
        await restore(made.nodes[0], yesterday)
        assert made.earned() == then
        await work(made, 1)
        assert made.booked() == made.earned() > today, "its payer's word brought it back"
        report = await made.nodes[0].claimer.claim()
        assert await received(made) == report.settled == made.earned() // 10**6


async def test_a_node_that_never_sees_its_payer_again_loses_what_it_charged_since() -> None:
    """The bound: what was charged after the backup and not claimed before the loss."""
    async with pool() as made:
        await work(made, 4)
        yesterday, then = backup(made.nodes[0]), made.earned()
        await work(made, 3)
        await made.nodes[0].claimer.claim()
        claimed = await received(made)
        await work(made, 3)
        today = made.earned()
        await restore(made.nodes[0], yesterday)
        await made.nodes[0].claimer.claim()
        lost = today // 10**6 - await received(made)
        assert await received(made) == claimed >= then // 10**6, "what was claimed stays"
        assert 0 < lost <= (today - then) // 10**6 + 1


async def test_both_restored_from_yesterday_go_on_and_lose_what_neither_remembers() -> None:
    async with pool() as made:
        await work(made, 4)
        disks = backup(made.nodes[0]), backup(made.gateway)
        then = made.booked()
        await work(made, 6)
        await restore(made.nodes[0], disks[0])
        await restore(made.gateway, disks[1])
        await rested(made)
        assert made.booked() == made.earned() == then
        await work(made, 4)
        assert made.booked() == made.earned() > then


async def test_claims_that_neither_side_remembers_are_taken_from_the_chain() -> None:
    """Both go on after the node lost its disk and the gateway has an older book than the chain."""
    async with pool() as made:
        await work(made, 2)
        yesterday = backup(made.gateway)
        await work(made, 6)
        await made.nodes[0].claimer.claim()
        claimed = await received(made)
        booked_then = made.booked()
        await restore(made.nodes[0], open_engine(None))
        await restore(made.gateway, yesterday)
        assert made.booked() < booked_then
        await work(made, 4)
        (channel,) = (item for _, item in made.gateway.gateway.ledger.channels.values())
        assert channel.charged >= claimed, "what was claimed is charged, without a receipt for it"
        assert channel.exposure <= channel.peak
        report = await made.nodes[0].claimer.claim()
        assert report.left_out == ()
        assert claimed < await received(made) <= channel.signed_max, "and new work was paid"


async def test_a_payer_is_charged_no_more_than_it_signed_whatever_was_restored() -> None:
    """A node that restores twice, and claims in between, never gets more than both vouchers."""
    async with pool() as made:
        await work(made, 2)
        yesterday = backup(made.nodes[0])
        for _ in range(3):
            await work(made, 4)
            await made.nodes[0].claimer.claim()
            await restore(made.nodes[0], yesterday)
            await work(made, 1)
        await made.nodes[0].claimer.claim()
        (channel,) = (item for _, item in made.gateway.gateway.ledger.channels.values())
        assert await received(made) <= channel.charged <= channel.signed_max
