"""Vouchers into money: exact amounts, one bad channel harms no other, a withdrawal is answered."""

from __future__ import annotations

import asyncio

import pytest

from inferpool.chain.base import Claim
from inferpool.chain.memory import FailingChain, Failure
from inferpool.payments.claims import Claimer
from inferpool.payments.gate import PaymentGate
from inferpool.protocol.errors import InferpoolError, Refused, Unavailable
from inferpool.protocol.limits import CLAIM_BATCH_MAX
from tests.node.parts import Payer, World, world

AWAY = Unavailable("the chain does not answer", code="chain_unavailable")
REVERTED = Refused("the chain reverted: something", code="chain_reverted")


async def buyers(made: World, count: int) -> list[Payer]:
    """Payers who have each paid for some answers."""
    payers = [await made.payer() for _ in range(count)]
    for number, payer in enumerate(payers):
        for _ in range(1 + number % 3):
            assert (await payer.chat(max_tokens=10 + number)).status == 200
    return payers


async def balance(made: World) -> int:
    terms = made.node.node.gate.terms
    return await made.chain.token_balance(terms.asset, terms.payee)


async def test_a_claim_brings_exactly_what_was_charged_and_no_fraction() -> None:
    async with world() as made:
        payers = await buyers(made, 3)
        charged = [payer.channel.charged for payer in payers]
        report = await made.node.claimer.claim()
        assert (report.channels, report.claimed, report.settled) == (3, sum(charged), sum(charged))
        assert report.left_out == ()
        assert report.gas_used > 0
        assert await balance(made) == sum(charged)
        for payer, amount in zip(payers, charged, strict=True):
            state = await made.chain.channel(payer.channel.channel_id)
            assert (state.total_claimed, state.balance) == (amount, 100_000)


async def test_what_was_claimed_is_not_claimed_again() -> None:
    async with world() as made:
        (payer,) = await buyers(made, 1)
        first = await made.node.claimer.claim()
        assert (await made.node.claimer.claim()).to_wire()["claimed_base_units"] == "0"
        await payer.chat()
        await made.restart()
        second = await made.node.claimer.claim()
        assert first.claimed + second.claimed == payer.channel.charged == await balance(made)


async def test_fractions_are_claimed_once_they_are_whole() -> None:
    async with world() as made:
        payer = await made.payer()
        claimed = []
        for _ in range(5):
            await payer.infer()  # a fifth of a unit
            claimed.append((await made.node.claimer.claim()).claimed)
        assert claimed == [0, 0, 0, 0, 1]


async def test_more_channels_than_one_transaction_holds() -> None:
    async with world() as made:
        payers = [await made.payer(deposit=1000) for _ in range(CLAIM_BATCH_MAX + 1)]
        for payer in payers:
            await payer.infer(rows=20)
        report = await made.node.claimer.claim()
        assert (report.channels, report.settled) == (len(payers), 2 * len(payers))


class Picky:
    """A chain that reverts every claim with a certain channel in it, as a contract would."""

    def __init__(self, chain: object, bad: set[bytes]) -> None:
        self._chain, self.bad, self.claims = chain, bad, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._chain, name)

    async def claim(self, claims: list[Claim]) -> object:
        self.claims += 1
        if self.bad & {claim.voucher.channel_id for claim in claims}:
            raise REVERTED
        return await self._chain.claim(claims)  # type: ignore[attr-defined]


@pytest.mark.parametrize("bad_ones", [1, 2])
async def test_only_the_bad_channel_is_left_out(bad_ones: int) -> None:
    async with world() as made:
        payers = await buyers(made, 13)
        node = made.node.node
        bad = {payer.channel.channel_id for payer in payers[5 : 5 + bad_ones]}
        chain = Picky(made.chain.with_sender(node.key, node.key), bad)
        claimer = Claimer(node.gate.terms, chain, node.ledger, node.gate, node.clock)  # type: ignore[arg-type]
        report = await claimer.claim()
        good = [p.channel.charged for p in payers if p.channel.channel_id not in bad]
        assert (report.channels, report.claimed, report.settled) == (
            13 - bad_ones,
            sum(good),
            sum(good),
        )
        assert set(report.left_out) == {"0x" + item.hex() for item in bad}
        assert chain.claims <= 2 * 13
        # Its vouchers are no money: no more work for it, and for nobody else is there less.
        assert (await payers[5].infer()).code == "channel_closing"
        assert (await payers[0].infer()).status == 200


async def test_a_withdrawal_is_answered_by_a_claim_and_no_more_work() -> None:
    async with world() as made:
        payer, other = await buyers(made, 2)
        watch = asyncio.create_task(made.node.claimer.watch())
        chain = made.chain.with_sender(payer.key)
        await chain.initiate_withdraw(payer.channel.config, 100_000)
        await asyncio.sleep(20)
        state = await made.chain.channel(payer.channel.channel_id)
        assert state.total_claimed == payer.channel.charged, "long before the delay has run"
        assert await balance(made) == payer.channel.charged + other.channel.charged
        assert (await payer.infer()).code == "channel_closing"
        assert (await other.infer()).status == 200
        await asyncio.sleep(900)
        await chain.finalize_withdraw(payer.channel.config)
        left = await made.chain.token_balance(payer.channel.config.token, payer.key.address)
        assert left == 100_000 - payer.channel.charged
        watch.cancel()
        await asyncio.wait([watch])


