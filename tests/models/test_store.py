"""The store: only the right bytes get in, broken ones are refused, one process at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from local_sources import file_of

from inferpool.models.manifest import File
from inferpool.models.partial import Progress, SourceError
from inferpool.models.store import RESERVE_BYTES, Store
from inferpool.protocol.errors import Refused, Unavailable

CONTENT = b"weights " * 1000
FILE = file_of(CONTENT)


def put(store: Store, content: bytes = CONTENT, file: File = FILE) -> Path:
    with store.partial(file) as partial:
        partial.write(content)
        return store.adopt(partial)


def rewrite(path: Path, content: bytes) -> None:
    """Change a read-only blob in place, as a broken disk would, and let its time tell."""
    stat = path.stat()
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))


def test_blob_lies_under_its_hash_and_is_read_only(store: Store) -> None:
    path = put(store)
    assert path == store.root / "blobs" / "sha256" / FILE.sha256[:2] / FILE.sha256
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o222 == 0
    assert store.path(FILE) == path
    assert not (store.root / "partial" / FILE.sha256).exists()


def test_missing_file_says_to_pull(store: Store) -> None:
    with pytest.raises(Unavailable, match="pull the model") as caught:
        store.path(FILE)
    assert caught.value.code == "source_failed"
    assert not store.has(FILE)


def test_wrong_bytes_do_not_get_in(store: Store) -> None:
    wrong = b"weightz " * 1000
    with pytest.raises(Refused) as caught:
        put(store, wrong)
    assert caught.value.code == "bad_hash"
    assert FILE.sha256 in caught.value.message
    assert file_of(wrong).sha256 in caught.value.message
    assert not store.has(FILE)
    assert not (store.root / "partial" / FILE.sha256).exists()


def test_too_few_bytes_are_kept_for_the_next_try(store: Store) -> None:
    with pytest.raises(SourceError, match="ended after 8 of 8000"):
        put(store, CONTENT[:8])
    with store.partial(FILE) as partial:
        assert partial.written == 8
        partial.write(CONTENT[8:])
        store.adopt(partial)
    assert store.path(FILE).read_bytes() == CONTENT


def test_too_many_bytes_are_refused_before_they_are_written(store: Store) -> None:
    with store.partial(FILE) as partial, pytest.raises(SourceError, match="more than"):
        partial.write(CONTENT + b"x")
    assert (store.root / "partial" / FILE.sha256).stat().st_size == 0


def test_an_earlier_partial_that_is_too_long_is_dropped(store: Store) -> None:
    path = store.root / "partial" / FILE.sha256
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT + b"x")
    with store.partial(FILE) as partial:
        assert partial.written == 0


@pytest.mark.parametrize("fresh", [False, True], ids=["same process", "next start"])
@pytest.mark.parametrize("content", [b"weightz " * 1000, CONTENT[:-1]], ids=["changed", "shorter"])
def test_corruption_is_refused_with_both_hashes(store: Store, content: bytes, fresh: bool) -> None:
    rewrite(put(store), content)
    reader = Store(store.root) if fresh else store
    with pytest.raises(Refused) as caught:
        reader.path(FILE)
    assert caught.value.code == "bad_hash"
    assert FILE.sha256 in caught.value.message
    assert file_of(content).sha256 in caught.value.message
    with pytest.raises(Refused):
        reader.open_verified(FILE)


def test_only_verify_sees_what_neither_size_nor_time_shows(store: Store) -> None:
    path = put(store)
    stat = path.stat()
    rewrite(path, b"weightz " * 1000)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store.path(FILE) == path
    with pytest.raises(Refused):
        store.verify(FILE)


def test_touched_but_equal_file_is_accepted_and_remembered(store: Store) -> None:
    path = put(store)
    sidecar = path.with_name(path.name + ".verified")
    before = sidecar.read_bytes()
    rewrite(path, CONTENT)
    assert Store(store.root).path(FILE) == path
    assert sidecar.read_bytes() != before


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"sha256":"' + b"0" * 64 + b'"}'])
def test_broken_sidecar_means_hash_again(store: Store, text: bytes) -> None:
    path = put(store)
    path.with_name(path.name + ".verified").write_bytes(text)
    assert Store(store.root).path(FILE) == path
    rewrite(path, b"weightz " * 1000)
    path.with_name(path.name + ".verified").write_bytes(text)
    with pytest.raises(Refused):
        Store(store.root).path(FILE)


def test_sidecar_of_another_file_means_hash_again(store: Store) -> None:
    path = put(store)
    rewrite(path, b"weightz " * 1000)
    stat = path.stat()
    mark = {"sha256": "0" * 64, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    path.with_name(path.name + ".verified").write_text(json.dumps(mark))
    with pytest.raises(Refused):
        Store(store.root).path(FILE)


def test_open_verified_gives_all_bytes_from_the_start(store: Store) -> None:
    rewrite(put(store), CONTENT)
    with store.open_verified(FILE) as handle:
        assert handle.read() == CONTENT


def test_manifest_with_the_wrong_size_is_refused(store: Store) -> None:
    put(store)
    with pytest.raises(Refused, match="8000 bytes, the manifest says 7999"):
        store.path(File(FILE.name, 7999, FILE.sha256, "weights"))


def test_discard(store: Store) -> None:
    path = put(store)
    store.discard(FILE)
    assert list(path.parent.iterdir()) == []
    store.discard(FILE)


def test_room_is_checked_with_a_reserve(tmp_path: Path) -> None:
    store = Store(tmp_path, free_bytes=lambda folder: RESERVE_BYTES + 100)
    store.check_room(100)
    with pytest.raises(SourceError, match="make room"):
        store.check_room(101)


def test_lock_ends_waiting(store: Store) -> None:
    other = Store(store.root)
    with store.lock(FILE):
        with pytest.raises(Unavailable) as caught, other.lock(FILE, wait_s=0):
            pass
        with other.lock(file_of(b"another"), wait_s=0):
            pass
    assert caught.value.code == "timeout"
    with other.lock(FILE, wait_s=0):
        pass


def test_progress_counts_bytes(store: Store) -> None:
    seen: list[Progress] = []
    with store.partial(FILE, seen.append) as partial:
        partial.write(CONTENT[:3000])
        partial.write(CONTENT[3000:])
    assert [(p.done_bytes, p.total_bytes) for p in seen] == [(3000, 8000), (8000, 8000)]
    assert seen[0].label == FILE.name


def test_scratch_leaves_nothing(store: Store) -> None:
    with store.scratch() as folder:
        (folder / "wheel").write_bytes(b"x")
        assert folder.is_relative_to(store.root)
    assert not folder.exists()


def test_default_root_is_the_users_cache() -> None:
    assert "inferpool" in Store().root.parts
