"""The court: what it judges, what it refuses, and where the money goes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from inferpool.chain import cases
from inferpool.chain.abi import contract
from inferpool.chain.addresses import DEV_COURT_ADDRESS, DEV_DOLLAR_ADDRESS, DEV_REGISTRY_ADDRESS
from inferpool.chain.cases import Rule, find_case
from inferpool.chain.client import EvmChain
from inferpool.chain.court_ledger import BURN_ADDRESS, REWARDED_ONE_IN, SLASHED_ONE_IN
from inferpool.chain.deploy import deploy
from inferpool.chain.directory import events_by_topic, read_log
from inferpool.chain.registry_ledger import UNSTAKE_DELAY_S
from inferpool.identity.signing import Key
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.errors import Refused
from inferpool.protocol.receipt import SignedReceipt
from tests.chain import signed

COURT = contract("Disputes")
REGISTRY = contract("Registry")
ENDPOINT = "https://node.example"
STAKE = 1_000
PENALTY, REWARD = 200, 20
OTHER_ID = b"\x21" * 32


class Trial:
    """An owner with stake, its node's offer, and a reporter."""

    def __init__(self, world, run, node: Key) -> None:
        self.world, self.run, self.node = world, run, node
        self.owner = world.chain(world.roles.owner)
        self.liar = world.chain(world.roles.liar)
        self.reporter = world.chain(world.roles.reporter)
        for chain in (self.owner, self.liar):
            run(chain.approve(DEV_DOLLAR_ADDRESS, DEV_REGISTRY_ADDRESS, 10**9))
        run(self.owner.register(node, ENDPOINT, stake=STAKE))
        self.offer = self.offer_of(node)
        self.receipt = partial(signed.receipt, node, self.offer, world.chain_id)

    def offer_of(self, node: Key, **changes):
        owner = self.world.roles.owner.address
        return signed.offer(node, owner, self.world.chain_id, **changes)

    def pair(self) -> tuple[SignedReceipt, SignedReceipt]:
        """Two answers to one request."""
        return self.receipt(), self.receipt(response_hash=b"\x33" * 32)

    def view(self, name: str, *args: object):
        data = to_hex(REGISTRY.call(name, *args))
        to = to_hex(DEV_REGISTRY_ADDRESS)
        answer = self.world.rpc("eth_call", {"to": to, "data": data}, "latest")
        values = REGISTRY.functions[name].result(bytes.fromhex(answer[2:]))
        return values[0] if len(values) == 1 else values

    def stake(self) -> int:
        owner = self.world.roles.owner.address
        return self.view("stake_of", owner) + self.view("unbonding_of", owner)[0]

    def money(self) -> dict[str, int]:
        """Base units in the hands that a verdict can reach."""
        roles, balance = self.world.roles, self.world.balance
        return {
            "registry": balance(DEV_REGISTRY_ADDRESS),
            "burnt": balance(BURN_ADDRESS),
            "reporter": balance(roles.reporter.address),
            "owner": balance(roles.owner.address),
            "court": balance(DEV_COURT_ADDRESS),
        }

    def judged(self, work, penalty: int = PENALTY) -> dict:
        """Run a report that must be judged: the money moves as it should, and the event says so."""
        before, stake = self.money(), self.stake()
        mined = self.run(work)
        after, reward = self.money(), penalty // REWARDED_ONE_IN
        moved = {name: after[name] - before[name] for name in before}
        assert moved == {
            "registry": -penalty,
            "burnt": penalty - reward,
            "reporter": reward,
            "owner": 0,
            "court": 0,
        }
        assert self.stake() == stake - penalty
        (event,) = self.events(mined.transaction_hash)
        assert (event["burnt"], event["rewarded"]) == (penalty - reward, reward)
        assert event["owner"] == self.world.roles.owner.address
        assert event["reporter"] == self.world.roles.reporter.address
        return event

    def events(self, transaction_hash: bytes) -> list[dict]:
        receipt = self.world.rpc("eth_getTransactionReceipt", to_hex(transaction_hash))
        known = events_by_topic("Disputes")
        logs = [log for log in receipt["logs"] if from_hex(log["address"], 20) == DEV_COURT_ADDRESS]
        return [event[1] for log in logs if (event := read_log(log, known)) is not None]

    def tell(self, function: str, *arguments: object):
        """A report by its raw arguments."""
        return self.reporter._send(DEV_COURT_ADDRESS, COURT.call(function, *arguments))


