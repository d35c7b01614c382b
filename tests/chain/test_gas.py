"""What every transaction costs, against the committed snapshot: 5 % more fails.

INFERPOOL_UPDATE_GAS=1 writes the snapshot anew; the change then shows in review.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from inferpool.chain.addresses import (
    DEV_DOLLAR_ADDRESS,
    DEV_REGISTRY_ADDRESS,
    DOLLAR_NAME,
    DOLLAR_VERSION,
    PERMIT2_ADDRESS,
)
from inferpool.chain.authorization import permit_deposit, sign_transfer
from inferpool.chain.base import Transfer
from inferpool.chain.deploy import deploy
from inferpool.chain.registry_ledger import UNSTAKE_DELAY_S
from tests.chain import signed

SNAPSHOT = Path(__file__).with_name("gas.json")
RISE_MAX_PERCENT = 5
AMOUNT = 1_000_000
NEWCOMER = b"\x77" * 20  # has never held the token


def measure_channels(world, run) -> dict[str, int]:
    payer, operator = world.chain(world.roles.payer), world.chain(world.roles.operator)
    stranger = world.chain(world.roles.stranger, world.roles.operator)
    gas: dict[str, int] = {}

    def spend(name: str, work) -> None:
        gas[name] = run(work).gas_used

    def deposit(name: str, config) -> None:
        spend(name, stranger.deposit(config, AMOUNT, world.authorization(config, AMOUNT)))

    world.deposit(world.config(), AMOUNT)  # the contract's own balance is warm from here on
    config = world.config(receiver=NEWCOMER)
    deposit("deposit, new channel", config)
    deposit("deposit, top-up", config)
    nonces = iter(range(256))

    def permit2(name: str, config) -> None:
        permit = permit_deposit(
            world.roles.payer, config, AMOUNT,
            chain_id=world.chain_id, deadline_s=2**40, nonce=next(nonces),
        )  # fmt: skip
        spend(name, stranger.deposit(config, AMOUNT, permit))

    run(payer.approve(DEV_DOLLAR_ADDRESS, PERMIT2_ADDRESS, 2**256 - 1))
    permit2("deposit by Permit2, new channel", world.config())
    permit2("deposit by Permit2, later", world.config())
    spend("one-off transfer", stranger.transfer_authorized(DEV_DOLLAR_ADDRESS, one_off(world)))
    spend("claim 1, first", operator.claim([world.claim(config, 100)]))
    spend("claim 1, later", operator.claim([world.claim(config, 200)]))
    spend("claim 1, by signature", stranger.claim([world.claim(config, 300)]))
    spend("settle, first", stranger.settle(config.receiver, config.token))
    run(operator.claim([world.claim(config, 400)]))
    spend("settle, later", stranger.settle(config.receiver, config.token))
    spend("refund", operator.refund(config, 100))
    spend("initiate withdraw", payer.initiate_withdraw(config, 100))
    world.pass_time(config.withdraw_delay_s)
    spend("finalize withdraw", payer.finalize_withdraw(config))
    many = [world.config() for _ in range(100)]
    for each in many:
        world.deposit(each, AMOUNT)
    spend("claim 20, first", operator.claim([world.claim(each, 100) for each in many[:20]]))
    spend("claim 100, later", operator.claim([world.claim(each, 200) for each in many]))
    return gas


def one_off(world) -> Transfer:
    """A signed transfer to whom the payer pays often."""
    payer, receiver = world.roles.payer, world.roles.receiver.address
    draft = Transfer(payer.address, receiver, AMOUNT, 0, 2**40, b"\7" * 32)
    domain = {"name": DOLLAR_NAME, "version": DOLLAR_VERSION}
    return sign_transfer(payer, draft, DEV_DOLLAR_ADDRESS, chain_id=world.chain_id, **domain)


def measure_registry(world, run, new_key) -> dict[str, int]:
    owner = world.chain(world.roles.owner)
    endpoint = "https://node.example/offer"
    gas: dict[str, int] = {}

    def spend(name: str, work) -> None:
        gas[name] = run(work).gas_used

    spend("approve", owner.approve(DEV_DOLLAR_ADDRESS, DEV_REGISTRY_ADDRESS, AMOUNT))
    spend("register with stake", owner.register(new_key("node"), endpoint, stake=100))
    spend("add stake", owner.add_stake(50))
    spend("set endpoint", owner.set_endpoint(endpoint))
    spend("replace key", owner.replace_key(new_key("node two")))
    spend("unstake", owner.unstake(100))
    world.pass_time(UNSTAKE_DELAY_S)
    spend("withdraw stake", owner.withdraw_stake())
    spend("deregister", owner.deregister())
    deployment = run(
        deploy(
            world.url,
            world.roles.court,
            court=world.roles.court.address,
            token=DEV_DOLLAR_ADDRESS,
            post=world.post,
        )
    )
    court = world.chain(world.roles.court, registry=deployment.registry)
    owner = world.chain(world.roles.owner, registry=deployment.registry)
    spend("register without stake", owner.register(new_key("node"), endpoint))
    run(owner.approve(DEV_DOLLAR_ADDRESS, deployment.registry, AMOUNT))
    run(owner.add_stake(100))
    to = world.roles.court.address
    spend("slash", court._registered("slash", world.roles.owner.address, 50, to))
    return gas


def measure_court(world, run, new_key) -> dict[str, int]:
    """By a reporter that holds the token already; the burnt part's balance is warm too."""
    owner, reporter = world.chain(world.roles.liar), world.chain(world.roles.reporter)
    node, holder = new_key("liar's node"), world.roles.liar.address
    run(owner.approve(DEV_DOLLAR_ADDRESS, DEV_REGISTRY_ADDRESS, AMOUNT))
    run(owner.register(node, "https://node.example/offer", stake=AMOUNT))
    gas: dict[str, int] = {}
    for count in (2, 128):
        services = tuple(signed.service(number) for number in range(count))
        offer = signed.offer(node, holder, services=services)
        lies = [
            signed.receipt(node, offer, seed=seed, service=1, charge_pico_usd=10**12)
            for seed in (count, count + 1)
        ]
        two = run(reporter.report_two_receipts(*lies)).gas_used
        gas.setdefault("report two receipts, first", two)
        gas["report two receipts, later"] = two
        dear = run(reporter.report_overcharge(lies[0], offer)).gas_used
        gas[f"report overcharge, {count} services"] = dear
        other = signed.receipt(node, offer, manifest=bytes(32))
        wrong = run(reporter.report_other_manifest(other, offer)).gas_used
        gas[f"report other manifest, {count} services"] = wrong
    return gas


@pytest.mark.timeout(120)  # 250 transactions
def test_no_transaction_costs_more_than_it_did(dev_world, run, new_key) -> None:
    gas = measure_channels(dev_world, run) | measure_registry(dev_world, run, new_key)
    gas |= measure_court(dev_world, run, new_key)
    if os.environ.get("INFERPOOL_UPDATE_GAS"):
        SNAPSHOT.write_text(json.dumps(gas, indent=1) + "\n", encoding="utf-8")
    known = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert set(gas) == set(known)
    dearer = {
        name: (known[name], spent)
        for name, spent in gas.items()
        if spent * 100 > known[name] * (100 + RISE_MAX_PERCENT)
    }
    assert not dearer
