"""The sandbox of an engine's child, as the kernel sees it: a probe in it, and the real child.

Where this kernel has no Landlock, the same tests assert that the report says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from onnx_writer import row_sums

from inferpool.engines import sandbox
from inferpool.engines.base import Progress, Sampling, TextCall
from inferpool.engines.llamacpp import LlamaCppEngine
from inferpool.engines.onnx import OnnxEngine
from inferpool.protocol.errors import Unavailable

ABI = sandbox.landlock_abi()
landlocked = pytest.mark.skipif(ABI == 0, reason="this kernel offers no Landlock")
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits are read from Linux's /proc")

# Each attempt by its name; the child answers which of them the kernel let through.
PROBE = """
import ctypes, importlib.util, json, os, signal, socket, subprocess, sys
found = json.loads(sys.argv[1])
spec = importlib.util.spec_from_file_location("s", found["module"])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
told = module.enter([found["model"]], bind_port=0)

def connect():
    with socket.create_connection(("127.0.0.1", found["port"]), 2):
        pass

def bind(port):
    with socket.socket() as made:
        made.bind(("127.0.0.1", port))
        made.listen(1)

attempts = {
    "read the model": lambda: open(found["model"], "rb").read(1),
    "write the model": lambda: open(found["model"], "r+b"),
    "read a secret": lambda: open(found["secret"]).read(),
    "read it by another name": lambda: open(found["link"]).read(),
    "list a directory": lambda: os.listdir(os.path.dirname(found["secret"])),
    "list the root": lambda: os.listdir("/"),
    "read the parent's memory map": lambda: open(f"/proc/{os.getppid()}/maps").read(),
    "create a file": lambda: open(found["secret"] + ".new", "w"),
    "create beside libraries": lambda: open(module.__file__ + ".new", "w"),
    "remove a file": lambda: os.unlink(found["secret"]),
    "rename a file": lambda: os.rename(found["secret"], found["secret"] + "2"),
    "link a file": lambda: os.link(found["secret"], found["secret"] + "3"),
    "make a directory": lambda: os.mkdir(found["secret"] + ".d"),
    "run a program": lambda: subprocess.run(["/bin/true"], check=True),
    "run this python": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    "connect to a server": connect,
    "listen on a port of the kernel's choice": lambda: bind(0),
    "listen on a certain port": lambda: bind(found["free"]),
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "import a library": lambda: __import__("decimal"),
    "start a thread": lambda: __import__("threading").Thread(target=int).start(),
}
passed = {}
for name, attempt in attempts.items():
    try:
        attempt()
    except OSError as error:
        passed[name] = type(error).__name__
    else:
        passed[name] = ""
print(json.dumps({"told": told, "passed": passed}))
"""


@pytest.fixture
def probe(tmp_path: Path) -> Any:
    """Run the probe; its answer."""
    model, secret, link = (tmp_path / name for name in ("model.bin", "secret", "link"))
    model.write_bytes(b"model")
    secret.write_text("secret")
    link.symlink_to(secret)
    with socket.socket() as server, socket.socket() as unused:
        server.bind(("127.0.0.1", 0))
        server.listen()
        unused.bind(("127.0.0.1", 0))
        free = unused.getsockname()[1]
        unused.close()
        config = {
            "module": sandbox.__file__,
            "model": str(model),
            "secret": str(secret),
            "link": str(link),
            "port": server.getsockname()[1],
            "free": free,
        }
        command = [sys.executable, "-I", "-c", PROBE, json.dumps(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    answer = json.loads(done.stdout)
    assert secret.read_text() == "secret"
    return answer


STILL_NEEDED = {
    "read the model",
    "listen on a port of the kernel's choice",
    "import a library",
    "start a thread",
}


@landlocked
def test_what_is_not_needed_is_refused_by_the_kernel(probe: Any) -> None:
    allowed = {name for name, error in probe["passed"].items() if not error}
    beyond = set()
    if ABI < 4:
        beyond |= {"connect to a server", "listen on a certain port"}
    if ABI < 6:
        beyond |= {"signal the parent"}
    assert allowed == STILL_NEEDED | beyond
    assert probe["told"].startswith(f"landlock abi {ABI}: ")
    assert ("connects nowhere" in probe["told"]) is (ABI >= 4)
    assert ("signals nobody" in probe["told"]) is (ABI >= 6)


@pytest.mark.skipif(ABI > 0, reason="this kernel has Landlock")
def test_without_landlock_nothing_is_claimed(probe: Any) -> None:
    assert probe["told"].startswith("none: this kernel offers no Landlock")


def test_no_landlock_is_said_and_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words on a kernel without it, wherever this runs."""
    monkeypatch.setattr(sandbox, "landlock_abi", lambda: 0)
    monkeypatch.setattr(sandbox, "_limit", lambda size: "limits")
    restricted: list[object] = []
    monkeypatch.setattr(sandbox, "_restrict", lambda *rules: restricted.append(rules))
    assert sandbox.enter([tmp_path]) == "none: this kernel offers no Landlock; limits"
    assert not restricted


