"""`GET /metrics` of node and gateway: readable for Prometheus, true to the receipts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import httpx
import pytest
from rig import Rig, hosted

from inferpool.metrics import SERIES_MAX, Registry

LINE = re.compile(
    r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-z_]+="([^"\\\n]|\\.)*",?)*\})? -?[0-9.e+]+(\.[0-9]+)?'
)
CHAT = {"model": "fake-chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 6}


@pytest.fixture(scope="module")
def rig(runner: asyncio.Runner) -> Iterator[Rig]:
    async def start() -> Rig:
        return await Rig([[await hosted("fake-chat"), await hosted("fake-tensor")]]).start()

    rig = runner.run(start())
    yield rig
    runner.run(rig.close())


def values(text: str) -> dict[str, float]:
    lines = text.splitlines()
    for line in lines:
        assert line.startswith(("# HELP ", "# TYPE ")) or LINE.fullmatch(line), line
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    assert len({name for name, _ in pairs}) == len(pairs)
    return {name: float(value) for name, value in pairs}


def at_node(rig: Rig, host: str = "127.0.0.1") -> httpx.AsyncClient:
    door = httpx.ASGITransport(app=rig.nodes[0].app, client=(host, 1))
    return httpx.AsyncClient(transport=door, base_url="http://node")


async def test_counts_what_receipts_say(runner: asyncio.Runner, rig: Rig) -> None:
    for _ in range(3):
        assert (await rig.post("/v1/chat/completions", CHAT)).status_code == 200
    await rig.refused("/v1/chat/completions", CHAT | {"tools": [1]})
    answer = await rig.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    gateway = values(answer.text)
    async with at_node(rig) as client:
        node = values((await client.get("/metrics")).text)
    for found in (gateway, node):
        assert found['vllm:generation_tokens_total{model_name="fake-chat"}'] == 18
        assert found['vllm:time_to_first_token_seconds_count{model_name="fake-chat"}'] == 3
        bucket = 'vllm:time_to_first_token_seconds_bucket{model_name="fake-chat",le="+Inf"}'
        assert found[bucket] == 3
    assert gateway['inferpool_gateway_refusals_total{code="unsupported_parameter"}'] == 1
    charged = node['inferpool_node_charged_pico_usd_total{model_name="fake-chat"}']
    assert charged == rig.charged() == rig.spent()
    assert gateway['inferpool_gateway_billed_pico_usd_total{model_name="fake-chat"}'] == charged
    receipts = 'inferpool_node_receipts_total{model_name="fake-chat",outcome="complete"}'
    assert node[receipts] == 3
    assert node["inferpool_node_unclaimed_base_units"] == charged // 10**6
    assert node['vllm:num_requests_running{model_name="fake-tensor"}'] == 0
    assert gateway["inferpool_gateway_nodes"] == 1


async def test_from_elsewhere_under_the_control_token(runner: asyncio.Runner, rig: Rig) -> None:
    async with at_node(rig, "203.0.113.9") as client:
        assert (await client.get("/metrics")).status_code == 401
        owner = {"authorization": "Bearer control"}
        assert (await client.get("/metrics", headers=owner)).status_code == 200
    async with at_node(rig) as client:  # a proxy on this machine speaks for somebody else
        proxied = {"x-forwarded-for": "203.0.113.9"}
        assert (await client.get("/metrics", headers=proxied)).status_code == 401


def test_labels_are_escaped_and_bounded() -> None:
    registry = Registry()
    count = registry.count("inferpool_x_total", "Things.", "code")
    count.add(1, 'a"b\\c\nd')
    assert 'inferpool_x_total{code="a\\"b\\\\c\\nd"} 1' in registry.text().decode()
    for i in range(SERIES_MAX + 10):
        count.add(1, str(i))
    assert len(count.values) == SERIES_MAX + 1
    assert count.values["other",] == 11
    times = registry.histogram("inferpool_x_seconds", "Times.", (1.0,), "model")
    for i in range(SERIES_MAX + 10):
        times.observe(0.5, str(i))
    assert len(times.series) == SERIES_MAX + 1
    assert times.series["other",] == ([10, 0], [5.0])
