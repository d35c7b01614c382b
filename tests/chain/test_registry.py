"""The registry: who may do what, and that its stake always adds up."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from inferpool.chain.abi import contract
from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS
from inferpool.chain.authorization import binding_digest
from inferpool.chain.base import Registration
from inferpool.chain.deploy import deploy
from inferpool.chain.registry_ledger import UNSTAKE_DELAY_S
from inferpool.identity.signing import Key
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import Refused

REGISTRY = contract("Registry")
ENDPOINT = "https://node.example"
ALLOWANCE = 10**9


class Court:
    """A registry of its own whose court is a key, with the owner's allowance in place."""

    def __init__(self, world, run, node_key: Key) -> None:
        self.world, self.run = world, run
        roles = world.roles
        deployment = run(
            deploy(
                world.url,
                roles.court,
                court=roles.court.address,
                token=DEV_DOLLAR_ADDRESS,
                post=world.post,
            )
        )
        self.address = deployment.registry
        self.owner = world.chain(roles.owner, registry=self.address)
        self.liar = world.chain(roles.liar, registry=self.address)
        self.court = world.chain(roles.court, registry=self.address)
        self.node = node_key
        for chain in (self.owner, self.liar):
            run(chain.approve(DEV_DOLLAR_ADDRESS, self.address, ALLOWANCE))

    def slash(self, chain, owner: bytes, amount: int, to: bytes):
        return chain._registered("slash", owner, amount, to)

    def view(self, name: str, *args: object):
        data = to_hex(REGISTRY.call(name, *args))
        answer = self.world.rpc("eth_call", {"to": to_hex(self.address), "data": data}, "latest")
        values = REGISTRY.functions[name].result(bytes.fromhex(answer[2:]))
        return values[0] if len(values) == 1 else values

    def binding(self, owner: bytes, node: Key, nonce: int = 0, signer: Key | None = None) -> bytes:
        digest = binding_digest(
            owner, node.address, nonce, chain_id=self.world.chain_id, registry=self.address
        )
        return (signer or node).sign(digest)


@pytest.fixture
def court(world, run, new_key) -> Court:
    return Court(world, run, new_key("node"))


def test_registered_and_gone(court, run) -> None:
    owner = court.world.roles.owner.address
    run(court.owner.register(court.node, ENDPOINT, stake=700))
    assert court.view("owner_of", court.node.address) == owner
    assert court.view("node_of", owner) == court.node.address
    assert court.view("stake_of", owner) == 700
    assert run(court.owner.registrations()) == [
        Registration(owner, court.node.address, ENDPOINT, 700)
    ]
    run(court.owner.deregister())
    assert court.view("node_of", owner) == bytes(20)
    assert court.view("stake_of", owner) == 0
    assert run(court.owner.registrations()) == []


def test_a_key_that_left_still_answers_to_its_owner(court, run, new_key) -> None:
    owner = court.world.roles.owner.address
    run(court.owner.register(court.node, ENDPOINT))
    run(court.owner.replace_key(new_key("node two")))
    assert court.view("owner_of", court.node.address) == owner
    assert court.view("node_of", owner) == new_key("node two").address
    run(court.owner.replace_key(court.node))  # back into service, by a new agreement
    assert court.view("node_of", owner) == court.node.address


def test_nobody_binds_somebody_elses_key(court, run, refused) -> None:
    liar, node = court.world.roles.liar, court.node
    forged = court.binding(liar.address, node, signer=liar)
    for signature in (forged, b"", bytes(65), court.binding(court.world.roles.owner.address, node)):
        work = court.liar._registered("register", node.address, ENDPOINT, 0, signature)
        assert refused(work) == "registry: key did not agree"
    zero = court.liar._registered("register", bytes(20), ENDPOINT, 0, bytes(65))
    assert refused(zero) == "registry: key did not agree"
    run(court.owner.register(node, ENDPOINT))


