"""The chain as a process: it announces itself, survives kill -9, and ends cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inferpool.chain.abi import contract
from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS
from inferpool.chain.devchain.keys import DEV_KEYS
from inferpool.chain.devchain.limits import BODY_BYTES_MAX
from inferpool.chain.devchain.node import Node
from inferpool.protocol.encoding import from_hex, to_hex

TO = "0x" + "42" * 20
COMMAND = [sys.executable, "-m", "inferpool.chain.devchain", "--port", "0", "--announce"]


@contextmanager
def started(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A chain's process and its URL; killed in the end if it has not ended by itself."""
    process = subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def post(url: str, body: bytes) -> bytes:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as response:
        answer: bytes = response.read()
        return answer


def rpc(url: str, method: str, *parameters: object):
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(parameters)}
    answer = json.loads(post(url, json.dumps(body).encode()))
    assert "error" not in answer, answer
    return answer["result"]


def test_a_killed_chain_goes_on_where_it_was(tmp_path: Path) -> None:
    state = str(tmp_path / "chain.sqlite")
    logs = {"fromBlock": "earliest", "address": to_hex(DEV_DOLLAR_ADDRESS)}

    def seen(url: str) -> list[object]:
        return [
            rpc(url, "eth_getBlockByNumber", "latest", True),
            rpc(url, "eth_getBlockByNumber", "earliest"),
            rpc(url, "eth_getLogs", logs),
            rpc(url, "eth_getBalance", TO),
        ]

    with started("--state", state) as (process, url):
        for units in (1, 2, 3):
            rpc(url, "inferpool_faucet", TO, "0x1", hex(units))
        rpc(url, "evm_increaseTime", 86_400)
        rpc(url, "anvil_reorg", 1)
        rpc(url, "inferpool_faucet", TO, "0x1", "0x4")
        before = seen(url)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with started("--state", state) as (process, url):
        assert seen(url) == before
        assert len(before[2]) == 3  # type: ignore[arg-type]
        earlier = int(before[0]["timestamp"], 16)  # type: ignore[index]
        rpc(url, "inferpool_faucet", TO, "0x1", "0x5")
        block = rpc(url, "eth_getBlockByNumber", "latest")
        assert block["parentHash"] == before[0]["hash"]  # type: ignore[index]
        assert int(block["timestamp"], 16) >= earlier  # the shifted clock was kept


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0(number: signal.Signals) -> None:
    with started("--chain-id", "4242") as (process, url):
        assert rpc(url, "eth_chainId") == hex(4242)
        process.send_signal(number)
        assert process.wait(timeout=10) == 0


def test_what_http_refuses(tmp_path: Path) -> None:
    with started() as (_, url):
        assert rpc(url, "eth_blockNumber") == "0x0"
        with pytest.raises(urllib.error.HTTPError) as too_large:
            post(url, b" " * (BODY_BYTES_MAX + 1))
        with too_large.value:
            assert too_large.value.code == 413
        with pytest.raises(urllib.error.HTTPError) as by_get:
            urllib.request.urlopen(url, timeout=10)
        with by_get.value:
            assert by_get.value.code == 405
            assert by_get.value.headers["access-control-allow-origin"] is None


def test_the_registry_is_deployed_by_command() -> None:
    with started() as (_, url):
        court = "0x" + "77" * 20
        command = [sys.executable, "-m", "inferpool.chain.deploy", "--rpc", url, "--court", court]
        environment = os.environ | {"INFERPOOL_DEPLOYER_KEY": to_hex(DEV_KEYS[1].secret)}
        done = subprocess.run(
            [*command, "--test-dollar"], env=environment, capture_output=True, check=True
        )
        deployed = json.loads(done.stdout)
        registry = contract("Registry")
        for name, expected in (
            ("COURT", from_hex(court, 20)),
            ("TOKEN", from_hex(deployed["token"], 20)),
        ):
            call = {"to": deployed["registry"], "data": to_hex(registry.call(name))}
            (value,) = registry.functions[name].result(from_hex(rpc(url, "eth_call", call), 32))
            assert value == expected


def test_one_file_has_one_chain(tmp_path: Path) -> None:
    state = str(tmp_path / "chain.sqlite")
    with started("--state", state):
        second = subprocess.run([*COMMAND, "--state", state], capture_output=True, text=True)
        assert second.returncode != 0
        assert "database is locked" in second.stderr


def test_a_file_keeps_its_chain_id(tmp_path: Path) -> None:
    state = str(tmp_path / "chain.sqlite")
    Node(state, chain_id=7).close()
    with pytest.raises(ValueError, match="another chain id"):
        Node(state, chain_id=8)
