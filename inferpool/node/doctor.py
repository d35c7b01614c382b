"""What would stop this machine from earning, worst first, each with its mend. Pure.

`Facts` is what others found out; a fact that could not be found out is None and says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from inferpool.node.hardware import Hardware
from inferpool.protocol.limits import CLOCK_SKEW_MS

DISK_LOW: Final = 1 << 30
HOME_FULL: Final = 64 << 20
MEMORY_LOW: Final = 512 << 20
CRASHES: Final = 3
LANDLOCK_FULL: Final = 4  # the ABI since which a child opens no connections


class Severity(IntEnum):
    """How bad it is; the worst has the lowest number."""

    STOPS = 0  # nothing is earned
    COSTS = 1  # less is earned, or soon nothing
    NOTE = 2  # good to know


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing, and what to do about it."""

    severity: Severity
    code: str
    what: str
    mend: str

    def to_wire(self) -> dict[str, object]:
        """For JSON."""
        return {
            "severity": self.severity.name.lower(),
            "code": self.code,
            "what": self.what,
            "mend": self.mend,
        }


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of machine, chain and node. Times in ms, money in wei."""

    hardware: Hardware
    models: Sequence[str]
    config_problem: str = ""
    unknown_models: Sequence[str] = ()
    missing_weights: Sequence[str] = ()
    spoiled_weights: Mapping[str, str] = field(default_factory=dict)  # model -> what is wrong
    missing_modules: Mapping[str, str] = field(default_factory=dict)  # model -> what is missing
    llama_server: str = ""  # the program in the place of the wheel
    memory_needed: int = 0
    chain_error: str = ""
    gas_wei: int | None = None  # of the owner key, which registers
    claim_gas_wei: int | None = None  # of the gas key, which claims
    home_free: int | None = None  # bytes, where ledger and keys lie
    registered: bool | None = None
    gateways: Sequence[str] = ()
    clock_ahead_ms: int | None = None
    owner: str = ""
    key_problem: str = ""
    port_problem: str = ""
    reach_problem: str = ""
    relays: Mapping[str, str] = field(default_factory=dict)  # relay -> why it cannot be used
    landlock_abi: int | None = None  # of this kernel, where engines run in children
    seccomp: bool = False  # whether it takes our filter too
    status: Mapping[str, Any] | None = None  # of the running node
    machine_cost_known: bool = True


def diagnose(facts: Facts) -> list[Finding]:
    """The findings, worst first."""
    found = [*_models(facts), *_chain(facts), *_place(facts), *_machine(facts), *_running(facts)]
    return sorted(found, key=lambda item: item.severity)


def _models(facts: Facts) -> Iterator[Finding]:
    if not facts.models:
        yield Finding(
            Severity.STOPS, "no_models", "no model is configured", "run `inferpool node join`"
        )
    if facts.config_problem:
        mend = "correct it in config.toml, or with `inferpool node set`"
        yield Finding(Severity.STOPS, "config", facts.config_problem, mend)
    for model in facts.unknown_models:
        mend = "`inferpool models list` shows those that there are; own ones lie in node.manifests"
        yield Finding(Severity.STOPS, "unknown_model", f"there is no model {model}", mend)
    for model, module in sorted(facts.missing_modules.items()):
        what = f"the engine of {model} is not installed ({module})"
        yield Finding(Severity.STOPS, "no_engine", what, 'pip install "inferpool[node]"')
    if facts.llama_server:
        what = f"llama.cpp's models run by {facts.llama_server}, of which no test ran a real build"
        mend = "ask it and compare, or leave node.llama_server empty and install the wheel"
        yield Finding(Severity.NOTE, "untested", what, mend)
    for model in facts.missing_weights:
        yield Finding(
            Severity.STOPS,
            "no_weights",
            f"the weights of {model} are not here",
            f"inferpool models pull {model}",
        )
    for model, why in sorted(facts.spoiled_weights.items()):
        mend = f"remove that file, then inferpool models pull {model}"
        yield Finding(Severity.STOPS, "bad_weights", f"the weights of {model}: {why}", mend)
    usable = facts.hardware.memory_usable
    running = facts.status is not None and facts.status["state"] == "offering"
    if facts.memory_needed > usable and not running:
        limit = " (the container's limit)" if facts.hardware.memory_limit else ""
        yield Finding(
            Severity.STOPS,
            "memory",
            f"the models need {facts.memory_needed >> 20} MB, {usable >> 20} MB are left{limit}",
            "take a model out of node.models, or give the machine more memory",
        )


def _chain(facts: Facts) -> Iterator[Finding]:
    if facts.chain_error:
        yield Finding(
            Severity.STOPS,
            "chain",
            f"the chain cannot be reached: {facts.chain_error}",
            "start `inferpool up`, or give the right chain.url",
        )
    if facts.registered is False and facts.gas_wei == 0 and not facts.gateways:
        yield Finding(
            Severity.STOPS,
            "no_gas",
            f"the owner key {facts.owner} is not registered and holds no gas to register",
            "send it some gas, or name a gateway: inferpool node join --gateway URL",
        )
    elif facts.registered is False:
        severity = Severity.NOTE if facts.gateways else Severity.COSTS
        how = "only the named gateways know it" if facts.gateways else "no gateway can find it"
        mend = "the node registers at its next start where the owner key holds gas"
        yield Finding(severity, "not_registered", f"the node is not registered: {how}", mend)
    if facts.claim_gas_wei == 0:
        what = "the gas key of this node holds no gas: what is earned cannot be claimed by it"
        mend = "send it some (`inferpool wallet`, row node/gas); payers' channels keep what is owed"
        yield Finding(Severity.COSTS, "no_claim_gas", what, mend)
    ahead = facts.clock_ahead_ms
    if ahead is not None and abs(ahead) > CLOCK_SKEW_MS:
        what = f"this clock is {abs(ahead) // 1000} s {'ahead' if ahead > 0 else 'behind'}"
        yield Finding(
            Severity.STOPS,
            "clock",
            f"{what}; offers and receipts with such times are refused",
            "switch on time synchronisation: timedatectl set-ntp true",
        )


def _place(facts: Facts) -> Iterator[Finding]:
    if facts.key_problem:
        mend = "run the command that it names, or restore a backup: inferpool restore FILE"
        yield Finding(Severity.STOPS, "keystore", facts.key_problem, mend)
    if facts.port_problem:
        mend = "end what uses it, or choose another with node.port"
        yield Finding(Severity.STOPS, "port", facts.port_problem, mend)
    if facts.reach_problem:
        mend = "set node.endpoint to the address that others reach, and forward its port"
        yield Finding(Severity.STOPS, "reach", facts.reach_problem, mend)
    lost = {relay: why for relay, why in facts.relays.items() if why}
    severity = Severity.STOPS if len(lost) == len(facts.relays) else Severity.COSTS
    for relay, why in lost.items():
        what = f"the relay {relay} cannot be used: {why}"
        yield Finding(severity, "relay", what, "ask who runs it, or name another in node.relays")


def _machine(facts: Facts) -> Iterator[Finding]:
    hardware = facts.hardware
    if facts.home_free is not None and facts.home_free < HOME_FULL:
        what = f"{facts.home_free >> 20} MB are free where the ledger lies"
        mend = "make room at once: a node that cannot write its ledger takes no paid work"
        yield Finding(Severity.STOPS, "disk_full", what, mend)
    if hardware.disk_free < DISK_LOW:
        yield Finding(
            Severity.COSTS,
            "disk",
            f"{hardware.disk_free >> 20} MB of disk are free",
            "make room: the ledger must never fail to write",
        )
    if hardware.memory_usable < MEMORY_LOW:
        yield Finding(
            Severity.COSTS,
            "memory_low",
            f"{hardware.memory_usable >> 20} MB of memory are left",
            "serve a smaller model, or end other programs",
        )
    x86 = "x86" in hardware.system or "amd64" in hardware.system.lower()
    if x86 and "avx2" not in hardware.features:
        yield Finding(
            Severity.COSTS,
            "no_avx2",
            "this CPU has no AVX2: text runs several times slower, and in a class of its own",
            "serve tensor models, which need it less",
        )
    if facts.landlock_abi is not None and not (
        facts.landlock_abi >= LANDLOCK_FULL and facts.seccomp
    ):
        yield Finding(
            Severity.NOTE,
            "sandbox",
            f"this kernel holds engines back by {_sandbox(facts.landlock_abi, facts.seccomp)}",
            "Linux 6.7 or later with Landlock and seccomp switched on has the whole sandbox",
        )
    for gpu in hardware.gpus:
        if gpu.untested:
            what = f"{gpu.name} was found by {gpu.source}; no test has run that code on hardware"
            yield Finding(Severity.NOTE, "untested", what, "compare with the maker's own tool")
    if not facts.machine_cost_known:
        yield Finding(
            Severity.NOTE,
            "rated_power",
            "power cannot be measured here: costs are those of the CPU's class",
            "set cost.watts and cost.machine_usd to your own numbers",
        )


def _sandbox(abi: int, seccomp: bool) -> str:
    """What is in force, and what it does not protect."""
    if abi == 0 and not seccomp:
        return "limits only: an engine may do whatever this user may"
    if abi == 0:
        return (
            "seccomp alone: an engine changes, runs and connects to nothing, but may read every"
            " file of this user and listen on any TCP port"
        )
    if not seccomp:
        network = "" if abi >= LANDLOCK_FULL else "TCP, "
        return f"Landlock ABI {abi} alone: {network}UDP and UNIX sockets are open to an engine"
    return f"Landlock ABI {abi} and seccomp: an engine may listen on any TCP port"


def _running(facts: Facts) -> Iterator[Finding]:
    status = facts.status
    if status is None:
        yield Finding(Severity.NOTE, "not_running", "no node runs now", "inferpool node join")
        return
    if status["state"] != "offering":
        mend = "inferpool node resume" if status["state"] == "draining" else "it resumes by itself"
        if any(model["cold"] for model in status["models"]):
            mend = "raise node.memory_max_mb, or serve a smaller model"
        what = f"the node is {status['state']}: {status['reason']}"
        yield Finding(Severity.COSTS, status["state"], what, mend)
    for model in status["models"]:
        if model["restarts"] >= CRASHES:
            yield Finding(
                Severity.STOPS,
                "crash_loop",
                f"the engine of {model['model']} was restarted {model['restarts']} times:"
                f" {model['last_failure']}",
                "read logs/node.log; less node.slots, or `inferpool models verify`",
            )
        elif model["cold"]:
            what = f"{model['model']} left memory to others, and is not offered now"
            mend = "it comes back by itself; a higher node.memory_max_mb keeps both"
            yield Finding(Severity.NOTE, "cold", what, mend)
        elif not model["ready"] and status["state"] == "offering" and not model["withheld"]:
            what = f"the engine of {model['model']} is not ready: {model['last_failure'] or '?'}"
            yield Finding(Severity.COSTS, "engine", what, "wait; if it stays, read logs/node.log")
    for url, told in status["gateways"].items():
        yield from _gateway(url, told)


def _gateway(url: str, told: Mapping[str, Any]) -> Iterator[Finding]:
    if not told["accepted"]:
        what = f"{url} does not take the offer: {told['error']}"
        yield Finding(Severity.COSTS, "gateway", what, "check the URL in node.gateways")
    elif not told.get("alive", True):
        what = f"{url} took the offer but cannot reach this node's endpoint"
        mend = "set node.endpoint to the address that others reach, and forward its port"
        yield Finding(Severity.STOPS, "reach", what, mend)
    elif told.get("blocked_ms", 0) > 0:
        what = f"{url} keeps this node back after failures: {told.get('failed')}"
        yield Finding(Severity.COSTS, "held_back", what, "read logs/node.log for those errors")
