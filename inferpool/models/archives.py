"""Members of wheels (zip) and npm packages (tar), read as bytes: nothing is unpacked or run.

An archive that holds a path leading outside itself is refused as a whole, as is a member that is
a link, a folder or there twice.
"""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from inferpool.models.partial import SourceError

MAX_MEMBERS: Final = 200_000

_BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)


@contextmanager
def open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """The bytes of one member. Raises `SourceError` when it is not there or not plain."""
    _check_names([member], archive)
    reader = _zip_member if zipfile.is_zipfile(archive) else _tar_member
    with reader(archive, member) as stream:
        yield stream


def members(archive: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every plain member of a tar whose name ends so, in archive order."""
    with _reading(archive), tarfile.open(archive, "r:*") as tar:
        for info in _tar_infos(tar, archive):
            stream = tar.extractfile(info) if info.isreg() and info.name.endswith(suffix) else None
            if stream:
                yield info.name, stream.read()


@contextmanager
def _zip_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    with _reading(archive), zipfile.ZipFile(archive) as wheel:
        names = wheel.namelist()
        _check_names(names, archive)
        if names.count(member) != 1 or member.endswith("/"):
            raise SourceError(f"{archive.name} has {names.count(member)} members {member!r}, not 1")
        with wheel.open(member) as stream:
            yield stream


@contextmanager
def _tar_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    with _reading(archive), tarfile.open(archive, "r:*") as tar:
        infos = [info for info in _tar_infos(tar, archive) if info.name == member]
        if len(infos) != 1 or not infos[0].isreg():
            raise SourceError(f"{archive.name} has no single plain member {member!r}")
        stream = tar.extractfile(infos[0])
        assert stream is not None, "a regular member has a stream"
        yield stream


def _tar_infos(tar: tarfile.TarFile, archive: Path) -> list[tarfile.TarInfo]:
    infos = tar.getmembers()
    _check_names([info.name for info in infos], archive)
    return infos


def _check_names(names: list[str], archive: Path) -> None:
    if len(names) > MAX_MEMBERS:
        raise SourceError(f"{archive.name} has over {MAX_MEMBERS} members")
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in name.split("/") or ":" in name[:3]:
            raise SourceError(f"{archive.name} is refused: {name!r} leads outside of it")


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise SourceError(f"{archive.name} cannot be read: {error}") from error
    except RuntimeError as error:  # zipfile's answer to an encrypted member
        raise SourceError(f"{archive.name} cannot be read: {error}") from error
