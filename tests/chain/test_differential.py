"""`MemoryChain` against the contracts on a real EVM: the same random life, step by step.

Every step must end alike on both, with the same reason where it is refused, and leave the same
balances, channels and registrations.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from inferpool.chain.addresses import (
    DEV_DOLLAR_ADDRESS,
    DEV_REGISTRY_ADDRESS,
    DOLLAR_NAME,
    DOLLAR_VERSION,
    PERMIT2_ADDRESS,
)
from inferpool.chain.authorization import permit_deposit, sign_transfer
from inferpool.chain.base import Claim, Transfer
from inferpool.chain.memory import MemoryChain
from inferpool.chain.registry_ledger import UNSTAKE_DELAY_S
from inferpool.protocol.errors import Refused
from inferpool.protocol.voucher import CHANNELS_ADDRESS

FUNDS = 10_000
STATE_EVERY = 4  # steps: comparing all there is costs more than a step
SENDERS = ("payer", "authorizer", "receiver", "operator", "stranger", "liar")
AMOUNTS = st.sampled_from([0, 1, 999, 999, 5_000, 5_000, FUNDS, FUNDS + 1])
CHANNELS = st.sampled_from([0, 0, 0, 1, 2])
# Mostly those who may, so that lives get somewhere; always some who may not.
PAYERS = st.sampled_from(["payer", "payer", "payer", "authorizer", "liar"])
CLAIMERS = st.sampled_from(["operator", "operator", "receiver", "stranger", "liar"])
OWNERS = st.sampled_from(["payer", "liar"])
SIGNERS = st.sampled_from(["authorizer", "authorizer", "authorizer", "payer", "liar"])
RARELY = st.sampled_from([False, False, False, True])

DEPOSIT = st.tuples(st.just("deposit"), CHANNELS, AMOUNTS, st.integers(1, 3), RARELY)
CLAIM = st.tuples(
    st.just("claim"),
    CLAIMERS,
    st.lists(st.tuples(CHANNELS, AMOUNTS, AMOUNTS, SIGNERS), min_size=1, max_size=3),
)
PERMIT2 = st.tuples(st.just("permit2"), CHANNELS, AMOUNTS, st.sampled_from([0, 1, 256]), RARELY)
ALLOW = st.tuples(st.just("allow_permit2"), AMOUNTS)
ONE_OFF = st.tuples(st.just("one_off"), AMOUNTS, st.integers(1, 3), RARELY)
SETTLE = st.tuples(st.just("settle"), st.sampled_from(["receiver", "liar"]))
START = st.tuples(st.just("initiate_withdraw"), PAYERS, CHANNELS, AMOUNTS)
END = st.tuples(st.just("finalize_withdraw"), PAYERS, CHANNELS)
REFUND = st.tuples(st.just("refund"), CLAIMERS, CHANNELS, AMOUNTS)
WAIT = st.tuples(st.just("wait"), st.sampled_from([1, 900, UNSTAKE_DELAY_S]))
APPROVE = st.tuples(st.just("approve"), OWNERS, AMOUNTS)
REGISTER = st.tuples(st.just("register"), OWNERS, st.integers(0, 2), AMOUNTS)
REPLACE = st.tuples(st.just("replace_key"), OWNERS, st.integers(0, 2))
STAKE = st.tuples(st.sampled_from(["add_stake", "unstake"]), OWNERS, AMOUNTS)
LEAVE = st.tuples(st.sampled_from(["withdraw_stake", "deregister"]), OWNERS)
TRANSFER = st.tuples(st.just("transfer"), st.sampled_from(SENDERS), OWNERS, AMOUNTS)

STEPS = st.lists(
    st.one_of(
        DEPOSIT, DEPOSIT, PERMIT2, ALLOW, ONE_OFF, CLAIM, CLAIM, SETTLE, START, END, REFUND, WAIT,
        APPROVE, REGISTER, REPLACE, STAKE, LEAVE, TRANSFER,
    ),
    min_size=5,
    max_size=30,
)  # fmt: skip

# Lives that chance finds too rarely: each goes up to an edge and over it.
WITHDRAWAL = [
    ("deposit", 0, 5_000, 1, False),
    ("deposit", 0, 5_000, 1, False),
    ("initiate_withdraw", "payer", 0, 5_001),
    ("initiate_withdraw", "payer", 0, 5_000),
    ("initiate_withdraw", "payer", 0, 1),
    ("claim", "operator", [(0, 999, 999, "authorizer")]),
    ("wait", 899),
    ("finalize_withdraw", "payer", 0),
    ("wait", 1),
    ("finalize_withdraw", "liar", 0),
    ("finalize_withdraw", "payer", 0),
    ("finalize_withdraw", "payer", 0),
    ("claim", "operator", [(0, 1_000, 1_000, "authorizer")]),
]
BY_PERMIT2 = [
    ("permit2", 0, 999, 0, False),
    ("allow_permit2", 5_000),
    ("permit2", 0, 999, 0, True),
    ("permit2", 0, 999, 0, False),
    ("permit2", 0, 999, 0, False),
    ("permit2", 1, 5_000, 1, False),
    ("permit2", 1, 999, 1, False),
    ("permit2", 1, 999, 256, False),
    ("one_off", 999, 1, True),
    ("one_off", 999, 1, False),
    ("one_off", 999, 1, False),
    ("one_off", FUNDS, 2, False),
]
REFUNDS = [
    ("deposit", 1, 5_000, 1, False),
    ("initiate_withdraw", "payer", 1, 999),
    ("refund", "stranger", 1, 400),
    ("claim", "stranger", [(1, 999, 999, "payer"), (1, 1, 1, "liar"), (0, 0, 0, "liar")]),
    ("refund", "operator", 1, 599),
    ("finalize_withdraw", "payer", 1),
    ("refund", "receiver", 1, FUNDS),
    ("refund", "receiver", 1, FUNDS),
    ("settle", "receiver"),
    ("settle", "receiver"),
]
STAKES = [
    ("register", "payer", 0, 1),
    ("approve", "payer", 999),
    ("register", "payer", 0, 999),
    ("register", "liar", 0, 0),
    ("add_stake", "payer", 1),
    ("approve", "payer", 2**256 - 1),
    ("add_stake", "payer", 1),
    ("unstake", "payer", 1_001),
    ("unstake", "payer", 500),
    ("wait", UNSTAKE_DELAY_S - 1),
    ("withdraw_stake", "payer"),
    ("deregister", "payer"),
    ("wait", 1),
    ("withdraw_stake", "payer"),
    ("wait", UNSTAKE_DELAY_S - 1),
    ("withdraw_stake", "payer"),
    ("replace_key", "payer", 1),
    ("register", "payer", 1, 0),
    ("register", "liar", 2, 0),
    ("replace_key", "liar", 1),
    ("replace_key", "payer", 0),
]


class Pair:
    """Both chains, the same people, the same clock."""

    def __init__(self, world, clock, new_key) -> None:
        self.world, self.roles, self.clock = world, world.roles, clock
        self.memory = MemoryChain(clock)
        self.nodes = [new_key(f"node {number}") for number in range(3)]
        self.configs = [
            world.config(salt=bytes(32)),
            world.config(salt=bytes(31) + b"\1", payer_authorizer=bytes(20)),
            world.config(salt=bytes(31) + b"\2", receiver_authorizer=self.roles.liar.address),
        ]
        for name in SENDERS:
            self.memory.fund(getattr(self.roles, name).address, FUNDS)

    def both(self, sender: str):
        """One sender on the EVM and in memory; each signs for others with what it has."""
        key = getattr(self.roles, sender)
        return self.world.chain(key), self.memory.with_sender(key)

    def claim(self, row) -> Claim:
        number, ceiling, total, signer = row
        config = self.configs[number]
        voucher = self.world.voucher(config, ceiling, getattr(self.roles, signer))
        return Claim(config, voucher, total)

    def works(self, step):
        """The same step as two coroutines."""
        kind, *rest = step
        if kind == "deposit":
            number, amount, salt, is_forged = rest
            config = self.configs[number]
            permit = self.world.authorization(config, amount, salt)
            if is_forged:
                permit = replace(permit, valid_before_s=permit.valid_before_s - 1)
            chains = self.both("stranger")
            return [chain.deposit(config, amount, permit) for chain in chains]
        if kind == "permit2":
            number, amount, nonce, is_forged = rest
            config = self.configs[number]
            paid = permit_deposit(
                self.roles.payer, config, amount,
                chain_id=self.world.chain_id, deadline_s=2**40, nonce=nonce,
            )  # fmt: skip
            if is_forged:
                paid = replace(paid, nonce=nonce + 1)
            return [chain.deposit(config, amount, paid) for chain in self.both("stranger")]
        if kind == "allow_permit2":
            arguments = (DEV_DOLLAR_ADDRESS, PERMIT2_ADDRESS, rest[0])
            return [chain.approve(*arguments) for chain in self.both("payer")]
        if kind == "one_off":
            amount, nonce, is_forged = rest
            draft = Transfer(
                self.roles.payer.address, self.roles.receiver.address, amount, 0, 2**40,
                nonce.to_bytes(32, "big"),
            )  # fmt: skip
            paid = sign_transfer(
                self.roles.payer, draft, DEV_DOLLAR_ADDRESS, chain_id=self.world.chain_id,
                name=DOLLAR_NAME, version=DOLLAR_VERSION,
            )  # fmt: skip
            if is_forged:
                paid = replace(paid, to=self.roles.liar.address)
            chains = self.both("stranger")
            return [chain.transfer_authorized(DEV_DOLLAR_ADDRESS, paid) for chain in chains]
        if kind == "settle":
            receiver = getattr(self.roles, rest[0]).address
            return [chain.settle(receiver, DEV_DOLLAR_ADDRESS) for chain in self.both("stranger")]
        sender, *rest = rest
        if kind == "claim":
            claims = [self.claim(row) for row in rest[0]]
            return [chain.claim(claims) for chain in self.as_claimer(sender, claims)]
        if kind == "refund":
            config = self.configs[rest[0]]
            chains = self.as_claimer(sender, [Claim(config, None, 0)])
            return [chain.refund(config, rest[1]) for chain in chains]
        chains = self.both(sender)
        if kind in ("initiate_withdraw", "finalize_withdraw"):
            return [getattr(chain, kind)(self.configs[rest[0]], *rest[1:]) for chain in chains]
        if kind == "approve":
            arguments = (DEV_DOLLAR_ADDRESS, DEV_REGISTRY_ADDRESS, rest[0])
        elif kind == "transfer":
            arguments = (DEV_DOLLAR_ADDRESS, getattr(self.roles, rest[0]).address, rest[1])
        elif kind == "register":
            arguments = (self.nodes[rest[0]], "https://node.example", rest[1])
        elif kind == "replace_key":
            arguments = (self.nodes[rest[0]],)
        else:
            arguments = tuple(rest)
        return [getattr(chain, kind)(*arguments) for chain in chains]

    def as_claimer(self, sender: str, claims):
        """A stranger claims with the key of the first row's authoriser."""
        first = claims[0].config.receiver_authorizer
        signer = next(key for key in (self.roles.operator, self.roles.liar) if key.address == first)
        key = getattr(self.roles, sender)
        return self.world.chain(key, signer), self.memory.with_sender(key, signer)

    def state(self, run, chain):
        """All that can be seen of a chain."""
        holders = [getattr(self.roles, name).address for name in SENDERS]
        holders += [CHANNELS_ADDRESS, DEV_REGISTRY_ADDRESS]
        return (
            [run(chain.token_balance(DEV_DOLLAR_ADDRESS, holder)) for holder in holders],
            [run(chain.channel(c.channel_id(chain.chain_id))) for c in self.configs],
            run(chain.registrations()),
        )


