"""Weights that are not what the manifest says are never served."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import orjson
import poolkit
import pytest
from poolkit import CHAT, SPAM

from inferpool.home import Home
from inferpool.models import catalogue
from inferpool.models.store import Store

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=[CHAT, SPAM])
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A model and a cache of its own, where one byte in the middle of its file is another."""
    name: str = request.param
    file = catalogue.load(name).files[0]
    source = poolkit.pull_weights([name]).blob(file.sha256)
    blob = Store(tmp_path / "cache" / "inferpool").blob(file.sha256)
    blob.parent.mkdir(parents=True)
    shutil.copyfile(source, blob)
    with blob.open("r+b") as handle:
        handle.seek(file.size // 2)
        byte = handle.read(1)[0]
        handle.seek(file.size // 2)
        handle.write(bytes([byte ^ 1]))
        os.fsync(handle.fileno())
    return name, tmp_path


def run(where: Path, *arguments: str) -> tuple[int, str, str]:
    home = Home(where / "home")
    done = poolkit.inferpool(*arguments, home=home, XDG_CACHE_HOME=str(where / "cache"))
    assert "Traceback" not in done.stderr + done.stdout
    return done.returncode, done.stdout, done.stderr


def test_node_refuses_a_broken_file(broken: tuple[str, Path]) -> None:
    name, where = broken
    code, out, errors = run(where, "node", "--model", name, "--port", "0")
    assert code == 1
    assert out == "", "it never announced itself"
    sha256 = catalogue.load(name).files[0].sha256
    assert f"expected SHA-256 {sha256}, found " in errors
    found = errors.split("found ")[1][:64]
    assert len(found.strip()) == 64
    assert found != sha256
    assert "pull the model again" in errors
    assert not (where / "home" / "run" / "node.json").exists()


def test_verify_says_so(broken: tuple[str, Path]) -> None:
    name, where = broken
    code, out, _ = run(where, "models", "verify", "--json")
    assert code == 1
    states = {item["model"]: item["state"] for item in orjson.loads(out)}
    assert "expected SHA-256" in states.pop(name)
    assert set(states.values()) == {"absent"}, "the others were never pulled into this cache"


def test_the_advice_helps(tmp_path: Path) -> None:
    """What the error says to do brings the model back (spam: it comes from this package)."""
    where = tmp_path
    code, _, errors = run(where, "models", "pull", SPAM)
    assert code == 0, errors
    file = catalogue.load(SPAM).files[0]
    blob = Store(where / "cache" / "inferpool").blob(file.sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * file.size)
    os.utime(blob, (1, 1))
    assert run(where, "models", "pull", SPAM)[0] == 1
    code, out, _ = run(where, "models", "verify", SPAM)
    assert code == 1
    assert "expected SHA-256" in out
    blob.unlink()
    assert run(where, "models", "pull", SPAM)[0] == 0
    code, out, _ = run(where, "models", "verify", SPAM, "--json")
    assert (code, orjson.loads(out)[0]["state"]) == (0, "good")
