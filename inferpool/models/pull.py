"""Bring a model's files into the store, from the first source that gives the right bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast, get_args

from inferpool.models.manifest import File, HubSource, Manifest, Source
from inferpool.models.partial import OnProgress, SourceError
from inferpool.models.sources import Prefer, Tools, deliver, describe, in_order, room_needed
from inferpool.models.store import Store
from inferpool.protocol.errors import Refused, Unavailable

# "package" or "hub": that kind of source is tried first, instead of the manifest's order.
PREFER_VARIABLE: Final = "INFERPOOL_MODEL_SOURCE"


def preferred(environ: Mapping[str, str] = os.environ) -> Prefer | None:
    """What `INFERPOOL_MODEL_SOURCE` asks for. Raises `Refused(bad_config)` on other values."""
    value = environ.get(PREFER_VARIABLE) or None
    if value is not None and value not in get_args(Prefer):
        message = f"{PREFER_VARIABLE} is {value!r}; it may be package or hub"
        raise Refused(message, code="bad_config")
    return cast("Prefer | None", value)


def pull_model(
    store: Store,
    manifest: Manifest,
    *,
    prefer: Prefer | None = None,
    tools: Tools | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Path]:
    """All files of a model, by name. Raises as `pull`."""
    return {
        file.name: pull(store, file, prefer=prefer, tools=tools, on_progress=on_progress)
        for file in manifest.files
    }


def pull(
    store: Store,
    file: File,
    *,
    prefer: Prefer | None = None,
    tools: Tools | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """The file's path in the store, fetched if it is not there.

    `prefer` outranks the environment, which outranks the manifest's order. Raises
    `Unavailable(source_failed)` with a line for each source, or `Refused(bad_hash)` when the
    store's own copy is broken.
    """
    if store.has(file):
        return store.path(file)
    with store.lock(file):
        if store.has(file):  # another process was faster
            return store.path(file)
        sources = in_order(file.sources, prefer or preferred())
        return _first(store, file, sources, tools or Tools(), on_progress)


def _first(
    store: Store,
    file: File,
    sources: list[Source],
    tools: Tools,
    on_progress: OnProgress | None,
) -> Path:
    failures: list[str] = []
    for source in sources:
        try:
            return _from(store, file, source, tools, on_progress)
        except (SourceError, Refused, OSError) as error:
            failures.append(f"- {describe(source)}: {error}")
    lines = failures or ["- the manifest names no source; put the file into the store by hand"]
    raise Unavailable("\n".join([f"no source gave {file.name}:", *lines]), code="source_failed")


def _from(
    store: Store, file: File, source: Source, tools: Tools, on_progress: OnProgress | None
) -> Path:
    store.check_room(room_needed(source, file))
    with store.partial(file, on_progress) as partial, store.scratch() as folder:
        begun = partial.written
        deliver(source, partial, tools, folder)
        try:
            return store.adopt(partial)
        except Refused:
            if not (begun and isinstance(source, HubSource)):
                raise
    # The bytes of an earlier try may be the wrong ones: once more without them.
    return _from(store, file, source, tools, on_progress)
