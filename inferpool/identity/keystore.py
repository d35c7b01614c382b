"""Encrypted key files: Web3 Secret Storage, version 3, as eth-account and geth read and write them.

A file is written once, whole, with mode 0600, and never over another. Its address and role are in
clear. Every fault is Refused(bad_keystore) with a sentence that says what to do.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import uuid
from pathlib import Path
from typing import Final, Literal, NoReturn

import orjson

from inferpool.identity.signing import Key
from inferpool.protocol.eip712 import keccak256
from inferpool.protocol.errors import Refused

Strength = Literal["light", "standard"]
Kdf = Literal["scrypt", "pbkdf2"]

# scrypt's (n, r, p), both as geth has them: 50 ms and 4 MiB, 1 s and 256 MiB. Light is for
# passwords that nobody can guess: the 32 random bytes that the embedded default writes next to
# its keys. A password that a person chose needs standard, in every file that it opens: the
# weakest of them is the one that is attacked.
_SCRYPT: Final[dict[Strength, tuple[int, int, int]]] = {
    "light": (2**12, 8, 6),
    "standard": (2**18, 8, 1),
}
_PBKDF2_ROUNDS: Final[dict[Strength, int]] = {"light": 4_096, "standard": 1_000_000}

# A file from elsewhere may ask for this much work and no more.
_MEMORY_MAX: Final = 512 * 1024 * 1024
_SCRYPT_R_MAX: Final = 64
_SCRYPT_P_MAX: Final = 16
_PBKDF2_ROUNDS_MAX: Final = 10_000_000
_FILE_MAX: Final = 16 * 1024

_HEX: Final = re.compile("(?:0x)?((?:[0-9a-fA-F]{2})*)")


def save(
    path: Path,
    key: Key,
    password: str,
    role: str,
    *,
    strength: Strength = "standard",
    kdf: Kdf = "scrypt",
) -> None:
    """Encrypt a key into a new file. Refuses where a file is, and an empty password."""
    if not password:
        _refuse(path, "needs a password; an empty one would leave the key open")
    salt, iv = secrets.token_bytes(32), secrets.token_bytes(16)
    params: dict[str, object] = {"dklen": 32, "salt": salt.hex()}
    if kdf == "scrypt":
        n, r, p = _SCRYPT[strength]
        params |= {"n": n, "r": r, "p": p}
    else:
        params |= {"c": _PBKDF2_ROUNDS[strength], "prf": "hmac-sha256"}
    derived = _derive(path, kdf, params, password)
    ciphertext = _aes_ctr(derived[:16], iv, key.secret)
    document = {
        "address": key.address.hex(),
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": iv.hex()},
            "ciphertext": ciphertext.hex(),
            "kdf": kdf,
            "kdfparams": params,
            "mac": keccak256(derived[16:32] + ciphertext).hex(),
        },
        "id": str(uuid.uuid4()),
        "role": role,
        "version": 3,
    }
    _write_new(path, orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")


def load(path: Path, password: str) -> Key:
    """Decrypt a key file. Refuses a wrong password, a broken file and one that others can read."""
    document = _read(path)
    crypto = _member(path, document, "crypto")
    if crypto.get("cipher") != "aes-128-ctr":
        _refuse(
            path, "uses another cipher than aes-128-ctr; make the file with eth-account or geth"
        )
    iv = _data(path, _member(path, crypto, "cipherparams"), "iv", 16)
    ciphertext = _data(path, crypto, "ciphertext", 32)
    mac = _data(path, crypto, "mac", 32)
    derived = _derive(path, crypto.get("kdf"), _member(path, crypto, "kdfparams"), password)
    if not hmac.compare_digest(keccak256(derived[16:32] + ciphertext), mac):
        _refuse(path, "does not open with this password; give the one that it was made with")
    try:
        key = Key(_aes_ctr(derived[:16], iv, ciphertext))
    except ValueError:
        _broken(path, "what it holds is not a private key")
    if key.address != _address(path, document):
        _broken(path, "its address is not that of its key")
    return key


def address(path: Path) -> bytes:
    """The 20-byte address that a key file names in clear; `load` checks it against the key."""
    return _address(path, _read(path))


def role(path: Path) -> str | None:
    """The role that a key file names in clear, None in files that others made."""
    value = _read(path).get("role")
    return value if isinstance(value, str) else None


def _refuse(path: Path, why: str) -> NoReturn:
    raise Refused(f"the keystore {path} {why}", code="bad_keystore", param=str(path))


def _broken(path: Path, why: str) -> NoReturn:
    _refuse(path, f"is broken: {why}; restore it from a copy")


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if os.name == "posix" and mode & 0o077:
                _refuse(path, f"can be opened by others (mode {mode:o}); run: chmod 600 {path}")
            text = file.read(_FILE_MAX + 1)
    except FileNotFoundError:
        _refuse(path, "does not exist; check the directory, or make a new key")
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror}); check its owner and its mode")
    try:
        document = orjson.loads(text[:_FILE_MAX])
    except orjson.JSONDecodeError:
        _broken(path, "it is not JSON")
    if not isinstance(document, dict) or document.get("version") != 3:
        _broken(path, "it is not a Web3 Secret Storage file of version 3")
    return document


def _member(path: Path, members: dict[str, object], name: str) -> dict[str, object]:
    value = members.get(name)
    if not isinstance(value, dict):
        _broken(path, f"{name} is missing")
    return value


def _data(path: Path, members: dict[str, object], name: str, length: int | None) -> bytes:
    value = members.get(name)
    match = _HEX.fullmatch(value) if isinstance(value, str) else None
    data = bytes.fromhex(match[1]) if match else b""
    if not match or (length is not None and len(data) != length):
        _broken(path, f"{name} is not the hex that belongs there")
    return data


def _address(path: Path, document: dict[str, object]) -> bytes:
    return _data(path, document, "address", 20)


def _count(path: Path, members: dict[str, object], name: str, greatest: int) -> int:
    value = members.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= greatest:
        _broken(path, f"{name} is not a number from 1 to {greatest}")
    return value


def _derive(path: Path, kdf: object, params: dict[str, object], password: str) -> bytes:
    secret = password.encode(errors="surrogateescape")  # as the environment gave it
    salt = _data(path, params, "salt", None)
    if params.get("dklen") != 32:
        _broken(path, "dklen is not 32")
    if kdf == "pbkdf2":
        if params.get("prf") != "hmac-sha256":
            _broken(path, "prf is not hmac-sha256")
        rounds = _count(path, params, "c", _PBKDF2_ROUNDS_MAX)
        return hashlib.pbkdf2_hmac("sha256", secret, salt, rounds, 32)
    if kdf != "scrypt":
        _broken(path, "kdf is neither scrypt nor pbkdf2")
    n = _count(path, params, "n", _MEMORY_MAX)
    r = _count(path, params, "r", _SCRYPT_R_MAX)
    p = _count(path, params, "p", _SCRYPT_P_MAX)
    if n < 2 or n & (n - 1) or 128 * n * r > _MEMORY_MAX:
        _broken(
            path, f"n and r ask scrypt for more than {_MEMORY_MAX} bytes, or n is no power of 2"
        )
    # maxmem is a bound for the work above and its small change, not an amount.
    return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, dklen=32, maxmem=2 * _MEMORY_MAX)


def _aes_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor().update(data)


def _write_new(path: Path, text: bytes) -> None:
    """Whole or not at all: a file of its own, made durable, then linked to its name, which fails
    where the name is taken."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.link(part, path)
        finally:
            part.unlink()
    except FileExistsError:
        _refuse(path, "exists already and is never overwritten; move it away to make a new key")
    except OSError as error:
        _refuse(path, f"cannot be written ({error.strerror}); check the directory")
    if os.name == "posix":
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