def outcome(run, work) -> str:
    try:
        run(work)
    except Refused as error:
        return f"{error.code}: {error.message}"
    return "done"


@pytest.mark.timeout(180)  # a failure is shrunk before it is shown
def test_memory_and_contracts_live_alike(dev_world, clock, run, new_key) -> None:
    world = dev_world
    sink = world.roles.court.address
    for name in SENDERS:  # all start with the same
        extra = world.balance(getattr(world.roles, name).address) - FUNDS
        run(world.chain(getattr(world.roles, name)).transfer(DEV_DOLLAR_ADDRESS, sink, extra))
    start_s = clock.now_s
    seen: dict[str, int] = {}

    @settings(
        max_examples=12,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @example(WITHDRAWAL)
    @example(REFUNDS)
    @example(BY_PERMIT2)
    @example(STAKES)
    @given(STEPS)
    def live(steps) -> None:
        snapshot = world.rpc("evm_snapshot")
        clock.now_s = start_s
        pair = Pair(world, clock, new_key)
        try:
            evm = world.chain(world.roles.stranger)
            for number, step in enumerate(steps):
                if step[0] == "wait":
                    clock.now_s += step[1]
                    continue
                on_evm, in_memory = pair.works(step)
                result = outcome(run, on_evm)
                assert outcome(run, in_memory) == result, step
                seen[result] = seen.get(result, 0) + 1
                if number % STATE_EVERY == 0:
                    assert pair.state(run, pair.memory) == pair.state(run, evm), step
            assert pair.state(run, pair.memory) == pair.state(run, evm)
        finally:
            world.rpc("evm_revert", snapshot)

    live()
    assert len(seen) >= 12, f"too few kinds of outcomes to prove anything: {seen}"
