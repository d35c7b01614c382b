"""From a machine to a provider's plan: what fits, how fast it is, what to ask, what it may bring.

Each step is a function of what the steps before it found; `cli.join` calls them in order and tells
how long each took.
"""

from __future__ import annotations

import asyncio
import importlib.util
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from inferpool.config import Config, CostConfig, NodeConfig
from inferpool.daemon.engines import make_engine
from inferpool.market.cost import HOURS_PER_YEAR, PPM, MachineCost
from inferpool.market.forecast import HourForecast, Work, forecast
from inferpool.market.hardware import classify
from inferpool.market.pricing import Asked, Proposal, propose
from inferpool.models import catalogue
from inferpool.models.manifest import Manifest
from inferpool.models.store import RESERVE_BYTES, Store
from inferpool.node.hardware import Hardware
from inferpool.node.measure import Measured
from inferpool.node.speed import MEASURED, Speed, measure_engine
from inferpool.node.upload import measure_upload
from inferpool.protocol.errors import Refused
from inferpool.protocol.units import format_usd, parse_usd
from inferpool.transport.base import TransportError
from inferpool.transport.http import LEARN, open_transport

# What an engine needs to be imported; those without a line are named by hand only.
MODULES: Final[dict[str, str]] = {
    "llamacpp": "xllamacpp",
    "onnx": "onnxruntime",
    "whisper": "faster_whisper",
}
_MIB: Final = 1024 * 1024
_ENGINE_BYTES: Final = 192 * _MIB  # a child process with its libraries, and the machine's own needs
_TIMEOUT_S: Final = 5.0
_MODELS_MAX: Final = 8 * _MIB


@dataclass(frozen=True, slots=True)
class Choice:
    """A model of the catalogue, and why it is left out ("" where it is not)."""

    manifest: Manifest
    why_not: str = ""


def memory_needed(manifest: Manifest) -> int:
    """Bytes that a loaded model takes, roughly: weights, their work space, and the process."""
    return manifest.size * 3 // 2 + (_ENGINE_BYTES if manifest.engine == "llamacpp" else 64 * _MIB)


def choose_models(names: Iterable[str], hardware: Hardware, store: Store) -> list[Choice]:
    """What of the catalogue, or of the names given, this machine can serve side by side."""
    wanted = [catalogue.load(name) for name in names]
    found, used = [], 0
    for manifest in wanted or sorted(catalogue.all(), key=lambda item: (item.size, item.name)):
        why = _why_not(manifest, hardware, store, used, named=bool(wanted))
        used += 0 if why else memory_needed(manifest)
        found.append(Choice(manifest, why))
    return found


def _why_not(
    manifest: Manifest, hardware: Hardware, store: Store, used: int, *, named: bool
) -> str:
    module = MODULES.get(manifest.engine)
    if module is None and not named:
        return f"the engine {manifest.engine} is chosen by name only"
    if module is not None and importlib.util.find_spec(module) is None:
        return f'{module} is missing: pip install "inferpool[node]"'
    if manifest.task not in MEASURED:
        return f"{manifest.task} is not measured yet; add it to node.models by hand"
    needed = memory_needed(manifest)
    if used + needed > hardware.memory_usable:
        return f"needs {needed // _MIB} MB, {(hardware.memory_usable - used) // _MIB} MB are left"
    missing = sum(file.size for file in store.missing(manifest))
    # A package lies on the disk beside the file that is taken out of it.
    if missing and 2 * missing + RESERVE_BYTES > hardware.disk_free:
        return f"needs {2 * missing // _MIB} MB of disk, {hardware.disk_free // _MIB} are free"
    return ""


async def measure_model(manifest: Manifest, store: Store, config: NodeConfig) -> Speed:
    """Load, measure, unload. Raises Unavailable."""
    engine = make_engine(manifest, store, config)
    await engine.start()
    try:
        return await measure_engine(manifest, engine)
    finally:
        await engine.close()


def asked_by(gateway: str) -> dict[str, tuple[Asked, Asked]]:
    """What a gateway's nodes ask by model, in and out; empty where it does not answer."""
    url = f"{gateway.rstrip('/')}/v1/models"
    if not url.startswith(("http://", "https://")):
        raise Refused(f"{gateway} is not an http(s) URL", code="bad_config", param="node.gateways")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310 - checked
            listed = orjson.loads(response.read(_MODELS_MAX))["data"]
        return {item["id"]: _asked(item["inferpool"]) for item in listed}
    except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError):
        return {}


def upload_to(gateway: str) -> tuple[int, str]:
    """Bytes a second to a gateway, or 0 and why not. Raises Refused(bad_config)."""
    return asyncio.run(_upload(gateway))


