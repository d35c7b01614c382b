"""Money at rest: asked back from nodes that are not used, fetched after the delay, never lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from inferpool.chain.memory import FailingChain, Failure
from inferpool.gateway.capital import Capital
from inferpool.payments.payer import PayerChannel
from inferpool.protocol.errors import BadRequest, Refused, Unavailable
from inferpool.sim.parts import key_of
from tests.gateway.parts import SEED, Pool, pool

PAYER = key_of(SEED, "gateway-0/payer")
DAY_S = 86_400
AWAY = Unavailable("no answer", code="chain_unavailable")


async def no_fuel() -> None:
    """A chain in memory takes no gas."""


def capital_of(made: Pool, idle_s: int = DAY_S) -> Capital:
    gateway = made.gateway.gateway
    chain = made.chain.with_sender(PAYER)
    return Capital(gateway.treasury, chain, gateway.clock, idle_s, no_fuel)


def channel_of(made: Pool) -> PayerChannel:
    """The one channel."""
    ((_, channel),) = made.gateway.gateway.ledger.channels.values()
    return channel


async def wallet(made: Pool) -> int:
    return await made.chain.token_balance(made.nodes[0].node.gate.terms.asset, PAYER.address)


async def test_all_that_the_node_did_not_earn_comes_back() -> None:
    async with pool() as made:
        await made.infer(rows=20)
        capital, channel = capital_of(made), channel_of(made)
        watch = asyncio.create_task(made.nodes[0].claimer.watch())
        lying = await capital.withdraw(channel.channel_id)
        assert (lying.way_back, lying.state.withdraw_amount) == ("pending", 3000)
        with pytest.raises(Refused, match="pending"):
            await capital.finalize(channel.channel_id)
        with pytest.raises(Refused, match="already"):
            await capital.withdraw(channel.channel_id)
        await asyncio.sleep(901)
        assert (await capital.look())[0].way_back == "ready"
        lying = await capital.finalize(channel.channel_id)
        assert (lying.way_back, lying.free) == ("none", 0)
        assert await wallet(made) == 10**9 - channel.charged == 10**9 - 2
        with pytest.raises(BadRequest):
            await capital.withdraw(b"\7" * 32)
        watch.cancel()
        await asyncio.wait([watch])


async def test_a_node_is_used_again_through_another_channel() -> None:
    async with pool() as made:
        await made.infer()
        old = channel_of(made)
        await capital_of(made).withdraw(old.channel_id)
        assert (await made.infer()).status == 200
        assert len(made.gateway.gateway.ledger.channels) == 2
        await asyncio.sleep(1)
        await made.restart_gateway()  # what is on its way out is known from the chain
        assert (await made.infer()).status == 200
        assert len(made.gateway.gateway.ledger.channels) == 2
        assert old.channel_id in made.gateway.gateway.treasury.leaving


async def test_what_is_used_stays_and_what_is_not_comes_back_by_itself() -> None:
    async with pool(2) as made:
        for _ in range(12):
            await made.infer()
        channels = made.gateway.gateway.ledger.channels
        assert len(channels) == 2
        capital = capital_of(made)
        run = asyncio.create_task(capital.run())
        await asyncio.sleep(DAY_S - 3600)
        await made.nodes[1].crash()
        for _ in range(3):
            assert (await made.infer()).status == 200
        await asyncio.sleep(2 * 3600)
        by_node = {item.node: item for item in await capital.look()}
        kept = by_node.pop(made.nodes[0].node.key.address)
        (left,) = by_node.values()
        assert (kept.way_back, kept.state.balance) == ("none", 3000)
        assert left.way_back == "none"
        assert left.free == 0, "it came back whole: its node was away and claimed nothing"
        assert await wallet(made) == 10**9 - 3000
        run.cancel()
        await asyncio.wait([run])


async def test_a_channel_with_work_in_flight_stays() -> None:
    async with pool() as made:
        made.nodes[0].engine.token_delay_s = 0.5
        stream = asyncio.create_task(made.chat(stream=True))
        await asyncio.sleep(2)
        capital = capital_of(made)
        assert await capital.release(0) == []
        assert (await stream).done
        await asyncio.sleep(1)
        assert len(await capital.release(0)) == 1


async def test_a_lost_answer_of_the_chain_loses_no_way_back() -> None:
    async with pool() as made:
        await made.infer()
        channel, lost = channel_of(made), ["initiate_withdraw", "finalize_withdraw"]
        capital = capital_of(made)

        def decide(name: str) -> Failure | None:
            if name in lost:
                lost.remove(name)
                return Failure(AWAY, after=True)
            return None

        capital.chain = FailingChain(capital.chain, decide)
        with pytest.raises(Unavailable):
            await capital.withdraw(channel.channel_id)
        assert (await capital.look())[0].way_back == "pending"
        assert (await made.infer()).status == 200, "on another channel"
        await asyncio.sleep(901)
        with pytest.raises(Unavailable):
            await capital.finalize(channel.channel_id)
        found = {item.channel.channel_id: item for item in await capital.look()}
        assert found[channel.channel_id].way_back == "none"
        assert found[channel.channel_id].free == 0


async def test_a_withdrawal_that_never_reached_the_chain_leaves_the_channel_in_use() -> None:
    async with pool() as made:
        await made.infer()
        capital = capital_of(made)
        capital.chain = FailingChain(
            capital.chain,
            lambda name: Failure(AWAY) if name == "initiate_withdraw" else None,
        )
        with pytest.raises(Unavailable):
            await capital.withdraw(channel_of(made).channel_id)
        await capital.look()
        assert (await made.infer()).status == 200
        assert channel_of(made).balance == 3000, "no second one"


async def test_a_day_has_its_cap_also_over_a_restart() -> None:
    async with pool(3) as made:
        treasury = made.gateway.gateway.treasury
        treasury.caps = replace(treasury.caps, per_day=7000)
        answers = await asyncio.gather(*(made.infer() for _ in range(30)))
        assert {answer.status for answer in answers} == {200}
        assert await wallet(made) == 10**9 - 6000, "two channels, and no third"
        await asyncio.sleep(1)
        await made.restart_gateway()
        treasury = made.gateway.gateway.treasury
        treasury.caps = replace(treasury.caps, per_day=7000)
        for _ in range(20):
            await made.infer()
        assert await wallet(made) == 10**9 - 6000
        await made.gateway.crash()  # a day of leases takes half a minute, even in virtual time
        await asyncio.sleep(DAY_S)
        await made.gateway.start()
        await asyncio.gather(*(made.infer() for _ in range(30)))  # so many want all three nodes
        assert await wallet(made) == 10**9 - 9000


async def test_a_refund_of_the_node_is_noticed_and_the_channel_goes_on() -> None:
    async with pool() as made:
        await made.infer()
        channel, node = channel_of(made), made.nodes[0]
        await node.claimer.claim()
        sender = made.chain.with_sender(node.node.key, node.node.key)
        await sender.refund(channel.config, 10**9)
        await node.node.gate.refresh(node.node.ledger.channels[channel.channel_id])
        assert await wallet(made) == 10**9 - (await made.chain.channel(channel.channel_id)).balance
        await made.infer()  # it meets a 402 that says so
        assert (await made.infer()).status == 200
        assert made.booked() == made.earned()


async def test_a_node_that_is_asked_pays_back_at_once_what_is_not_used() -> None:
    async with pool() as made:
        gateway = made.gateway.gateway
        assert (await made.chat()).status == 200
        payer = gateway.treasury.payer

        async def no_gas() -> None:
            raise AssertionError("asking takes no gas of ours")

        capital = Capital(gateway.treasury, gateway.treasury.chain, gateway.clock, 0, no_gas)
        (lying,) = await capital.look()
        with pytest.raises(Refused):  # nobody to ask
            await capital.ask_back(lying.channel.channel_id)
        capital.nodes = gateway.directory.nodes.get
        token = lying.channel.config.token
        before = await made.chain.token_balance(token, payer.address)
        moved = await capital.ask_back(lying.channel.channel_id)
        assert moved.free == 0
        after = await made.chain.token_balance(token, payer.address)
        assert after - before == lying.state.balance - lying.channel.charged
        assert moved.channel.balance == moved.channel.charged
        assert (await made.chat()).status == 200, "a top-up, and on it goes"
        assert made.booked() == made.earned()
