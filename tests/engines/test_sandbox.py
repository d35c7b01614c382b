"""The sandbox of an engine's child, as the kernel sees it: a probe in it, and the real child.

Each probe runs as this kernel has it, and once more as on a kernel without Landlock, where the
filter of system calls is all there is.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from onnx_writer import row_sums

from inferpool.engines import gguf_control, llamacpp, sandbox
from inferpool.engines.base import Progress, Sampling, TextCall
from inferpool.engines.llamacpp import LlamaCppEngine
from inferpool.engines.onnx import OnnxEngine
from inferpool.protocol.errors import Unavailable

ABI = sandbox.landlock_abi()
FILTERS = sandbox.seccomp_offered()
filtered = pytest.mark.skipif(not FILTERS, reason="this kernel or machine has no seccomp filters")
landlocked = pytest.mark.skipif(ABI == 0, reason="this kernel offers no Landlock")
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits are read from Linux's /proc")

# Each attempt by its name; the child answers which of them the kernel let through.
PROBE = """
import ctypes, importlib.util, json, os, resource, signal, socket, subprocess, sys
found = json.loads(sys.argv[1])
spec = importlib.util.spec_from_file_location("s", found["module"])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
if not found["landlock"]:
    module.landlock_abi = lambda: 0
told = module.enter([found["model"]], bind_port=0)

def connect():
    with socket.create_connection(("127.0.0.1", found["port"]), 2):
        pass

def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"secret", ("127.0.0.1", found["port"]))

def unix():
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(found["unix"])

def fast_open():
    with socket.socket() as made:
        made.sendto(b"secret", 0x20000000, ("127.0.0.1", found["port"]))

def protocol(number):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, number).close()
    except PermissionError:
        raise
    except OSError:
        pass  # this kernel has none: the filter let it through

def call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    values = [ctypes.c_long(item) for item in arguments]
    if libc.syscall(ctypes.c_long(number), *values) < 0 and ctypes.get_errno() == 1:
        raise PermissionError(number)  # any other error says that the call was let through

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
    "send a datagram": datagram,
    "connect to a UNIX socket": unix,
    "connect within a send": fast_open,
    "make a socket of SCTP": lambda: protocol(132),
    "make a socket of MPTCP": lambda: protocol(262),
    "send to another's queue": lambda: call(found["calls"]["msgsnd"], 0, 0, 0, 0),
    "end another's semaphores": lambda: call(found["calls"]["semctl"], 2**30, 0, 0, 0),
    "mark a file by name": lambda: call(found["calls"]["setxattrat"], 0, 0, 0, 0, 0, 0),
    "open a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "make a pair of sockets": lambda: [one.close() for one in socket.socketpair()],
    "fork": lambda: os.fork() or os._exit(0),
    "truncate the model": lambda: os.truncate(found["model"], 0),
    "change the model's mode": lambda: os.chmod(found["model"], 0o777),
    "limit another process": lambda: resource.prlimit(
        os.getppid(), resource.RLIMIT_CORE, (0, 0)
    ),
    "trace the parent": lambda: call(found["calls"]["ptrace"], 2, os.getppid(), 0, 0),
    "make a ring": lambda: call(found["calls"]["io_uring_setup"], 0, 0),
    "leave the namespace": lambda: call(found["calls"]["unshare"], 0),
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
    """Run the probe in a child; its answer."""
    return lambda landlock: run_probe(tmp_path, landlock)