@pytest.fixture
def trial(world, run, new_key) -> Trial:
    return Trial(world, run, new_key("node"))


# -- two receipts


@pytest.mark.parametrize(
    "changes",
    [
        {"response_hash": b"\x33" * 32},  # one id and one number
        {"seq": 2, "charged_total_pico_usd": 2 * 10**6},  # one id
        {"request_id": OTHER_ID},  # one number
        {"outcome": 1},  # the last word of the struct
    ],
)
def test_two_receipts_in_one_place_are_judged(trial, changes) -> None:
    first, second = trial.receipt(), trial.receipt(**changes)
    event = trial.judged(trial.reporter.report_two_receipts(first, second))
    assert event["rule"] == Rule.TWO_RECEIPTS
    assert event["node"] == trial.node.address
    digests = sorted(each.receipt.digest(trial.world.chain_id) for each in (first, second))
    assert [event["first"], event["second"]] == digests
    case = find_case([first, second], [], trial.world.chain_id)
    assert (case.rule, case.node) == (Rule.TWO_RECEIPTS, trial.node.address)


def test_a_pair_is_judged_once_in_either_order(trial, refused) -> None:
    first, second = trial.pair()
    trial.judged(trial.reporter.report_two_receipts(first, second))
    for pair in ((first, second), (second, first)):
        work = trial.reporter.report_two_receipts(*pair)
        assert refused(work) == "disputes: already judged"
    third = trial.receipt(response_hash=b"\x44" * 32)  # another lie, of what is left
    trial.judged(trial.reporter.report_two_receipts(third, first), penalty=160)


def test_one_receipt_is_no_pair_however_it_is_signed(trial, refused) -> None:
    honest = trial.receipt()
    again = replace(honest, signature=signed.malleable(honest.signature))
    for other in (honest, again):
        work = trial.reporter.report_two_receipts(honest, other)
        assert refused(work) == "disputes: one receipt twice"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"request_id": OTHER_ID, "seq": 2}, "disputes: nothing in common"),
        ({"channel_id": b"\x55" * 32}, "disputes: two channels"),
    ],
)
def test_receipts_in_two_places_are_honest(trial, refused, changes, reason) -> None:
    first, second = trial.receipt(), trial.receipt(**changes)
    assert refused(trial.reporter.report_two_receipts(first, second)) == reason
    assert find_case([first, second], [trial.offer], trial.world.chain_id) is None
    assert trial.stake() == STAKE


def test_two_keys_may_each_sign_their_own(trial, refused, new_key) -> None:
    theirs = signed.receipt(new_key("node two"), trial.offer, trial.world.chain_id, seq=9)
    work = trial.reporter.report_two_receipts(trial.receipt(), theirs)
    assert refused(work) == "disputes: two keys"
    assert find_case([trial.receipt(), theirs], [], trial.world.chain_id) is None


def bad_signatures(honest: bytes) -> dict[str, bytes]:
    return {
        "malleable": signed.malleable(honest),
        "v of 0": honest[:64] + b"\0",
        "v of 29": honest[:64] + b"\x1d",
        "short": honest[:64],
        "empty": b"",
        "zeros": bytes(65),
        "r off the curve": b"\xff" * 32 + honest[32:],
    }


def test_broken_and_malleable_signatures_prove_nothing(trial, refused) -> None:
    first, second = trial.pair()
    for name, signature in bad_signatures(second.signature).items():
        broken = replace(second, signature=signature)
        for pair in ((first, broken), (broken, first)):
            reason = refused(trial.reporter.report_two_receipts(*pair))
            assert reason == "disputes: bad signature", name
            assert find_case(pair, [], trial.world.chain_id) is None
    assert trial.stake() == STAKE


def test_a_forged_receipt_is_its_forgers(trial, refused) -> None:
    liar = trial.world.roles.liar
    twin = trial.pair()[1]
    forged = replace(twin, signature=liar.sign(twin.receipt.digest(trial.world.chain_id)))
    work = trial.reporter.report_two_receipts(trial.receipt(), forged)
    assert refused(work) == "disputes: two keys"


