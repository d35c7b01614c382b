"""The key ring: one file a role, made once, opened once."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from eth_account import Account

from inferpool.identity.keys import KeyRing, Role
from inferpool.protocol.errors import Refused

PASSWORD = "a random one"


def ring(directory: Path, password: str = PASSWORD) -> KeyRing:
    return KeyRing(directory, password, strength="light")


def test_keys_are_made_once_and_found_again(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "keys"
    first = ring(directory)
    made = {role: first.key(role, create=True) for role in Role}
    assert len({key.address for key in made.values()}) == len(Role)
    assert all(first.key(role, create=True) is made[role] for role in Role)
    assert {path.name for path in directory.iterdir()} == {f"{role}.json" for role in Role}
    again = ring(directory)
    assert {role: again.key(role).secret for role in Role} == {r: k.secret for r, k in made.items()}
    assert Account.from_key(made[Role.NODE].secret).address.lower() == (
        "0x" + made[Role.NODE].address.hex()
    )
    if os.name == "posix":
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_without_create_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="does not exist") as caught:
        ring(tmp_path).key(Role.OWNER)
    assert caught.value.code == "bad_keystore"
    assert list(tmp_path.iterdir()) == []


def test_addresses_need_no_password(tmp_path: Path) -> None:
    assert ring(tmp_path).addresses() == {}
    made = {role: ring(tmp_path).key(role, create=True) for role in (Role.NODE, Role.GAS)}
    addresses = ring(tmp_path, "wrong").addresses()
    assert addresses == {role: key.address for role, key in made.items()}


def test_a_wrong_password_opens_nothing_and_replaces_nothing(tmp_path: Path) -> None:
    key = ring(tmp_path).key(Role.PAYER, create=True)
    with pytest.raises(Refused, match="does not open with this password"):
        ring(tmp_path, "wrong").key(Role.PAYER, create=True)
    assert ring(tmp_path).key(Role.PAYER).secret == key.secret


def test_a_key_keeps_to_its_role(tmp_path: Path) -> None:
    keys = ring(tmp_path)
    keys.key(Role.OWNER, create=True)
    shutil.copy(keys.path(Role.OWNER), keys.path(Role.GAS))
    with pytest.raises(Refused, match="another role") as caught:
        keys.key(Role.GAS)
    assert caught.value.code == "bad_keystore"


def test_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(lambda _: ring(tmp_path).key(Role.NODE, create=True), range(4)))
    assert len({key.secret for key in keys}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["node.json"]


def test_a_ring_does_not_show_its_password(tmp_path: Path) -> None:
    assert PASSWORD not in repr(ring(tmp_path))


def test_each_role_says_what_it_may_sign() -> None:
    assert all(f"`{role}`" in (Role.__doc__ or "") for role in Role)


def test_the_import_is_cheap() -> None:
    code = "import inferpool.identity.keys, sys; print('eth_account' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
