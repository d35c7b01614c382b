"""Finding out what `node.doctor` judges: chain, clock, keys, ports, weights, the running node."""

from __future__ import annotations

import asyncio
import email.utils
import importlib.util
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from inferpool.config import Config, NodeConfig
from inferpool.daemon.chains import chain_url, open_chain
from inferpool.daemon.engines import llama_server, load_manifest
from inferpool.daemon.joining import MODULES, memory_needed
from inferpool.daemon.payee import payers_of, window_of
from inferpool.daemon.provider import policy_of, prices_of
from inferpool.engines.sandbox import landlock_abi, seccomp_offered
from inferpool.home import Home
from inferpool.identity import keystore
from inferpool.identity.keys import Role
from inferpool.models.manifest import Manifest
from inferpool.models.store import Store
from inferpool.node.doctor import Facts
from inferpool.node.hardware import detect
from inferpool.node.measure import EnergyCounters
from inferpool.protocol.encoding import to_checksum
from inferpool.protocol.errors import InferpoolError
from inferpool.transport.relayed import RelayAddress

_TIMEOUT_S: Final = 5.0


async def examine(config: Config, home: Home, status: dict[str, Any] | None) -> Facts:
    """Look at everything. `status`: of the running node, None where none runs. Never raises."""
    store = Store()
    manifests, unknown = _manifests(config)
    lacking = {item.name: _lacks(item, config.node) for item in manifests}
    modules = {name: missing for name, missing in lacking.items() if missing}
    chain_error, gas, claim_gas, registered, owner = await _chain(config, home)
    return Facts(
        hardware=detect(store.root),
        models=config.node.models,
        config_problem=_config_problem(config),
        unknown_models=unknown,
        missing_weights=[item.name for item in manifests if store.missing(item)],
        spoiled_weights=await asyncio.to_thread(_spoiled, manifests, store),
        missing_modules=modules,
        llama_server=llama_server(config.node) * any(m.engine == "llamacpp" for m in manifests),
        memory_needed=sum(map(memory_needed, manifests)),
        chain_error=chain_error,
        gas_wei=gas,
        claim_gas_wei=claim_gas,
        home_free=shutil.disk_usage(home.root).free if home.root.is_dir() else None,
        registered=registered,
        gateways=config.node.gateways,
        clock_ahead_ms=None if chain_error else _clock_ahead_ms(chain_url(config.chain, home)),
        owner=owner,
        key_problem=_key_problem(home),
        port_problem="" if status else _port_problem(config.node.host, config.node.port),
        reach_problem=_reach_problem(home) if status else "",
        relays={relay: _relay_problem(relay) for relay in config.node.relays},
        landlock_abi=landlock_abi(),
        seccomp=seccomp_offered(),
        status=status,
        machine_cost_known=bool(config.cost.watts) or EnergyCounters().readable,
    )


def _manifests(config: Config) -> tuple[list[Manifest], list[str]]:
    found, unknown = [], []
    for name in config.node.models:
        try:
            found.append(load_manifest(name, config.node))
        except InferpoolError:
            unknown.append(name)
    return found, unknown


def _config_problem(config: Config) -> str:
    """What the node would refuse to start with."""
    try:
        policy_of(config.node)
        payers_of(config.node)
        window_of(config.node.window)
        prices_of(config.node)
    except InferpoolError as error:
        return error.message
    return ""


def _spoiled(manifests: Iterable[Manifest], store: Store) -> dict[str, str]:
    """Models with a file that is here and is not what its manifest says; every byte is read."""
    found = {}
    for manifest in manifests:
        for file in manifest.files:
            if store.has(file):
                try:
                    store.verify(file)
                except (InferpoolError, OSError) as error:
                    found[manifest.name] = str(error)
    return found


def _lacks(manifest: Manifest, config: NodeConfig) -> str:
    """The module or program that an engine needs and that is not here; empty: nothing."""
    program = llama_server(config) if manifest.engine == "llamacpp" else ""
    if program:
        return "" if shutil.which(program) else program
    module = MODULES.get(manifest.engine)
    return module if module and importlib.util.find_spec(module) is None else ""


async def _chain(
    config: Config, home: Home
) -> tuple[str, int | None, int | None, bool | None, str]:
    """Error, the owner's gas and the gas key's in wei, whether it is registered, its address."""
    address = gas_key = None
    with suppress(InferpoolError):
        address = home.keys("node").addresses().get(Role.OWNER)
        gas_key = home.keys("node").addresses().get(Role.GAS)
    owner = to_checksum(address) if address else ""
    try:
        chain = await open_chain(config.chain, home)
        if address is None:
            return "", None, None, None, ""
        claim_gas = await chain.gas_balance(gas_key) if gas_key else None
        gas = await chain.gas_balance(address)
        known = any(item.owner == address for item in await chain.registrations())
    except InferpoolError as error:
        return error.message, None, None, None, owner
    return "", gas, claim_gas, known, owner


def _clock_ahead_ms(url: str) -> int | None:
    """How far this clock is ahead of the chain's server, by the date of its answer."""
    request = urllib.request.Request(  # noqa: S310 - the configured chain
        url, data=b"{}", headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
            date = response.headers.get("Date", "")
    except urllib.error.HTTPError as error:
        date = error.headers.get("Date", "")
    except (urllib.error.URLError, OSError, ValueError):
        return None
    try:
        there = email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None
    return int(1000 * (time.time() - there))


def _key_problem(home: Home) -> str:
    keys = home.keys("node")
    for role in Role:
        if keys.path(role).exists():
            try:
                keystore.address(keys.path(role))
            except InferpoolError as error:
                return error.message
    return ""


def _port_problem(host: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
        except OSError as error:
            return f"port {port} on {host} cannot be used ({error.strerror})"
    return ""


def _relay_problem(text: str) -> str:
    """Whether a relay is named rightly and takes connections."""
    try:
        relay = RelayAddress.parse(text)
        socket.create_connection((relay.host, relay.port), timeout=_TIMEOUT_S).close()
    except InferpoolError as error:
        return error.message
    except OSError as error:
        return f"it does not answer ({error})"
    return ""


def _reach_problem(home: Home) -> str:
    """Whether the endpoint that the offer names answers, asked from here."""
    running = home.running("node") or {}
    endpoint = str(running.get("endpoint", ""))
    if not endpoint:
        return ""
    host, _, port = endpoint.split("//", 1)[-1].partition("/")[0].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        return f"the endpoint {endpoint} does not answer from here ({error})"
    return ""