@landlocked
def test_a_second_thread_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Landlock would leave it free, so that nothing would be safe in this address space."""
    monkeypatch.setattr("threading.active_count", lambda: 2)
    monkeypatch.setattr(sandbox, "_limit", lambda size: "")
    with pytest.raises(OSError, match="first thread"):
        sandbox.enter([tmp_path])


def limits_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[0] for line in lines}


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


@linux
@pytest.mark.timeout(60)
async def test_the_real_child_is_in_it_and_still_serves(gguf: Path) -> None:
    engine = LlamaCppEngine(gguf, "small", "Q4_1", slots=1, context=256, threads=1)
    assert engine.sandbox == "none"
    await engine.start()
    try:
        assert engine.pid is not None
        expected = f"landlock abi {ABI}: " if ABI else "none: this kernel offers no Landlock"
        assert engine.sandbox.startswith(expected)
        status = status_of(engine.pid)
        assert ("NoNewPrivs:\t1" in status) is (ABI > 0)
        limits = limits_of(engine.pid)
        assert limits["Max core file size"] == "0"
        assert limits["Max file size"] == "0"
        assert int(limits["Max open files"]) <= sandbox.OPEN_FILES
        assert limits["Max address space"] != "unlimited"
        call = TextCall(
            ({"role": "user", "content": "Hello"},), None, 4, Sampling(seed=1, temperature=0)
        )
        chunks = [chunk async for chunk in engine.generate(call, Progress())]
        assert sum(len(chunk.ids) for chunk in chunks) == 4
    finally:
        await engine.close()


def in_two_parts(gguf: bytes) -> bytes:
    """The same file, which says that it is the first of two."""

    def entry(name: bytes, kind: int, value: bytes) -> bytes:
        return len(name).to_bytes(8, "little") + name + kind.to_bytes(4, "little") + value

    uint16, int32 = 2, 5
    head = entry(b"split.count", uint16, b"\2\0") + entry(b"split.no", uint16, b"\0\0")
    head += entry(b"split.tensors.count", int32, b"\1\0\0\0")
    count = int.from_bytes(gguf[16:24], "little") + 3
    return gguf[:16] + count.to_bytes(8, "little") + head + gguf[24:] + bytes(64)  # alignment


@landlocked
@pytest.mark.timeout(60)
async def test_the_real_child_opens_no_file_beside_its_model(gguf: Path, tmp_path: Path) -> None:
    """A model in parts makes llama.cpp open a second file. Here that one is a pipe without a
    writer, so that a child that may open it hangs, and one that may not fails at once."""
    first = tmp_path / "m-00001-of-00002.gguf"
    first.write_bytes(in_two_parts(gguf.read_bytes()))  # noqa: ASYNC240
    os.mkfifo(tmp_path / "m-00002-of-00002.gguf")
    engine = LlamaCppEngine(first, "split", "Q4_1", slots=1, context=256, threads=1)
    with pytest.raises(Unavailable, match="failed to load model"):
        await asyncio.wait_for(engine.start(), 15)
    await engine.close()


async def test_the_trial_of_an_onnx_file_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(row_sums())
    engine = OnnxEngine(path, "sums")
    await engine.start()
    await engine.close()
    assert engine.sandbox.startswith("in the node's process; tried before in ")
    assert (f"landlock abi {ABI}" if ABI else "none: ") in engine.sandbox


def test_memory_is_bounded_by_the_machine(tmp_path: Path) -> None:
    """A model that lies about sizes fails in its own process."""
    script = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('s', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module._memory_bytes = lambda: 0 if sys.platform != 'linux' else 1 << 20\n"
        "module._SPARE_BYTES = 1 << 30\n"
        "module.enter([])\n"
        "try:\n    bytearray(2 << 30)\nexcept MemoryError:\n    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, sandbox.__file__],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    expected = "refused\n" if sys.platform == "linux" else ""
    assert done.stdout == expected, done.stderr


LOADED = """
import asyncio, sys
from pathlib import Path
from inferpool.engines.onnx import OnnxEngine

async def main():
    engine = OnnxEngine(Path(sys.argv[1]), "sums")
    await engine.start()
    await engine.close()

asyncio.run(main())
"""


def test_onnx_runtime_leaves_nothing_in_the_owner_s_home(tmp_path: Path) -> None:
    """By itself it keeps a device id and a database of what to tell its maker."""
    home, path = tmp_path / "home", tmp_path / "model.onnx"
    home.mkdir()
    path.write_bytes(row_sums())
    environment = {key: text for key, text in os.environ.items() if not key.startswith("XDG_")}
    subprocess.run(
        [sys.executable, "-c", LOADED, str(path)],
        env=environment | {"HOME": str(home)},
        timeout=30,
        check=True,
    )
    assert not [found for found in home.rglob("*") if found.is_file()]
