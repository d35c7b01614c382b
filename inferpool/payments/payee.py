"""The node's side of a payment channel, as a pure core: no clock, no chain, no storage.

The rule that keeps a provider whole: work starts only when the best voucher covers what was
charged, every maximum in flight and this maximum; and the voucher is within the balance on chain.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from inferpool.identity.signing import verify
from inferpool.payments.x402 import ChannelView
from inferpool.protocol.errors import PaymentRequired, Refused
from inferpool.protocol.units import base_units_down
from inferpool.protocol.voucher import ChannelConfig, Voucher


@dataclass(slots=True)
class PayeeChannel:
    """One channel as the node keeps it; amounts in base units unless the name says pico.

    What is durable: config, best, best_signature, total_pico_usd, reported, seq, claimed. What is
    in flight (`held`) is lost in a crash: those attempts get no receipt, so nothing is owed.
    """

    config: ChannelConfig
    channel_id: bytes
    chain_id: int
    decimals: int
    balance: int = 0  # on chain, deposits less refunds and withdrawals
    claimed: int = 0  # on chain
    best: int = 0  # the highest voucher taken
    best_signature: bytes = b""
    total_pico_usd: int = 0  # exact charges
    reported: int = 0  # base units that the payer was told of
    seq: int = 0  # receipts signed
    closing: bool = False  # the payer started a withdrawal
    paying_back: bool = False  # a refund is under way, whatever the chain says meanwhile
    held: dict[bytes, int] = field(default_factory=dict)  # request id -> maximum
    held_total: int = 0
    prepaid: dict[bytes, int] = field(default_factory=dict)  # maxima reported before their work
    prepaid_total: int = 0
    transaction: bytes = b""  # of a one-off payment: the transfer was all, nothing is claimed

    @property
    def earned(self) -> int:
        """Whole base units charged so far: what a claim takes."""
        return base_units_down(self.total_pico_usd, self.decimals)

    @property
    def unclaimed(self) -> int:
        """Base units that a claim would bring now, within what vouchers cover."""
        return max(0, min(self.earned, self.best) - self.claimed)

    def admit(
        self,
        request_id: bytes,
        voucher: Voucher,
        maximum: int,
        booked: tuple[int, int] = (0, 0),
    ) -> None:
        """Take a voucher and hold `maximum` for a request. Raises PaymentRequired.

        `booked`: number and total in pico-USD of the last receipt that the payer has. Where the
        number is above ours, our book was lost, and we go on from the payer's word within its
        voucher: a word that is too low costs us what was not claimed yet, one that is too high
        costs the payer.

        The cheap checks come first, the signature (60 us) last, and not at all where the best
        voucher comes again byte for byte (a window). A voucher that is not above what was charged
        is refused even where an earlier one would do: else a header seen once would buy answers as
        long as the channel has slack.
        """
        assert maximum > 0, "a hold is positive"
        assert request_id not in self.held, "a request is admitted once"
        if self.closing:
            raise PaymentRequired(
                "The payer asked to withdraw this channel; open another.", code="channel_closing"
            )
        if self.paying_back:
            raise PaymentRequired(
                "A refund of this channel is under way; try again after it.",
                code="channel_closing",
            )
        amount = voucher.max_claimable
        if amount > self.balance:
            raise PaymentRequired(
                f"The voucher is for {amount} base units, the channel holds {self.balance};"
                " top it up.",
                code="voucher_balance",
            )
        lost = booked[0] > self.seq
        total = max(self.total_pico_usd, booked[1]) if lost else self.total_pico_usd
        reported = max(self.reported, base_units_down(total, self.decimals))
        needed = reported + self.held_total + maximum
        if amount <= reported or max(amount, self.best) < needed:
            raise PaymentRequired(
                f"The voucher must be for at least {needed} base units: charged {reported},"
                f" in flight {self.held_total}, this request at most {maximum}.",
                code="voucher_amount",
            )
        if (amount, voucher.signature) != (self.best, self.best_signature):
            self.check_signature(voucher)
        if lost:
            self.seq, self.total_pico_usd, self.reported = booked[0], total, reported
        if amount > self.best:
            self.best, self.best_signature = amount, voucher.signature
        self.held[request_id] = maximum
        self.held_total += maximum

    def check_signature(self, voucher: Voucher) -> None:
        """Raise PaymentRequired unless the channel's authoriser signed a voucher."""
        try:
            verify(voucher.digest(self.chain_id), voucher.signature, self.config.payer_authorizer)
        except Refused as error:
            raise PaymentRequired(
                f"The voucher is not signed as the contract wants it: {error.message}.",
                code="voucher_signature",
            ) from None

    def release(self, request_id: bytes) -> None:
        """Drop the hold of a request that ends without a receipt."""
        self.held_total -= self.held.pop(request_id)
        self.prepaid_total -= self.prepaid.pop(request_id, 0)
        assert self.held_total >= 0, "holds are never negative"
        assert self.prepaid_total >= 0, "what was paid ahead is never negative"

    def charge(self, request_id: bytes, charge_pico_usd: int) -> int:
        """Turn a hold into a charge; returns the base units to report for this request.

        The fraction below one base unit is carried: reported = floor(exact total), so a charge
        may report 0 now and 1 later. Since floor(carry + charge) <= ceil(maximum), the report
        never passes what the hold covered.
        """
        self.release(request_id)
        assert charge_pico_usd >= 0, "a charge is never negative"
        self.total_pico_usd += charge_pico_usd
        self.seq += 1
        # A streamed answer to a foreign payer reported its maximum up front: what it did not use
        # is a credit, which is used up here before more is reported. What other streams have
        # reported and not yet used is no credit: it is theirs.
        report = max(0, self.earned + self.prepaid_total - self.reported)
        self.reported += report
        assert self.reported <= self.best, "a charge above the best voucher is unpayable"
        return report

    def report_maximum(self, request_id: bytes) -> int:
        """Report the whole hold at once, before a stream to a foreign payer starts.

        Its exact charge is booked later by `charge`; what it did not use is credited to the next
        requests. Returns the base units reported.
        """
        maximum = self.held[request_id]
        credit = self.reported - self.earned - self.prepaid_total
        assert credit >= 0, "what was reported covers what was earned and what was paid ahead"
        report = max(0, maximum - credit)
        self.reported += report
        # The hold's part of the voucher is now reported; keeping it held too would count twice.
        self.held_total -= maximum
        self.held[request_id] = 0
        self.prepaid[request_id] = maximum
        self.prepaid_total += maximum
        return report

    def view(self, *, corrective: bool = False) -> ChannelView:
        """What the payer is told; in a corrective 402 `charged` includes what is in flight."""
        return ChannelView(
            channel_id=self.channel_id,
            balance=self.balance,
            total_claimed=self.claimed,
            charged=self.reported + (self.held_total if corrective else 0),
            signed_max=self.best,
            signature=self.best_signature,
        )
