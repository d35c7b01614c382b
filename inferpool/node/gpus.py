"""GPUs, by the makers' own tools: NVML or `nvidia-smi`, `rocm-smi`, and Apple's `sysctl`.

None of this has been run by a test on real hardware; `untested` says so in what is shown.
"""

from __future__ import annotations

import importlib
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

_MIB: Final = 1024 * 1024
_TOOL_TIMEOUT_S: Final = 5.0
_QUERY: Final = "name,memory.total,memory.free,power.limit,power.draw"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One board. Memory in bytes, power in milliwatts; 0 where the tool does not tell."""

    name: str
    memory: int
    memory_free: int
    power_limit: int
    power_draw: int
    source: str
    untested: bool = True

    def to_wire(self) -> dict[str, object]:
        """For JSON."""
        return {
            "name": self.name,
            "memory_bytes": self.memory,
            "memory_free_bytes": self.memory_free,
            "power_limit_milliwatts": self.power_limit,
            "power_draw_milliwatts": self.power_draw,
            "source": self.source,
            "untested": self.untested,
        }


def find_gpus() -> tuple[Gpu, ...]:
    """Every GPU that a tool on this machine tells of; none is no error."""
    return (*(_nvml() or _nvidia_smi()), *_rocm_smi(), *_apple())


def _nvml() -> list[Gpu]:
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # no package, no driver, no board: the package raises its own tree
        return []
    found = []
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            name = nvml.nvmlDeviceGetName(handle)
            found.append(
                Gpu(
                    name.decode() if isinstance(name, bytes) else str(name),
                    int(memory.total),
                    int(memory.free),
                    int(_or_zero(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
                    int(_or_zero(nvml.nvmlDeviceGetPowerUsage, handle)),
                    "nvml",
                )
            )
    except Exception:
        return found
    finally:
        nvml.nvmlShutdown()
    return found


def _or_zero(ask: Any, handle: Any) -> int:
    try:
        return int(ask(handle))
    except Exception:  # a board that does not tell its power
        return 0


def _nvidia_smi() -> list[Gpu]:
    return parse_nvidia_smi(
        _tool("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits")
    )


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """Lines of `name, MiB, MiB, W, W`; a number that is none (`[N/A]`) is 0."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 5 and parts[0]:
            total, free, limit, draw = (_number(part) for part in parts[1:])
            found.append(
                Gpu(
                    parts[0],
                    int(total * _MIB),
                    int(free * _MIB),
                    int(limit * 1000),
                    int(draw * 1000),
                    "nvidia-smi",
                )
            )
    return found


def _rocm_smi() -> list[Gpu]:
    options = ("--showproductname", "--showmeminfo", "vram", "--showmaxpower", "--json")
    return parse_rocm_smi(_tool("rocm-smi", *options))


def parse_rocm_smi(text: str) -> list[Gpu]:
    """The JSON object of `rocm-smi --json`: a card a member."""
    try:
        cards = orjson.loads(text)
    except orjson.JSONDecodeError:
        return []
    found = []
    for name, card in sorted(cards.items()) if isinstance(cards, dict) else ():
        if not (name.startswith("card") and isinstance(card, dict)):
            continue
        total = _number(card.get("VRAM Total Memory (B)", "0"))
        used = _number(card.get("VRAM Total Used Memory (B)", "0"))
        watts = _number(card.get("Max Graphics Package Power (W)", "0"))
        title = str(card.get("Card Series") or card.get("Card series") or name)
        free = int(max(0.0, total - used))
        found.append(Gpu(title, int(total), free, int(watts * 1000), 0, "rocm-smi"))
    return found


def _apple() -> list[Gpu]:
    """Apple's GPU shares the machine's memory; three quarters of it may be its own."""
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return []
    name = _tool("sysctl", "-n", "machdep.cpu.brand_string").strip() or "Apple GPU"
    memory = int(_number(_tool("sysctl", "-n", "hw.memsize")) * 3 / 4)
    return [Gpu(name, memory, memory, 0, 0, "sysctl")]


def _number(value: object) -> float:
    try:
        return max(0.0, float(str(value).strip()))
    except ValueError:
        return 0.0


def _tool(name: str, *options: str) -> str:
    path = shutil.which(name)
    if path is None:
        return ""
    command: Sequence[str] = [path, *options]
    try:
        done = subprocess.run(  # noqa: S603 - a maker's tool with fixed options
            command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
