"""One encrypted file with everything that money depends on: keys, configuration, ledgers.

    INFERPOOL-BACKUP-1 | salt 16 | nonce 12 | AES-256-GCM of a tar.gz, tag 16

The key is scrypt of the password (n = 2**17, r = 8, p = 1: 128 MiB, a third of a second). Ledgers
are copied by SQLite's own backup, so that a running node may go on writing. Inside, `hashes.json`
has the SHA-256 of each file. Model weights are not in it: they are had again by their hash.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import sqlite3
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Final, NoReturn

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from inferpool.home import Home
from inferpool.identity.keys import KeyRing, Role
from inferpool.protocol.errors import Refused

MAGIC: Final = b"INFERPOOL-BACKUP-1"
HASHES: Final = "hashes.json"
SIZE_MAX: Final = 1 << 30  # it is encrypted in one piece; a ledger of a million receipts has 1 GB
_SALT, _NONCE, _TAG = 16, 12, 16
_HEAD: Final = len(MAGIC) + _SALT + _NONCE
_FILES: Final = ("config.toml", "password", "api-key", "control-token", "canary-key", "lane")
_FOLDERS: Final = ("keys", "tls")
# In this order: what an older book says, a younger chain can bear; not the other way round.
_LEDGERS: Final = ("node/ledger.sqlite", "gateway/ledger.sqlite", "chain/state.sqlite")
_MEMBERS_MAX: Final = 1000


def make(home: Home, password: str) -> tuple[bytes, list[str]]:
    """The file's bytes, and what is in it. Raises Refused."""
    if not password:
        _refuse("a backup needs a password: it holds your keys")
    files = dict(_collect(home))
    if not any(name.startswith("keys/") for name in files):
        _refuse(f"there are no keys in {home.root}: nothing to back up")
    files[HASHES] = orjson.dumps({name: _sha256(data) for name, data in files.items()})
    packed = _pack(files)
    salt, nonce = secrets.token_bytes(_SALT), secrets.token_bytes(_NONCE)
    head = MAGIC + salt + nonce
    sealed = AESGCM(_key(password, salt)).encrypt(nonce, packed, head)
    return head + sealed, sorted(files.keys() - {HASHES})


def write(path: Path, data: bytes) -> None:
    """A new file that only its owner reads. Raises Refused where one is."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        _refuse(f"{path} exists already and is not overwritten")
    except OSError as error:
        _refuse(f"{path} cannot be written: {error.strerror}")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read(data: bytes, password: str) -> dict[str, bytes]:
    """The files in a backup, each checked. Raises Refused for a wrong password or a broken file."""
    if len(data) < _HEAD + _TAG or not data.startswith(MAGIC):
        _refuse("this is no backup of Inferpool")
    if len(data) > SIZE_MAX + _HEAD + _TAG:
        _refuse(f"a backup has at most {SIZE_MAX} bytes")
    salt, nonce = data[len(MAGIC) : len(MAGIC) + _SALT], data[len(MAGIC) + _SALT : _HEAD]
    try:
        packed = AESGCM(_key(password, salt)).decrypt(nonce, data[_HEAD:], data[:_HEAD])
    except InvalidTag:
        _refuse("the password is wrong, or the file is damaged")
    files = _unpack(packed)
    hashes = orjson.loads(files.pop(HASHES, b"{}"))
    if {name: _sha256(content) for name, content in files.items()} != hashes:
        _refuse("what is inside does not match its own hashes")
    return files


def restore(files: Mapping[str, bytes], home: Home) -> None:
    """Write everything into an empty home. Raises Refused where anything of it is there."""
    taken = sorted(name for name in files if (home.root / name).exists())
    if taken:
        _refuse(
            f"{home.root} holds {', '.join(taken[:4])} already and is not overwritten;"
            " move it away, or give another INFERPOOL_HOME"
        )
    for name, content in sorted(files.items()):
        path = home.root / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(path, content)


def verify(files: Mapping[str, bytes], folder: Path, password: str | None) -> list[str]:
    """Open every key and every ledger in an empty scratch folder; what was found, a line each.

    `password`: of the keys, where the backup does not hold it. Raises Refused.
    """
    home = Home(folder)
    restore(files, home)
    secret = files["password"].decode().strip() if "password" in files else password
    found = []
    for role in sorted({PurePosixPath(name).parts[1] for name in files if name[:5] == "keys/"}):
        if secret is None:
            _refuse("the keys have a password of their own: set INFERPOOL_PASSWORD")
        ring = KeyRing(folder / "keys" / role, secret)
        found += [
            f"{role} {key}: 0x{ring.key(key).address.hex()}"
            for key in Role
            if ring.path(key).exists()
        ]
    present = [name for name in _LEDGERS if name in files]
    return [*found, *(f"{name}: {_rows(folder / name)} rows, whole" for name in present)]


def _rows(path: Path) -> int:
    try:
        with closing(sqlite3.connect(path)) as book:
            if book.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                _refuse(f"{path.name} is damaged")
            tables = book.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            counted = (
                book.execute(f'SELECT count(*) FROM "{name}"').fetchone()  # noqa: S608 - a table
                for (name,) in tables
            )
            return sum(row[0] for row in counted)
    except sqlite3.DatabaseError as error:
        _refuse(f"{path.name} is no database: {error}")


def _collect(home: Home) -> Iterator[tuple[str, bytes]]:
    for name in _FILES:
        if (home.root / name).is_file():
            yield name, (home.root / name).read_bytes()
    for folder in _FOLDERS:
        for path in sorted((home.root / folder).rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(home.root).as_posix(), path.read_bytes()
    for name in _LEDGERS:
        if (home.root / name).is_file():
            yield name, _snapshot(home.root / name)


def _snapshot(path: Path) -> bytes:
    """A consistent copy of a database that another process may be writing."""
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as source,
        closing(sqlite3.connect(":memory:")) as target,
    ):
        source.backup(target)
        # The copy must not ask for a -wal file beside it.
        return _without_wal(target.serialize())


def _without_wal(data: bytes) -> bytes:
    """Bytes 18 and 19 of a database say 2 for a write-ahead log, 1 for none."""
    return data[:18] + b"\x01\x01" + data[20:] if len(data) >= 20 else data


def _pack(files: Mapping[str, bytes]) -> bytes:
    if sum(map(len, files.values())) > SIZE_MAX:
        _refuse(f"keys and ledgers are over {SIZE_MAX} bytes; copy the ledgers by other means")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _unpack(packed: bytes) -> dict[str, bytes]:
    """Plain files with plain relative names; it was encrypted by a key of ours, and yet."""
    files: dict[str, bytes] = {}
    left = SIZE_MAX
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if not member.isfile() or path.is_absolute() or ".." in path.parts:
                _refuse(f"it holds {member.name!r}, which is no plain file")
            left -= member.size
            stream = archive.extractfile(member)
            if left < 0 or len(files) >= _MEMBERS_MAX or stream is None:
                _refuse("it holds more than a backup may")
            files[path.as_posix()] = stream.read()
    return files


def _key(password: str, salt: bytes) -> bytes:
    secret = password.encode(errors="surrogateescape")
    return hashlib.scrypt(secret, salt=salt, n=2**17, r=8, p=1, dklen=32, maxmem=1 << 28)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _refuse(why: str) -> NoReturn:
    raise Refused(why[:1].upper() + why[1:] + ".", code="bad_backup")
