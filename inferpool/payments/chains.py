"""Both sides of chained receipts. Pure: what a node appends and signs, what a payer checks.

The payer's rule: a receipt counts when it arrives and fits; it is *proved* when a signature of the
node covers it, that of its chain or its own. What stays unproved is asked for, and a node that
does not sign what it has charged is a stranger again. Unproved receipts cost the payer no money,
since the charge was checked; they are charges that it could not show to others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from inferpool.identity.signing import Key, verify
from inferpool.protocol.errors import Refused
from inferpool.protocol.limits import CHAIN_MS, CHAIN_RECEIPTS_MAX
from inferpool.protocol.receipt import Receipt
from inferpool.protocol.receipt_chain import (
    START,
    ChainedReceipt,
    ChainProof,
    chain_digest,
    link,
)
from inferpool.protocol.value import value

_EARLY_MAX: Final = 8
UNPROVED_MAX: Final = 4 * CHAIN_RECEIPTS_MAX  # beyond it a payer asks for signed receipts


@dataclass(slots=True)
class ReceiptChain:
    """The node's side of one channel: the chain that is open now."""

    first_seq: int = 0
    count: int = 0
    head: bytes = START
    opened_ms: int = 0

    def append(self, receipt: Receipt, key: Key, chain_id: int, now_ms: int) -> ChainedReceipt:
        """Take one more receipt in; a chain that is long or old enough is ended and signed first.

        The proof leaves with this receipt's answer, thus after all that it covers was durable: the
        journal keeps the order. So a node that crashed never signed for what it has forgotten.
        """
        proof = None
        if self.count and (
            self.count >= CHAIN_RECEIPTS_MAX or not 0 <= now_ms - self.opened_ms < CHAIN_MS
        ):
            digest = chain_digest(
                receipt.channel_id, self.first_seq, self.count, self.head, chain_id
            )
            proof = ChainProof(self.first_seq, self.count, key.sign(digest))
            self.count = 0
        if not self.count:
            self.first_seq, self.head, self.opened_ms = receipt.seq, START, now_ms
        self.head = link(self.head, receipt.digest(chain_id))
        self.count += 1
        return ChainedReceipt.of(receipt, self.first_seq, self.count - 1, self.head, proof)


@value
class ChainSigner:
    """Whose signature proves a chain: the node's, on one channel of one blockchain."""

    node: bytes
    channel_id: bytes
    chain_id: int


@dataclass(slots=True)
class _Chain:
    """What has arrived of one chain, by position: (seq, digest, running hash)."""

    since_ms: int
    found: dict[int, tuple[int, bytes, bytes]] = field(default_factory=dict)


@dataclass(slots=True)
class Unproved:
    """The payer's side of one channel: receipts that no signature covers yet."""

    chains: dict[int, _Chain] = field(default_factory=dict)  # by the seq that each began with
    count: int = 0
    early: dict[int, ChainProof] = field(default_factory=dict)  # came before their last receipt

    def add(self, short: ChainedReceipt, digest: bytes, signer: ChainSigner, now_ms: int) -> None:
        """One more receipt, whose charge was checked, and the proof that came with it.

        Raises Refused where the receipt contradicts one beside it, or a proof is not the node's
        over what arrived. A chain of which an answer was lost stays unproved; its receipts are
        asked for one by one.
        """
        chain = self.chains.get(short.first_seq) or _Chain(now_ms)
        _check_place(chain.found, short.position, digest, short.link)
        chain.found[short.position] = (short.seq, digest, short.link)
        self.chains[short.first_seq] = chain
        self.count += 1
        for proof in (short.proof, self.early.pop(short.first_seq, None)):
            if proof is not None:
                self._prove(proof, signer)

    def _prove(self, proof: ChainProof, signer: ChainSigner) -> None:
        chain = self.chains.get(proof.first_seq)
        if chain is None or any(at not in chain.found for at in range(proof.count)):
            self.early[proof.first_seq] = proof
            if len(self.early) > _EARLY_MAX:
                del self.early[next(iter(self.early))]
            return
        if len(chain.found) > proof.count:
            raise Refused("a chain was signed without its last receipts")
        head = chain.found[proof.count - 1][2]
        digest = chain_digest(
            signer.channel_id, proof.first_seq, proof.count, head, signer.chain_id
        )
        verify(digest, proof.signature, signer.node)
        self.count -= len(chain.found)
        del self.chains[proof.first_seq]

    def prove_one(self, seq: int, digest: bytes) -> None:
        """A receipt that the node signed by itself. Raises Refused where it is another one than
        that which came with the answer."""
        for first_seq, chain in list(self.chains.items()):
            for at, (found, expected, _) in chain.found.items():
                if found == seq:
                    if expected != digest:
                        raise Refused(f"receipt {seq} is signed with other members")
                    del chain.found[at]
                    self.count -= 1
                    if not chain.found:
                        del self.chains[first_seq]
                    return

    def seqs(self) -> list[int]:
        """Numbers of all unproved receipts."""
        return sorted(item[0] for chain in self.chains.values() for item in chain.found.values())

    def overdue(self, before_ms: int) -> bool:
        """Whether a chain has been open since before a time."""
        return any(chain.since_ms <= before_ms for chain in self.chains.values())

    def forget(self) -> None:
        """Give up on what the node does not sign."""
        self.chains.clear()
        self.early.clear()
        self.count = 0


def _check_place(
    found: dict[int, tuple[int, bytes, bytes]], at: int, digest: bytes, running: bytes
) -> None:
    if at in found:
        raise Refused("two receipts at one place of a chain")
    before = START if at == 0 else found[at - 1][2] if at - 1 in found else None
    if before is not None and link(before, digest) != running:
        raise Refused("a running hash is not that of the receipts before it")
    following = found.get(at + 1)
    if following is not None and link(running, following[1]) != following[2]:
        raise Refused("a running hash leaves a receipt out")