def run_probe(tmp_path: Path, landlock: bool) -> Any:
    model, secret, link = (tmp_path / name for name in ("model.bin", "secret", "link"))
    model.write_bytes(b"model")
    secret.write_text("secret")
    link.symlink_to(secret)
    local = socket.socket(socket.AF_UNIX)
    with socket.socket() as server, socket.socket() as unused, local:
        local.bind(str(tmp_path / "s"))
        local.listen()
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
            "unix": str(tmp_path / "s"),
            "landlock": landlock,
            "calls": {
                name: numbers[sandbox._ARCHITECTURES.get(platform.machine(), (0, 0))[1]]
                for name, numbers in sandbox._REFUSED.items()
            },
        }
        command = [sys.executable, "-I", "-c", PROBE, json.dumps(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    answer = json.loads(done.stdout)
    assert secret.read_text() == "secret"
    assert model.read_bytes() == b"model"
    return answer


STILL_NEEDED = {
    "read the model",
    "listen on a port of the kernel's choice",
    "import a library",
    "start a thread",
}


@landlocked
@filtered
def test_what_is_not_needed_is_refused_by_the_kernel(probe: Any) -> None:
    answer = probe(landlock=True)
    allowed = {name for name, error in answer["passed"].items() if not error}
    beyond = {"listen on a certain port"} if ABI < 4 else set()
    assert allowed == STILL_NEEDED | beyond
    assert answer["told"].startswith(f"landlock abi {ABI} and seccomp: ")
    assert "connects nowhere" in answer["told"]
    assert "signals nobody" in answer["told"]


@filtered
def test_without_landlock_the_filter_refuses_all_but_reading_and_listening(probe: Any) -> None:
    answer = probe(landlock=False)
    allowed = {name for name, error in answer["passed"].items() if not error}
    reads = {
        "read a secret",
        "read it by another name",
        "list a directory",
        "list the root",
        "read the parent's memory map",
    }
    assert allowed == STILL_NEEDED | reads | {"listen on a certain port"}
    assert answer["told"].startswith("seccomp alone: writes and runs nothing, ")
    assert "but reads what its user may" in answer["told"]


def test_neither_is_said_and_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words on a kernel without them, wherever this runs."""
    monkeypatch.setattr(sandbox, "landlock_abi", lambda: 0)
    monkeypatch.setattr(sandbox, "seccomp_offered", lambda: False)
    monkeypatch.setattr(sandbox, "_limit", lambda size: "limits")
    done: list[object] = []
    monkeypatch.setattr(sandbox, "_restrict", lambda *rules: done.append(rules))
    monkeypatch.setattr(sandbox, "_filter", lambda *rules, **more: done.append(rules))
    told = sandbox.enter([tmp_path])
    assert told == "none: this kernel offers neither Landlock nor seccomp; limits"
    assert not done


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("listens", [True, False])
def test_the_filter_ends_in_a_verdict_on_every_path(machine: str, listens: bool) -> None:
    """Jumps go forward and within; no call has two rules, of which one would be dead."""
    made = sandbox.program(machine, 1234, listens=listens)
    assert len(made) <= 4096  # the kernel's limit
    for at, (code, yes, no, _) in enumerate(made):
        if code != sandbox._RETURN:
            assert at + 1 + max(yes, no) < len(made)
    column = sandbox._ARCHITECTURES[machine][1]
    numbers = [
        pair[column]
        for table in (
            [*sandbox._REFUSED.values(), *sandbox._UNKNOWN.values(), *sandbox._LISTENING.values()],
            sandbox._by_argument(1, True),
        )
        for pair in table
        if pair[column] >= 0
    ]
    assert len(set(numbers)) == len(numbers)


@landlocked
def test_a_second_thread_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Landlock would leave it free, so that nothing would be safe in this address space."""
    monkeypatch.setattr("threading.active_count", lambda: 2)
    monkeypatch.setattr(sandbox, "_limit", lambda size: "")
    with pytest.raises(OSError, match="first thread"):
        sandbox.enter([tmp_path])


IN_FORCE = (
    f"landlock abi {ABI}{' and seccomp' * FILTERS}: "
    if ABI
    else "seccomp alone: "
    if FILTERS
    else "none: "
)


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
        assert engine.sandbox.startswith(IN_FORCE)
        status = status_of(engine.pid)
        assert ("NoNewPrivs:\t1" in status) is (ABI > 0 or FILTERS)
        assert ("Seccomp:\t2" in status) is FILTERS
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


@filtered
@pytest.mark.timeout(60)
async def test_the_real_child_serves_under_the_filter_alone(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's own child, on a kernel as without Landlock."""
    for found in (llamacpp.CHILD_SCRIPT, Path(gguf_control.__file__), Path(sandbox.__file__)):
        shutil.copy(found, tmp_path)
    with (tmp_path / "sandbox.py").open("a") as module:
        module.write("\n\ndef landlock_abi() -> int:\n    return 0\n")
    monkeypatch.setattr(llamacpp, "CHILD_SCRIPT", tmp_path / llamacpp.CHILD_SCRIPT.name)
    engine = LlamaCppEngine(gguf, "small", "Q4_1", slots=1, context=256, threads=1)
    await engine.start()
    try:
        assert engine.sandbox.startswith("seccomp alone: ")
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
    assert IN_FORCE in engine.sandbox


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
