"""Both sides' money, opened from a home: by the roles that run, and by commands while none does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from inferpool.chain.client import EvmChain
from inferpool.clock import Clock, SystemClock
from inferpool.config import Config, GatewayConfig
from inferpool.daemon.chains import open_chain
from inferpool.daemon.payee import payee_of, payee_side, terms_of
from inferpool.daemon.shared import book_of
from inferpool.daemon.workers import Worker
from inferpool.gateway.capital import Capital
from inferpool.gateway.deposits import WITHOUT_END
from inferpool.gateway.treasury import Caps, Treasury
from inferpool.home import Home
from inferpool.identity.keys import KeyRing, Role
from inferpool.identity.signing import Key
from inferpool.payments.claims import Claimer
from inferpool.payments.journal import SqlJournal
from inferpool.payments.payer_ledger import PayerLedger
from inferpool.payments.standing import Channels
from inferpool.protocol.encoding import from_hex, to_checksum
from inferpool.protocol.errors import Refused
from inferpool.protocol.voucher import PERMIT2_ADDRESS

_GAS_OF_A_WAY_BACK: Final = 80_000  # of one transaction; `gas.json` has 51,428 and 47,895


def caps_of(settings: GatewayConfig) -> Caps:
    """The operator's bounds."""
    return Caps(
        deposit=settings.deposit_base_units,
        per_node=settings.cap_per_node_base_units,
        total=settings.cap_total_base_units,
        per_day=settings.cap_per_day_base_units,
        window=settings.window,
        window_units=settings.window_base_units,
    )


def capital_of(
    config: Config, chain: EvmChain, treasury: Treasury, gas: Key, clock: Clock
) -> Capital:
    """What watches over a treasury's channels; the payer's key gets gas as it needs it."""
    payer = treasury.payer

    async def fuel() -> None:
        needed = await chain.gas_price() * _GAS_OF_A_WAY_BACK
        held = await chain.gas_balance(payer.address)
        if held >= needed:
            return
        if await chain.gas_balance(gas.address) < needed:
            raise Refused(
                f"Neither the payer key nor the gas key {to_checksum(gas.address)} holds the"
                f" {needed} wei of gas that this takes; send it some.",
                code="chain_reverted",
            )
        await chain.transfer_gas(payer.address, needed - held)

    sender = chain.with_sender(payer)

    async def allow(token: bytes) -> None:
        await fuel()
        await sender.approve(token, PERMIT2_ADDRESS, WITHOUT_END)

    treasury.deposits.allow = allow
    return Capital(treasury, sender, clock, config.gateway.idle_release_s, fuel)


@asynccontextmanager
async def payer_book(config: Config, home: Home) -> AsyncIterator[tuple[Capital, PayerLedger]]:
    """The gateway's side, while no gateway runs. Raises Refused, Unavailable."""
    keys = _keys(home, "gateway", Role.PAYER, Role.PAYER_AUTHORIZER, Role.GAS)
    gas = keys.key(Role.GAS)
    chain = await open_chain(config.chain, home, sender=gas)
    journal = SqlJournal(book_of(config.gateway, home))
    try:
        lane = Worker().lane(home, shared=bool(config.gateway.db))
        ledger = PayerLedger(journal, chain.chain_id, lane)
        treasury = Treasury(
            chain,
            ledger,
            keys.key(Role.PAYER),
            keys.key(Role.PAYER_AUTHORIZER),
            caps_of(config.gateway),
        )
        yield capital_of(config, chain, treasury, gas, SystemClock()), ledger
    finally:
        journal.close()


@asynccontextmanager
async def payee_book(
    config: Config, home: Home, role: str = "node"
) -> AsyncIterator[tuple[Channels, Claimer]]:
    """The payee's side of a node, or of a gateway that sells by x402, while it does not run.

    Raises Refused, Unavailable.
    """
    cold = Role.OWNER if role == "node" else Role.PAYER
    keys = _keys(home, role, cold, Role.NODE, Role.GAS)
    key, owner = keys.key(Role.NODE), keys.key(cold)
    chain = await open_chain(config.chain, home, sender=keys.key(Role.GAS), authorizer=key)
    node = role == "node"
    receiver = payee_of(config.node, owner) if node else sales_to(config.gateway, owner)
    terms = terms_of(config, chain, receiver, key.address)
    journal = SqlJournal(home.ledger(role))
    try:
        payee = await payee_side(config, chain, journal, terms, SystemClock())
        yield payee.channels, payee.claimer
    finally:
        journal.close()


def sells(home: Home) -> bool:
    """Whether the gateway of a home has ever sold by x402."""
    keys = home.keys("gateway")
    return home.ledger("gateway").exists() and keys.path(Role.NODE).exists()


def sales_to(settings: GatewayConfig, payer: Key) -> bytes:
    """Whom callers pay who pay a gateway by x402. Raises Refused(bad_config)."""
    try:
        return from_hex(settings.payout, 20) if settings.payout else payer.address
    except ValueError as error:
        message = f"gateway.payout: {error}"
        raise Refused(message, code="bad_config", param="gateway.payout") from None


def _keys(home: Home, role: str, *needed: Role) -> KeyRing:
    keys = home.keys(role)
    if any(not keys.path(each).exists() for each in needed):
        raise Refused(f"No {role} has run from {home.root} yet: it has no channels.")
    return keys