def test_what_was_signed_for_another_chain_is_signed_by_nobody_here(trial, refused) -> None:
    elsewhere = [
        signed.receipt(trial.node, trial.offer, trial.world.chain_id + 1, seq=seq) for seq in (1, 2)
    ]
    reason = refused(trial.reporter.report_two_receipts(*elsewhere))
    assert reason in ("disputes: two keys", "disputes: bad signature")  # two strangers' keys
    assert find_case(elsewhere, [], trial.world.chain_id) is None


# -- against the offer


def test_a_charge_above_the_price_is_judged_and_the_price_is_not(trial, refused) -> None:
    honest = trial.receipt()
    due = 10 * signed.PRICE_IN + 20 * signed.PRICE_OUT
    assert honest.receipt.charge_pico_usd == due
    reason = refused(trial.reporter.report_overcharge(honest, trial.offer))
    assert reason == "disputes: no more than offered"
    cheap = trial.receipt(charge_pico_usd=due - 1)
    assert refused(trial.reporter.report_overcharge(cheap, trial.offer)) == reason
    assert find_case([honest, cheap], [], trial.world.chain_id) is not None  # but two of one id
    dear = trial.receipt(charge_pico_usd=due + 1)
    event = trial.judged(trial.reporter.report_overcharge(dear, trial.offer))
    assert event["rule"] == Rule.OVERCHARGE
    digest = dear.receipt.digest(trial.world.chain_id)
    assert (event["first"], event["second"]) == (digest, bytes(32))
    case = find_case([dear], [trial.offer], trial.world.chain_id)
    assert (case.rule, case.node) == (Rule.OVERCHARGE, trial.node.address)


def test_prices_are_those_of_the_service_that_is_named(trial, refused) -> None:
    at_the_second = trial.receipt(service=1)
    work = trial.reporter.report_overcharge(at_the_second, trial.offer)
    assert refused(work) == "disputes: no more than offered"
    swapped = trial.receipt(charge_pico_usd=at_the_second.receipt.charge_pico_usd)
    trial.judged(trial.reporter.report_overcharge(swapped, trial.offer))


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest": b"\x99" * 32},
        {"engine_class": "fake@1/q4/cpu-0"},
        {"manifest": b"\x02" * 32, "engine_class": "fake@1/f32/cpu-1"},  # the offer's other one
        {"service": 2},
        {"service": 127},
    ],
)
def test_another_manifest_or_class_or_no_service_is_judged(trial, changes) -> None:
    lie = trial.receipt(**changes)
    event = trial.judged(trial.reporter.report_other_manifest(lie, trial.offer))
    assert event["rule"] == Rule.OTHER_MANIFEST
    assert event["first"] == lie.receipt.digest(trial.world.chain_id)
    case = find_case([lie], [trial.offer], trial.world.chain_id)
    assert (case.rule, case.node) == (Rule.OTHER_MANIFEST, trial.node.address)


def test_honest_receipts_are_as_offered(trial, refused) -> None:
    for number in (0, 1):
        honest = trial.receipt(service=number)
        work = trial.reporter.report_other_manifest(honest, trial.offer)
        assert refused(work) == "disputes: as offered"
        assert find_case([honest], [trial.offer], trial.world.chain_id) is None
    work = trial.reporter.report_overcharge(trial.receipt(service=2), trial.offer)
    assert refused(work) == "disputes: no such service"


def test_one_receipt_is_one_lie(trial, refused) -> None:
    lie = trial.receipt(manifest=b"\x99" * 32, charge_pico_usd=10**12)
    trial.judged(trial.reporter.report_overcharge(lie, trial.offer))
    for report in (trial.reporter.report_overcharge, trial.reporter.report_other_manifest):
        assert refused(report(lie, trial.offer)) == "disputes: already judged"


