"""A node that nobody dials: it waits at a relay in another process, and is paid like others."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import httpx
import numpy as np
import poolkit
import pytest
from tritonclient.utils import InferenceServerException

from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.reach import relay_url
from inferpool.transport.http import open_transport

pytestmark = pytest.mark.timeout(120)


@dataclass
class Relayed:
    """The pool, and the port of its relay."""

    running: poolkit.Running
    port: int


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relayed]:
    port = poolkit.free_port()
    flags = poolkit.FREE_PORTS | {"relay.port": port, "node.relays": [f"127.0.0.1:{port}"]}
    if find_spec("grpc") is not None:
        flags["node.grpc_port"] = poolkit.free_port()
    roles = ("chain", "relay", "node", "gateway")
    running = poolkit.start(tmp_path_factory.mktemp("reach"), flags, roles)
    pids = [process.process.pid for process in running.pool.running.values()]
    yield Relayed(running, port)
    codes = running.pool.close()
    poolkit.all_gone(pids)
    assert codes == {"gateway": 0, "node": 0, "relay": 0, "chain": 0}
    assert "Traceback" not in running.logs()


def test_a_paid_answer_through_the_relay(relayed: Relayed) -> None:
    running = relayed.running
    answer = running.serves(within_s=30)
    receipt = running.checked(answer.json()["inferpool"])
    assert receipt.charge_pico_usd > 0
    assert running.books_agree() >= receipt.charge_pico_usd
    (node,) = running.status()["nodes"]
    assert node["url"] == f"relay://127.0.0.1:{relayed.port}/{to_hex(running.node_address)}"
    offer = httpx.get(f"{running.url('node')}/.well-known/inferpool/offer").json()["offer"]
    assert [item["url"] for item in offer["endpoints"]] == [node["url"]]  # not its own door
    assert int(running.claim()["claimed_base_units"]) > 0  # by the owner, on this machine


def test_who_comes_by_the_relay_is_not_on_this_machine(relayed: Relayed) -> None:
    """The relay's connections come from loopback here; the owner's pages stay shut to them."""
    running = relayed.running
    offer = httpx.get(f"{running.url('node')}/.well-known/inferpool/offer").json()["offer"]
    (endpoint,) = offer["endpoints"]

    async def status_of(path: str) -> int:
        transport = open_transport(endpoint["url"], from_hex(endpoint["tlsSpki"], 32))
        try:
            answer = await transport.request("GET", path, [], timeout_s=20)
            await answer.read(1 << 20)
            return answer.status
        finally:
            await transport.close()

    assert asyncio.run(status_of("/health")) == 200
    assert asyncio.run(status_of("/metrics")) == 401
    assert httpx.get(f"{running.url('node')}/metrics").status_code == 200


@contextmanager
def forwarded(running: poolkit.Running, url: str) -> Iterator[str]:
    """`inferpool forward`, as a user runs it; its own URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "inferpool", "forward", url, "--port", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=poolkit.environment(running.home, INFERPOOL_FOLLOW="1"),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.stdin.close()
        assert process.wait(20) == 0
        process.stdout.close()


def relay_url_of(running: poolkit.Running) -> str:
    offer = httpx.get(f"{running.url('node')}/.well-known/inferpool/offer").json()["offer"]
    return str(offer["endpoints"][0]["url"])


def test_grpc_and_http_go_through_the_relay(relayed: Relayed) -> None:
    """By the client of others, which dials addresses, on one local port."""
    triton = pytest.importorskip("tritonclient.grpc", reason="no tritonclient for gRPC")
    running = relayed.running
    with forwarded(running, relay_url_of(running)) as url:
        offer = httpx.get(f"{url}/.well-known/inferpool/offer").json()["offer"]
        assert offer["node"] == to_hex(running.node_address)
        assert httpx.get(f"{url}/metrics").status_code == 401  # not from this machine
        with triton.InferenceServerClient(url.removeprefix("http://")) as client:
            assert client.is_server_live()
            assert client.get_model_metadata(poolkit.SPAM).name == poolkit.SPAM
            text = triton.InferInput("text", [1, 1], "BYTES")
            text.set_data_from_numpy(np.array([[b"free money"]], dtype=np.object_))
            with pytest.raises(InferenceServerException, match="payment_required"):
                client.infer(poolkit.SPAM, [text])  # it has reached the till


def test_a_forward_to_nobody_says_so(relayed: Relayed) -> None:
    nobody = relay_url("127.0.0.1", relayed.port, bytes(19) + b"\1")
    done = poolkit.inferpool("forward", nobody, "--port", "0", home=relayed.running.home)
    assert done.returncode == 1
    assert "not here" in done.stderr


def test_a_killed_relay_costs_no_money_and_is_found_again(relayed: Relayed) -> None:
    running = relayed.running
    running.serves(within_s=30)
    before = running.books_agree()
    running.kill("relay")
    assert running.chat().status_code in (502, 503)
    running.pool.start("relay")
    running.serves(within_s=60)
    assert running.books_agree() > before
