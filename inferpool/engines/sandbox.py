"""What an engine's child may still do once it reads a stranger's model: next to nothing.

A model file is data, but what parses it is a million lines of C++. So a child gives up, before it
opens the model, whatever its work does not need; the owner's files are what is at stake. In order:
limits (no core, no files written, memory), no new privileges, Landlock (Linux 5.13 and later):
reads of the model and of the libraries alone, no write, no execute, TCP to bind one port and to
connect nowhere, no signal to others. Then a seccomp filter of our own, with or without Landlock:
no file opened for writing or changed by name, no program, no process, no socket but listening TCP,
no signal to others, and none of the calls that only a break-out needs (ptrace, mount, bpf, keys,
io_uring). Seccomp sees numbers and no paths: without Landlock the child reads what its user may,
and listens on any port.

Not covered, and said in `docs`: CPU time, and what a call's own prompt and answer may be made to
say. Elsewhere than on Linux the limits are all there is. `enter` tells in words what holds, never
more.

Imports nothing of this package: a child loads it by its path.
"""

from __future__ import annotations

import ctypes
import errno
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

_SET_SECCOMP: Final = 22
_GET_SECCOMP: Final = 21
_MODE_FILTER: Final = 2
# Machine -> its number in `seccomp_data.arch` (linux/audit.h), and the column of the tables below.
_ARCHITECTURES: Final = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_X32: Final = 0x40000000  # another numbering on the same machine: all of it is refused

# System calls by number on x86_64 and on aarch64 (-1: not there). Refused whatever they are asked:
_REFUSED: Final = {
    # changing files by name, or their marks
    "creat": (85, -1), "truncate": (76, 45), "rename": (82, -1), "renameat": (264, 38),
    "renameat2": (316, 276), "mkdir": (83, -1), "mkdirat": (258, 34), "rmdir": (84, -1),
    "link": (86, -1), "linkat": (265, 37), "symlink": (88, -1), "symlinkat": (266, 36),
    "unlink": (87, -1), "unlinkat": (263, 35), "mknod": (133, -1), "mknodat": (259, 33),
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54),
    "setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469),
    "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # programs and processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, -1), "vfork": (58, -1),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    # talking to others
    "connect": (42, 203), "socketpair": (53, 199), "shmget": (29, 194), "shmat": (30, 196),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "mq_unlink": (241, 181),
    # a number is all that these need of another's queue, set or segment
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "shmctl": (31, 195),
    "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    # the kernel's own affairs
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "setns": (308, 268), "unshare": (272, 97), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "quotactl": (179, 60),
}  # fmt: skip
# As if the kernel did not have them: their arguments lie in memory, where a filter sees nothing,
# and libraries fall back on the calls that it does see.
_UNKNOWN: Final = {"clone3": (435, 435), "openat2": (437, 437)}
_LISTENING: Final = {"bind": (49, 200), "listen": (50, 201)}
_CLONE_THREAD: Final = 0x10000
_WRITES: Final = 0o3 | 0o100 | 0o1000 | 0o20000000  # write, create, truncate, a file without a name
_TYPE_MASK, _STREAM, _INET, _INET6 = 0xF, 1, 2, 10
_TCP: Final = 6  # IPPROTO_TCP; 0 is the same for a stream
_FAST_OPEN: Final = 0x20000000  # a connect within a send
_TIOCSTI: Final = 0x5412  # types into a terminal

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
    abi, filters = landlock_abi(), seccomp_offered()
    if abi == 0 and not filters:
        return f"{NONE}: this kernel offers neither Landlock nor seccomp; {limits}"
    if threading.active_count() > 1:
        raise OSError("a sandbox is entered before the first thread is started")
    _forbid_privileges()
    if abi:
        _restrict(abi, [*model, *_python(), *map(Path, _SYSTEM)], bind_port)
    if filters:
        _filter(os.getpid(), listens=bind_port is not None)
    if abi == 0:
        return f"seccomp alone: {_filter_words(bind_port)}; {limits}"
    words = _words(abi, bind_port, filters)
    return f"landlock abi {abi}{' and seccomp' * filters}: {words}; {limits}"


def _filter_words(bind_port: int | None) -> str:
    held = f"writes and runs nothing, {_sockets(bind_port)}, signals nobody"
    return f"{held}, but reads what its user may (this kernel offers no Landlock)"


