"""Who may sign what, and the directory where one machine's keys lie."""

from __future__ import annotations

import secrets
from enum import StrEnum
from pathlib import Path

from inferpool.identity import keystore
from inferpool.identity.keystore import Strength
from inferpool.identity.signing import Key
from inferpool.protocol.errors import Refused


class Role(StrEnum):
    """What a key is for; one key has one role, so that each can be lost and replaced alone.

    Cold keys hold money and are needed seldom; hot keys are open in a running process and cost
    little when they leak.

    - `owner` (cold): a node's stake and payout, the registry's entry, the binding of a node key;
      it replaces all the others.
    - `node` (hot): offers, receipts and evidence; the claims and refunds of its channels, as their
      `receiverAuthorizer`. It holds nothing. A gateway that sells by x402 has one too.
    - `gas` (hot): the chain's transactions. It holds gas only.
    - `payer` (cold): deposits into channels, withdrawals from them.
    - `payer_authorizer` (hot): vouchers, as a channel's `payerAuthorizer`; one a gateway process.
    """

    OWNER = "owner"
    NODE = "node"
    GAS = "gas"
    PAYER = "payer"
    PAYER_AUTHORIZER = "payer_authorizer"


class KeyRing:
    """The keys in one directory, `<role>.json` each, all under one password.

    `strength` is for the files that it makes: "light" only where the password is random.
    """

    __slots__ = ("_directory", "_keys", "_password", "_strength")

    def __init__(self, directory: Path, password: str, strength: Strength = "standard") -> None:
        self._directory = directory
        self._password = password
        self._strength: Strength = strength
        self._keys: dict[Role, Key] = {}

    def __repr__(self) -> str:
        return f"KeyRing({str(self._directory)!r})"

    def path(self, role: Role) -> Path:
        """Where a role's key lies."""
        return self._directory / f"{role}.json"

    def key(self, role: Role, *, create: bool = False) -> Key:
        """The role's key, decrypted once; a new random one where none is and `create` is set.

        Raises Refused(bad_keystore).
        """
        if role not in self._keys:
            path = self.path(role)
            if create and not path.exists():
                self._make(role)
            key = keystore.load(path, self._password)
            if keystore.role(path) not in (role, None):
                raise Refused(
                    f"the keystore {path} holds the key of another role;"
                    " give each file the name of its role",
                    code="bad_keystore",
                )
            self._keys[role] = key
        return self._keys[role]

    def addresses(self) -> dict[Role, bytes]:
        """The addresses of the keys that exist, without the password."""
        return {
            role: keystore.address(self.path(role)) for role in Role if self.path(role).exists()
        }

    def rotate(self, role: Role) -> tuple[Key, Key]:
        """The role's old key and a new one in its place; the old file stays, named by its address.

        Raises Refused(bad_keystore).
        """
        old = self.key(role)
        kept = self._directory / f"{role}.{old.address.hex()}.json"
        self.path(role).rename(kept)
        del self._keys[role]
        return old, self.key(role, create=True)

    def _make(self, role: Role) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = Key(secrets.token_bytes(32))
        try:
            keystore.save(self.path(role), key, self._password, role, strength=self._strength)
        except Refused:
            if not self.path(role).exists():  # otherwise a process beside this one was faster
                raise
