"""The client on a real chain: the whole way of the money, exact to the unit."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS, DEV_REGISTRY_ADDRESS
from inferpool.chain.base import ChannelState, Registration
from inferpool.chain.events import REORG_DEPTH
from inferpool.protocol.voucher import CHANNELS_ADDRESS

AMOUNT = 1_000_000


def test_deposit_claim_settle_to_the_unit(world, run) -> None:
    config = world.config()
    channel_id = config.channel_id(world.chain_id)
    payer_before = world.balance(config.payer)
    world.deposit(config, AMOUNT)
    operator = world.chain(world.roles.operator)
    receipt = run(operator.claim([world.claim(config, 700_000, total=300_123)]))
    assert receipt.gas_used > 21_000
    assert receipt.fee_wei >= receipt.gas_used
    assert run(operator.channel(channel_id)) == ChannelState(AMOUNT, 300_123, 0, 0, 0)
    assert world.balance(config.payer) == payer_before - AMOUNT
    receiver_before = world.balance(config.receiver)
    assert run(operator.unsettled(config.receiver, config.token)) == 300_123
    run(world.chain(world.roles.stranger).settle(config.receiver, config.token))
    assert world.balance(config.receiver) == receiver_before + 300_123
    assert run(operator.unsettled(config.receiver, config.token)) == 0


def test_a_settlement_with_nothing_due_moves_nothing(world, run) -> None:
    before = world.balance(CHANNELS_ADDRESS)
    run(world.chain(world.roles.stranger).settle(world.roles.liar.address, DEV_DOLLAR_ADDRESS))
    assert world.balance(CHANNELS_ADDRESS) == before


def test_an_unknown_channel_is_all_zero(world, run) -> None:
    chain = world.chain(world.roles.stranger)
    assert run(chain.channel(b"\7" * 32)) == ChannelState(0, 0, 0, 0, 0)


def test_a_stranger_claims_with_the_authorisers_signature(world, run) -> None:
    configs = [world.config(), world.config()]
    for config in configs:
        world.deposit(config, AMOUNT)
    stranger = world.chain(world.roles.stranger, world.roles.operator)
    run(stranger.claim([world.claim(config, 5_000) for config in configs]))
    states = [run(stranger.channel(c.channel_id(world.chain_id))) for c in configs]
    assert [state.total_claimed for state in states] == [5_000, 5_000]


def test_a_repeated_claim_changes_nothing(world, run) -> None:
    config = world.config()
    world.deposit(config, AMOUNT)
    operator = world.chain(world.roles.operator)
    run(operator.claim([world.claim(config, 5_000)]))
    run(operator.claim([world.claim(config, 5_000)]))
    run(operator.claim([world.claim(config, 4_000)]))
    assert run(operator.channel(config.channel_id(world.chain_id))).total_claimed == 5_000


def test_a_deposit_is_good_once(world, run, refused) -> None:
    config = world.config()
    authorization = world.authorization(config, AMOUNT)
    stranger = world.chain(world.roles.stranger)
    run(stranger.deposit(config, AMOUNT, authorization))
    reason = refused(stranger.deposit(config, AMOUNT, authorization))
    assert reason == "dollar: authorization is used"


def test_a_deposit_funds_no_other_channel(world, refused) -> None:
    authorization = world.authorization(world.config(), AMOUNT)
    stranger = world.chain(world.roles.stranger)
    reason = refused(stranger.deposit(world.config(), AMOUNT, authorization))
    assert reason == "dollar: invalid signature"


def test_refund_by_the_receiver_and_by_signature(world, run) -> None:
    config = world.config()
    world.deposit(config, AMOUNT)
    before = world.balance(config.payer)
    run(world.chain(world.roles.operator).refund(config, 10_000))
    run(world.chain(world.roles.stranger, world.roles.operator).refund(config, 20_000))
    assert world.balance(config.payer) == before + 30_000
    state = run(world.chain(world.roles.stranger).channel(config.channel_id(world.chain_id)))
    assert (state.balance, state.refund_nonce) == (AMOUNT - 30_000, 2)


def test_the_payers_way_out(world, run, refused) -> None:
    config = world.config()
    world.deposit(config, AMOUNT)
    payer = world.chain(world.roles.payer)
    before = world.balance(config.payer)
    run(payer.initiate_withdraw(config, AMOUNT))
    assert refused(payer.finalize_withdraw(config)) == "WithdrawDelayNotElapsed"
    run(world.chain(world.roles.operator).claim([world.claim(config, 400_000)]))
    world.pass_time(config.withdraw_delay_s)
    run(payer.finalize_withdraw(config))
    assert world.balance(config.payer) == before + AMOUNT - 400_000


def test_withdrawing_names_the_receivers_channels_and_no_others(world, run) -> None:
    ours, other = world.config(), world.config(receiver=world.roles.liar.address)
    since = int(world.rpc("eth_blockNumber"), 16)
    for config in (ours, other):
        world.deposit(config, AMOUNT)
        run(world.chain(world.roles.payer).initiate_withdraw(config, 5))
    watcher = world.chain(world.roles.stranger)
    found, following = run(watcher.withdrawing(ours.receiver, since))
    assert found == [ours.channel_id(world.chain_id)]
    head = int(world.rpc("eth_blockNumber"), 16)
    assert following == max(since, head + 1 - REORG_DEPTH)
    for _ in range(REORG_DEPTH):
        world.rpc("evm_mine")
    assert run(watcher.withdrawing(ours.receiver, head + 1))[0] == []


def test_registrations_follow_the_owners_acts(world, run, new_key) -> None:
    owner = world.chain(world.roles.owner)
    reader = world.chain(world.roles.stranger)
    before = run(reader.registrations())
    run(owner.approve(DEV_DOLLAR_ADDRESS, DEV_REGISTRY_ADDRESS, 500))
    run(owner.register(new_key("node"), "https://one.example", stake=100))
    run(owner.add_stake(50))
    run(owner.unstake(30))
    run(owner.set_endpoint("https://two.example"))
    run(owner.replace_key(new_key("node two")))
    expected = Registration(
        world.roles.owner.address, new_key("node two").address, "https://two.example", 120
    )
    assert [each for each in run(reader.registrations()) if each not in before] == [expected]
    run(owner.deregister())
    assert run(reader.registrations()) == before


def test_sends_at_once_with_one_key_are_all_mined(world, run) -> None:
    """Nonces are given out under a lock: no transaction replaces or blocks another."""
    payer = world.chain(world.roles.payer)
    to = world.roles.court.address
    before = world.balance(to)

    async def all_at_once() -> list[int]:
        sends = [payer.transfer(DEV_DOLLAR_ADDRESS, to, 1 << bit) for bit in range(8)]
        return [receipt.block_number for receipt in await asyncio.gather(*sends)]

    assert len(run(all_at_once())) == 8
    assert world.balance(to) == before + 255


def test_two_senders_of_one_key_find_back_to_its_nonce(world, run) -> None:
    first, second = world.chain(world.roles.payer), world.chain(world.roles.payer)
    to = world.roles.court.address
    before = world.balance(to)
    for chain in (first, second, first, second, first):
        run(chain.transfer(DEV_DOLLAR_ADDRESS, to, 1))
    assert world.balance(to) == before + 5


def test_gas_balance_pays_the_fee(world, run) -> None:
    payer = world.chain(world.roles.payer)
    before = run(payer.gas_balance(world.roles.payer.address))
    receipt = run(payer.transfer(DEV_DOLLAR_ADDRESS, world.roles.court.address, 1))
    assert run(payer.gas_balance(world.roles.payer.address)) == before - receipt.fee_wei


def test_an_address_without_a_contract_is_refused(world, run, refused) -> None:
    with pytest.raises(Exception, match="no contract at"):
        run(world.chain(world.roles.payer).token_balance(b"\5" * 20, b"\6" * 20))


def test_more_than_a_hundred_claims_are_the_callers_error(world, run) -> None:
    claims = [world.claim(world.config(), 1)] * 101
    with pytest.raises(AssertionError, match="1 to 100 claims"):
        run(world.chain(world.roles.operator).claim(claims))


def test_a_claim_for_another_authoriser_is_the_callers_error(world, run) -> None:
    stranger = world.chain(world.roles.stranger, world.roles.liar)
    with pytest.raises(AssertionError, match="not this channel's authoriser"):
        run(stranger.claim([world.claim(world.config(), 1)]))


def test_one_bad_row_refuses_the_batch(world, run, refused) -> None:
    good, bad = world.config(), world.config()
    world.deposit(good, AMOUNT)
    world.deposit(bad, AMOUNT)
    operator = world.chain(world.roles.operator)
    rows = [world.claim(good, 5_000), world.claim(bad, AMOUNT + 1)]
    assert refused(operator.claim(rows)) == "ClaimExceedsBalance"
    assert run(operator.channel(good.channel_id(world.chain_id))).total_claimed == 0


def test_a_voucher_of_another_channel_is_refused(world, refused) -> None:
    config, other = world.config(), world.config()
    world.deposit(config, AMOUNT)
    claim = replace(world.claim(config, 5_000), voucher=world.voucher(other, 5_000))
    assert refused(world.chain(world.roles.operator).claim([claim])) == "InvalidSignature"
