"""Key files: eth-account reads ours and we read its; every fault says what to do."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from hypothesis import HealthCheck, given, settings

from inferpool.identity import keystore
from inferpool.identity.signing import Key
from inferpool.protocol.errors import InferpoolError, Refused
from tests.protocol import junk

KEY = Key(bytes(range(32)))
PASSWORD = "pässword 🦙"
posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A light file of the node's key."""
    path = tmp_path / "node.json"
    keystore.save(path, KEY, PASSWORD, "node", strength="light")
    return path


def write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document))
    path.chmod(0o600)


def refusal(path: Path, password: str = PASSWORD) -> str:
    with pytest.raises(Refused) as caught:
        keystore.load(path, password)
    assert caught.value.code == "bad_keystore"
    assert str(path) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("kdf", ["scrypt", "pbkdf2"])
def test_eth_account_opens_ours(tmp_path: Path, kdf: keystore.Kdf) -> None:
    path = tmp_path / "key.json"
    keystore.save(path, KEY, PASSWORD, "payer", strength="light", kdf=kdf)
    assert keystore.load(path, PASSWORD).secret == KEY.secret
    document = json.loads(path.read_text())
    assert bytes(Account.decrypt(document, PASSWORD)) == KEY.secret
    assert document["crypto"]["kdf"] == kdf
    assert KEY.secret.hex() not in path.read_text()


@pytest.mark.parametrize(("kdf", "work"), [("scrypt", 2**12), ("pbkdf2", 1_000)])
def test_we_open_those_of_eth_account(tmp_path: Path, kdf: str, work: int) -> None:
    path = tmp_path / "key.json"
    write(path, Account.encrypt(KEY.secret, PASSWORD, kdf=kdf, iterations=work))
    assert keystore.load(path, PASSWORD).secret == KEY.secret
    assert keystore.address(path) == KEY.address
    assert keystore.role(path) is None


def test_standard_strength(tmp_path: Path) -> None:
    path = tmp_path / "owner.json"
    keystore.save(path, KEY, PASSWORD, "owner")
    params = json.loads(path.read_text())["crypto"]["kdfparams"]
    assert (params["n"], params["r"], params["p"]) == (2**18, 8, 1)
    assert keystore.load(path, PASSWORD).secret == KEY.secret


def test_light_files_cost_little_to_open(path: Path) -> None:
    kdf = json.loads(path.read_text())["crypto"]["kdfparams"]
    assert kdf["n"] * kdf["r"] * kdf["p"] <= 2**12 * 8 * 6  # 0.05 s on a core of its own


def test_what_is_in_clear(path: Path) -> None:
    assert keystore.address(path) == KEY.address
    assert keystore.role(path) == "node"


def test_each_file_has_its_own_salt(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        keystore.save(tmp_path / name, KEY, PASSWORD, "gas", strength="light", kdf="pbkdf2")
        texts.append(json.loads((tmp_path / name).read_text())["crypto"])
    assert texts[0]["ciphertext"] != texts[1]["ciphertext"]
    assert texts[0]["kdfparams"]["salt"] != texts[1]["kdfparams"]["salt"]


@posix
def test_only_the_owner_may_read(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for mode in (0o640, 0o604, 0o660, 0o644):
        path.chmod(mode)
        assert f"chmod 600 {path}" in refusal(path)
        with pytest.raises(Refused, match="chmod 600"):
            keystore.address(path)
    path.chmod(0o400)
    assert keystore.load(path, PASSWORD).address == KEY.address


def test_it_never_overwrites(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(Refused, match="never overwritten") as caught:
        keystore.save(path, Key(b"\1" * 32), PASSWORD, "node", strength="light", kdf="pbkdf2")
    assert caught.value.code == "bad_keystore"
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refused, match="No space left"):
        keystore.save(tmp_path / "a", KEY, PASSWORD, "node", strength="light", kdf="pbkdf2")
    assert list(tmp_path.iterdir()) == []


def test_places_that_do_not_do(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="check the directory"):
        keystore.save(tmp_path / "none" / "a", KEY, PASSWORD, "node", strength="light")
    assert "does not exist" in refusal(tmp_path / "none")
    assert "cannot be read" in refusal(tmp_path)


def test_passwords(path: Path) -> None:
    assert "does not open with this password" in refusal(path, "wrong")
    assert "does not open with this password" in refusal(path, "")
    assert "does not open with this password" in refusal(path, "\udcff")
    with pytest.raises(Refused, match="needs a password"):
        keystore.save(path.with_name("a"), KEY, "", "node", strength="light")


def crypto(**changes: Any) -> Callable[[Any], Any]:
    return lambda document: document | {"crypto": document["crypto"] | changes}


def kdf_params(**changes: Any) -> Callable[[Any], Any]:
    return lambda document: crypto(kdfparams=document["crypto"]["kdfparams"] | changes)(document)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda document: [], "version 3"),
        (lambda document: document | {"version": 4}, "version 3"),
        (lambda document: document | {"crypto": None}, "crypto is missing"),
        (lambda document: document | {"address": "00" * 20}, "its address is not that of its key"),
        (lambda document: document | {"address": "00" * 19}, "address is not the hex"),
        (crypto(cipher="aes-256-gcm"), "another cipher"),
        (crypto(cipherparams={"iv": "00" * 15}), "iv is not the hex"),
        (crypto(ciphertext="00" * 33), "ciphertext is not the hex"),
        (crypto(ciphertext="00" * 32), "does not open with this password"),
        (crypto(mac="zz" * 32), "mac is not the hex"),
        (crypto(mac=" " + "00" * 31 + " "), "mac is not the hex"),
        (crypto(kdf="argon2"), "neither scrypt nor pbkdf2"),
        (crypto(kdf=["scrypt"]), "neither scrypt nor pbkdf2"),
        (kdf_params(salt=5), "salt is not the hex"),
        (kdf_params(dklen=16), "dklen is not 32"),
        (kdf_params(n=2**26), "ask scrypt for more"),
        (kdf_params(n=2**40), "n is not a number"),
        (kdf_params(n=4_095), "no power of 2"),
        (kdf_params(n=1), "no power of 2"),
        (kdf_params(r=2**20), "r is not a number"),
        (kdf_params(p=2**20), "p is not a number"),
        (kdf_params(p=True), "p is not a number"),
        (crypto(kdf="pbkdf2"), "prf is not"),
    ],
)
def test_broken_files(path: Path, change: Callable[[Any], Any], why: str) -> None:
    write(path, change(json.loads(path.read_text())))
    assert why in refusal(path)


def test_a_file_cannot_ask_for_endless_rounds(path: Path) -> None:
    params = {"c": 10**12, "dklen": 32, "prf": "hmac-sha256", "salt": "00"}
    write(path, crypto(kdf="pbkdf2", kdfparams=params)(json.loads(path.read_text())))
    assert "c is not a number" in refusal(path)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"{}" + b" " * 20_000 + b"x"])
def test_files_that_are_not_json(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    assert "is broken" in refusal(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    junk.raw
    | junk.mutated(
        Account.encrypt(KEY.secret, PASSWORD, kdf="pbkdf2", iterations=10),
    )
)
def test_hostile_files(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "key.json"
    path.write_bytes(text)
    path.chmod(0o600)
    found: object
    try:
        found = keystore.load(path, PASSWORD).secret
    except InferpoolError as error:
        found = error.code
    assert found in (KEY.secret, "bad_keystore")
