"""Yesterday's backup is restored, at a node, at a gateway, or at both: what comes back, and the
bound of what does not. What each side can lose is stated in docs/explanation/money-path.md."""

from __future__ import annotations

import asyncio

from sqlalchemy.engine import Engine

from inferpool.payments.journal import MemoryJournal, open_engine
from inferpool.sim.parts import SimGateway, SimNode
from tests.gateway.parts import CHAT, Pairs, Pool, pool
from tests.gateway.walkers import Walker, chat_body, walker
from tests.node.parts import Payer as Buyer

PRICE = 200  # of a one-off payment
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


# -- a gateway that sells, restored from yesterday's copy ----------------------------------------


async def sold(made: Pool) -> int:
    """Base units that were claimed for the selling gateway and paid out to it."""
    walk_ins = made.gateway.gateway.walk_ins
    assert walk_ins is not None
    terms = walk_ins.gate.terms
    return made.chain._world.settlement.receivers[terms.payee, terms.asset].settled


def one_off(made: Pool) -> Pairs:
    """Headers of a request that is paid by one transfer."""
    walk_ins = made.gateway.gateway.walk_ins
    assert walk_ins is not None
    buyer = Buyer.__new__(Buyer)
    buyer.key, buyer.count = made.gateway.gateway.treasury.authorizer, 0
    buyer.offer = type("Asked", (), {"terms": walk_ins.gate.terms})()
    made.chain.fund(buyer.key.address, 1_000)
    return buyer.paid_once(buyer.transfer(PRICE))


async def bought(caller: Walker, count: int) -> None:
    for _ in range(count):
        answer = await caller.chat(max_tokens=40)
        assert answer.status == 200, answer.body


async def claimed(made: Pool) -> int:
    """Received by a claim now."""
    assert made.gateway.claimer is not None
    before = await sold(made)
    await made.gateway.claimer.claim()
    return await sold(made) - before


async def test_a_selling_gateway_loses_what_it_charged_since_and_had_not_claimed() -> None:
    """The bound, with callers that say nothing of what they have booked: any x402 client."""
    async with pool(sells=True) as made:
        caller = await walker(made)
        await bought(caller, 2)
        yesterday, then = backup(made.gateway), caller.channel.charged
        await bought(caller, 3)
        today = caller.channel.charged
        await restore(made.gateway, yesterday)
        got = await claimed(made)
        assert got == then < today
        await _goes_on(made, caller, since=then)


async def test_what_a_selling_gateway_had_claimed_since_is_not_worked_for_again() -> None:
    """The chain shows a claim above every voucher in the book: the book is the older one."""
    async with pool(sells=True) as made:
        caller = await walker(made)
        await bought(caller, 2)
        yesterday, then = backup(made.gateway), caller.channel.charged
        await bought(caller, 30)
        today = caller.channel.charged
        assert await claimed(made) == today > then
        await restore(made.gateway, yesterday)
        await _goes_on(made, caller, since=today)


async def _goes_on(made: Pool, caller: Walker, since: int) -> None:
    """New work is paid in full: by a caller that reads what it is charged, as any SDK does."""
    caller.own = False
    before = caller.channel.charged
    await bought(caller, 4)
    new = caller.channel.charged - before
    assert new > 0
    assert made.gateway.claimer is not None
    await made.gateway.claimer.claim()
    assert abs(await sold(made) - since - new) <= 1, "but for a fraction of a unit"


async def test_a_one_off_payment_since_the_backup_buys_one_answer_more() -> None:
    async with pool(sells=True) as made:
        pairs = one_off(made)
        yesterday = backup(made.gateway)
        for _ in range(2):
            assert (await made.send("POST", CHAT, chat_body(), pairs)).status == 200
            assert (await made.send("POST", CHAT, chat_body(), pairs)).code == "payment_used"
            await restore(made.gateway, yesterday)
        buyer = made.gateway.gateway.treasury.authorizer.address
        left = await made.chain.token_balance(made.nodes[0].node.gate.terms.asset, buyer)
        assert left == 1_000 - PRICE, "and it was paid once"


async def test_a_refund_after_a_restore_pays_nothing_twice() -> None:
    async with pool(sells=True) as made:
        caller = await walker(made)
        await bought(caller, 2)
        yesterday, then = backup(made.gateway), caller.channel.charged
        channel_id = caller.channel.channel_id
        await bought(caller, 3)
        walk_ins = made.gateway.gateway.walk_ins
        assert walk_ins is not None
        await walk_ins.channels.refund(channel_id, 1_000)
        today = caller.channel.charged
        await restore(made.gateway, yesterday)
        walk_ins = made.gateway.gateway.walk_ins
        assert walk_ins is not None
        token, payer = walk_ins.gate.terms.asset, caller.key.address
        await walk_ins.channels.refund(channel_id, None)
        back = await made.chain.token_balance(token, payer)
        state = await made.chain.channel(channel_id)
        assert state.balance == state.total_claimed == today, "what was claimed first stays"
        assert back == 100_000 - today, "each unit once"
        assert await sold(made) == today >= then