def test_a_bound_key_goes_to_no_other_owner(court, run, refused) -> None:
    run(court.owner.register(court.node, ENDPOINT))
    assert refused(court.liar.register(court.node, ENDPOINT)) == "registry: key of another owner"
    run(court.owner.deregister())
    assert refused(court.liar.register(court.node, ENDPOINT)) == "registry: key of another owner"


def test_an_agreement_is_good_once(court, run, refused, new_key) -> None:
    owner = court.world.roles.owner.address
    agreed = court.binding(owner, court.node)
    run(court.owner._registered("register", court.node.address, ENDPOINT, 0, agreed))
    run(court.owner.replace_key(new_key("node two")))
    replay = court.owner._registered("replace_key", court.node.address, agreed)
    assert refused(replay) == "registry: key did not agree"


def test_an_agreement_is_for_one_registry(court, run, refused, new_key) -> None:
    other = Court(court.world, run, court.node)
    signature = other.binding(court.world.roles.owner.address, court.node)
    work = court.owner._registered("register", court.node.address, ENDPOINT, 0, signature)
    assert refused(work) == "registry: key did not agree"


def test_an_owner_registers_once_and_with_an_endpoint(court, run, refused, new_key) -> None:
    assert refused(court.owner.register(court.node, "")) == "registry: no endpoint"
    run(court.owner.register(court.node, ENDPOINT))
    again = court.owner.register(new_key("node two"), ENDPOINT)
    assert refused(again) == "registry: already registered"
    assert refused(court.owner.set_endpoint("")) == "registry: no endpoint"
    run(court.owner.set_endpoint("x" * 256))


def test_what_only_the_registered_may_do(court, refused, new_key) -> None:
    for work in (
        court.liar.add_stake(1),
        court.liar.set_endpoint(ENDPOINT),
        court.liar.replace_key(new_key("node two")),
        court.liar.deregister(),
    ):
        assert refused(work) == "registry: not registered"


def test_stake_leaves_after_seven_days_and_not_before(court, run, refused) -> None:
    world = court.world
    owner = world.roles.owner.address
    run(court.owner.register(court.node, ENDPOINT, stake=700))
    before = world.balance(owner)
    assert refused(court.owner.withdraw_stake()) == "registry: nothing to withdraw"
    assert refused(court.owner.unstake(701)) == "registry: more than the stake"
    assert refused(court.owner.unstake(0)) == "registry: nothing to unstake"
    run(court.owner.unstake(300))
    world.pass_time(UNSTAKE_DELAY_S - 10)
    assert refused(court.owner.withdraw_stake()) == "registry: still unbonding"
    world.pass_time(10)
    run(court.owner.withdraw_stake())
    assert world.balance(owner) == before + 300
    assert court.view("stake_of", owner) == 400


def test_only_the_court_slashes(court, run, refused) -> None:
    owner, liar = court.world.roles.owner.address, court.world.roles.liar.address
    run(court.owner.register(court.node, ENDPOINT, stake=700))
    for chain in (court.liar, court.owner):
        assert refused(court.slash(chain, owner, 1, liar)) == "registry: only the court"
    before = court.world.balance(liar)
    run(court.slash(court.court, owner, 200, liar))
    assert court.world.balance(liar) == before + 200
    assert court.view("stake_of", owner) == 500
    assert [each.stake for each in run(court.court.registrations())] == [500]


def test_unbonding_stake_is_slashed_too_and_never_more_than_there_is(court, run) -> None:
    world = court.world
    owner, to = world.roles.owner.address, world.roles.liar.address
    run(court.owner.register(court.node, ENDPOINT, stake=700))
    run(court.owner.deregister())
    before = world.balance(to)
    run(court.slash(court.court, owner, 300, to))
    assert court.view("unbonding_of", owner)[0] == 400
    run(court.slash(court.court, owner, 10**30, to))
    assert world.balance(to) == before + 700
    run(court.slash(court.court, owner, 1, to))  # a poor owner does not stop a verdict
    assert world.balance(to) == before + 700


