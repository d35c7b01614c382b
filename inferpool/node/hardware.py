"""What this machine is: CPU, memory, disk, GPUs, and the limits that a container puts on it.

Detection reads what the system says and never fails: what cannot be read is zero or empty.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inferpool.node.gpus import Gpu, find_gpus

# Instruction sets that decide speed or rounding; the rest of the flags tell nobody anything.
FEATURES: Final = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16", "neon", "asimd", "sve", "i8mm", "bf16"),
)
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Hardware:
    """One machine. Sizes in bytes; `cores` are those that this process may use."""

    system: str
    cpu: str
    cores: int
    features: tuple[str, ...]
    memory: int
    memory_available: int
    memory_limit: int  # of the container, 0: none
    disk_free: int
    gpus: tuple[Gpu, ...] = ()

    @property
    def memory_usable(self) -> int:
        """What an engine may take now, within the container's limit."""
        limits = [self.memory_available, *([self.memory_limit] if self.memory_limit else [])]
        return min(limits)

    def to_wire(self) -> dict[str, object]:
        """For JSON."""
        return {
            "system": self.system,
            "cpu": self.cpu,
            "cores": self.cores,
            "features": list(self.features),
            "memory_bytes": self.memory,
            "memory_available_bytes": self.memory_available,
            "memory_limit_bytes": self.memory_limit or None,
            "disk_free_bytes": self.disk_free,
            "gpus": [gpu.to_wire() for gpu in self.gpus],
        }


def detect(disk: Path, root: Path = Path("/")) -> Hardware:
    """Look at this machine. `disk`: where models lie; `root`: of /proc and /sys."""
    cpu, features = _cpu(root)
    total, available = _memory(root)
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu,
        cores=usable_cores(root),
        features=features,
        memory=total,
        memory_available=available,
        memory_limit=memory_limit(root),
        disk_free=disk_free(disk),
        gpus=find_gpus(),
    )


def disk_free(folder: Path) -> int:
    """Free bytes on the disk of a folder that need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def usable_cores(root: Path = Path("/")) -> int:
    """Cores of this process's affinity, within the container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota, _, period = _text(root / "sys/fs/cgroup/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        cores = min(cores or 1, max(1, int(quota) // int(period)))
    return cores or 1


def memory_limit(root: Path = Path("/")) -> int:
    """The container's memory limit in bytes, of cgroup v2 or else v1; 0 where there is none."""
    total, _ = _memory(root)
    for place in _cgroups(root):
        text = _text(place).strip()
        if text.isdigit() and 0 < int(text) < (total or 2**62):
            return int(text)
    return 0


def _cgroups(root: Path) -> list[Path]:
    """Files that may hold a limit: of our own group, of its parents, and of the root as seen."""
    found: list[Path] = []
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        parts = [part for part in path.split("/") if part]
        heads = ["/".join(parts[:size]) for size in range(len(parts), -1, -1)]
        if controllers == "":
            found += [base / head / "memory.max" for head in heads]
        elif controllers == "memory":
            found += [base / "memory" / head / "memory.limit_in_bytes" for head in heads]
    return found


def _cpu(root: Path) -> tuple[str, tuple[str, ...]]:
    model, flags = "", set[str]()
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name" and not model:
            model = value.strip()
        elif name.strip() in ("flags", "Features") and not flags:
            flags = set(value.split())
    if not model and platform.system() == "Darwin":
        model = _sysctl("machdep.cpu.brand_string")
        flags = {name for name in FEATURES if _sysctl(f"hw.optional.{name}") == "1"}
    features = tuple(name for name in FEATURES if name in flags)
    return model or platform.processor() or platform.machine(), features


def _memory(root: Path) -> tuple[int, int]:
    sizes: dict[str, int] = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isdigit():
            sizes[name] = int(number[0]) * 1024
    if not sizes and platform.system() == "Darwin":
        total = int(_sysctl("hw.memsize") or 0)
        return total, total // 2
    return sizes.get("MemTotal", 0), sizes.get("MemAvailable", sizes.get("MemFree", 0))


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program and a name of ours
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
