"""The home directory: secrets for their owner only, and roles that are told from dead ones."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from inferpool.home import Home
from inferpool.identity.keys import Role


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Home.of({"INFERPOOL_HOME": str(tmp_path)}).root == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home.of({"INFERPOOL_HOME": "~/pool"}).root == tmp_path / "pool"
    assert tmp_path in Home.of({}).root.parents
    monkeypatch.chdir(tmp_path)
    assert Home.of({"INFERPOOL_HOME": "here"}).root == tmp_path / "here"


def test_a_secret_is_made_once_and_read_by_its_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)  # the least careful user
    try:
        home = Home(tmp_path / "home")
        first = home.secret("api-key")
    finally:
        os.umask(old)
    assert len(first) >= 43, "256 bits"
    assert home.secret("api-key") == Home(tmp_path / "home").secret("api-key") == first
    assert home.secret("control-token") != first
    assert mode(home.root / "api-key") == 0o600
    assert mode(home.root) == 0o700


def test_a_secret_is_never_empty(tmp_path: Path) -> None:
    """A process that died between making the file and writing it must not leave a token that
    everybody knows: an empty one would open the control routes."""
    (tmp_path / "control-token").touch()
    home = Home(tmp_path)
    assert len(home.secret("control-token")) >= 43
    assert home.secret("control-token") == home.secret("control-token")
    assert mode(tmp_path / "control-token") == 0o600


CHILD = (
    "import sys; from pathlib import Path; from inferpool.home import Home\n"
    "sys.stdin.readline(); print(Home(Path(sys.argv[1])).secret('password'))"
)


def test_processes_that_start_together_agree_on_a_secret(tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    found = {child.communicate()[0].strip() for child in children}
    assert len(found) == 1
    assert len(found.pop()) >= 43


def test_keys_are_the_same_at_each_start_and_unreadable_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INFERPOOL_PASSWORD", raising=False)
    home = Home(tmp_path)
    made = home.keys("node").key(Role.NODE, create=True)
    assert home.keys("node").key(Role.NODE).address == made.address
    stores = [path for path in (tmp_path / "keys").rglob("*") if path.is_file()]
    assert stores
    for path in stores:
        assert mode(path) == 0o600
        assert made.secret.hex().encode() not in path.read_bytes()


def test_what_runs_is_told_until_it_is_gone(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.running("node") is None
    home.announce("node", {"pid": os.getpid(), "url": "http://127.0.0.1:8421"})
    assert home.running("node") == {"pid": os.getpid(), "url": "http://127.0.0.1:8421"}
    assert mode(tmp_path / "run" / "node.json") == 0o600
    home.announce("node", {"pid": os.getpid(), "url": "http://127.0.0.1:9"})
    found = home.running("node")
    assert found is not None
    assert found["url"] == "http://127.0.0.1:9"
    assert home.running("gateway") is None
    home.gone("node")
    home.gone("node")
    assert home.running("node") is None


def test_a_dead_process_does_not_run(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    home = Home(tmp_path)
    home.announce("node", {"pid": child.pid, "url": "http://127.0.0.1:8421"})
    assert home.running("node") is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"7", b"{}", b'{"pid": "x"}', b'{"pid": null}', b"\xff"], ids=repr
)
def test_a_broken_announcement_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "node.json").write_bytes(data)
    assert Home(tmp_path).running("node") is None
