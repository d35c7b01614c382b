"""One configuration: defaults, then a TOML file, then the environment, then flags.

Every value knows where it came from; an unknown key is an error that names the nearest known one.
`INFERPOOL_NODE_PORT=8000` in the environment is `port = 8000` under `[node]` in the file.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from inferpool.protocol.errors import Refused
from inferpool.protocol.limits import CONCURRENT_PER_CHANNEL

ENV_PREFIX: Final = "INFERPOOL_"
# Variables of the environment that are no configuration keys.
ENV_OTHERS: Final = (
    "HOME",
    "PASSWORD",
    "MODEL_SOURCE",
    "FOLLOW",
    "LOG",
    "TEST_",
    "BACKUP_",
    "WORKER",
)


@dataclass(frozen=True, slots=True)
class ChainConfig:
    """`[chain]`: where money is."""

    url: str = ""  # JSON-RPC of any EVM chain; empty: the embedded development chain
    stand_ins: tuple[str, ...] = ()  # more URLs of that chain, asked where the first is silent
    finality_blocks: int = 12  # depth at which money counts; on a development chain at once
    port: int = 8422  # of the embedded chain; 0: a free one
    registry: str = ""  # address of the registry; empty: the development chain's
    asset: str = ""  # address of the payable token; empty: the development chain's test dollar
    asset_name: str = "Dev Dollar"  # of the token's signing domain
    asset_version: str = "1"
    asset_decimals: int = 6


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """`[node]`: what this machine sells. Prices in USD per million units."""

    host: str = "127.0.0.1"
    port: int = 8421  # 0: a free one
    endpoint: str = ""  # URL by which others reach this node; empty: host and port
    grpc_port: int = 0  # of the Open Inference Protocol over gRPC; 0: not served
    concurrent_per_channel: int = CONCURRENT_PER_CHANNEL  # requests at once of one payer
    models: tuple[str, ...] = ("smollm2-135m-instruct", "spam")
    manifests: str = ""  # folder of the owner's own manifests, beside the built-in ones
    upstreams: tuple[str, ...] = ()  # "MODEL URL" or "MODEL URL NAME-THERE": another server's
    upstream_parameters: tuple[str, ...] = ()  # "MODEL NAME,NAME": beyond the common ones
    upstream_keys: tuple[str, ...] = ()  # "MODEL VARIABLE": of the environment, with the key
    slots: int = 4  # calls at once of a text model
    threads: int = 2  # of the engine
    llama_server: str = ""  # a name on PATH or a path; empty: the wheel, else what PATH has
    price_in_usd_per_million: str = "0.15"
    price_out_usd_per_million: str = "0.60"
    price_row_usd_per_million: str = "0.10"
    price_embedding_usd_per_million: str = "0.02"  # tokens of texts to embed
    price_second_usd_per_million: str = "100"  # seconds of audio
    price_step_usd_per_million: str = "500"  # steps of images
    min_deposit_base_units: int = 100_000
    withdraw_delay_s: int = 900
    one_off_base_units: int = 10_000  # least of a payment by one transfer; 0: only channels
    window: int = 64  # maxima that one voucher of a payer may cover
    claim_every_s: int = 3600
    prices: tuple[str, ...] = ()  # "MODEL IN OUT" or "MODEL ROW", before the three above
    gateways: tuple[str, ...] = ()  # URLs to push the offer to
    relays: tuple[str, ...] = ()  # "HOST:PORT" or "HOST:PORT PIN": where to wait for callers
    payout: str = ""  # address that claims are paid to; empty: the owner key's
    stake_base_units: int = 0  # staked at the registry; 0: none
    hours: str = ""  # "08:00-20:00" by the local clock; empty: always
    only_when_idle: bool = False  # stop while other programs need the machine
    idle_load_percent: int = 50  # of one core, that other programs may use
    memory_max_mb: int = 0  # of this node and its engines; 0: no cap
    allow: tuple[str, ...] = ()  # addresses of payers; empty: every payer
    deny: tuple[str, ...] = ()  # addresses of payers that are not served


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """`[gateway]`: the door. Amounts in base units of the token (micro-USD)."""

    host: str = "127.0.0.1"
    port: int = 8420  # 0: a free one
    endpoint: str = ""  # URL by which others reach this gateway; empty: host and port
    grpc_port: int = 0  # of the Open Inference Protocol over gRPC; 0: not served
    open: bool = False  # let callers on this machine in without a key
    x402: bool = False  # let callers without a key pay for each request by x402
    payout: str = ""  # address that their money is claimed to; empty: the payer key's
    db: str = ""  # URL of a PostgreSQL database for the book; empty: SQLite in INFERPOOL_HOME
    workers: int = 1  # processes behind the port
    relay_port: int = 0  # a relay in the gateway's process, for nodes that dial out to it; 0: none
    nodes: tuple[str, ...] = ()  # URLs to ask beside the registry
    allow_private: bool = False  # call private addresses; left alone: as long as `host` is loopback
    deposit_base_units: int = 2_000_000
    cap_per_node_base_units: int = 10_000_000
    cap_total_base_units: int = 100_000_000
    cap_per_day_base_units: int = 100_000_000
    idle_release_s: int = 604_800  # capital with nodes unused for so long comes back; 0: never
    window: int = 32  # maxima that one voucher may cover, with nodes that have delivered
    window_base_units: int = 1_000  # most that lies with one node beyond what is in flight
    value_of_time_usd_per_hour: str = "0.1"
    fee_bps: int = 0  # of this gateway, on top of nodes' charges: hundredths of a percent
    canary: bool = False  # pay each new node for one small job, so that it earns at once
    canary_max_base_units: int = 1_000  # what one such job may cost at most


@dataclass(frozen=True, slots=True)
class CostConfig:
    """`[cost]`: what this machine's work costs its owner."""

    tariff_usd_per_kwh: str = "0.30"
    watts_per_core: str = "8"  # rated; measured power comes from the machine where it can
    watts: str = ""  # of the whole machine under load; empty: measured, else rated
    machine_usd: str = ""  # what the machine cost; empty: typical for its parts
    life_years: int = 4  # over which it is written off
    busy_percent: int = 20  # share of the time that is expected to be sold, for proposed prices
    margin_percent: int = 30  # on top of cost, in proposed prices
    gas_token_usd: str = ""  # price of one whole gas token; empty: gas is not deducted


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """`[relay]`: a forwarder for nodes that nobody can dial."""

    host: str = "127.0.0.1"
    port: int = 8424  # 0: a free one
    allow: tuple[str, ...] = ()  # addresses of node keys that may wait here; empty: all


