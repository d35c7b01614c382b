"""The chain in memory as tests and simulator use it, and the chain that fails."""

from __future__ import annotations

import pytest

from inferpool.chain.addresses import (
    DEV_CHAIN_ID,
    DEV_COURT_ADDRESS,
    DEV_DOLLAR_ADDRESS,
    DEV_REGISTRY_ADDRESS,
)
from inferpool.chain.base import Chain, ChannelState, Transfer
from inferpool.chain.court_ledger import BURN_ADDRESS
from inferpool.chain.memory import GAS, FailingChain, Failure, MemoryChain
from inferpool.protocol.errors import Refused, Unavailable
from inferpool.protocol.voucher import CHANNELS_ADDRESS
from tests.chain import signed

TRANSFER = Transfer(bytes(20), bytes(20), 1, 0, 1, bytes(32))
UNAVAILABLE = Unavailable("the chain does not answer", code="chain_unavailable")


@pytest.fixture
def funded(clock, dev_world, run):
    """A chain in memory with one funded channel, and the channel."""
    world = dev_world
    chain = MemoryChain(clock, sender=world.roles.operator.address)
    config = world.config()
    chain.fund(config.payer, 1_000)
    run(chain.deposit(config, 1_000, world.authorization(config, 1_000)))
    return chain, config


def test_money_moves_and_adds_up(funded, dev_world, run) -> None:
    chain, config = funded
    run(chain.claim([dev_world.claim(config, 300)]))
    receipt = run(chain.settle(config.receiver, config.token))
    assert run(chain.token_balance(config.token, config.receiver)) == 300
    assert run(chain.token_balance(config.token, CHANNELS_ADDRESS)) == 700
    assert receipt.block_number == 3
    assert receipt.fee_wei > receipt.gas_used > 0


def test_withdrawals_are_seen_from_their_block_on(funded, dev_world, run) -> None:
    chain, config = funded
    payer = chain.with_sender(dev_world.roles.payer)
    receipt = run(payer.initiate_withdraw(config, 100))
    channel_id = config.channel_id(DEV_CHAIN_ID)
    found, following = run(chain.withdrawing(config.receiver, 0))
    assert (found, following) == ([channel_id], receipt.block_number + 1)
    assert run(chain.withdrawing(config.receiver, following))[0] == []
    assert run(chain.withdrawing(config.payer, 0))[0] == []


def test_slashing_is_for_the_court_and_stops_at_the_stake(clock, dev_world, run, new_key) -> None:
    roles = dev_world.roles
    owner = MemoryChain(clock, sender=roles.owner.address)
    owner.fund(roles.owner.address, 500)
    run(owner.approve(DEV_DOLLAR_ADDRESS, DEV_REGISTRY_ADDRESS, 500))
    run(owner.register(new_key("node"), "https://node.example", stake=500))
    run(owner.unstake(200))
    with pytest.raises(Refused, match="only the court"):
        run(owner.slash(roles.owner.address, 1, roles.liar.address))
    court = owner.with_sender(DEV_COURT_ADDRESS)
    run(court.slash(roles.owner.address, 400, roles.liar.address))
    assert run(court.token_balance(DEV_DOLLAR_ADDRESS, roles.liar.address)) == 400
    run(court.slash(roles.owner.address, 400, roles.liar.address))
    assert run(court.token_balance(DEV_DOLLAR_ADDRESS, roles.liar.address)) == 500


def test_a_verdict_in_memory_moves_what_the_contract_moves(clock, dev_world, run, new_key) -> None:
    roles, node = dev_world.roles, new_key("node")
    owner = MemoryChain(clock, sender=roles.owner.address)
    owner.fund(roles.owner.address, 1_000)
    run(owner.approve(DEV_DOLLAR_ADDRESS, DEV_REGISTRY_ADDRESS, 1_000))
    run(owner.register(node, "https://node.example", stake=1_000))
    offer = signed.offer(node, roles.owner.address)
    lie = signed.receipt(node, offer, charge_pico_usd=10**12)
    reporter = owner.with_sender(roles.reporter)
    receipt = run(reporter.report_overcharge(lie, offer))
    assert receipt.gas_used == GAS["report"]
    assert run(owner.token_balance(DEV_DOLLAR_ADDRESS, roles.reporter.address)) == 20
    assert run(owner.token_balance(DEV_DOLLAR_ADDRESS, BURN_ADDRESS)) == 180
    (verdict,) = reporter.verdicts()
    assert (verdict.owner, verdict.node) == (roles.owner.address, node.address)
    with pytest.raises(Refused, match="already judged"):
        run(reporter.report_overcharge(lie, offer))
    assert owner.supply() == 1_000


def test_a_stranger_needs_the_authorisers_key(funded, dev_world, run) -> None:
    chain, config = funded
    stranger = chain.with_sender(dev_world.roles.stranger)
    with pytest.raises(AssertionError, match="without authoriser's key"):
        run(stranger.claim([dev_world.claim(config, 300)]))
    authorized = chain.with_sender(dev_world.roles.stranger, dev_world.roles.operator)
    run(authorized.claim([dev_world.claim(config, 300)]))
    assert run(chain.channel(config.channel_id(DEV_CHAIN_ID))).total_claimed == 300


def test_a_failure_before_leaves_no_trace_and_one_after_does(funded, dev_world, run) -> None:
    chain, config = funded
    channel_id = config.channel_id(DEV_CHAIN_ID)
    failures = [Failure(UNAVAILABLE), Failure(UNAVAILABLE, after=True)]
    failing: Chain = FailingChain(
        chain, lambda name: failures.pop(0) if name == "claim" and failures else None
    )
    claims = [dev_world.claim(config, 300)]
    with pytest.raises(Unavailable):
        run(failing.claim(claims))
    assert run(failing.channel(channel_id)).total_claimed == 0
    with pytest.raises(Unavailable):
        run(failing.claim(claims))
    assert run(failing.channel(channel_id)).total_claimed == 300
    run(failing.claim(claims))


def test_every_call_of_the_seam_can_fail(funded, dev_world, run) -> None:
    chain, config = funded
    seen: list[str] = []

    def decide(name: str) -> Failure:
        seen.append(name)
        return Failure(UNAVAILABLE)

    failing = FailingChain(chain, decide)
    calls = [
        failing.now_s(),
        failing.channel(bytes(32)),
        failing.token_balance(config.token, config.payer),
        failing.takes_authorizations(config.token),
        failing.allowance(config.token, config.payer, config.receiver),
        failing.deposit(config, 1, dev_world.authorization(config, 1)),
        failing.claim([dev_world.claim(config, 1)]),
        failing.settle(config.receiver, config.token),
        failing.unsettled(config.receiver, config.token),
        failing.transfer_authorized(config.token, TRANSFER),
        failing.transferred(config.token, TRANSFER),
        failing.initiate_withdraw(config, 1),
        failing.finalize_withdraw(config),
        failing.refund(config, 1),
        failing.withdrawing(config.receiver, 0),
        failing.registrations(),
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            run(call)
    seam = {name for name in vars(Chain) if not name.startswith("_")}
    assert set(seen) == seam


def test_an_untouched_failing_chain_is_the_chain_itself(funded, run) -> None:
    chain, config = funded
    through = FailingChain(chain, lambda name: None)
    channel_id = config.channel_id(DEV_CHAIN_ID)
    assert run(through.channel(channel_id)) == ChannelState(1_000, 0, 0, 0, 0)
    assert run(through.now_s()) == run(chain.now_s())
    assert run(through.registrations()) == []
