"""The gateway's side of a payment channel, as a pure core.

The rule that keeps a consumer whole: a voucher covers what was charged, the maxima in flight, this
maximum and the window's slack, never more; nothing is booked without a receipt that was checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from inferpool.identity.signing import Key, recover
from inferpool.payments.chains import UNPROVED_MAX, Unproved
from inferpool.payments.window import STRANGER, Window
from inferpool.payments.x402 import ChannelView, refund_signature
from inferpool.protocol.errors import InferpoolError, Refused
from inferpool.protocol.offer import Terms
from inferpool.protocol.receipt import Receipt
from inferpool.protocol.units import base_units_down, pico_usd_per_base_unit
from inferpool.protocol.voucher import ChannelConfig, Voucher, voucher_digest


class TopUpNeeded(InferpoolError):
    """The deposit does not cover the next voucher, which is for `needed` base units."""

    default = "voucher_balance"

    def __init__(self, needed: int) -> None:
        super().__init__(f"the channel must hold {needed} base units")
        self.needed = needed


@dataclass(slots=True)
class PayerChannel:
    """One channel as the gateway keeps it; amounts in base units unless the name says pico.

    Durable: config, total_pico_usd, seqs of the receipts booked, signed_max. `held` maps request
    ids to maxima in flight; after a crash they are lost, and the node is asked for receipts.
    """

    config: ChannelConfig
    channel_id: bytes
    chain_id: int
    decimals: int
    balance: int = 0  # confirmed on chain
    total_pico_usd: int = 0  # sum of the receipts booked
    signed_max: int = 0  # the highest voucher ever signed
    base_pico_usd: int = 0  # charged as the node proved it beyond our receipts (lost state)
    next_seq: int = 1  # the first receipt not booked yet
    booked_ahead: set[int] = field(default_factory=set)  # seqs booked beyond next_seq
    held: dict[bytes, int] = field(default_factory=dict)
    held_total: int = 0
    unresolved: dict[bytes, int] = field(default_factory=dict)  # sent, ended, no receipt yet
    unresolved_total: int = 0
    in_base: set[bytes] = field(default_factory=set)  # unresolved ones that the base counts
    peak: int = 0  # the most in flight or unresolved at once: bounds the exposure, with the slack
    unproved: Unproved = field(default_factory=Unproved)
    voucher: Voucher | None = None  # the last one signed: sent again while it covers
    honest_pico_usd: int = 0  # charged for answers that arrived, since the start or the last fault

    @property
    def charged(self) -> int:
        """Whole base units charged so far."""
        return base_units_down(max(self.base_pico_usd, self.total_pico_usd), self.decimals)

    @property
    def exposure(self) -> int:
        """Base units signed beyond what was charged: the most this node could take unjustly."""
        return max(0, self.signed_max - self.charged)

    def authorise(
        self, request_id: bytes, maximum: int, key: Key, window: Window = STRANGER
    ) -> Voucher:
        """A voucher that covers one more request, whose maximum is held: the last one where it
        covers this too and no more slack than the window allows, else a new one.

        Raises TopUpNeeded where the deposit does not cover it; then nothing was held or signed.
        """
        assert maximum > 0, "a hold is positive"
        assert request_id not in self.held, "a request is authorised once"
        needed = self.charged + self.held_total + maximum
        if needed > self.balance:
            raise TopUpNeeded(needed)
        self.held[request_id] = maximum
        self.held_total += maximum
        earned = base_units_down(self.honest_pico_usd, self.decimals)
        voucher = self.voucher
        if voucher is None or not 0 <= voucher.max_claimable - needed <= window.limit(earned):
            slack = min(window.slack(maximum, earned), self.balance - needed)
            voucher = self._sign(needed + slack, key)
        self.peak = max(self.peak, self.held_total + self.unresolved_total)
        return voucher

    def authorise_again(self, request_id: bytes, view: ChannelView, key: Key) -> Voucher:
        """A fresh voucher after a corrective 402, for a request that is held already.

        Others overtook the first voucher, or the node still holds a request that we gave up. The
        node's word is followed only within what we had signed for: what was charged, what is in
        flight, and what is unresolved. So a node that lies gains nothing by asking again.
        """
        maximum = self.held[request_id]
        least = self.charged + self.held_total
        most = least + self.unresolved_total
        amount = min(max(least, view.charged + maximum), most)
        if amount > self.balance:
            raise TopUpNeeded(amount)
        return self._sign(amount, key)

    def _sign(self, amount: int, key: Key) -> Voucher:
        assert amount <= self.balance, "never more than the deposit"
        self.signed_max = max(self.signed_max, amount)
        signature = key.sign(voucher_digest(self.channel_id, amount, self.chain_id))
        self.voucher = Voucher(self.channel_id, amount, signature)
        return self.voucher

    def refund_request(self, key: Key, terms: Terms) -> bytes:
        """PAYMENT-SIGNATURE that asks the payee for all that is free."""
        charged = self.charged
        signature = key.sign(voucher_digest(self.channel_id, charged, self.chain_id))
        return refund_signature(self.config, Voucher(self.channel_id, charged, signature), terms)

    @property
    def booked(self) -> tuple[int, int]:
        """The highest number and the total, in pico-USD, of the receipts booked: from these a node
        that lost its book goes on."""
        last = max(self.booked_ahead) if self.booked_ahead else self.next_seq - 1
        return last, self.total_pico_usd

    def close_gaps(self) -> None:
        """The node has shown all receipts that it has, and nothing is in flight: numbers that are
        missing below the last one went down with its book, and their charges with them."""
        if self.booked_ahead and not self.held:
            self.next_seq = max(self.booked_ahead) + 1
            self.booked_ahead.clear()

    def takes_chained(self, window: Window) -> bool:
        """Whether receipts may come chained: where windows are, and not too many are unproved."""
        earned = base_units_down(self.honest_pico_usd, self.decimals)
        return window.limit(earned) > 0 and self.unproved.count < UNPROVED_MAX

    def trust(self, charge_pico_usd: int) -> None:
        """An answer arrived whole, and its receipt was good: the window may grow by its charge."""
        self.honest_pico_usd += charge_pico_usd

    def distrust(self) -> None:
        """The node was caught: it is a stranger again."""
        self.honest_pico_usd = 0

    def release(self, request_id: bytes, *, sent: bool) -> None:
        """End the hold of a request without a receipt.

        Where it may have reached the node (`sent`), its maximum stays unresolved: the node may
        still be at work on it, and a receipt may yet come.
        """
        maximum = self.held.pop(request_id, 0)
        self.held_total -= maximum
        assert self.held_total >= 0, "holds are never negative"
        if sent and maximum:
            self.unresolved[request_id] = maximum
            self.unresolved_total += maximum

    def resolve(self, request_id: bytes) -> None:
        """Forget an unresolved request: its receipt came, or the node says it owes none."""
        self.unresolved_total -= self.unresolved.pop(request_id, 0)
        self.in_base.discard(request_id)

    def book(self, receipt: Receipt) -> None:
        """Book one checked receipt.

        Raises Refused where its number was booked before, or where its total is not the sum of
        the receipts up to it (checked as soon as none of those is missing).
        """
        request_id, seq, charge_pico_usd = receipt.request_id, receipt.seq, receipt.charge_pico_usd
        if seq < self.next_seq or seq in self.booked_ahead:
            raise Refused(f"receipt {seq} of this channel was already booked")
        complete = seq == self.next_seq and not self.booked_ahead and not self.base_pico_usd
        if complete and receipt.charged_total_pico_usd != self.total_pico_usd + charge_pico_usd:
            raise Refused(f"receipt {seq} has another total than the receipts before it add up to")
        ours_now = request_id in self.held or request_id in self.unresolved
        if self.base_pico_usd and ours_now and request_id not in self.in_base:
            self.base_pico_usd += charge_pico_usd  # on top of what was lost, not a part of it
        self.release(request_id, sent=False)
        self.resolve(request_id)
        self.total_pico_usd += charge_pico_usd
        self.booked_ahead.add(seq)
        while self.next_seq in self.booked_ahead:
            self.booked_ahead.remove(self.next_seq)
            self.next_seq += 1

    def resume_from_claims(self, claimed: int) -> ChannelView:
        """Go on from what the chain says was claimed, above what our book knows: no claim passes a
        voucher that we signed, so this needs nobody's word. The view that a node which lost its
        book too has of the channel, without what it has in flight."""
        unit = pico_usd_per_base_unit(self.decimals)
        self.signed_max = max(self.signed_max, claimed)
        self.base_pico_usd = max(self.base_pico_usd, (claimed + 1) * unit - 1)
        self.in_base = set(self.unresolved)
        return ChannelView(self.channel_id, self.balance, claimed, self.charged)

    def resume_from(self, view: ChannelView, authorizer: bytes, request_id: bytes) -> None:
        """Go on after lost state, from a voucher of ours that only the node still has, with a
        request that is held here and that the node has just refused.

        Raises Refused unless the node shows a voucher that we signed and that is above every one
        we remember: a charge that our own receipts do not back is not taken on its word alone.
        """
        if view.channel_id != self.channel_id or view.charged > view.signed_max:
            raise Refused("the node's view of the channel is not sound")
        if view.signed_max <= self.signed_max:
            raise Refused("the node claims charges without receipts for them")
        signer = recover(
            voucher_digest(self.channel_id, view.signed_max, self.chain_id), view.signature
        )
        if signer != authorizer:
            raise Refused("the node shows a voucher that is not ours")
        self.signed_max = view.signed_max
        # What the node counts holds our other requests in flight, but not the one it refused.
        charged = view.charged - (self.held_total - self.held[request_id])
        # The fraction that it carries is unknown: the most, or we would fall behind by a unit.
        unit = pico_usd_per_base_unit(self.decimals)
        self.base_pico_usd = max(self.base_pico_usd, (max(0, charged) + 1) * unit - 1)
        self.in_base = set(self.unresolved)
