"""The door: keys, loopback, methods and paths, errors in the shape of each API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferpool.gateway.admission import Caller
from inferpool.gateway.app import GatewayApp
from inferpool.metrics import Registry, added_up
from inferpool.payments.budget import Account
from tests.gateway.parts import CHAT, INFER, KEY_HEADER, Pairs, Pool, expected_text, pool

CHAT_BODY = {
    "model": "fake-chat",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 3,
}


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"Basic c2ltLWtleTo=")],
        [(b"authorization", b"Bearer \xff\xfe")],
        [(b"x-api-key", b"sim-key")],
    ],
    ids=str,
)
async def test_no_key_or_an_unknown_one(pairs: Pairs) -> None:
    async with pool() as made:
        for path, body in ((CHAT, CHAT_BODY), (INFER, {"inputs": []})):
            answer = await made.send("POST", path, body, pairs)
            assert (answer.status, answer.code) == (401, "invalid_api_key")
            assert answer.headers[b"x-should-retry"] == b"false"
            error = answer.json["error"]
            assert "Authorization: Bearer KEY" in (
                error["message"] if isinstance(error, dict) else error
            )
        assert made.booked() == 0
        assert made.account.spent_pico_usd == 0


def test_pages_of_several_processes_add_up() -> None:
    pages = []
    for times in (1, 2):
        registry = Registry()
        count = registry.count("asked_total", "Asked.", "model")
        count.add(times, "a b")
        count.add(5, f"only {times}")
        first = registry.histogram("first_seconds", "First.", (0.5, 1.0))
        for _ in range(times):
            first.observe(0.7)
        registry.gauge("nodes", "Nodes.", lambda times=times: [((), times)])
        pages.append(registry.text())
    found = added_up(pages, {"nodes"}).decode().splitlines()
    assert found.count("# TYPE asked_total counter") == 1
    assert 'asked_total{model="a b"} 3' in found
    assert {'asked_total{model="only 1"} 5', 'asked_total{model="only 2"} 5'} <= set(found)
    assert found[found.index("# TYPE first_seconds histogram") + 1 :][:3] == [
        'first_seconds_bucket{le="0.5"} 0',
        'first_seconds_bucket{le="1.0"} 3',
        'first_seconds_bucket{le="+Inf"} 3',
    ]
    assert "nodes 2" in found
    assert added_up(pages[:1]) == pages[0], "one is as it was"


def opened(made: Pool) -> GatewayApp:
    """The same gateway for callers without a key, from this machine only."""
    anyone = Account("anyone", None)
    ledger = made.gateway.gateway.ledger
    ledger.add_account("", anyone, 0)
    found = ledger.account("", 0)
    assert found is not None
    return GatewayApp(made.gateway.gateway, "control", Caller(*found))


@pytest.mark.parametrize(
    ("client", "status"),
    [
        ("127.0.0.1", 200),
        ("127.9.9.9", 200),
        ("::1", 200),
        ("10.0.0.1", 401),
        ("192.168.1.5", 401),
        ("0.0.0.0", 401),
        ("203.0.113.7", 401),
        ("fe80::1", 401),
        ("localhost", 401),
        ("", 401),
    ],
)
async def test_open_means_open_for_loopback_only(client: str, status: int) -> None:
    async with pool() as made:
        app = opened(made)
        answer = await made.send("POST", CHAT, CHAT_BODY, [], client=client, app=app)
        assert answer.status == status


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"host": "127.0.0.1:8420"}, 200),
        ({"host": "[::1]:8420"}, 200),
        ({"host": "localhost:8420", "origin": "http://localhost:3000"}, 200),
        ({"x-forwarded-for": "127.0.0.1"}, 401),  # a front speaks for somebody
        ({"forwarded": "for=127.0.0.1"}, 401),
        ({"host": "127.0.0.1:8420", "origin": "https://pages.example"}, 401),
        ({"host": "127.0.0.1:8420", "origin": "null"}, 401),  # a page in a sandboxed frame
        ({"host": "rebound.example:8420"}, 401),
        ({"host": "203.0.113.7"}, 401),
        ({"host": "[::1"}, 401),
    ],
)
async def test_open_is_for_programs_of_this_machine(said: dict[str, str], status: int) -> None:
    """Neither a front nor a web page in this machine's browser spends the open account's money."""
    async with pool() as made:
        pairs: Pairs = [(name.encode(), value.encode()) for name, value in said.items()]
        answer = await made.send(
            "POST", CHAT, CHAT_BODY, pairs, client="127.0.0.1", app=opened(made)
        )
        assert answer.status == status


async def test_a_gateway_that_is_not_open_lets_no_loopback_caller_in() -> None:
    async with pool() as made:
        assert (await made.send("POST", CHAT, CHAT_BODY, [], client="127.0.0.1")).status == 401


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("PUT", "/v1/models", 405, "method_not_allowed"),
        ("GET", INFER, 405, "method_not_allowed"),
        ("GET", "/v1/models/none", 404, "model_not_found"),
        ("GET", "/v2/models/none", 404, "model_not_found"),
        ("GET", "/v2/models/fake-chat", 404, "model_not_found"),
        ("GET", "/inferpool/status", 401, "invalid_api_key"),
    ],
)
async def test_wrong_paths_and_methods(method: str, path: str, status: int, code: str) -> None:
    async with pool() as made:
        answer = await made.send(method, path)
        assert (answer.status, answer.code) == (status, code)


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"model": "gpt-9"}, 404, "model_not_found"),
        ({"model": "fake-tensor"}, 404, "model_not_found"),
        ({"messages": []}, 400, "invalid_request"),
        ({"max_tokens": -1}, 400, "invalid_request"),
        ({"max_tokens": 5000}, 400, "context_length_exceeded"),
        ({"n": 9}, 400, "invalid_request"),
        ({"inferpool": {"resume": [1]}}, 400, "*"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_bad_chat_is_the_clients_fault_and_no_nodes(
    changes: dict[str, Any], status: int, code: str, stream: bool
) -> None:
    async with pool() as made:
        answer = await made.chat(stream=stream, **changes)
        assert answer.status == status
        assert answer.code == code or code == "*"
        assert answer.json["error"]["type"] == "invalid_request_error"
        assert made.known[0].failures == 0, "no node is blamed"
        assert (made.booked(), made.account.held_pico_usd) == (0, 0)
        assert (await made.chat()).status == 200


async def test_a_bad_tensor_is_told_as_the_node_tells_it() -> None:
    async with pool() as made:
        tensor = {"name": "y", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
        answer = await made.send("POST", INFER, {"inputs": [tensor]})
        assert (answer.status, answer.code) == (400, "invalid_tensor")
        assert "no input 'y'" in answer.json["error"]
        assert (made.booked(), made.account.held_pico_usd) == (0, 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_chat_costs_what_its_receipt_says(stream: bool) -> None:
    async with pool() as made:
        answer = await made.chat(stream=stream)
        assert answer.status == 200
        proof = answer.proof
        text = answer.text if stream else answer.json["choices"][0]["message"]["content"]
        assert text == expected_text("hello", 5, 10)
        assert proof["output_units"] == 10
        assert proof["cost_pico_usd"] == int(proof["receipt"]["chargePico"])
        assert proof["cost_pico_usd"] == made.booked() == made.earned()
        assert made.account.spent_pico_usd == proof["cost_pico_usd"]
        assert made.account.held_pico_usd == 0
        if stream:
            assert answer.done
            assert all("inferpool" not in e or "receipt" in e["inferpool"]
                       for e in answer.events if isinstance(e, dict))  # fmt: skip


async def test_tensors_cost_rows_times_price() -> None:
    async with pool() as made:
        answer = await made.infer(3)
        assert answer.json["outputs"][0]["data"] == [4.0, 4.0, 4.0]
        assert int(answer.headers[b"inferpool-cost-pico-usd"]) == 3 * 100_000
        assert made.account.spent_pico_usd == made.booked() == 300_000


async def test_what_everyone_may_see() -> None:
    async with pool(2) as made:
        models = (await made.send("GET", "/v1/models", None, [])).json["data"]
        assert [item["id"] for item in models] == ["fake-chat", "fake-tensor"]
        facts = models[0]["inferpool"]
        assert (facts["nodes"], facts["unit"]) == (2, "token")
        assert facts["price_out_pico_usd_per_unit"] == dict.fromkeys(
            ("min", "p50", "p90", "max"), 600_000
        )
        assert facts["input_modalities"] == facts["output_modalities"] == ["text"]
        assert facts["context"] == facts["context_most"] == 4096
        assert (await made.send("GET", "/v1/models/fake-chat", None, [])).json["id"] == "fake-chat"
        assert (await made.send("GET", "/health", None, [])).status == 200
        assert (await made.send("GET", "/v2/models/fake-tensor/ready", None, [])).status == 200
        metadata = await made.send("GET", "/v2/models/fake-tensor", None, [])
        assert metadata.json["inputs"][0]["name"] == "x"


async def test_status_is_for_the_operator() -> None:
    async with pool() as made:
        await made.chat()
        for pairs in ([], [KEY_HEADER], [(b"authorization", b"Bearer ")]):
            assert (await made.send("GET", "/inferpool/status", None, pairs)).status == 401
        answer = await made.send(
            "GET", "/inferpool/status", None, [(b"authorization", b"Bearer control")]
        )
        found = answer.json
        assert found["accounts"][0]["spent_pico_usd"] == made.booked()
        assert found["channels"][0]["receipts"] == 1
        assert found["attempts"][0]["state"] == "settled"
        assert "hello" not in json.dumps(found), "no prompt is kept"


async def test_a_model_that_only_silent_nodes_have_is_503_and_not_404() -> None:
    async with pool() as made:
        await made.nodes[0].crash()
        answer = await made.chat()
        assert (answer.status, answer.code) == (503, "no_node")
        assert int(answer.headers[b"retry-after"]) >= 1
        assert (await made.chat(model="gpt-9")).status == 404
        assert (await made.send("GET", "/health")).status == 503
