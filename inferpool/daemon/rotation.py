"""Hot keys replaced, so that no voucher is lost: claimed or booked first, while the role is down.

What the old key stood for stays readable: its file is kept under its address.
"""

from __future__ import annotations

from inferpool.config import Config
from inferpool.daemon.books import payee_book, payer_book
from inferpool.daemon.chains import open_chain
from inferpool.home import Home
from inferpool.identity.keys import Role
from inferpool.protocol.encoding import to_checksum
from inferpool.protocol.errors import BadRequest, Refused, Unavailable

_OF: dict[Role, tuple[str, ...]] = {
    Role.NODE: ("node",),
    Role.PAYER_AUTHORIZER: ("gateway",),
    Role.GAS: ("node", "gateway"),
}
_TRANSFER_GAS = 21_000


async def rotate(config: Config, home: Home, side: str, key: Role) -> dict[str, object]:
    """Replace one hot key; what was done. Raises BadRequest, Refused, Unavailable."""
    if side not in _OF.get(key, ()):
        hot = ", ".join(f"{each} {role}" for role, sides in _OF.items() for each in sides)
        raise BadRequest(f"{side} {key} is no hot key; these are: {hot}.")
    if home.running(side):
        raise Unavailable(f"The {side} runs; end it first.", code="shutting_down")
    done: dict[str, object] = {"side": side, "key": key.value}
    if key is Role.NODE:
        done |= await _claimed(config, home)
    elif key is Role.PAYER_AUTHORIZER:
        await _all_booked(config, home)
    ring = home.keys(side)
    old_gas = ring.key(key) if key is Role.GAS else None
    chain = await open_chain(config.chain, home, sender=old_gas) if old_gas else None
    old, new = ring.rotate(key)
    if chain is not None:
        fee = await chain.gas_price() * _TRANSFER_GAS * 2
        left = await chain.gas_balance(old.address) - fee
        if left > 0:
            await chain.transfer_gas(new.address, left)
        done["moved_wei"] = max(0, left)
    return done | {"old": to_checksum(old.address), "new": to_checksum(new.address)}


async def _claimed(config: Config, home: Home) -> dict[str, object]:
    """Claim everything under the old node key: only it can sign for its channels' claims."""
    if not home.ledger("node").exists():
        return {}
    async with payee_book(config, home) as (channels, claimer):
        report = await claimer.claim()
        left = sum(item.channel.unclaimed for item in await channels.look())
        if left:
            raise Refused(f"{left} base units could not be claimed; the key stays.")
        return {"claimed_base_units": report.claimed, "channels": report.channels}


async def _all_booked(config: Config, home: Home) -> None:
    """Receipts that are still at a node can be fetched under the old key only."""
    if not config.gateway.db and not home.ledger("gateway").exists():
        return
    async with payer_book(config, home) as (_, ledger):
        if ledger.open_attempts:
            raise Refused(
                f"{len(ledger.open_attempts)} attempts still wait for their nodes' word; run the"
                " gateway until `inferpool status` shows no attempt that is lost, then try again."
            )
