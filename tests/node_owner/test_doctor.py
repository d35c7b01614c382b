"""Every finding of the doctor: found where it is, silent where it is not, the worst first."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from inferpool.config import load
from inferpool.daemon.checkup import examine
from inferpool.home import Home
from inferpool.models import catalogue
from inferpool.models.store import Store
from inferpool.node.doctor import Facts, Severity, diagnose
from inferpool.node.gpus import Gpu
from inferpool.node.hardware import Hardware

GB = 1 << 30
GOOD = Hardware("Linux x86_64", "CPU", 2, ("avx", "avx2"), 16 * GB, 8 * GB, 0, 50 * GB)
MODEL = {
    "model": "spam",
    "ready": True,
    "withheld": False,
    "cold": False,
    "restarts": 0,
    "last_failure": "",
}
STATUS: dict[str, Any] = {"state": "offering", "reason": "", "models": [MODEL], "gateways": {}}
WELL = Facts(GOOD, ["spam"], gas_wei=10**18, registered=True, clock_ahead_ms=5, status=STATUS)
TOLD = {"accepted": True, "error": "", "alive": True, "blocked_ms": 0}


def test_a_machine_that_is_well_has_no_findings() -> None:
    assert diagnose(replace(WELL, landlock_abi=4, seccomp=True, relays={"192.0.2.1:1": ""})) == []


@pytest.mark.parametrize(
    ("abi", "seccomp", "open_"),
    [
        (0, False, "whatever this user may"),
        (0, True, "read every file of this user and listen on any TCP port"),
        (3, True, "listen on any TCP port"),
        (3, False, "TCP, UDP and UNIX sockets"),
        (7, False, "alone: UDP and UNIX sockets"),
    ],
)
def test_what_a_sandbox_does_not_protect_is_said(abi: int, seccomp: bool, open_: str) -> None:
    (found,) = diagnose(replace(WELL, landlock_abi=abi, seccomp=seccomp))
    assert (found.code, found.severity) == ("sandbox", Severity.NOTE)
    assert open_ in found.what


@pytest.mark.parametrize(
    ("code", "severity", "change"),
    [
        ("no_models", Severity.STOPS, {"models": []}),
        ("no_engine", Severity.STOPS, {"missing_modules": {"spam": "onnxruntime"}}),
        ("untested", Severity.NOTE, {"llama_server": "llama-server"}),
        ("config", Severity.STOPS, {"config_problem": "node.hours"}),
        ("unknown_model", Severity.STOPS, {"unknown_models": ["mine"]}),
        ("bad_weights", Severity.STOPS, {"spoiled_weights": {"spam": "bytes"}}),
        ("disk_full", Severity.STOPS, {"home_free": 1 << 20}),
        ("no_claim_gas", Severity.COSTS, {"claim_gas_wei": 0}),
        (
            "cold",
            Severity.NOTE,
            {"status": {**STATUS, "models": [{**MODEL, "ready": False, "cold": True}]}},
        ),
        ("no_weights", Severity.STOPS, {"missing_weights": ["spam"]}),
        ("memory", Severity.STOPS, {"memory_needed": 9 * GB, "status": None}),
        ("chain", Severity.STOPS, {"chain_error": "refused"}),
        ("no_gas", Severity.STOPS, {"registered": False, "gas_wei": 0}),
        ("not_registered", Severity.COSTS, {"registered": False}),
        (
            "not_registered",
            Severity.NOTE,
            {"registered": False, "gas_wei": 0, "gateways": ["http://g"]},
        ),
        ("clock", Severity.STOPS, {"clock_ahead_ms": 30_001}),
        ("clock", Severity.STOPS, {"clock_ahead_ms": -31_000}),
        ("keystore", Severity.STOPS, {"key_problem": "can be opened by others"}),
        ("port", Severity.STOPS, {"port_problem": "port 8421 cannot be used"}),
        ("reach", Severity.STOPS, {"reach_problem": "does not answer"}),
        ("relay", Severity.STOPS, {"relays": {"192.0.2.1:1": "it does not answer"}}),
        ("relay", Severity.COSTS, {"relays": {"192.0.2.1:1": "", "192.0.2.2:1": "silent"}}),
        ("sandbox", Severity.NOTE, {"landlock_abi": 0}),
        ("sandbox", Severity.NOTE, {"landlock_abi": 3}),
        ("disk", Severity.COSTS, {"hardware": replace(GOOD, disk_free=GB - 1)}),
        ("memory_low", Severity.COSTS, {"hardware": replace(GOOD, memory_available=GB // 4)}),
        ("memory_low", Severity.COSTS, {"hardware": replace(GOOD, memory_limit=GB // 4)}),
        ("no_avx2", Severity.COSTS, {"hardware": replace(GOOD, features=("avx",))}),
        (
            "untested",
            Severity.NOTE,
            {"hardware": replace(GOOD, gpus=(Gpu("RTX", 1, 1, 1, 1, "nvml"),))},
        ),
        ("rated_power", Severity.NOTE, {"machine_cost_known": False}),
        ("not_running", Severity.NOTE, {"status": None}),
        ("paused", Severity.COSTS, {"status": {**STATUS, "state": "paused"}}),
        ("draining", Severity.COSTS, {"status": {**STATUS, "state": "draining"}}),
        (
            "crash_loop",
            Severity.STOPS,
            {"status": {**STATUS, "models": [{**MODEL, "restarts": 3, "ready": False}]}},
        ),
        ("engine", Severity.COSTS, {"status": {**STATUS, "models": [{**MODEL, "ready": False}]}}),
        (
            "gateway",
            Severity.COSTS,
            {"status": {**STATUS, "gateways": {"http://g": {**TOLD, "accepted": False}}}},
        ),
        (
            "reach",
            Severity.STOPS,
            {"status": {**STATUS, "gateways": {"http://g": {**TOLD, "alive": False}}}},
        ),
        (
            "held_back",
            Severity.COSTS,
            {"status": {**STATUS, "gateways": {"http://g": {**TOLD, "blocked_ms": 1}}}},
        ),
    ],
)
def test_each_thing_is_found(code: str, severity: Severity, change: dict[str, Any]) -> None:
    found = diagnose(replace(WELL, **change))
    assert (code, severity) in [(item.code, item.severity) for item in found]
    assert all(item.mend and item.what for item in found)


def test_the_worst_is_first() -> None:
    sick = replace(
        WELL, machine_cost_known=False, missing_weights=["spam"], registered=False, status=None
    )
    severities = [item.severity for item in diagnose(sick)]
    assert severities == sorted(severities)
    assert severities[0] is Severity.STOPS


def test_an_arm_machine_is_not_blamed_for_having_no_avx2() -> None:
    arm = replace(GOOD, system="Linux aarch64", features=("asimd",))
    assert diagnose(replace(WELL, hardware=arm)) == []


def test_a_machine_on_which_all_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real files, sockets and settings, each broken; the worst stands first, each with its mend."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    own = resources.files("inferpool.models").joinpath("catalogue", "fake-chat.toml").read_text()
    (tmp_path / "mine" / "own.toml").write_text(own.replace("fake-chat", "own"))
    spoiled = catalogue.load("smollm2-135m-instruct").files[0]
    blob = Store().blob(spoiled.sha256)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(100))
    with socket.socket() as taken, socket.socket() as silent:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        silent.bind(("127.0.0.1", 0))  # bound, and nobody listens
        nobody = f"127.0.0.1:{silent.getsockname()[1]}"
        flags: dict[str, object] = {
            "chain.url": f"http://{nobody}",
            "node.models": ["smollm2-135m-instruct", "spam", "nothing", "own"],
            "node.manifests": str(tmp_path / "mine"),
            "node.relays": [nobody],
            "node.port": taken.getsockname()[1],
            "node.hours": "tomorrow",
        }
        facts = asyncio.run(examine(load(None, {}, flags), Home(tmp_path / "home"), None))
    found = {item.code: item for item in diagnose(facts)}
    wanted = {"config", "unknown_model", "bad_weights", "no_weights", "chain", "port", "relay"}
    stops = [code for code, item in found.items() if item.severity is Severity.STOPS]
    assert set(stops) == wanted
    assert list(found)[: len(stops)] == stops, "the worst first"
    assert "nothing" in found["unknown_model"].what
    assert str(blob) in found["bad_weights"].what
    assert facts.missing_weights == ["spam"]
    assert facts.unknown_models == ["nothing"], "the owner's own manifest is known"