@dataclass(frozen=True, slots=True)
class Config:
    """All sections."""

    chain: ChainConfig = ChainConfig()
    node: NodeConfig = NodeConfig()
    gateway: GatewayConfig = GatewayConfig()
    cost: CostConfig = CostConfig()
    relay: RelayConfig = RelayConfig()
    origins: Mapping[str, str] = field(default_factory=dict)  # "node.port" -> where it came from


SECTIONS: Final[dict[str, Any]] = {
    "chain": ChainConfig,
    "node": NodeConfig,
    "gateway": GatewayConfig,
    "cost": CostConfig,
    "relay": RelayConfig,
}


def _known() -> dict[str, Any]:
    """Every key with its default: 'node.port' -> 8421."""
    return {
        f"{section}.{item.name}": getattr(kind(), item.name)
        for section, kind in SECTIONS.items()
        for item in fields(kind)
    }


def load(
    path: Path | None, environ: Mapping[str, str], flags: Mapping[str, object] | None = None
) -> Config:
    """The configuration. `flags` maps 'node.port' to a value; None means not given.

    Raises Refused(bad_config) that names the key and what would be right.
    """
    values, origins = _known(), dict.fromkeys(_known(), "default")
    if path is not None and path.exists():
        for key, value in _read(path).items():
            values[key], origins[key] = _typed(key, value, str(path)), str(path)
    for name, text in sorted(environ.items()):
        rest = name.removeprefix(ENV_PREFIX)
        if rest != name and not rest.startswith(ENV_OTHERS):
            key = _env_key(name)
            values[key], origins[key] = _typed(key, _from_text(key, text), name), name
    for key, flag in (flags or {}).items():
        if flag is not None:
            values[key], origins[key] = _typed(key, flag, "flag"), "flag"
    return _build(values, origins)


def _build(values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    sections = {
        section: kind(**{item.name: values[f"{section}.{item.name}"] for item in fields(kind)})
        for section, kind in SECTIONS.items()
    }
    return Config(**sections, origins=origins)


def _read(path: Path) -> dict[str, object]:
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is not valid TOML: {error}", code="bad_config") from None
    found: dict[str, object] = {}
    for section, table in tables.items():
        if not isinstance(table, dict):
            raise _unknown(section, str(path))
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in _known():
                raise _unknown(key, str(path))
            found[key] = value
    return found


def _env_key(name: str) -> str:
    section, _, rest = name.removeprefix(ENV_PREFIX).lower().partition("_")
    key = f"{section}.{rest}"
    if key not in _known():
        raise _unknown(key, name)
    return key


def _unknown(key: str, origin: str) -> Refused:
    near = difflib.get_close_matches(key, _known(), n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(_known())}"
    return Refused(f"{origin}: unknown key {key}{hint}", code="bad_config", param=key)


def of_text(key: str, text: str) -> object:
    """A value as the environment or a command gives it. Raises Refused(bad_config)."""
    if key not in _known():
        raise _unknown(key, text)
    return _typed(key, _from_text(key, text), "given")


def typed(key: str, value: object) -> object:
    """A value as a file gives it. Raises Refused(bad_config)."""
    return _typed(key, value, "given")


def _from_text(key: str, text: str) -> object:
    default = _known()[key]
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if isinstance(default, int):
        digits = text.removeprefix("-")
        return int(text) if digits.isascii() and digits.isdigit() else text
    if isinstance(default, tuple):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _typed(key: str, value: object, origin: str) -> object:
    default = _known()[key]
    if isinstance(default, tuple):
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        wanted = "a list of strings"
    elif type(value) is type(default):
        return value
    elif isinstance(default, str) and type(value) in (int, float):
        return str(value)  # 0.15 where "0.15" is meant
    else:
        wanted = {bool: "true or false", int: "a whole number"}.get(type(default), "a string")
    raise Refused(f"{origin}: {key} must be {wanted}, not {value!r}", code="bad_config", param=key)