async def test_an_answer_that_ends_after_its_payer_withdrew_is_claimed_in_time() -> None:
    """What was in flight at the withdrawal is charged later; nothing happens on chain then."""
    async with world() as made:
        payer = await made.payer()
        watch = asyncio.create_task(made.node.claimer.watch())
        made.node.engine.token_delay_s = 7.0  # of the loop's own time
        slow = asyncio.create_task(payer.chat(max_tokens=10))
        await asyncio.sleep(1)
        chain = made.chain.with_sender(payer.key)
        await chain.initiate_withdraw(payer.channel.config, 100_000)
        await asyncio.sleep(40)
        assert not slow.done()
        assert (await payer.infer()).code == "channel_closing"
        assert (await slow).status == 200
        await asyncio.sleep(20)
        charged = payer.channel.charged
        assert charged > 0
        state = await made.chain.channel(payer.channel.channel_id)
        assert state.total_claimed == charged == await balance(made)
        await asyncio.sleep(900)
        await chain.finalize_withdraw(payer.channel.config)
        watch.cancel()
        await asyncio.wait([watch])


async def test_what_cannot_be_claimed_is_not_tried_at_every_look() -> None:
    async with world() as made:
        (payer,) = await buyers(made, 1)
        node = made.node.node
        bad = {payer.channel.channel_id}
        chain = Picky(made.chain.with_sender(node.key, node.key), bad)
        claimer = Claimer(node.gate.terms, chain, node.ledger, node.gate, node.clock)  # type: ignore[arg-type]
        await claimer.claim()
        tried = chain.claims
        for _ in range(5):
            await claimer.watch_once()
        assert chain.claims == tried
        chain.bad = set()
        assert (await claimer.claim()).claimed == payer.channel.charged, "a round of its own does"


# A reverted claim means a bad voucher, and is another test's.
FAILURES = [(call, AWAY) for call in ("withdrawing", "channel", "claim", "settle")] + [
    (call, REVERTED) for call in ("withdrawing", "channel", "settle")
]


@pytest.mark.parametrize(
    ("call", "error"), FAILURES, ids=[f"{call} {error.code}" for call, error in FAILURES]
)
async def test_a_chain_that_fails_once_does_not_hide_a_withdrawal(
    call: str, error: InferpoolError
) -> None:
    """Whatever call fails in one round, the next one still sees the withdrawal and claims."""
    async with world() as made:
        (payer,) = await buyers(made, 1)
        node = made.node.node
        failures = {call: 1}

        def decide(name: str) -> Failure | None:
            if failures.get(name):
                failures[name] -= 1
                return Failure(error)
            return None

        chain = FailingChain(made.chain.with_sender(node.key, node.key), decide)
        gate = PaymentGate(node.gate.terms, chain, node.ledger)
        claimer = Claimer(node.gate.terms, chain, node.ledger, gate, node.clock)
        watch = asyncio.create_task(claimer.watch())
        await made.chain.with_sender(payer.key).initiate_withdraw(payer.channel.config, 100_000)
        await asyncio.sleep(60)
        assert failures[call] == 0, "it was asked"
        (channel,) = node.ledger.channels.values()
        assert channel.closing
        assert await balance(made) == payer.channel.charged
        assert not watch.done(), "and it goes on watching"
        watch.cancel()
        await asyncio.wait([watch])


async def test_what_was_claimed_but_not_settled_is_settled_in_the_next_round() -> None:
    async with world() as made:
        (payer,) = await buyers(made, 1)
        node = made.node.node
        failing = [True]

        def decide(name: str) -> Failure | None:
            return Failure(AWAY) if name == "settle" and failing[0] else None

        chain = FailingChain(made.chain.with_sender(node.key, node.key), decide)
        claimer = Claimer(node.gate.terms, chain, node.ledger, node.gate, node.clock)
        with pytest.raises(Unavailable):
            await claimer.claim()
        failing[0] = False
        await claimer.claim()
        assert await balance(made) == payer.channel.charged


async def test_a_claim_whose_answer_was_lost_is_not_lost() -> None:
    async with world() as made:
        (payer,) = await buyers(made, 1)
        node = made.node.node
        lost = [Failure(AWAY, after=True)]
        chain = FailingChain(
            made.chain.with_sender(node.key, node.key),
            lambda name: lost.pop() if name == "claim" and lost else None,
        )
        claimer = Claimer(node.gate.terms, chain, node.ledger, node.gate, node.clock)
        with pytest.raises(Unavailable):
            await claimer.claim()
        report = await claimer.claim()
        assert await balance(made) == payer.channel.charged == report.settled


async def test_a_claim_is_settled_at_the_next_start_of_a_node_that_died_after_it() -> None:
    """The chain knows what the dead process knew: nobody waits for an hourly round."""
    async with world() as made:
        (payer,) = await buyers(made, 1)
        node = made.node.node
        dying = FailingChain(
            made.chain.with_sender(node.key, node.key),
            lambda name: Failure(AWAY) if name == "settle" else None,
        )
        with pytest.raises(Unavailable):
            await Claimer(node.gate.terms, dying, node.ledger, node.gate, node.clock).claim()
        assert await balance(made) == 0
        await made.restart()
        assert payer.channel.charged > 0
        await made.node.claimer.watch_once()
        assert await balance(made) == payer.channel.charged
        gas = made.chain._world.block
        await made.node.claimer.watch_once()
        assert made.chain._world.block == gas, "and nothing is sent where nothing is left"