async def _upload(gateway: str) -> tuple[int, str]:
    pipe = open_transport(gateway, LEARN if gateway.startswith("https:") else None)
    try:
        return await measure_upload(pipe), ""
    except (TransportError, Refused) as error:
        return 0, str(error)
    finally:
        await pipe.close()


def _asked(item: Mapping[str, Any]) -> tuple[Asked, Asked]:
    def prices(name: str) -> Asked:
        return Asked(int(item[name]["min"]), int(item[name]["max"]))

    return prices("price_in_pico_usd_per_unit"), prices("price_out_pico_usd_per_unit")


def machine_cost(config: CostConfig, hardware: Hardware, measured: Measured | None) -> MachineCost:
    """The machine's cost: the owner's numbers, then measured ones, then those of its class.

    Raises Refused(bad_config).
    """
    cpu = classify("cpu", hardware.cpu)
    busy, idle = cpu.busy_milliwatts * hardware.cores, cpu.idle_milliwatts * hardware.cores
    if cpu.name == "unknown-cpu":
        busy = _number(config.watts_per_core, "watts_per_core") // 10**9 * hardware.cores
    price = cpu.price_pico_usd * hardware.cores
    for gpu in hardware.gpus:
        kind = classify("gpu", gpu.name)
        busy += gpu.power_limit or kind.busy_milliwatts
        idle, price = idle + kind.idle_milliwatts, price + kind.price_pico_usd
    if measured is not None and measured.busy_milliwatts:
        busy = measured.busy_milliwatts
    if config.watts:
        busy = _number(config.watts, "watts") // 10**9
    if config.machine_usd:
        price = _number(config.machine_usd, "machine_usd")
    return MachineCost(
        busy_milliwatts=busy,
        idle_milliwatts=min(idle, busy),
        price_pico_usd=price,
        life_hours=max(1, config.life_years) * HOURS_PER_YEAR,
        tariff_pico_usd_per_kwh=_number(config.tariff_usd_per_kwh, "tariff_usd_per_kwh"),
    )


def _number(text: str, key: str) -> int:
    """A decimal number times 10**12."""
    try:
        return parse_usd(text)
    except ValueError as error:
        raise Refused(f"cost.{key}: {error}", code="bad_config", param=f"cost.{key}") from None


@dataclass(frozen=True, slots=True)
class Priced:
    """One model with its speed and proposed prices; `price_out` is None for tensors."""

    manifest: Manifest
    speed: Speed
    price_in: Proposal
    price_out: Proposal | None

    def line(self) -> str:
        """As `node.prices` has it."""
        prices = [self.price_in, *([self.price_out] if self.price_out else [])]
        return " ".join([self.manifest.name, *(per_million(item.price) for item in prices)])

    def work(self) -> Work:
        """For the forecast."""
        out = self.price_out.price if self.price_out else 0
        if not self.speed.in_per_hour:  # images: all that is paid comes out
            return Work(out, 0, self.speed.out_per_hour)
        return Work(self.price_in.price, out, self.speed.in_per_hour, self.speed.out_per_hour)


def price(
    speeds: Mapping[Manifest, Speed],
    cost: MachineCost,
    config: CostConfig,
    asked: Mapping[str, tuple[Asked, Asked]],
) -> list[Priced]:
    """Prices for every measured model."""
    busy_ppm = min(100, max(1, config.busy_percent)) * PPM // 100
    margin = max(0, config.margin_percent)
    found = []
    for manifest, speed in speeds.items():
        asked_in, asked_out = asked.get(manifest.name, (None, None))
        price_in = (
            propose(cost.unit(speed.in_per_hour, busy_ppm), margin, asked_in)
            if speed.in_per_hour
            else Proposal(0, 0, "nothing is charged in")
        )
        price_out = (
            propose(cost.unit(speed.out_per_hour, busy_ppm), margin, asked_out)
            if speed.out_per_hour
            else None
        )
        found.append(Priced(manifest, speed, price_in, price_out))
    return found


def expected(priced: Iterable[Priced], cost: MachineCost) -> tuple[HourForecast, HourForecast]:
    """The range of an hour."""
    return forecast([item.work() for item in priced], cost)


def per_million(price_pico_usd_per_unit: int) -> str:
    """A price as the configuration writes it: 150000 -> 0.15."""
    return format_usd(price_pico_usd_per_unit * 10**6).removeprefix("$")


def settings_of(
    config: Config, priced: Iterable[Priced], gateways: Iterable[str], payout: str
) -> dict[str, object]:
    """What `join` writes into `[node]`."""
    priced = list(priced)
    values: dict[str, object] = {
        "models": [item.manifest.name for item in priced],
        "prices": [item.line() for item in priced],
        "gateways": list(gateways),
    }
    if payout or config.node.payout:
        values["payout"] = payout
    return values
