"""What a role needs to be paid: terms, gate, the book of its channels, and what claims for it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from inferpool.chain.base import Chain
from inferpool.chain.client import EvmChain
from inferpool.clock import Clock
from inferpool.config import Config, NodeConfig
from inferpool.daemon.chains import asset_of
from inferpool.identity.signing import Key
from inferpool.payments.claims import Claimer
from inferpool.payments.gate import PaymentGate, deposit_method
from inferpool.payments.journal import Journal
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.payments.payers import Payers
from inferpool.payments.standing import Channels
from inferpool.protocol.encoding import from_hex
from inferpool.protocol.errors import InferpoolError, Refused
from inferpool.protocol.offer import Terms

_LOG = logging.getLogger("inferpool.claims")


@dataclass(frozen=True, slots=True)
class Payee:
    """One payee's side of all its channels."""

    ledger: PayeeLedger
    gate: PaymentGate
    claimer: Claimer
    channels: Channels

    def jobs(self, claim_every_s: int) -> list[asyncio.Task[None]]:
        """Watch for withdrawals, and claim now and then, until cancelled."""
        return [
            asyncio.create_task(self.claimer.watch(), name="watch"),
            asyncio.create_task(_claim_often(self.claimer, claim_every_s), name="claim"),
        ]


async def payee_side(
    config: Config, chain: EvmChain, journal: Journal, terms: Terms, clock: Clock
) -> Payee:
    """Everything, over one ledger; `chain` sends claims.

    Raises Refused(bad_config), Unavailable.
    """
    ledger = PayeeLedger(journal, chain.chain_id, terms.asset_decimals)
    method = await deposit_method(chain, terms.asset)
    gate = gate_of(config.node, terms, chain, ledger, method)
    claimer = Claimer(terms, chain, ledger, gate, clock)
    return Payee(ledger, gate, claimer, Channels(chain, ledger, gate, claimer))


def payee_of(config: NodeConfig, owner: Key) -> bytes:
    """Where claims are paid to. Raises Refused(bad_config)."""
    if not config.payout:
        return owner.address
    try:
        return from_hex(config.payout, 20)
    except ValueError as error:
        raise Refused(f"node.payout: {error}", code="bad_config", param="node.payout") from None


def payers_of(config: NodeConfig) -> Payers:
    """Whom the owner serves. Raises Refused(bad_config)."""
    return Payers.of(config.allow, config.deny)


def terms_of(config: Config, chain: EvmChain, payee: bytes, authorizer: bytes) -> Terms:
    """Payment terms from the configuration; a gateway that sells has those of `[node]` too."""
    return Terms(
        chain_id=chain.chain_id,
        asset=asset_of(config.chain),
        asset_name=config.chain.asset_name,
        asset_version=config.chain.asset_version,
        asset_decimals=config.chain.asset_decimals,
        payee=payee,
        receiver_authorizer=authorizer,
        min_deposit=config.node.min_deposit_base_units,
        withdraw_delay_s=config.node.withdraw_delay_s,
        window=window_of(config.node.window),
    )


def gate_of(
    config: NodeConfig, terms: Terms, chain: Chain, ledger: PayeeLedger, method: str
) -> PaymentGate:
    """What lets paid requests in. Raises Refused(bad_config)."""
    if config.one_off_base_units < 0:
        message = "node.one_off_base_units must be 0 or more"
        raise Refused(message, code="bad_config", param="node.one_off_base_units")
    return PaymentGate(
        terms,
        chain,
        ledger,
        payers_of(config),
        concurrent_per_channel=config.concurrent_per_channel,
        one_off_least=config.one_off_base_units,
        method=method,
    )


def window_of(maxima: int) -> int:
    """`node.window`. Raises Refused(bad_config)."""
    if not 0 < maxima < 2**32:
        raise Refused("node.window must be 1 or more", code="bad_config", param="node.window")
    return maxima


async def _claim_often(claimer: Claimer, every_s: int) -> None:
    while True:
        await asyncio.sleep(max(60, every_s))
        try:
            await claimer.claim()
        except InferpoolError as error:
            _LOG.warning("claiming failed, it will be tried again: %s", error.message)