def test_only_the_service_that_is_named_can_be_opened(trial, refused) -> None:
    dear = trial.receipt(charge_pico_usd=10**12)
    exhibit = cases.exhibit_struct(dear, trial.offer)
    cheaper = replace(trial.offer.offer.services[0], price_in_pico_usd_per_unit=0)
    for wrong in (trial.offer.offer.services[1], cheaper):
        opened = (*exhibit[:4], cases.service_struct(wrong))
        for function in ("report_overcharge", "report_other_manifest"):
            assert refused(trial.tell(function, opened)) == "disputes: another service"


def test_an_offer_counts_only_as_it_was_signed_and_named(trial, refused, new_key) -> None:
    """Prices of zero that the node never signed, an offer that the receipt does not name, and
    another node's offer."""
    roles, honest = trial.world.roles, trial.receipt()
    free = tuple(replace(each, price_in_pico_usd_per_unit=0) for each in trial.offer.offer.services)
    later = trial.offer_of(trial.node, sequence=2, services=free)
    forged = trial.offer_of(trial.node, signer=roles.liar, services=free)
    for other in (later, forged):
        assert refused(trial.reporter.report_overcharge(honest, other)) == "disputes: another offer"
    named = signed.receipt(trial.node, forged, trial.world.chain_id, charge_pico_usd=10**12)
    assert refused(trial.reporter.report_overcharge(named, forged)) == "disputes: forged offer"
    theirs = trial.offer_of(new_key("node two"))
    named = signed.receipt(trial.node, theirs, trial.world.chain_id, charge_pico_usd=10**12)
    reason = refused(trial.reporter.report_other_manifest(named, theirs))
    assert reason == "disputes: not the node's receipt"
    assert find_case([honest, named], [later, forged, theirs], trial.world.chain_id) is not None
    assert find_case([named], [later, forged, theirs], trial.world.chain_id) is None
    assert trial.stake() == STAKE


def test_broken_signatures_prove_nothing_against_the_offer(trial, refused) -> None:
    dear = trial.receipt(charge_pico_usd=10**12)
    for name, signature in bad_signatures(dear.signature).items():
        work = trial.reporter.report_overcharge(replace(dear, signature=signature), trial.offer)
        assert refused(work) == "disputes: bad signature", name
    for name, signature in bad_signatures(trial.offer.signature).items():
        broken = replace(trial.offer, signature=signature)
        work = trial.reporter.report_overcharge(dear, broken)
        assert refused(work) == "disputes: bad signature", name
        assert find_case([dear], [broken], trial.world.chain_id) is None


def test_an_offer_of_another_chain_is_another_offer(trial, refused) -> None:
    owner = trial.world.roles.owner.address
    elsewhere = signed.offer(trial.node, owner, trial.world.chain_id + 1)
    dear = signed.receipt(trial.node, elsewhere, trial.world.chain_id, charge_pico_usd=10**12)
    work = trial.reporter.report_overcharge(dear, elsewhere)
    assert refused(work) == "disputes: another offer"
    assert find_case([dear], [elsewhere], trial.world.chain_id) is None


def test_the_greatest_integers_do_not_overflow(trial, refused) -> None:
    """2 * (2^64-1)^2 is above 2^128: such a price is above any charge, and is no lie."""
    most, charge = 2**64 - 1, 2**128 - 1
    services = [
        signed.service(0, price_in_pico_usd_per_unit=most, price_out_pico_usd_per_unit=most),
        signed.service(1, price_in_pico_usd_per_unit=most, price_out_pico_usd_per_unit=1),
    ]
    dear = trial.offer_of(trial.node, services=tuple(services))
    units = {"prompt_units": most, "output_units": most, "charge_pico_usd": charge}
    terms = {"seq": most, "charged_total_pico_usd": charge, "seed": most, "ended_ms": most}
    of = partial(signed.receipt, trial.node, dear, trial.world.chain_id, **units, **terms)
    work = trial.reporter.report_overcharge(of(service=0), dear)
    assert refused(work) == "disputes: no more than offered"
    assert most * most + most < charge
    event = trial.judged(trial.reporter.report_overcharge(of(service=1), dear))
    assert event["rule"] == Rule.OVERCHARGE


def test_an_offer_of_the_most_services_is_judged(trial) -> None:
    services = tuple(signed.service(number) for number in range(128))
    wide = trial.offer_of(trial.node, services=services)
    lie = signed.receipt(trial.node, wide, trial.world.chain_id, service=127, manifest=bytes(32))
    trial.judged(trial.reporter.report_other_manifest(lie, wide))


