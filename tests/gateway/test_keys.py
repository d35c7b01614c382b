"""Users of a gateway: keys, teams, budgets, rates and rules, through the door and its admin API."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from inferpool.payments.schema import API_KEYS
from tests.gateway.parts import Answer, Pairs, Pool, pool

OWNER: Pairs = [(b"authorization", b"Bearer control")]
EVE_MS = 1_798_761_540_000  # 2026-12-31T23:59:00Z
ONE = 17 * 150_000 + 10 * 600_000  # pico-USD: what `Pool.chat` may cost at most


def usd(pico_usd: int) -> str:
    return f"{pico_usd / 1e12:.12f}"


async def admin(made: Pool, path: str, body: Any = None) -> Answer:
    method = "GET" if body is None else "POST"
    return await made.send(method, f"/inferpool/admin/{path}", body, OWNER)


async def new_key(made: Pool, name: str = "web", **rules: Any) -> str:
    answer = await admin(made, "keys", {"name": name, **rules})
    assert answer.status == 200, answer.body
    return str(answer.json["key"])


async def chat(made: Pool, key: str, **changes: Any) -> Answer:
    body = {
        "model": "fake-chat",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 10,
        "seed": 5,
    }
    pairs: Pairs = [(b"authorization", b"Bearer " + key.encode())]
    return await made.send("POST", "/v1/chat/completions", body | changes, pairs)


# -- keys ----------------------------------------------------------------------------------------


async def test_a_key_is_shown_once_and_only_its_hash_is_kept() -> None:
    async with pool() as made:
        key = await new_key(made)
        assert (await chat(made, key)).status == 200
        for path in ("keys", "keys/web", "usage"):
            assert key not in (await admin(made, path)).body.decode()
        connection = made.gateway.journal.engine.raw_connection()
        dump = "\n".join(connection.driver_connection.iterdump())  # type: ignore[union-attr]
        connection.close()
        assert key not in dump
        assert key[20:] not in dump
        rows = made.gateway.journal.read(API_KEYS.select())
        assert key[:12] + "..." + key[-4:] in {row.shown for row in rows}


async def test_revoked_and_rotated_keys_open_nothing_and_spending_goes_on() -> None:
    async with pool() as made:
        old = await new_key(made, budget_usd="1")
        first = (await chat(made, old)).json["inferpool"]["cost_pico_usd"]
        answer = await admin(made, "keys/web/rotate", {})
        new = answer.json["key"]
        assert (await chat(made, old)).status == 401
        second = (await chat(made, new)).json["inferpool"]["cost_pico_usd"]
        shown = (await admin(made, "keys/web")).json
        assert float(shown["spent_usd"]) == pytest.approx((first + second) / 1e12)
        await made.restart_gateway()
        assert (await chat(made, new)).status == 200, "and after a restart"
        assert (await chat(made, old)).status == 401
        assert (await admin(made, "keys/web/revoke", {})).json["revoked"] is True
        assert (await chat(made, new)).status == 401
        await made.restart_gateway()
        assert (await chat(made, new)).status == 401


async def test_a_key_ends_when_its_time_is_over() -> None:
    async with pool() as made:
        key = await new_key(made, expires="1h")
        shown = (await admin(made, "keys/web")).json
        assert shown["expires_ms"] == shown["keys"][0]["created_ms"] + 3_600_000
        await asyncio.sleep(3599)
        assert (await chat(made, key)).status == 200
        await asyncio.sleep(1)
        late = await chat(made, key)
        assert (late.status, late.code) == (401, "key_expired")
        assert late.json["error"]["type"] == "authentication_error"
        shown = (await admin(made, "keys/web")).json
        assert (shown["expired"], shown["revoked"]) == (True, False)
        await made.restart_gateway()
        assert (await chat(made, key)).code == "key_expired", "nothing is forgotten"
        assert (await admin(made, "keys/web/limit", {"expires": "2d"})).json["expired"] is False
        assert (await chat(made, key)).status == 200, "it was extended"
        assert (await admin(made, "keys/web/limit", {"expires": None})).json["expires_ms"] is None
        await asyncio.sleep(3 * 86_400)
        assert (await chat(made, key)).status == 200
        await admin(made, "keys/web/revoke", {})
        assert (await chat(made, key)).code == "invalid_api_key"
        assert (await admin(made, "keys/web/limit", {"expires": "2d"})).status == 400


async def test_a_stream_outlives_its_key() -> None:
    async with pool() as made:
        made.nodes[0].engine.token_delay_s = 1.0
        key = await new_key(made, expires="5s")
        answer = await chat(made, key, stream=True)
        assert answer.proof["output_units"] == 10
        assert (await chat(made, key)).code == "key_expired"


async def test_both_keys_work_while_clients_change_from_one_to_the_next() -> None:
    async with pool() as made:
        old = await new_key(made, budget_usd="1", expires="30d")
        answer = await admin(made, "keys/web/rotate", {"keep_old": "1h"})
        new, keys = answer.json["key"], answer.json["keys"]
        assert keys[1]["expires_ms"] - keys[1]["created_ms"] == 30 * 86_400_000, "as the one before"
        for key in (old, new):
            assert (await chat(made, key)).status == 200
        await admin(made, "keys/web/limit", {"expires": "90d"})
        await asyncio.sleep(3600)
        assert (await chat(made, old)).code == "key_expired", "only the newest was extended"
        assert (await chat(made, new)).status == 200
        again = await admin(made, "keys/web/rotate", {"keep_old": "1000d", "expires": None})
        assert again.json["expires_ms"] is None
        assert again.json["keys"][1]["expires_ms"] < keys[1]["created_ms"] + 100 * 86_400_000
        assert (await chat(made, old)).code == "key_expired", "no rotation brings one back"
        await made.restart_gateway()
        assert (await chat(made, again.json["key"])).status == 200
        assert (await chat(made, old)).code == "key_expired"


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("keys", {}, 400, "invalid_request", "name"),
        ("keys", {"name": "../x"}, 400, "invalid_request", "name"),
        ("keys", {"name": "client"}, 400, "invalid_request", "name"),
        ("keys", {"name": "a", "budget_usd": 1}, 400, "invalid_request", "budget_usd"),
        ("keys", {"name": "a", "budget_usd": "-1"}, 400, "invalid_request", "budget_usd"),
        ("keys", {"name": "a", "budget_usd": "1e3"}, 400, "invalid_request", "budget_usd"),
        ("keys", {"name": "a", "concurrent": 0}, 400, "invalid_request", "concurrent"),
        ("keys", {"name": "a", "concurrent": True}, 400, "invalid_request", "concurrent"),
        ("keys", {"name": "a", "models": "x"}, 400, "invalid_request", "models"),
        ("keys", {"name": "a", "team": "none"}, 404, "not_found", "team"),
        ("keys", {"name": "a", "budgit": "1"}, 400, "invalid_request", "budgit"),
        ("keys", {"name": "a", "expires": 30}, 400, "invalid_request", "expires"),
        ("keys", {"name": "a", "expires": "0d"}, 400, "invalid_request", "expires"),
        ("keys", {"name": "a", "expires": "soon"}, 400, "invalid_request", "expires"),
        ("keys", {"name": "a", "expires": "2001-01-01"}, 400, "invalid_request", "expires"),
        ("keys", {"name": "a", "expires": "9999-12-31"}, 400, "invalid_request", "expires"),
        ("keys/client/rotate", {"keep_old": "24"}, 400, "invalid_request", "keep_old"),
        ("keys/client/rotate", {"keep": "24h"}, 400, "invalid_request", "keep"),
        ("keys", [], 400, "invalid_request", None),
        ("keys/nobody/limit", {}, 404, "not_found", None),
        ("teams/nobody/limit", {}, 404, "not_found", None),
        ("nothing", {}, 404, "not_found", None),
    ],
    ids=str,
)
async def test_the_admin_api_names_what_is_wrong(
    path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    async with pool() as made:
        before = len(made.gateway.gateway.ledger.accounts)
        answer = await admin(made, path, body)
        assert (answer.status, answer.code) == (status, code)
        assert answer.json["error"]["param"] == param
        assert len(made.gateway.gateway.ledger.accounts) == before


async def test_the_admin_api_is_for_the_operator() -> None:
    async with pool() as made:
        key = await new_key(made)
        for pairs in ([], [(b"authorization", b"Bearer " + key.encode())]):
            for method, path in (("GET", "keys"), ("POST", "keys"), ("GET", "usage")):
                body = {"name": "mine"} if method == "POST" else None
                answer = await made.send(method, f"/inferpool/admin/{path}", body, pairs)
                assert (answer.status, answer.code) == (401, "invalid_api_key")


# -- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["budget_usd", "budget_month_usd", "budget_day_usd"])
@pytest.mark.parametrize("of", ["key", "team"])
async def test_of_100_at_once_a_budget_for_10_admits_exactly_10(limit: str, of: str) -> None:
    async with pool() as made:
        made.nodes[0].engine.token_delay_s = 0.5
        rules = {limit: usd(10 * ONE)}
        if of == "team":
            await admin(made, "teams", {"name": "both", **rules})
            keys = [await new_key(made, name, team="both") for name in ("one", "two")]
        else:
            keys = [await new_key(made, **rules)] * 2
        asked = (chat(made, keys[i % 2], stream=True) for i in range(100))
        answers = await asyncio.gather(*asked)
        assert sorted(item.status for item in answers) == [200] * 10 + [402] * 90
        refused = next(item for item in answers if item.status == 402)
        assert refused.code == "budget_exceeded"
        assert ("team both" in refused.body.decode()) == (of == "team")


async def test_a_day_ends_and_a_month_ends() -> None:
    async with pool(epoch_ms=EVE_MS) as made:
        key = await new_key(made, budget_day_usd=usd(ONE))
        other = await new_key(made, "other", budget_month_usd=usd(ONE))
        assert (await chat(made, key)).status == 200
        assert (await chat(made, other)).status == 200
        refused = await chat(made, key)
        assert refused.status == 402
        assert "left today" in refused.body.decode()
        await made.restart_gateway()
        refused = await chat(made, other)
        assert refused.status == 402, "nothing is forgotten"
        assert "left this month" in refused.body.decode()
        await asyncio.sleep(120)
        assert (await chat(made, key)).status == 200, "a new day"
        assert (await chat(made, other)).status == 200, "a new month"
        shown = (await admin(made, "keys/web")).json
        assert float(shown["spent_usd"]) == pytest.approx(2 * float(shown["spent_day_usd"]))


async def test_a_running_gateway_takes_a_new_limit_at_once() -> None:
    async with pool() as made:
        key = await new_key(made)
        assert (await chat(made, key)).status == 200
        await admin(made, "keys/web/limit", {"budget_usd": "0"})
        assert (await chat(made, key)).status == 402
        await admin(made, "keys/web/limit", {"budget_usd": None})
        assert (await chat(made, key)).status == 200


async def test_spending_outlives_a_crash_for_key_and_team() -> None:
    async with pool() as made:
        await admin(made, "teams", {"name": "both", "budget_usd": "1"})
        key = await new_key(made, team="both")
        await chat(made, key)
        await made.restart_gateway()
        await chat(made, key)
        await made.restart_gateway()
        spent = {(await admin(made, p)).json["spent_usd"] for p in ("keys/web", "teams/both")}
        assert spent == {usd(made.booked()).rstrip("0")}
        assert made.booked() > 0


# -- rates ---------------------------------------------------------------------------------------


async def test_requests_a_minute_with_openais_headers() -> None:
    async with pool() as made:
        key = await new_key(made, requests_per_minute=3)
        answers = [await chat(made, key) for _ in range(4)]
        assert [item.status for item in answers] == [200, 200, 200, 429]
        lefts = [int(item.headers[b"x-ratelimit-remaining-requests"]) for item in answers]
        assert lefts == [2, 1, 0, 0]
        last = answers[-1]
        assert last.code == "rate_limited"
        assert last.json["error"]["type"] == "rate_limit_error"
        assert last.headers[b"x-ratelimit-limit-requests"] == b"3"
        assert last.headers[b"x-ratelimit-reset-requests"].endswith(b"s")
        wait_s = int(last.headers[b"retry-after"])
        assert 0 < wait_s <= 20
        await asyncio.sleep(wait_s)
        assert (await chat(made, key)).status == 200
        assert (await made.chat()).status == 200, "another key is another bucket"


async def test_tokens_count_as_expected_and_then_as_used() -> None:
    async with pool() as made:
        key = await new_key(made, tokens_per_minute=1000)
        answer = await chat(made, key, max_tokens=100, stream=True)
        assert answer.status == 200
        used = answer.proof["prompt_units"] + answer.proof["output_units"]
        rate = made.gateway.gateway.ledger.keys.named("web")[1].rate
        left = rate.tokens.level // 60_000
        assert 1000 - used <= left <= 1000 - used + 100, "what was not used came back"
        for _ in range(20):
            answer = await chat(made, key, max_tokens=100)
        assert (answer.status, answer.code) == (429, "rate_limited")
        assert answer.headers[b"x-ratelimit-remaining-tokens"].isdigit()
        await asyncio.sleep(60)
        assert (await chat(made, key, max_tokens=100)).status == 200


async def test_requests_at_once_of_a_team() -> None:
    async with pool() as made:
        made.nodes[0].engine.token_delay_s = 0.5
        await admin(made, "teams", {"name": "both", "concurrent": 2})
        keys = [await new_key(made, name, team="both") for name in ("one", "two")]
        answers = await asyncio.gather(*(chat(made, keys[i % 2]) for i in range(6)))
        assert sorted(item.status for item in answers) == [200] * 2 + [429] * 4
        assert (await chat(made, keys[0])).status == 200
        assert (await admin(made, "teams/both")).json["running"] == 0


# -- rules ---------------------------------------------------------------------------------------


async def test_models_prices_and_trust_of_a_key() -> None:
    async with pool() as made:
        key = await new_key(made, models=["fake-tensor"])
        answer = await chat(made, key)
        assert (answer.status, answer.code) == (403, "model_refused")
        assert answer.json["error"]["param"] == "model"
        assert "fake-tensor" in answer.json["error"]["message"]
        for rule, words in (
            ({"max_out_usd_per_million": "0.59"}, "over the key's price"),
            ({"max_in_usd_per_million": "0.1"}, "over the key's price"),
            ({"max_request_usd": usd(ONE - 10**6)}, "over the key's price of a request"),
            ({"min_trust_percent": 50}, "under the key's trust"),
        ):
            name = str(len(made.gateway.gateway.ledger.accounts))
            answer = await chat(made, await new_key(made, name, **rule))
            assert (answer.status, answer.code) == (400, "preferences_unmet")
            assert words in answer.json["error"]["message"]
        fits = {"max_out_usd_per_million": "0.6", "max_request_usd": usd(ONE)}
        assert (await chat(made, await new_key(made, "fits", **fits))).status == 200
        assert made.known[0].failures == 0


async def test_a_stranger_becomes_trusted_by_delivering() -> None:
    async with pool() as made:
        key = await new_key(made, min_trust_percent=100)
        assert (await chat(made, key)).code == "preferences_unmet"
        for _ in range(20):
            await made.chat()
        assert (await chat(made, key)).status == 200


# -- fee, usage, quote ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_the_fee_is_a_line_of_its_own(stream: bool) -> None:
    async with pool() as made:
        made.gateway.gateway.fee_bps = 250
        key = await new_key(made, budget_usd="1")
        answer = await chat(made, key, stream=stream)
        proof = answer.proof
        cost, fee = proof["cost_pico_usd"], proof["fee_pico_usd"]
        assert fee == cost * 250 // 10_000 > 0
        assert cost == int(proof["receipt"]["chargePico"]) == made.booked()
        assert float((await admin(made, "keys/web")).json["spent_usd"]) == (cost + fee) / 1e12
        total = (await admin(made, "usage?by=key")).json["total"]
        assert float(total["price_usd"]) * 1e12 == pytest.approx(cost)
        assert float(total["fee_usd"]) * 1e12 == pytest.approx(fee)
        assert float(total["total_usd"]) * 1e12 == pytest.approx(cost + fee)
        models = (await made.send("GET", "/v1/models")).json["data"]
        assert {item["inferpool"]["fee_bps"] for item in models} == {250}
        if not stream:
            assert int(answer.headers[b"inferpool-fee-pico-usd"]) == fee


async def test_a_budget_holds_with_the_fee() -> None:
    async with pool() as made:
        made.gateway.gateway.fee_bps = 1000
        assert (await chat(made, await new_key(made, "a", budget_usd=usd(ONE)))).status == 402
        enough = usd(ONE * 11 // 10)
        assert (await chat(made, await new_key(made, "b", budget_usd=enough))).status == 200


async def test_usage_by_key_model_node_and_day_adds_up() -> None:
    async with pool(2, epoch_ms=EVE_MS) as made:
        one, two = [await new_key(made, name) for name in ("one", "two")]
        for key, count in ((one, 3), (two, 2)):
            for _ in range(count):
                assert (await chat(made, key)).status == 200
        await made.infer(3)
        await asyncio.sleep(120)
        await chat(made, two)
        whole = (await admin(made, "usage")).json
        assert whole["total"]["requests"] == 7
        assert float(whole["total"]["total_usd"]) * 1e12 == pytest.approx(made.booked())
        for by in ("key", "model", "node", "day", "key,day", "key,model,node,day"):
            found = (await admin(made, f"usage?by={by}")).json
            assert found["by"] == by.split(",")
            assert sum(row["requests"] for row in found["rows"]) == 7
            assert found["total"] == whole["total"]
        by_key = {row["key"]: row for row in (await admin(made, "usage?by=key")).json["rows"]}
        assert {name: row["requests"] for name, row in by_key.items()} == {
            "one": 3, "two": 3, "client": 1,
        }  # fmt: skip
        assert by_key["client"]["units_in"] == 3
        days = [row["day"] for row in (await admin(made, "usage?by=day")).json["rows"]]
        assert len(days) == 2
        only = (await admin(made, f"usage?by=key&since={days[1]}&until={days[1]}")).json
        assert [row["key"] for row in only["rows"]] == ["two"]
        for query in ("by=prompt", "since=yesterday", "until=2026-13-01", "page=2"):
            assert (await admin(made, f"usage?{query}")).status == 400
        assert "hello" not in json.dumps(whole)


async def test_a_quote_is_what_it_then_costs_and_sends_nothing() -> None:
    async with pool(2) as made:
        request = {
            "model": "fake-chat",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 10,
            "seed": 5,
        }
        asked = {"path": "/v1/chat/completions", "request": request}
        answer = await made.send("POST", "/inferpool/quote", asked)
        found = answer.json
        assert found["route"]["candidates"][0]["why"] == ""
        assert len(found["route"]["candidates"]) == 2
        assert float(found["held_usd"]) * 1e12 == pytest.approx(ONE)
        assert (made.account.held_pico_usd, made.booked()) == (0, 0)
        assert all(node.asked == 0 for node in made.known)
        cost = (await made.chat()).proof["cost_pico_usd"]
        assert 0.5 * cost < float(found["price_usd"]["expected"]) * 1e12 < 2 * cost
        rows = {"inputs": [{"name": "x", "shape": [5, 4], "datatype": "FP32", "data": [0.0] * 20}]}
        tensors = {"path": "/v2/models/fake-tensor/infer", "request": rows}
        answer = await made.send("POST", "/inferpool/quote", tensors)
        assert float(answer.json["price_usd"]["expected"]) * 1e12 == pytest.approx(500_000)
        for bad in ({}, {"path": "/v1/files", "request": {}}, {"path": "/v1/embeddings"}, []):
            assert (await made.send("POST", "/inferpool/quote", bad)).status == 400
        unknown = {"path": "/v1/chat/completions", "request": request | {"model": "gpt-9"}}
        assert (await made.send("POST", "/inferpool/quote", unknown)).status == 404
