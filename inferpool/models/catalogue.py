"""The models that come with Inferpool, and those that a user describes in a folder of manifests."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from inferpool.models.manifest import Manifest
from inferpool.models.manifest_toml import parse_manifest, read_manifest
from inferpool.protocol.errors import BadRequest, Refused


def all(directory: Path | None = None) -> tuple[Manifest, ...]:  # noqa: A001 - read as catalogue.all()
    """Every manifest, by name: the built-in ones and `directory`'s `*.toml`.

    Raises `Refused(bad_manifest)` for a file that cannot be used or a name that is taken.
    """
    own = sorted(directory.glob("*.toml")) if directory else []
    found = {manifest.name: manifest for manifest in _built_in()}
    for path in own:
        try:
            manifest = read_manifest(path)
        except OSError as error:
            message = f"{path} cannot be read: {error.strerror}"
            raise Refused(message, code="bad_manifest") from error
        if manifest.name in found:
            message = f"{path}: the name {manifest.name!r} is taken; choose another"
            raise Refused(message, code="bad_manifest")
        found[manifest.name] = manifest
    return tuple(found[name] for name in sorted(found))


def load(name_or_id: str, directory: Path | None = None) -> Manifest:
    """The manifest of this name or id (`0x` and 64 hex digits).

    Raises `BadRequest(model_not_found)`, and as `all`.
    """
    manifests = all(directory)
    for manifest in manifests:
        if name_or_id in (manifest.name, manifest.id):
            return manifest
    names = ", ".join(manifest.name for manifest in manifests)
    raise BadRequest(
        f"no model {name_or_id!r}; there are {names}", code="model_not_found", param="model"
    )


@cache
def sampling_of(manifest: bytes) -> dict[str, float]:
    """The sampler numbers of a bundled manifest by its 32-byte id; none for an unknown one."""
    try:
        return load("0x" + manifest.hex()).sampling_defaults()
    except BadRequest:
        return {}


@cache
def _built_in() -> tuple[Manifest, ...]:
    folder = resources.files("inferpool.models").joinpath("catalogue")
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return tuple(
        parse_manifest(entry.read_text("utf-8"), entry.name)
        for entry in entries
        if entry.name.endswith(".toml")
    )
