"""Where a machine's state lies: one directory, `INFERPOOL_HOME`, and nothing elsewhere."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson
import platformdirs

from inferpool.identity.keys import KeyRing


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below the home directory, and the few files that roles share there."""

    root: Path

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> Home:
        """`INFERPOOL_HOME`, else the user's data directory."""
        chosen = environ.get("INFERPOOL_HOME")
        root = Path(chosen).expanduser() if chosen else platformdirs.user_data_path("inferpool")
        return cls(root.absolute())

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.root / "config.toml"

    def ledger(self, role: str) -> Path:
        """A role's ledger."""
        return self.root / role / "ledger.sqlite"

    @property
    def chain_state(self) -> Path:
        """The embedded chain's state."""
        return self.root / "chain" / "state.sqlite"

    def keys(self, role: str) -> KeyRing:
        """A role's keys. The password is `INFERPOOL_PASSWORD`, else a random one in a file.

        With the random one the keystores need no slow key derivation: it cannot be guessed.
        """
        password = os.environ.get("INFERPOOL_PASSWORD")
        if password is not None:
            return KeyRing(self.root / "keys" / role, password)
        return KeyRing(self.root / "keys" / role, self._random_password(), "light")

    def _random_password(self) -> str:
        return self.secret("password")

    def secret(self, name: str) -> str:
        """A random secret in a file that only the owner reads; made at the first call.

        Processes that start together agree on one. The file appears whole or not at all: an empty
        one would be a secret that everybody knows.
        """
        path = self.root / name
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _filled(path):
            fresh = self.root / f".{name}.{secrets.token_hex(8)}"
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_urlsafe(32))
            try:
                os.link(fresh, path)
            except FileExistsError:
                if not _filled(path):  # left empty by a process that died; else another was first
                    fresh.replace(path)
            finally:
                fresh.unlink(missing_ok=True)
        return path.read_text("utf-8").strip()

    def announce(self, role: str, facts: Mapping[str, object]) -> None:
        """Write what others on this machine need to reach a running role."""
        path = self.root / "run" / f"{role}.json"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_bytes(orjson.dumps(dict(facts)))
        fresh.replace(path)

    def running(self, role: str) -> dict[str, object] | None:
        """What a role announced, if its process is alive."""
        path = self.root / "run" / f"{role}.json"
        try:
            facts: dict[str, object] = orjson.loads(path.read_bytes())
            os.kill(int(str(facts["pid"])), 0)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return facts

    def gone(self, role: str) -> None:
        """Forget a role that ends."""
        (self.root / "run" / f"{role}.json").unlink(missing_ok=True)


def _filled(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False