def test_an_offer_without_services_has_none_to_name(trial) -> None:
    bare = trial.offer_of(trial.node, services=())
    lie = trial.receipt(offer_hash=bare.offer.digest())
    trial.judged(trial.reporter.report_other_manifest(lie, bare))


# -- who answers


def test_a_key_that_nobody_registered_has_no_owner(trial, refused, new_key) -> None:
    unknown = new_key("node two")
    terms = trial.offer_of(unknown)
    pair = [
        signed.receipt(unknown, terms, trial.world.chain_id, seed=seed, charge_pico_usd=10**12)
        for seed in (1, 2)
    ]
    owner = "disputes: key of no owner"
    assert refused(trial.reporter.report_two_receipts(*pair)) == owner
    assert refused(trial.reporter.report_overcharge(pair[0], terms)) == owner


def test_an_owner_without_stake_is_on_record(trial, run, refused) -> None:
    run(trial.owner.deregister())
    trial.world.pass_time(UNSTAKE_DELAY_S)
    run(trial.owner.withdraw_stake())
    pair = trial.pair()
    trial.judged(trial.reporter.report_two_receipts(*pair), penalty=0)
    work = trial.reporter.report_two_receipts(*pair)
    assert refused(work) == "disputes: already judged"


def test_a_retired_key_answers_to_its_owner(trial, run, new_key) -> None:
    run(trial.owner.replace_key(new_key("node two")))
    event = trial.judged(trial.reporter.report_two_receipts(*trial.pair()))
    assert event["node"] == trial.node.address


def test_who_left_answers_with_what_is_unbonding(trial, run) -> None:
    run(trial.owner.deregister())
    trial.world.pass_time(UNSTAKE_DELAY_S)  # may leave now, and has not
    trial.judged(trial.reporter.report_two_receipts(*trial.pair()))
    assert trial.view("stake_of", trial.world.roles.owner.address) == 0
    assert trial.view("unbonding_of", trial.world.roles.owner.address)[0] == STAKE - PENALTY


def test_stake_at_work_goes_first_and_unbonding_stake_counts(trial, run) -> None:
    owner = trial.world.roles.owner.address
    run(trial.owner.unstake(STAKE - 100))
    trial.judged(trial.reporter.report_two_receipts(*trial.pair()))
    assert trial.view("stake_of", owner) == 0
    assert trial.view("unbonding_of", owner)[0] == STAKE - PENALTY


@pytest.mark.parametrize(
    ("stake", "penalty"), [(1, 1), (4, 1), (5, 1), (6, 2), (49, 10), (51, 11), (10**9, 2 * 10**8)]
)
def test_a_fifth_rounded_up_and_a_tenth_of_it_rounded_down(trial, run, stake, penalty) -> None:
    change = stake - STAKE
    if change > 0:
        run(trial.owner.approve(DEV_DOLLAR_ADDRESS, DEV_REGISTRY_ADDRESS, change))
        trial.world.fund(trial.world.roles.owner.address, 10**9)
        run(trial.owner.add_stake(change))
    else:
        run(trial.owner.unstake(-change))
        trial.world.pass_time(UNSTAKE_DELAY_S)
        run(trial.owner.withdraw_stake())
    trial.judged(trial.reporter.report_two_receipts(*trial.pair()), penalty=penalty)


def test_another_key_cannot_spend_a_case(trial, run, new_key) -> None:
    """A liar signs the same two receipts with a key of a second owner without stake, and has
    itself judged first: the first owner is punished all the same."""
    scapegoat, (first, second) = new_key("node two"), trial.pair()
    run(trial.liar.register(scapegoat, ENDPOINT))
    copies = [
        replace(each, signature=scapegoat.sign(each.receipt.digest(trial.world.chain_id)))
        for each in (first, second)
    ]
    run(trial.liar.report_two_receipts(*copies))
    trial.judged(trial.reporter.report_two_receipts(first, second))