def test_the_court_cannot_make_stake_vanish(court, run, refused) -> None:
    owner = court.world.roles.owner.address
    run(court.owner.register(court.node, ENDPOINT, stake=700))
    for to in (bytes(20), court.address):
        work = court.slash(court.court, owner, 1, to)
        assert refused(work) == "registry: no such receiver"


def test_stake_needs_money_and_allowance(court, run, refused) -> None:
    run(court.owner.approve(DEV_DOLLAR_ADDRESS, court.address, 99))
    work = court.owner.register(court.node, ENDPOINT, stake=100)
    assert refused(work) == "dollar: allowance too small"
    run(court.owner.register(court.node, ENDPOINT, stake=99))
    assert refused(court.owner.add_stake(0)) == "registry: nothing to stake"


def test_a_registry_needs_a_token_and_a_court(world, refused) -> None:
    for court, token in ((bytes(20), DEV_DOLLAR_ADDRESS), (b"\1" * 20, bytes(20))):
        work = deploy(world.url, world.roles.court, court=court, token=token, post=world.post)
        assert refused(work) == "registry: no token or no court"


@pytest.mark.timeout(180)  # a failure is shrunk before it is shown
def test_the_stake_always_adds_up(dev_world, run, new_key) -> None:
    """Whatever owners and court do in any order: the registry holds exactly all stake, and the
    directory rebuilt from events says what the contract says."""
    counter = itertools.count()

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.court = Court(dev_world, run, new_key(f"node {next(counter)}"))
            self.parties = {"owner": self.court.owner, "liar": self.court.liar}

        def attempt(self, work) -> None:
            with suppress(Refused):  # any order is tried; what holds is in the invariants
                run(work)

        party = st.sampled_from(["owner", "liar"])
        amount = st.integers(0, 1_000)

        @rule(who=party, amount=amount)
        def register(self, who: str, amount: int) -> None:
            node_key = new_key(f"{who} {next(counter)}")
            self.attempt(self.parties[who].register(node_key, ENDPOINT, stake=amount))

        @rule(who=party, amount=amount)
        def add_stake(self, who: str, amount: int) -> None:
            self.attempt(self.parties[who].add_stake(amount))

        @rule(who=party, amount=amount)
        def unstake(self, who: str, amount: int) -> None:
            self.attempt(self.parties[who].unstake(amount))

        @rule(who=party)
        def deregister(self, who: str) -> None:
            self.attempt(self.parties[who].deregister())

        @rule(who=party)
        def withdraw(self, who: str) -> None:
            self.attempt(self.parties[who].withdraw_stake())

        @rule(seconds=st.sampled_from([1, UNSTAKE_DELAY_S]))
        def wait(self, seconds: int) -> None:
            dev_world.pass_time(seconds)

        @rule(who=party, amount=amount)
        def slash(self, who: str, amount: int) -> None:
            owner = getattr(dev_world.roles, who).address
            self.attempt(
                self.court.slash(self.court.court, owner, amount, dev_world.roles.court.address)
            )

        @invariant()
        def holds_all_stake(self) -> None:
            held = dev_world.balance(self.court.address)
            owners = [getattr(dev_world.roles, who).address for who in self.parties]
            booked = sum(
                self.court.view("stake_of", owner) + self.court.view("unbonding_of", owner)[0]
                for owner in owners
            )
            assert held == booked

        @invariant()
        def events_tell_the_state(self) -> None:
            listed = run(self.court.owner.registrations())
            for each in listed:
                assert self.court.view("node_of", each.owner) == each.node
                assert self.court.view("stake_of", each.owner) == each.stake
            serving = [
                who
                for who in self.parties
                if any(self.court.view("node_of", getattr(dev_world.roles, who).address))
            ]
            assert len(listed) == len(serving)

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=5, stateful_step_count=10, deadline=None)
    )
