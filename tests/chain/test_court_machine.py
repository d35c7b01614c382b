"""Registry, court and channels in any order: the contracts against the Python model.

Each step is taken on the EVM and in memory. It must end alike, with the same reason where it is
refused, and leave the same money, stake, keys and verdicts. No token is made or lost.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from inferpool.chain import cases
from inferpool.chain.abi import contract
from inferpool.chain.addresses import DEV_COURT_ADDRESS, DEV_DOLLAR_ADDRESS, DEV_REGISTRY_ADDRESS
from inferpool.chain.base import Claim
from inferpool.chain.court_ledger import BURN_ADDRESS
from inferpool.chain.directory import events_by_topic, read_log
from inferpool.chain.memory import MemoryChain
from inferpool.chain.registry_ledger import UNSTAKE_DELAY_S
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import Refused
from inferpool.protocol.receipt import SignedReceipt
from inferpool.protocol.voucher import CHANNELS_ADDRESS
from tests.chain import signed

FUNDS = 10_000
PEOPLE = ("owner", "liar", "reporter", "payer", "receiver", "stranger")
HOLDERS = (BURN_ADDRESS, DEV_COURT_ADDRESS, DEV_REGISTRY_ADDRESS, CHANNELS_ADDRESS)
ENDPOINT = "https://node.example"
LIVES = settings(
    max_examples=int(os.environ.get("INFERPOOL_COURT_LIVES", "10")),
    stateful_step_count=24,
    deadline=None,
    derandomize="INFERPOOL_COURT_LIVES" not in os.environ,  # what is asserted below must be drawn
)
EVENTS = events_by_topic("Disputes")

owners = st.sampled_from(["owner", "owner", "liar"])
reporters = st.sampled_from(["reporter", "reporter", "liar", "owner"])
nodes = st.sampled_from([0, 0, 0, 1, 2])
amounts = st.sampled_from([0, 1, 4, 99, 1_000, FUNDS])
few = st.sampled_from([1, 1, 2])
REGISTRY_STEPS = st.sampled_from([
    "register", "replace_key", "add_stake", "unstake", "unstake", "withdraw_stake", "deregister",
])  # fmt: skip
AGAINST_OFFERS = st.sampled_from(["report_overcharge", "report_other_manifest"])
REPORTS = st.sampled_from(["report_two_receipts", "report_overcharge", "report_other_manifest"])
PROVEN = ("done", "disputes: key of no owner", "disputes: already judged")  # `find_case` finds it
RECEIPT = st.fixed_dictionaries({
    "node": nodes,
    "signer": st.sampled_from(["itself"] * 7 + ["liar", "nobody", "malleable"]),
    "offer": st.sampled_from([0, 0, 1]),
    "service": st.sampled_from([0, 0, 1, 2]),
    "place": st.tuples(few, few, few),
    "over": st.sampled_from([0, 0, 1, -1, 2**100]),
    "other": st.sampled_from([None, None, "manifest", "engine_class"]),
    "seed": st.integers(0, 1),
})  # fmt: skip


class Court(RuleBasedStateMachine):
    """Both chains, the same people, the same clock; the test binds the class to its world."""

    world, run, clock, new_key, seen = None, None, None, None, Counter()
    receipts = Bundle("receipts")

    @initialize()
    def begin(self) -> None:
        self.snapshot = self.world.rpc("evm_snapshot")
        self.block = int(self.world.rpc("eth_blockNumber"), 16)
        self.clock.now_s += 1
        roles = self.roles = self.world.roles
        self.memory = MemoryChain(self.clock)
        self.keys = [self.new_key(f"node {number}") for number in range(3)]
        self.offers = [
            [signed.offer(node, roles.owner.address, sequence=number) for number in (0, 1)]
            for node in self.keys
        ]
        for node in (0, 1, 2):  # the second offer is dearer
            dear = tuple(replace(s, price_in_pico_usd_per_unit=99) for s in _services(self, node))
            self.offers[node][1] = signed.offer(
                self.keys[node], roles.owner.address, services=dear, sequence=1
            )
        self.config = self.world.config(salt=bytes(32))
        for name in PEOPLE:
            self.memory.fund(getattr(roles, name).address, FUNDS)
        for who, node in (("owner", 0), ("liar", 1)):
            self.both(who, "approve", DEV_DOLLAR_ADDRESS, DEV_REGISTRY_ADDRESS, 2**256 - 1)
            self.both(who, "register", self.keys[node], ENDPOINT, 1_000)

    def teardown(self) -> None:
        if hasattr(self, "snapshot"):
            assert self.state(self.memory) == self.state(self.world.chain(self.roles.stranger))
            assert self.verdicts() == [
                {name: getattr(each, name) for name in each.__slots__}
                for each in self.memory.verdicts()
            ]
            self.world.rpc("evm_revert", self.snapshot)

    # -- one step on both

    def outcome(self, work) -> str:
        try:
            self.run(work)
        except Refused as error:
            return error.message.removeprefix("the chain reverted: ")
        return "done"

    def both(self, who: str, name: str, *args: object, authorizer=None) -> str:
        key = getattr(self.roles, who)
        on_evm = self.outcome(getattr(self.world.chain(key, authorizer), name)(*args))
        in_memory = self.outcome(getattr(self.memory.with_sender(key, authorizer), name)(*args))
        assert on_evm == in_memory, (who, name, args)
        self.seen[f"{name}: {on_evm}"] += 1
        return on_evm

    def state(self, chain):
        """All the money, channels and registrations."""
        people = [getattr(self.roles, name).address for name in PEOPLE]
        balances = [
            self.run(chain.token_balance(DEV_DOLLAR_ADDRESS, each)) for each in (*people, *HOLDERS)
        ]
        assert sum(balances) == FUNDS * len(PEOPLE)
        channel = self.run(chain.channel(self.config.channel_id(chain.chain_id)))
        return balances, channel, self.run(chain.registrations())

    def verdicts(self) -> list[dict]:
        """The events of the court since the beginning."""
        query = {"address": to_hex(DEV_COURT_ADDRESS), "fromBlock": hex(self.block + 1)}
        logs = self.world.rpc("eth_getLogs", query)
        return [event[1] for log in logs if (event := read_log(log, EVENTS)) is not None]

    # -- the registry, and a channel whose money the court must never reach

    @rule(
        who=owners,
        node=nodes,
        amount=amounts,
        name=REGISTRY_STEPS,
    )
    def step_in_the_registry(self, who: str, node: int, amount: int, name: str) -> None:
        args = {
            "register": (self.keys[node], ENDPOINT, amount),
            "replace_key": (self.keys[node],),
            "add_stake": (amount,),
            "unstake": (amount,),
        }
        self.both(who, name, *args.get(name, ()))

    @rule(seconds=st.sampled_from([1, UNSTAKE_DELAY_S]))
    def wait(self, seconds: int) -> None:
        self.clock.now_s += seconds

    @rule(amount=amounts, is_deposit=st.booleans())
    def step_in_a_channel(self, amount: int, is_deposit: bool) -> None:
        if is_deposit:
            permit = self.world.authorization(self.config, amount)
            self.both("stranger", "deposit", self.config, amount, permit)
            return
        claims = [Claim(self.config, self.world.voucher(self.config, amount), amount)]
        self.both("stranger", "claim", claims, authorizer=self.roles.operator)
        self.both("stranger", "settle", self.config.receiver, DEV_DOLLAR_ADDRESS)

    # -- the court

    @rule(target=receipts, drawn=st.lists(RECEIPT, min_size=2, max_size=4))
    def sign(self, drawn):
        return multiple(*map(self.signed, drawn))

    def signed(self, drawn) -> SignedReceipt:
        """A receipt, mostly by its node and mostly honest; nine places of three nodes, so that
        many meet."""
        node, service = self.keys[drawn["node"]], drawn["service"]
        offer = self.offers[drawn["node"]][drawn["offer"]]
        channel, request_id, seq = drawn["place"]
        places = {"channel_id": bytes([channel]) * 32, "request_id": bytes([request_id]) * 32}
        honest = signed.receipt(
            node, offer, **places, seq=seq, service=service, seed=drawn["seed"]
        ).receipt
        changed = {"charge_pico_usd": max(0, honest.charge_pico_usd + drawn["over"])}
        if drawn["other"] is not None:
            changed[drawn["other"]] = b"\x77" * 32 if drawn["other"] == "manifest" else "other"
        receipt = replace(honest, **changed)
        digest = receipt.digest(self.world.chain_id)
        signatures = {
            "itself": node.sign(digest),
            "liar": self.roles.liar.sign(digest),
            "malleable": signed.malleable(node.sign(digest)),
            "nobody": bytes(65),
        }
        return SignedReceipt(receipt, signatures[drawn["signer"]])

    @rule(who=reporters, first=receipts, second=receipts)
    def report_any_two(self, who: str, first, second) -> None:
        self.report_two(who, first, second)

    @rule(who=reporters, first=receipts, seed=st.integers(0, 2), signer=nodes)
    def report_a_twin(self, who: str, first, seed: int, signer: int) -> None:
        """The same answer with another seed, signed by some node."""
        twin = replace(first.receipt, seed=seed)
        digest = twin.digest(self.world.chain_id)
        self.report_two(who, SignedReceipt(twin, self.keys[signer].sign(digest)), first)

    def report_two(self, who: str, first: SignedReceipt, second: SignedReceipt) -> None:
        result = self.both(who, "report_two_receipts", first, second)
        case = cases.find_case([first, second], [], self.world.chain_id)
        assert (case is not None) == (result in PROVEN), result

    @rule(who=reporters, receipt=receipts, name=AGAINST_OFFERS)
    def report_against_its_offer(self, who: str, receipt, name: str) -> None:
        self.report_against(who, name, receipt, self.named(receipt))

    @rule(who=reporters, node=nodes, name=REPORTS, again=st.booleans(), seed=st.integers(2, 9))
    def report_a_lie(self, who: str, node: int, name: str, again: bool, seed: int) -> None:
        """What chance finds too rarely: proof enough, against whoever owns the key by now."""
        key, offer = self.keys[node], self.offers[node][0]
        lie = signed.receipt(key, offer, seed=seed, charge_pico_usd=10**9, manifest=bytes(32))
        twin = signed.receipt(key, offer, seed=seed + 1)
        for _ in range(1 + again):
            if name == "report_two_receipts":
                self.report_two(who, lie, twin)
            else:
                self.report_against(who, name, lie, offer)

    @rule(who=reporters, receipt=receipts, name=AGAINST_OFFERS, node=nodes)
    def report_against_an_offer(self, who: str, receipt, name: str, node: int) -> None:
        self.report_against(who, name, receipt, self.offers[node][1])

    def report_against(self, who: str, name: str, receipt: SignedReceipt, offer) -> None:
        result = self.both(who, name, receipt, offer)
        found = cases.find_cases([receipt], [offer], self.world.chain_id)
        rules = {f"report_{case.rule.name.lower()}" for case in found}
        assert (name in rules) == (result in PROVEN), result

    def named(self, receipt):
        """The offer that a receipt names."""
        every = [offer for two in self.offers for offer in two]
        return next(o for o in every if o.offer.digest() == receipt.receipt.offer_hash)

    @invariant()
    def the_registry_holds_all_stake(self) -> None:
        if hasattr(self, "memory"):
            registry = self.memory._world.registry
            booked = sum(registry.stakes.values())
            booked += sum(each.amount for each in registry.unbonding.values())
            assert self.world.balance(DEV_REGISTRY_ADDRESS) == booked
            assert self.memory.supply() == FUNDS * len(PEOPLE)


def _services(machine: Court, node: int):
    return machine.offers[node][0].offer.services


@pytest.mark.timeout(
    900 if "INFERPOOL_COURT_LIVES" in os.environ else 180
)  # a failure is shrunk before it is shown
def test_registry_court_and_channels_live_as_the_model_says(dev_world, clock, run, new_key) -> None:
    sink = dev_world.roles.court.address
    for name in PEOPLE:  # all start with the same
        key = getattr(dev_world.roles, name)
        extra = dev_world.balance(key.address) - FUNDS
        run(dev_world.chain(key).transfer(DEV_DOLLAR_ADDRESS, sink, extra))
    assert contract("Disputes").events.keys() == {"Judged"}

    class Machine(Court):
        world, seen = dev_world, Counter()

    Machine.run, Machine.clock = staticmethod(run), clock
    Machine.new_key = staticmethod(new_key)
    run_state_machine_as_test(Machine, settings=LIVES)
    for name in ("report_two_receipts", "report_overcharge", "report_other_manifest"):
        assert Machine.seen[f"{name}: done"], Machine.seen
    reasons = {key for key in Machine.seen if ": disputes: " in key}
    assert len(reasons) >= 8, reasons