def test_who_reports_itself_loses_more_than_half(trial, run) -> None:
    owner, before = trial.world.roles.owner.address, trial.stake()
    held = trial.world.balance(owner)
    run(trial.owner.report_two_receipts(*trial.pair()))
    loss = before - trial.stake() - (trial.world.balance(owner) - held)
    assert loss == PENALTY - REWARD
    assert 2 * loss > PENALTY


def test_a_refused_report_leaves_no_trace(trial, refused) -> None:
    before = trial.money(), trial.stake()
    refused(trial.reporter.report_two_receipts(trial.receipt(), trial.receipt()))
    refused(trial.reporter.report_other_manifest(trial.receipt(), trial.offer))
    assert (trial.money(), trial.stake()) == before
    trial.judged(trial.reporter.report_two_receipts(*trial.pair()))


def test_python_knows_the_constants_and_keys_of_the_contract(trial) -> None:
    def ask(name: str, *args: object):
        data, to = to_hex(COURT.call(name, *args)), to_hex(DEV_COURT_ADDRESS)
        answer = trial.world.rpc("eth_call", {"to": to, "data": data}, "latest")
        return COURT.functions[name].result(bytes.fromhex(answer[2:]))[0]

    assert ask("SLASHED_ONE_IN") == SLASHED_ONE_IN
    assert ask("REWARDED_ONE_IN") == REWARDED_ONE_IN
    assert ask("BURN") == BURN_ADDRESS
    assert ask("REGISTRY") == DEV_REGISTRY_ADDRESS
    a, b, node = b"\x01" * 32, b"\x02" * 32, trial.node.address
    key = cases.offence(node, a, b)
    assert ask("offence_of", node, a, b) == key
    assert ask("judged", key) is False


# -- deployed elsewhere


def test_registry_and_court_are_deployed_for_each_other(world, run, new_key) -> None:
    roles = world.roles
    place = run(deploy(world.url, roles.court, token=DEV_DOLLAR_ADDRESS, post=world.post))
    owner = world.chain(roles.owner, registry=place.registry)
    assert run(owner.court()) == place.court
    node = new_key("node")
    run(owner.approve(DEV_DOLLAR_ADDRESS, place.registry, STAKE))
    run(owner.register(node, ENDPOINT, stake=STAKE))
    terms = signed.offer(node, roles.owner.address, world.chain_id)
    lie = signed.receipt(node, terms, world.chain_id, charge_pico_usd=10**12)
    before = world.balance(roles.reporter.address)
    run(world.chain(roles.reporter, registry=place.registry).report_overcharge(lie, terms))
    assert world.balance(roles.reporter.address) == before + REWARD


def test_a_court_that_is_no_contract_is_seen_before_a_report_is_lost(world, run, new_key) -> None:
    roles = world.roles
    place = run(
        deploy(
            world.url,
            roles.court,
            court=roles.court.address,
            token=DEV_DOLLAR_ADDRESS,
            post=world.post,
        )
    )
    reporter = world.chain(roles.reporter, registry=place.registry)
    terms = signed.offer(new_key("node"), roles.owner.address, world.chain_id)
    lie = signed.receipt(new_key("node"), terms, world.chain_id, charge_pico_usd=10**12)
    with pytest.raises(Refused, match="no contract at"):
        run(reporter.report_overcharge(lie, terms))
    foreign = run(
        deploy(
            world.url,
            roles.court,
            court=DEV_COURT_ADDRESS,
            token=DEV_DOLLAR_ADDRESS,
            post=world.post,
        )
    )
    reporter = world.chain(roles.reporter, registry=foreign.registry)
    with pytest.raises(Refused, match="judges for another"):
        run(reporter.report_overcharge(lie, terms))


def test_a_deployer_that_is_busy_elsewhere_is_told(world, run, monkeypatch) -> None:
    from inferpool.chain import deploy as module

    monkeypatch.setattr(module, "created_address", lambda sender, nonce: b"\x42" * 20)
    with pytest.raises(Exception, match="sent something else meanwhile"):
        run(deploy(world.url, world.roles.court, token=DEV_DOLLAR_ADDRESS, post=world.post))


def test_a_court_needs_a_registry(world, refused) -> None:
    sender: EvmChain = world.chain(world.roles.court)
    work = sender._send(None, COURT.deployment(bytes(20)))
    assert refused(work) == "disputes: no registry"
