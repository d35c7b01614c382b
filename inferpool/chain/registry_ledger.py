"""The rules of the registry in plain Python: the contract's checks, order and reasons."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from inferpool.chain.base import Registration
from inferpool.chain.ledger import NOBODY, Tokens, refuse

UNSTAKE_DELAY_S: Final = 7 * 86_400


@dataclass(slots=True)
class Unbonding:
    """Stake on its way out, and the second in which it may leave."""

    amount: int = 0
    ready_at_s: int = 0


class RegistryLedger:
    """The registry, on one token; its own money lies at `at`."""

    def __init__(self, tokens: Tokens, token: bytes, at: bytes, court: bytes) -> None:
        self.owner_of: dict[bytes, bytes] = {}  # node key -> owner, for ever
        self.registered: dict[bytes, tuple[bytes, str]] = {}  # owner -> node key, endpoint
        self.stakes: dict[bytes, int] = defaultdict(int)
        self.unbonding: dict[bytes, Unbonding] = defaultdict(Unbonding)
        self._tokens, self._token, self._at, self._court = tokens, token, at, court

    def listed(self) -> list[Registration]:
        """The registrations in the order of their owners' addresses."""
        return [
            Registration(owner, node, endpoint, self.stakes[owner])
            for owner, (node, endpoint) in sorted(self.registered.items())
        ]

    def register(self, owner: bytes, node: bytes, endpoint: str, stake: int) -> None:
        """Enter a node whose key has agreed."""
        if owner in self.registered:
            refuse("registry: already registered")
        if not endpoint:
            refuse("registry: no endpoint")
        self._check_key(owner, node)
        if stake:
            self._pull(owner, stake)
        self.owner_of[node] = owner
        self.registered[owner] = (node, endpoint)

    def replace_key(self, owner: bytes, node: bytes) -> None:
        """Put another node key into service."""
        _, endpoint = self._registered(owner)
        self._check_key(owner, node)
        self.owner_of[node] = owner
        self.registered[owner] = (node, endpoint)

    def set_endpoint(self, owner: bytes, endpoint: str) -> None:
        """Change where the node is found."""
        node, _ = self._registered(owner)
        if not endpoint:
            refuse("registry: no endpoint")
        self.registered[owner] = (node, endpoint)

    def add_stake(self, owner: bytes, amount: int) -> None:
        """Add to the stake out of the allowance."""
        self._registered(owner)
        if amount == 0:
            refuse("registry: nothing to stake")
        self._pull(owner, amount)

    def unstake(self, owner: bytes, amount: int, now_s: int) -> None:
        """Start the way out of some stake."""
        if amount == 0:
            refuse("registry: nothing to unstake")
        if amount > self.stakes[owner]:
            refuse("registry: more than the stake")
        self._unbond(owner, amount, now_s)

    def withdraw_stake(self, owner: bytes, now_s: int) -> None:
        """Pay out what was unbonding long enough."""
        unbonding = self.unbonding[owner]
        if unbonding.amount == 0:
            refuse("registry: nothing to withdraw")
        if now_s < unbonding.ready_at_s:
            refuse("registry: still unbonding")
        self._tokens.transfer(self._token, self._at, owner, unbonding.amount)
        self.unbonding[owner] = Unbonding()

    def deregister(self, owner: bytes, now_s: int) -> None:
        """Leave; all stake starts its way out."""
        self._registered(owner)
        del self.registered[owner]
        if self.stakes[owner]:
            self._unbond(owner, self.stakes[owner], now_s)

    def slash(self, sender: bytes, owner: bytes, amount: int, to: bytes) -> int:
        """Take stake, for the court; what was taken."""
        if sender != self._court:
            refuse("registry: only the court")
        if to in (NOBODY, self._at):
            refuse("registry: no such receiver")
        unbonding = self.unbonding[owner]
        from_stake = min(amount, self.stakes[owner])
        from_unbonding = min(amount - from_stake, unbonding.amount)
        self._tokens.transfer(self._token, self._at, to, from_stake + from_unbonding)
        self.stakes[owner] -= from_stake
        unbonding.amount -= from_unbonding
        return from_stake + from_unbonding

    def _registered(self, owner: bytes) -> tuple[bytes, str]:
        if owner not in self.registered:
            refuse("registry: not registered")
        return self.registered[owner]

    def _check_key(self, owner: bytes, node: bytes) -> None:
        if self.owner_of.get(node, owner) != owner:
            refuse("registry: key of another owner")

    def _pull(self, owner: bytes, amount: int) -> None:
        self._tokens.pull(self._token, owner, self._at, amount)
        self.stakes[owner] += amount

    def _unbond(self, owner: bytes, amount: int, now_s: int) -> None:
        self.stakes[owner] -= amount
        unbonding = self.unbonding[owner]
        unbonding.amount += amount
        unbonding.ready_at_s = now_s + UNSTAKE_DELAY_S