def _words(abi: int, bind_port: int | None, filters: bool) -> str:
    held = ["reads model and libraries only", "writes and runs nothing"]
    if abi >= _NET_SINCE:
        listens = "no TCP" if bind_port is None else f"TCP listens on port {bind_port or 'any'}"
        held.append(f"{listens}, connects nowhere")
    elif filters:
        held.append(_sockets(bind_port))
    else:
        held.append("network not restricted")
    if abi >= _SCOPES_SINCE or filters:
        held.append("signals nobody")
    return ", ".join(held)


def _sockets(bind_port: int | None) -> str:
    return "no sockets" if bind_port is None else "listens on TCP ports, connects nowhere"


# -- seccomp -------------------------------------------------------------------------------------

_LOAD, _AND, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x45, 0x35, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def seccomp_offered() -> bool:
    """Whether this kernel takes a filter, on a machine whose numbers are known here."""
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        return False
    return struct.calcsize("P") == 8 and int(_libc().prctl(_GET_SECCOMP, 0, 0, 0, 0)) >= 0


def program(machine: str, pid: int, *, listens: bool) -> list[Instruction]:
    """The filter for a child with that process id: a classic BPF program (linux/seccomp.h)."""
    arch, column = _ARCHITECTURES[machine]
    made: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ERROR | errno.EPERM),
    ]  # fmt: skip
    refused = _REFUSED if listens else {**_REFUSED, **_LISTENING}
    for table, error in ((refused, errno.EPERM), (_UNKNOWN, errno.ENOSYS)):
        for numbers in table.values():
            if numbers[column] >= 0:
                made += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ERROR | error)]
    for numbers, rule in _by_argument(pid, listens).items():
        if numbers[column] >= 0:
            made += [(_EQUAL, 0, len(rule), numbers[column]), *rule]
    return [*made, (_RETURN, 0, 0, _ALLOW)]


def _by_argument(pid: int, listens: bool) -> dict[tuple[int, int], list[Instruction]]:
    """Numbers of a call -> what is asked of its arguments; each rule ends in a verdict."""
    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERROR | errno.EPERM)

    def low(index: int) -> Instruction:
        return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)

    def high(index: int) -> Instruction:
        return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index + 4)

    def no_bit(index: int, bits: int) -> list[Instruction]:
        return [low(index), (_ANY_BIT, 1, 0, bits), allow, refuse]

    ours = [low(0), (_EQUAL, 0, 1, pid), allow, refuse]
    stream = [
        low(0), (_EQUAL, 1, 0, _INET), (_EQUAL, 0, 3, _INET6),
        low(1), (_AND, 0, 0, _TYPE_MASK), (_EQUAL, 1, 0, _STREAM), refuse,
        # Not SCTP, which connects within a send, nor MPTCP, which Landlock does not hold.
        low(2), (_EQUAL, 1, 0, 0), (_EQUAL, 0, 1, _TCP), allow, refuse,
    ]  # fmt: skip
    return {
        (2, -1): no_bit(1, _WRITES),  # open
        (257, 56): no_bit(2, _WRITES),  # openat
        (56, 220): [low(0), (_ANY_BIT, 0, 1, _CLONE_THREAD), allow, refuse],  # clone
        (62, 129): ours,  # kill
        (234, 131): ours,  # tgkill
        (302, 261): [low(0), (_EQUAL, 1, 0, 0), (_EQUAL, 0, 1, pid), allow, refuse],  # prlimit64
        (41, 198): stream if listens else [refuse],  # socket
        (44, 206): [  # sendto: without an address, as send does
            low(4), (_EQUAL, 0, 3, 0), high(4), (_EQUAL, 0, 1, 0), allow, refuse,
        ],
        (46, 211): no_bit(2, _FAST_OPEN),  # sendmsg
        (307, 269): no_bit(3, _FAST_OPEN),  # sendmmsg
        (16, 29): [low(1), (_EQUAL, 0, 1, _TIOCSTI), refuse, allow],  # ioctl
    }  # fmt: skip


def _filter(pid: int, *, listens: bool) -> None:
    """Install the filter for this thread and every later one. Raises OSError."""
    instructions = program(platform.machine(), pid, listens=listens)
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    held = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(instructions), ctypes.addressof(held))  # struct sock_fprog
    fprog = ctypes.create_string_buffer(header, len(header))
    prctl = _libc().prctl
    prctl.argtypes = [ctypes.c_int, *4 * [ctypes.c_ulong]]
    asked = (_MODE_FILTER, ctypes.addressof(fprog), 0, 0)
    _checked("seccomp", int(prctl(_SET_SECCOMP, *asked)))


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
