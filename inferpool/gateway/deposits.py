"""How a payer's deposit is authorised: by EIP-3009 where the token has it, else by Permit2.

Permit2 needs an allowance of the payer's, which is given once and without end: it moves nothing by
it but what the payer signs for, deposit by deposit, each for one channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from inferpool.chain.authorization import authorize_deposit, permit_deposit
from inferpool.chain.base import Chain, DepositAuthorization, Permit2Deposit
from inferpool.identity.signing import Key
from inferpool.protocol.errors import Refused
from inferpool.protocol.offer import Terms
from inferpool.protocol.voucher import PERMIT2_ADDRESS, ChannelConfig

WITHOUT_END: Final = 2**256 - 1
_VALID_S: Final = 3600


async def _cannot_allow(token: bytes) -> None:
    raise Refused("this payer gives no allowances", code="chain_reverted")


@dataclass(slots=True)
class Deposits:
    """Signs one payer's deposits. `allow` has the payer allow Permit2 a token, without end."""

    chain: Chain
    payer: Key
    allow: Callable[[bytes], Awaitable[None]] = _cannot_allow
    _by_signature: dict[bytes, bool] = field(default_factory=dict)  # token -> has EIP-3009
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def authorise(
        self, config: ChannelConfig, amount: int, terms: Terms, salt: int, now_s: int
    ) -> DepositAuthorization | Permit2Deposit:
        """A deposit of `amount` base units, good once and for an hour. Raises Refused, Unavailable
        where the allowance that it needs cannot be had."""
        chain_id, until_s = terms.chain_id, now_s + _VALID_S
        if await self._has_authorizations(config.token):
            return authorize_deposit(
                self.payer,
                config,
                amount,
                chain_id=chain_id,
                name=terms.asset_name,
                version=terms.asset_version,
                valid_before_s=until_s,
                salt=salt,
            )
        async with self._lock:
            held = await self.chain.allowance(config.token, config.payer, PERMIT2_ADDRESS)
            if held < amount:
                await self.allow(config.token)
        return permit_deposit(
            self.payer, config, amount, chain_id=chain_id, deadline_s=until_s, nonce=salt
        )

    async def _has_authorizations(self, token: bytes) -> bool:
        """Asked once of each token that one deposits: caps and offers bound how many these are."""
        if token not in self._by_signature:
            self._by_signature[token] = await self.chain.takes_authorizations(token)
        return self._by_signature[token]
