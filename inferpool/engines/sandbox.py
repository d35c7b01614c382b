"""What an engine's child may still do once it reads a stranger's model: next to nothing.

A model file is data, but what parses it is a million lines of C++. So a child gives up, before it
opens the model, whatever its work does not need; the owner's files are what is at stake. In order:
limits (no core, no files written, memory), no new privileges, Landlock (Linux 5.13 and later):
reads of the model and of the libraries alone, no write, no execute, TCP to bind one port and to
connect nowhere, no signal to others.

Not covered, and said in `docs`: UDP and UNIX sockets by path (Landlock has no rule for them), CPU
time, and what a call's own prompt and answer may be made to say. Elsewhere than on Linux the limits
are all there is. `enter` tells in words what holds, never more.

Imports nothing of this package: a child loads it by its path.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

NONE: Final = "none"
OPEN_FILES: Final = 1024
_SPARE_BYTES: Final = 4 << 30  # address space of an interpreter, its libraries and their stacks

# The same three numbers on every architecture (asm-generic); linux/landlock.h for the rest.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION_FLAG: Final = 1
_PATH_BENEATH: Final = 1
_NET_PORT: Final = 2
_NO_NEW_PRIVS: Final = 38
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_ABSTRACT_UNIX, _SIGNAL = 1 << 0, 1 << 1
# How many file system rights each version of the ABI knows: all are given up, then few are allowed.
_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15}
_RIGHTS_SINCE_5: Final = 16
_NET_SINCE: Final = 4
_SCOPES_SINCE: Final = 6
_WHOLE_MACHINE: Final = frozenset(("/", "/home", "/root", "/tmp", "/var", "/etc"))  # noqa: S108

# What libraries look at while they start: the loader's cache, the number of cores, the time zone.
_SYSTEM: Final = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system",
    "/dev/null",
    "/dev/urandom",
)


def landlock_abi() -> int:
    """The kernel's version of Landlock; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, _syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG))


def enter(readable: Iterable[str | Path], *, bind_port: int | None = None) -> str:
    """Give up what is not needed, for good; returns what holds now, in words.

    `readable`: files and directories that the work reads, beside Python and its libraries.
    `bind_port`: a TCP port that may be listened on (0: one of the kernel's choice), None for none.
    Must run before the process has a second thread: Landlock binds threads, not processes.
    Raises OSError where the kernel has Landlock and refuses these rules: then nothing is loaded.
    """
    model = [Path(path) for path in readable]
    limits = _limit(sum(path.stat().st_size for path in model if path.is_file()))
    abi = landlock_abi()
    if abi == 0:
        return f"{NONE}: this kernel offers no Landlock; {limits}"
    if threading.active_count() > 1:
        raise OSError("a sandbox is entered before the first thread is started")
    _forbid_privileges()
    _restrict(abi, [*model, *_python(), *map(Path, _SYSTEM)], bind_port)
    return f"landlock abi {abi}: {_words(abi, bind_port)}; {limits}"


def _words(abi: int, bind_port: int | None) -> str:
    held = ["reads model and libraries only", "writes and runs nothing"]
    if abi >= _NET_SINCE:
        listens = "no TCP" if bind_port is None else f"TCP listens on port {bind_port or 'any'}"
        held.append(f"{listens}, connects nowhere")
    else:
        held.append("network not restricted")
    if abi >= _SCOPES_SINCE:
        held.append("signals nobody")
    return ", ".join(held)


# -- limits --------------------------------------------------------------------------------------


def _limit(model_bytes: int) -> str:
    """Resource limits that hold everywhere on POSIX. No limit on processes: that one counts all
    of the user's, so it would fail by what else runs; Landlock forbids to execute instead."""
    try:
        import resource
    except ImportError:  # Windows
        return "no limits"
    memory = _memory_bytes()
    wanted = [
        (resource.RLIMIT_CORE, 0),  # a core file holds prompts
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ]
    # The machine's memory once for data and the model once more as a mapped file: a lie about
    # sizes then fails in the child's allocation, instead of pushing the owner's programs to swap.
    if memory and sys.platform == "linux":
        wanted.append((resource.RLIMIT_AS, memory + model_bytes + _SPARE_BYTES))
    for kind, most in wanted:
        _, hard = resource.getrlimit(kind)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (bound, bound))
    return "limits on memory, files and cores"


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


# -- Landlock ------------------------------------------------------------------------------------


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    """A system call; -1 where it failed. Pointers and sizes are 64 bit here or it is refused."""
    if platform.machine() not in ("x86_64", "aarch64", "riscv64", "ppc64le", "s390x"):
        return -1
    call = _libc().syscall
    call.restype = ctypes.c_long
    values = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return int(call(ctypes.c_long(number), *values))


def _checked(what: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _forbid_privileges() -> None:
    """No set-user-id program may give back what is given up here; Landlock asks for it too."""
    _checked("no_new_privs", int(_libc().prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)))


def _restrict(abi: int, readable: Iterable[Path], bind_port: int | None) -> None:
    rights = (1 << _RIGHTS.get(abi, _RIGHTS_SINCE_5)) - 1
    net = _BIND_TCP | _CONNECT_TCP if abi >= _NET_SINCE else 0
    scopes = _ABSTRACT_UNIX | _SIGNAL if abi >= _SCOPES_SINCE else 0
    fields = [rights, net, scopes][: 3 if abi >= _SCOPES_SINCE else 2 if abi >= _NET_SINCE else 1]
    ruleset = struct.pack(f"={len(fields)}Q", *fields)
    made = _syscall(_CREATE_RULESET, ctypes.c_char_p(ruleset), len(ruleset), 0)
    handle = _checked("landlock_create_ruleset", made)
    try:
        for path in readable:
            _allow_reading(handle, path)
        if net and bind_port is not None:
            rule = struct.pack("=QQ", _BIND_TCP, bind_port)
            added = _syscall(_ADD_RULE, handle, _NET_PORT, ctypes.c_char_p(rule), 0)
            _checked("landlock_add_rule", added)
        _checked("landlock_restrict_self", _syscall(_RESTRICT_SELF, handle, 0))
    finally:
        os.close(handle)


def _allow_reading(ruleset: int, path: Path) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this machine
    try:
        rights = _READ_FILE | (_READ_DIR if path.is_dir() else 0)
        rule = struct.pack("=Qi", rights, opened)
        added = _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.c_char_p(rule), 0)
        _checked(f"landlock_add_rule for {path}", added)
    finally:
        os.close(opened)


def _python() -> Iterator[Path]:
    """Where this interpreter imports from. Not its prefix: that may be the user's home."""
    named = {"stdlib", "platstdlib", "purelib", "platlib"}
    found = {path for name, path in sysconfig.get_paths().items() if name in named}
    found |= {str(Path(sys.base_prefix) / "lib")}
    found |= {path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path}
    for path in found:
        if path and str(Path(path).resolve()) not in _WHOLE_MACHINE:
            yield Path(path)
