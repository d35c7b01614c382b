"""Detection and measurement: on this machine, and on trees of /proc and /sys of others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inferpool.node.gpus import find_gpus, parse_nvidia_smi, parse_rocm_smi
from inferpool.node.hardware import detect, disk_free, memory_limit, usable_cores
from inferpool.node.measure import EnergyCounters, measure

MEMINFO = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:   8000000 kB\n"
CPUINFO = (
    "processor : 0\nmodel name\t: AMD Ryzen 9 7950X\nflags\t\t: fpu sse4_2 avx avx2 fma f16c\n"
)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_is_detected(tmp_path: Path) -> None:
    found = detect(tmp_path)
    assert found.cores == len(os.sched_getaffinity(0)) or found.cores < (os.cpu_count() or 1)
    assert found.cpu
    assert 0 < found.memory_available <= found.memory
    assert 0 < found.memory_usable <= found.memory_available
    assert found.disk_free > 0
    assert found.to_wire()["cores"] == found.cores


def test_a_tree_of_proc_is_read(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/cpuinfo": CPUINFO, "proc/meminfo": MEMINFO})
    found = detect(tmp_path, root)
    assert found.cpu == "AMD Ryzen 9 7950X"
    assert found.features == ("sse4_2", "avx", "avx2", "fma", "f16c")
    assert (found.memory, found.memory_available) == (16_000_000 * 1024, 8_000_000 * 1024)


def test_an_empty_tree_is_no_error(tmp_path: Path) -> None:
    found = detect(tmp_path / "nothing" / "here", tmp_path)
    assert (found.memory, found.features) == (0, ())
    assert found.disk_free == disk_free(tmp_path)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1073741824\n"}, 1 << 30),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 0),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": "536870912\n",
            },
            512 << 20,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/job\n0::/\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "268435456\n",
            },
            256 << 20,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/job\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            0,
        ),
        ({}, 0),
    ],
    ids=["v2", "v2-none", "v2-parent", "v1", "v1-none", "no-cgroups"],
)
def test_a_containers_limit_is_found(tmp_path: Path, files: dict[str, str], limit: int) -> None:
    root = tree(tmp_path, {"proc/meminfo": MEMINFO, **files})
    assert memory_limit(root) == limit
    assert detect(tmp_path, root).memory_usable == (limit or 8_000_000 * 1024)


def test_a_containers_cpu_quota_counts(tmp_path: Path) -> None:
    assert usable_cores(tree(tmp_path, {"sys/fs/cgroup/cpu.max": "100000 100000\n"})) == 1
    assert usable_cores(tree(tmp_path, {"sys/fs/cgroup/cpu.max": "max 100000\n"})) >= 1


def test_measuring_takes_a_moment() -> None:
    found = measure()
    assert found.memory_bytes_per_s > 10**8
    assert found.flop_per_s > 10**8
    assert found.took_ms < 6_000, "two seconds on a machine of its own"


def zone(root: Path, name: str, energy: int, most: int = 1000) -> Path:
    tree(root, {f"{name}/energy_uj": f"{energy}\n", f"{name}/max_energy_range_uj": f"{most}\n"})
    return root / name / "energy_uj"


def test_energy_counters_add_their_packages_up_and_may_wrap(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", 100), zone(tmp_path, "intel-rapl:1", 900)
    zone(tmp_path, "intel-rapl:0:0", 50)  # a part of the first: not counted twice
    counters = EnergyCounters(tmp_path)
    assert counters.readable
    first.write_text("160\n")
    second.write_text("20\n")  # over its end
    assert counters.spent() == 60 + 120
    assert counters.spent() == 0


def test_without_counters_nothing_is_measured(tmp_path: Path) -> None:
    counters = EnergyCounters(tmp_path)
    assert not counters.readable
    assert counters.spent() == 0


def test_gpus_of_this_machine_are_listed() -> None:
    assert all(gpu.untested and gpu.name for gpu in find_gpus())


def test_what_nvidia_smi_prints_is_read() -> None:
    text = "NVIDIA GeForce RTX 4090, 24564, 23000, 450.00, 21.50\nNVIDIA L4, 23034, 1, [N/A], 16\n"
    first, second = parse_nvidia_smi(text)
    assert (first.name, first.memory, first.power_limit) == (
        "NVIDIA GeForce RTX 4090",
        24564 << 20,
        450_000,
    )
    assert second.power_limit == 0
    assert parse_nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate\n") == []


def test_what_rocm_smi_prints_is_read() -> None:
    text = (
        '{"card0": {"Card series": "Radeon RX 7900 XTX", "VRAM Total Memory (B)": "25753026560",'
        ' "VRAM Total Used Memory (B)": "753026560", "Max Graphics Package Power (W)": "303.0"},'
        ' "system": {}}'
    )
    (card,) = parse_rocm_smi(text)
    assert (card.memory_free, card.power_limit) == (25_000_000_000, 303_000)
    assert parse_rocm_smi("ERROR: not found") == []
