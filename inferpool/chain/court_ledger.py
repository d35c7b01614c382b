"""The rules of the court in plain Python: the contract's checks, order and reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from inferpool.chain import cases
from inferpool.chain.cases import Rule
from inferpool.chain.ledger import refuse
from inferpool.chain.registry_ledger import RegistryLedger
from inferpool.protocol.offer import SignedOffer
from inferpool.protocol.receipt import SignedReceipt

SLASHED_ONE_IN: Final = 5
REWARDED_ONE_IN: Final = 10
BURN_ADDRESS: Final = bytes.fromhex("000000000000000000000000000000000000dead")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One event `Judged`; amounts in base units, digests of the receipts, the lower one first."""

    owner: bytes
    node: bytes
    reporter: bytes
    rule: Rule
    first: bytes
    second: bytes
    burnt: int
    rewarded: int


class CourtLedger:
    """The court at `at`, over one registry."""

    def __init__(self, registry: RegistryLedger, chain_id: int, at: bytes) -> None:
        self.verdicts: list[Verdict] = []
        self.judged: set[bytes] = set()
        self._registry, self._chain_id, self._at = registry, chain_id, at

    def report_two_receipts(
        self, reporter: bytes, first: SignedReceipt, second: SignedReceipt
    ) -> None:
        """Punish two different receipts in one place."""
        a, b = (each.receipt.digest(self._chain_id) for each in (first, second))
        if a == b:
            refuse("disputes: one receipt twice")
        if first.receipt.channel_id != second.receipt.channel_id:
            refuse("disputes: two channels")
        if not cases.is_in_one_place(first.receipt, second.receipt):
            refuse("disputes: nothing in common")
        node = _signer(a, first.signature)
        if _signer(b, second.signature) != node:
            refuse("disputes: two keys")
        self._punish(reporter, node, Rule.TWO_RECEIPTS, min(a, b), max(a, b))

    def report_overcharge(
        self, reporter: bytes, receipt: SignedReceipt, offer: SignedOffer
    ) -> None:
        """Punish a charge above the units' price."""
        digest = self._check_offer(receipt, offer)
        if cases.opened(receipt.receipt, offer.offer) is None:
            refuse("disputes: no such service")
        if not cases.is_overcharged(receipt.receipt, offer.offer):
            refuse("disputes: no more than offered")
        self._punish(reporter, offer.offer.node, Rule.OVERCHARGE, digest)

    def report_other_manifest(
        self, reporter: bytes, receipt: SignedReceipt, offer: SignedOffer
    ) -> None:
        """Punish a receipt of another manifest or class than offered."""
        digest = self._check_offer(receipt, offer)
        if not cases.is_other_manifest(receipt.receipt, offer.offer):
            refuse("disputes: as offered")
        self._punish(reporter, offer.offer.node, Rule.OTHER_MANIFEST, digest)

    def _check_offer(self, receipt: SignedReceipt, offer: SignedOffer) -> bytes:
        # The contract hashes for its own chain: an offer of another chain is another offer there.
        digest, node = receipt.receipt.digest(self._chain_id), offer.offer.node
        offer_digest = offer.offer.digest()
        foreign = offer.offer.terms.chain_id != self._chain_id
        if foreign or receipt.receipt.offer_hash != offer_digest:
            refuse("disputes: another offer")
        if _signer(digest, receipt.signature) != node:
            refuse("disputes: not the node's receipt")
        if _signer(offer_digest, offer.signature) != node:
            refuse("disputes: forged offer")
        return digest

    def _punish(
        self, reporter: bytes, node: bytes, rule: Rule, first: bytes, second: bytes = bytes(32)
    ) -> None:
        registry = self._registry
        owner = registry.owner_of.get(node)
        if owner is None:
            refuse("disputes: key of no owner")
        offence = cases.offence(node, first, second)
        if offence in self.judged:
            refuse("disputes: already judged")
        self.judged.add(offence)
        stake = registry.stakes[owner] + registry.unbonding[owner].amount
        penalty = -(-stake // SLASHED_ONE_IN)
        reward = penalty // REWARDED_ONE_IN
        self.verdicts.append(
            Verdict(owner, node, reporter, rule, first, second, penalty - reward, reward)
        )
        for amount, to in ((penalty - reward, BURN_ADDRESS), (reward, reporter)):
            if amount:
                registry.slash(self._at, owner, amount, to)


def _signer(digest: bytes, signature: bytes) -> bytes:
    node = cases.signer(digest, signature)
    if node is None:
        refuse("disputes: bad signature")
    return node
