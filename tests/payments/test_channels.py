"""Both sides of a channel against an exact model: late, lost, doubled, crashed, in any order.

The model knows what happened: which requests are under way, what each may cost at most, and what
was really charged. It holds no balance of its own but sums.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payer import PayerChannel, TopUpNeeded
from inferpool.payments.window import STRANGER, Window
from inferpool.protocol.errors import PaymentRequired
from inferpool.protocol.receipt import Receipt
from inferpool.protocol.voucher import Voucher
from tests.payments.parts import (
    AUTHORIZER,
    PICO,
    name,
    payee_channel,
    payer_channel,
    receipt,
)

SETTINGS = settings(
    derandomize=True,
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

# Maxima in pico-USD: below one base unit, just at it, just over it, and many.
maxima_pico = st.one_of(
    st.integers(1, 30 * PICO), st.sampled_from([1, PICO - 1, PICO, PICO + 1, 7 * PICO + 1])
)
# A share of the maximum that the work used, in 1/1000.
shares = st.one_of(st.integers(0, 1000), st.sampled_from([0, 1000, 999]))


@dataclass(eq=False)
class Request:
    """What the model knows of one request."""

    number: int
    maximum_pico: int
    voucher: Voucher

    @property
    def id(self) -> bytes:
        return name(self.number)

    @property
    def maximum(self) -> int:
        return -(-self.maximum_pico // PICO)


@dataclass
class Disk:
    """What one side has made durable, newest last."""

    snapshots: list[dict[str, Any]] = field(default_factory=list)

    def crash(self, lost: int) -> dict[str, Any]:
        """The state that a restart finds when the last `lost` writes were not committed."""
        keep = max(0, len(self.snapshots) - lost)
        del self.snapshots[keep:]
        return self.snapshots[-1] if self.snapshots else {}


PAYEE_DURABLE = ("best", "best_signature", "total_pico_usd", "reported", "seq", "claimed")
PAYER_DURABLE = ("balance", "total_pico_usd", "signed_max")


class TwoSides(RuleBasedStateMachine):
    """One payer, one node, one channel."""

    sent = Bundle("sent")  # on the wire or delivered: a message may arrive again at any time
    ended = Bundle("ended")  # receipts on their way back
    window = STRANGER

    def __init__(self) -> None:
        super().__init__()
        self.honest = 0  # pico-USD charged for answers that arrived, since the payer's start
        self.ever_honest = 0
        self.chain = 100
        self.payer: PayerChannel = payer_channel(self.chain)
        self.payee: PayeeChannel = payee_channel(self.chain)
        self.payer_disk, self.payee_disk = Disk(), Disk()
        self.count = 0
        self.seen: set[bytes] = set()  # the node never takes a request id twice while it runs
        self.working: dict[bytes, Request] = {}  # in flight at the node
        self.receipts: list[Receipt] = []  # durable at the node
        self.outstanding: dict[bytes, int] = {}  # payer's maxima that may still be charged
        self.booked: set[int] = set()
        self.peak = 0

    # -- the payer

    def _track(self) -> None:
        self.peak = max(self.peak, sum(self.outstanding.values()))

    def _save_payer(self) -> None:
        state = {key: getattr(self.payer, key) for key in PAYER_DURABLE}
        self.payer_disk.snapshots.append(state | {"booked": set(self.booked)})

    @rule(target=sent, maximum_pico=maxima_pico)
    def authorise(self, maximum_pico: int) -> Request:
        self.count += 1
        request_id, maximum = name(self.count), -(-maximum_pico // PICO)
        expected = self._payer_charged() + self._payer_held() + maximum
        try:
            voucher = self.payer.authorise(request_id, maximum, AUTHORIZER, self.window)
        except TopUpNeeded as need:
            assert expected > self.payer.balance, "a top-up is asked for only where it is needed"
            assert need.needed == expected
            self._fund(need.needed - self.chain + 50)
            voucher = self.payer.authorise(request_id, maximum, AUTHORIZER, self.window)
        most = min(self.window.units, self.honest // PICO)  # 0 with a stranger
        assert expected <= voucher.max_claimable <= expected + most, "to the unit, and the slack"
        self.outstanding[request_id] = maximum
        self._track()
        return Request(self.count, maximum_pico, voucher)

    def _payer_charged(self) -> int:
        return sum(r.charge_pico_usd for r in self.receipts if r.seq in self.booked) // PICO

    def _payer_held(self) -> int:
        return sum(self.outstanding[item] for item in self.payer.held)

    @rule(request=consumes(sent))
    def give_up_unsent(self, request: Request) -> None:
        """No connection: it never reached the node, and never will."""
        if request.id in self.payer.held and request.id not in self.seen:
            self.seen.add(request.id)
            self.payer.release(request.id, sent=False)
            del self.outstanding[request.id]
            self._save_payer()

    @rule(request=sent)
    def lose_the_answer(self, request: Request) -> None:
        """The pipe was cut: the node may be at work, the payer knows nothing."""
        if request.id in self.payer.held:
            self.payer.release(request.id, sent=True)
            self._save_payer()
            assert self.payer.unresolved[request.id] == request.maximum

    @rule(made=consumes(ended))
    def receive(self, made: Receipt) -> None:
        """A receipt arrives with its answer, in any order; its request is held or given up."""
        if made.request_id in self.payer.held or made.request_id in self.payer.unresolved:
            self._book(made)
            self.payer.trust(made.charge_pico_usd)
            self.honest += made.charge_pico_usd
            self.ever_honest = max(self.honest, self.ever_honest)

    @rule()
    def catch_the_node(self) -> None:
        """A receipt of its was refused: it is a stranger again."""
        self.payer.distrust()
        self.honest = 0

    def _book(self, made: Receipt) -> None:
        self.payer.book(made)
        self.booked.add(made.seq)
        self.outstanding.pop(made.request_id, None)
        self._save_payer()

    @rule()
    def fetch_late(self) -> None:
        """Ask the node for receipts after the last one without a gap, as after a cut or crash."""
        after = self.payer.next_seq - 1
        assert after == next(n for n in range(len(self.booked) + 1) if n + 1 not in self.booked)
        for made in [item for item in self.receipts if item.seq > after]:
            if made.seq not in self.booked and made.request_id not in self.payer.held:
                self._book(made)
        running = set(self.working)
        for request_id in [item for item in self.payer.unresolved if item not in running]:
            self.payer.resolve(request_id)
        for request_id in set(self.outstanding) - running - set(self.payer.held):
            del self.outstanding[request_id]  # the node took a request id once: it will not again

    @rule(lost=st.integers(0, 2))
    def crash_payer(self, lost: int) -> None:
        self.honest = 0
        found = self.payer_disk.crash(lost)
        self.booked = set(found.get("booked", ()))
        following = next(n for n in range(1, len(self.booked) + 2) if n not in self.booked)
        self.payer = payer_channel(
            balance=self.chain,  # read from the chain at the start
            total_pico_usd=found.get("total_pico_usd", 0),
            signed_max=found.get("signed_max", 0),
            next_seq=following,
            booked_ahead={seq for seq in self.booked if seq > following},
        )
        charged = {r.request_id: r for r in self.receipts if r.seq not in self.booked}
        for request_id, made in charged.items():  # what is not booked is outstanding again
            self.outstanding.setdefault(request_id, -(-made.charge_pico_usd // PICO))

    @rule(amount=st.integers(1, 200))
    def top_up(self, amount: int) -> None:
        self._fund(amount)

    def _fund(self, amount: int) -> None:
        self.chain += amount
        self.payer.balance = self.payee.balance = self.chain

    # -- the node

    def _save_payee(self) -> None:
        self.payee_disk.snapshots.append({key: getattr(self.payee, key) for key in PAYEE_DURABLE})

    @rule(request=sent)
    def deliver(self, request: Request) -> None:
        """Also late, out of order, and again."""
        self._deliver(request, request.voucher)

    def _deliver(self, request: Request, voucher: Voucher) -> bool:
        if request.id in self.seen:
            return True
        before = (self.payee.best, self.payee.reported, self.payee.held_total)
        try:
            self.payee.admit(request.id, voucher, request.maximum)
        except PaymentRequired as error:
            assert error.code == "voucher_amount"
            assert before == (self.payee.best, self.payee.reported, self.payee.held_total)
            assert request.id not in self.payee.held
            return False
        self.seen.add(request.id)
        self.working[request.id] = request
        return True

    @rule(request=sent)
    def correct(self, request: Request) -> None:
        """A corrective 402 and the voucher that answers it, as the gateway does."""
        if request.id not in self.payer.held or self._deliver(request, request.voucher):
            return
        view = self.payee.view(corrective=True)
        most = self._payer_charged() + self._payer_held() + self.payer.unresolved_total
        try:
            voucher = self.payer.authorise_again(request.id, view, AUTHORIZER)
        except TopUpNeeded as need:
            assert need.needed <= most
            self._fund(need.needed - self.chain)
            voucher = self.payer.authorise_again(request.id, view, AUTHORIZER)
        assert voucher.max_claimable <= most, "never beyond what was in flight or unresolved"
        agreed = self._deliver(request, voucher)
        if view.charged + request.maximum <= most:
            assert agreed, "an honest node takes the corrected voucher"

    @precondition(lambda self: self.working)
    @rule(target=ended, data=st.data(), share=shares, committed=st.booleans())
    def charge(self, data: st.DataObject, share: int, committed: bool) -> Any:
        """Work ends with a receipt; it leaves the node only once it is durable."""
        request_id = data.draw(st.sampled_from(sorted(self.working)))
        request = self.working.pop(request_id)
        charge = request.maximum_pico * share // 1000
        exact = sum(made.charge_pico_usd for made in self.receipts) + charge
        before = self.payee.reported
        report = self.payee.charge(request_id, charge)
        assert self.payee.total_pico_usd == exact
        assert before + report == self.payee.reported == exact // PICO, "the fraction is carried"
        assert report <= request.maximum, "a report is covered by its own hold"
        if not committed:
            self._restart_payee(0)
            return multiple()
        made = receipt(request.number, self.payee.seq, charge, exact)
        self.receipts.append(made)
        self._save_payee()
        return made

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def refuse_late(self, data: st.DataObject) -> None:
        """The engine failed before it gave anything: no receipt."""
        request_id = data.draw(st.sampled_from(sorted(self.working)))
        del self.working[request_id]
        self.payee.release(request_id)

    @rule()
    def save_voucher(self) -> None:
        """Before a stream's first byte the best voucher is made durable."""
        self._save_payee()

    @rule()
    def crash_payee(self) -> None:
        self._restart_payee(0)

    def _restart_payee(self, lost: int) -> None:
        found = self.payee_disk.crash(lost)
        self.payee = payee_channel(balance=self.chain, **found)
        self.working.clear()
        # After a restart it knows the ids that it gave receipts for; the others died with it,
        # and a message that arrives again starts its work anew.
        self.seen = {made.request_id for made in self.receipts}

    # -- what always holds

    @invariant()
    def node_is_covered(self) -> None:
        payee = self.payee
        in_flight = sum(request.maximum for request in self.working.values())
        earned = sum(made.charge_pico_usd for made in self.receipts) // PICO
        assert payee.held_total == in_flight
        assert payee.best <= self.chain, "a voucher within the deposit can be claimed"
        assert earned + in_flight <= payee.best or not payee.best, "no work without cover"
        assert earned <= payee.best, "nothing is earned that no voucher covers"
        assert payee.earned == earned
        assert 0 <= payee.unclaimed <= payee.best - payee.claimed

    @invariant()
    def payer_is_bounded(self) -> None:
        payer = self.payer
        assert payer.signed_max <= self.chain
        assert payer.held_total == sum(payer.held.values())
        assert payer.unresolved_total == sum(payer.unresolved.values())
        assert payer.total_pico_usd <= self.payee.total_pico_usd, "nobody books what was not done"
        assert payer.charged == self._payer_charged()
        best = max(self.payee.best, payer.signed_max)
        earned = self.payee.earned
        slack = min(self.window.units, self.ever_honest // PICO)
        assert best - earned <= self.peak + slack, "no more than was in flight, and the slack"


class TwoSidesWindow(TwoSides):
    """The same with vouchers that go ahead of the work, and are sent again as they are."""

    window = Window(maxima=8, units=60)


TwoSides.TestCase.settings = SETTINGS
TestTwoSides = TwoSides.TestCase
TwoSidesWindow.TestCase.settings = SETTINGS
TestTwoSidesWindow = TwoSidesWindow.TestCase


class ForeignStreams(RuleBasedStateMachine):
    """A node with a foreign x402 payer: streams report their maximum before they start, and what
    they did not use is credited to later requests. The payer signs what it was told plus one."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = 10_000
        self.payee = payee_channel(self.chain)
        self.count = 0
        self.working: dict[bytes, tuple[int, bool]] = {}  # id -> maximum in pico, streamed
        self.total_pico = 0
        self.told = 0  # sum of what headers said was charged

    @rule(maximum_pico=maxima_pico, streamed=st.booleans(), extra=st.integers(0, 3))
    def start(self, maximum_pico: int, streamed: bool, extra: int) -> None:
        """Admitted under the least voucher that the node asks for, or one not much above."""
        self.count += 1
        request_id, maximum = name(self.count), -(-maximum_pico // PICO)
        amount = self.payee.view(corrective=True).charged + maximum + extra
        voucher = replace(Voucher(self.payee.channel_id, amount), signature=b"")
        signature = AUTHORIZER.sign(voucher.digest(self.payee.chain_id))
        self.payee.admit(request_id, replace(voucher, signature=signature), maximum)
        if streamed:
            report = self.payee.report_maximum(request_id)
            assert 0 <= report <= maximum, "no stream is charged above its maximum"
            self.told += report
        self.working[request_id] = (maximum_pico, streamed)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), share=shares)
    def finish(self, data: st.DataObject, share: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.working)))
        maximum_pico, streamed = self.working.pop(request_id)
        charge = maximum_pico * share // 1000
        self.total_pico += charge
        report = self.payee.charge(request_id, charge)
        if streamed:
            assert report == 0, "the header that told the charge has left long ago"
        assert 0 <= report <= -(-maximum_pico // PICO)
        self.told += report

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        """It ended without a receipt: what was reported for it becomes credit."""
        request_id = data.draw(st.sampled_from(sorted(self.working)))
        del self.working[request_id]
        self.payee.release(request_id)

    @rule()
    def crash(self) -> None:
        kept = {key: getattr(self.payee, key) for key in PAYEE_DURABLE}
        self.payee = payee_channel(self.chain, **kept)
        self.working.clear()

    @invariant()
    def covered_and_told(self) -> None:
        payee = self.payee
        in_flight = sum(-(-maximum // PICO) for maximum, _ in self.working.values())
        assert payee.total_pico_usd == self.total_pico
        assert payee.reported == self.told, "the payer was told each unit once"
        assert payee.reported >= payee.earned
        assert payee.earned + in_flight <= payee.best or not payee.best, "no work without cover"

    @precondition(lambda self: not self.working)
    @rule()
    def credit_is_used_up(self) -> None:
        """At rest, a whole answer that costs exactly the credit reports nothing."""
        credit = self.payee.reported - self.payee.earned
        carry = self.total_pico % PICO
        if credit == 0:
            return
        self.start(credit * PICO, streamed=False, extra=0)
        (request_id,) = self.working
        del self.working[request_id]
        charge = credit * PICO - carry
        self.total_pico += charge
        assert self.payee.charge(request_id, charge) == 0
        assert self.payee.reported == self.payee.earned, "the credit was given back to the unit"


ForeignStreams.TestCase.settings = SETTINGS
TestForeignStreams = ForeignStreams.TestCase
