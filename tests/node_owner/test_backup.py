"""A backup holds everything that money depends on, opens with its password only, and overwrites
nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferpool import backup
from inferpool.home import Home
from inferpool.identity.keys import Role
from inferpool.payments.journal import SqlJournal
from inferpool.protocol.errors import Refused

PASSWORD = "correct horse"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home with keys, a configuration and a ledger that is open in another process's manner."""
    monkeypatch.delenv("INFERPOOL_PASSWORD", raising=False)
    found = Home(tmp_path / "home")
    for role in (Role.OWNER, Role.NODE):
        found.keys("node").key(role, create=True)
    found.config.write_text('[node]\nmodels = ["spam"]\n')
    return found


@pytest.fixture
def ledger(home: Home) -> SqlJournal:
    journal = SqlJournal(home.ledger("node"))
    with sqlite3.connect(home.ledger("node")) as book:
        book.execute(
            "INSERT INTO payee_claims VALUES (1, 1, '10', '10', '5', '7')",
        )
    book.close()
    yield journal  # type: ignore[misc]
    journal.close()


def test_what_was_backed_up_is_restored(home: Home, ledger: SqlJournal, tmp_path: Path) -> None:
    data, names = backup.make(home, PASSWORD)
    assert {"config.toml", "password", "keys/node/owner.json", "node/ledger.sqlite"} <= set(names)
    files = backup.read(data, PASSWORD)
    there = Home(tmp_path / "elsewhere")
    backup.restore(files, there)
    owner = home.keys("node").key(Role.OWNER)
    assert there.keys("node").key(Role.OWNER).address == owner.address
    assert there.config.read_text() == home.config.read_text()
    with sqlite3.connect(there.ledger("node")) as book:
        assert book.execute("SELECT claimed, fee_wei FROM payee_claims").fetchall() == [("10", "7")]
    book.close()
    SqlJournal(there.ledger("node")).close()
    for path in there.root.rglob("*.json"):
        assert path.stat().st_mode & 0o077 == 0, "only the owner reads it"


def test_verifying_opens_every_key_and_ledger(
    home: Home, ledger: SqlJournal, tmp_path: Path
) -> None:
    files = backup.read(backup.make(home, PASSWORD)[0], PASSWORD)
    found = backup.verify(files, tmp_path / "scratch", None)
    address = home.keys("node").key(Role.OWNER).address.hex()
    assert f"node owner: 0x{address}" in found
    assert "node/ledger.sqlite: 1 rows, whole" in found


def test_a_damaged_ledger_does_not_verify(home: Home, ledger: SqlJournal, tmp_path: Path) -> None:
    files = backup.read(backup.make(home, PASSWORD)[0], PASSWORD)
    files["node/ledger.sqlite"] = b"not a database, but long enough to look like one" * 99
    with pytest.raises(Refused, match="no database"):
        backup.verify(files, tmp_path / "scratch", None)


def test_keys_with_a_password_of_their_own_need_it_to_verify(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERPOOL_PASSWORD", "chosen by a person")
    there = Home(tmp_path / "own")
    there.root.mkdir()
    there.keys("node").key(Role.NODE, create=True)
    files = backup.read(backup.make(there, PASSWORD)[0], PASSWORD)
    assert "password" not in files
    with pytest.raises(Refused, match="INFERPOOL_PASSWORD"):
        backup.verify(files, tmp_path / "a", None)
    with pytest.raises(Refused, match="does not open"):
        backup.verify(files, tmp_path / "b", "guess")
    assert len(backup.verify(files, tmp_path / "c", "chosen by a person")) == 1


def test_another_password_opens_nothing(home: Home) -> None:
    data, _ = backup.make(home, PASSWORD)
    with pytest.raises(Refused, match="password is wrong") as refused:
        backup.read(data, PASSWORD + " ")
    assert refused.value.code == "bad_backup"


def test_nothing_is_overwritten(home: Home, tmp_path: Path) -> None:
    data, _ = backup.make(home, PASSWORD)
    before = home.config.read_bytes()
    with pytest.raises(Refused, match="not overwritten"):
        backup.restore(backup.read(data, PASSWORD), home)
    assert home.config.read_bytes() == before
    target = tmp_path / "file"
    backup.write(target, data)
    with pytest.raises(Refused, match="exists already"):
        backup.write(target, b"")
    assert target.read_bytes() == data
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("password", ["", None])
def test_a_backup_without_a_password_or_keys_is_refused(
    home: Home, tmp_path: Path, password: str | None
) -> None:
    with pytest.raises(Refused):
        backup.make(home if password == "" else Home(tmp_path / "empty"), password or "")


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_change_of_a_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = _sealed(tmp_path_factory)
    at = data.draw(st.integers(0, len(whole) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(whole)
    changed[at] ^= 1 << bit
    with pytest.raises(Refused):
        backup.read(bytes(changed), PASSWORD)


_CACHE: list[bytes] = []


def _sealed(factory: pytest.TempPathFactory) -> bytes:
    if not _CACHE:
        home = Home(factory.mktemp("sealed"))
        home.keys("node").key(Role.NODE, create=True)
        _CACHE.append(backup.make(home, PASSWORD)[0])
    return _CACHE[0]


@given(st.binary(max_size=200))
def test_what_is_no_backup_is_refused(junk: bytes) -> None:
    with pytest.raises(Refused):
        backup.read(junk, PASSWORD)


def test_a_member_that_leaves_the_folder_is_refused() -> None:
    packed = backup._pack({"../outside": b"x"})
    with pytest.raises(Refused, match="no plain file"):
        backup._unpack(packed)
