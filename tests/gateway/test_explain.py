"""Why a request went where it went: every factor, no text, for its own key, after a restart too."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from inferpool.gateway.route_book import RouteBook
from inferpool.gateway.router import Route
from inferpool.payments.budget import Account
from inferpool.payments.journal import MemoryJournal, Write
from tests.gateway.parts import KEY_HEADER, Pool, pool, url_of

CONTROL = [(b"authorization", b"Bearer control")]
FACTORS = ("price", "time", "risk", "trust")


async def explained(made: Pool, request_id: str, pairs: Any = None) -> Any:
    return await made.send("GET", f"/inferpool/routes/{request_id}", None, pairs)


async def test_every_candidate_with_every_factor_and_why_not() -> None:
    async with pool(3) as made:
        answer = await made.chat()
        found = (await explained(made, answer.headers[b"x-request-id"].decode())).json
        (choice,) = found["choices"]
        assert (choice["model"], choice["task"], choice["offers"]) == ("fake-chat", "chat", 3)
        assert len(choice["candidates"]) == 3
        for number, item in enumerate(choice["candidates"]):
            parts = [item[f"{name}_pico_usd"] for name in FACTORS]
            assert item["cost_pico_usd"] == sum(parts) > 0
            assert bool(item["why"]) == bool(number)
        (attempt,) = found["attempts"]
        assert attempt["node"] == choice["candidates"][0]["node"] == answer.proof["node"]
        assert attempt["state"] == "settled"


async def test_a_choice_made_again_is_another_line_and_says_what_holds_back() -> None:
    async with pool(2) as made:
        for known in made.known:
            known.blocked_until_ms = 0 if known.url == url_of(0) else 1
        made.nodes[0].engine.fail_after = 0
        for _ in range(20):
            answer = await made.chat()
            found = (await explained(made, answer.headers[b"x-request-id"].decode())).json
            if len(found["choices"]) > 1:
                break
        again = found["choices"][1]["candidates"]
        assert again[1]["why"] == "failed before"
        assert [item["state"] for item in found["attempts"]].count("settled") == 2


async def test_tensors_are_explained_too() -> None:
    async with pool() as made:
        answer = await made.infer(3)
        found = (await explained(made, answer.headers[b"x-request-id"].decode())).json
        assert found["choices"][0]["units_in"] == 3


async def test_it_survives_a_restart_and_holds_no_text() -> None:
    async with pool() as made:
        messages = [{"role": "user", "content": "a very secret question " * 100}]
        answer = await made.chat(messages=messages)
        request_id = answer.headers[b"x-request-id"].decode()
        await asyncio.sleep(2)
        await made.restart_gateway()
        found = await explained(made, request_id)
        assert found.json["choices"][0]["units_in"] > 500
        text = answer.json["choices"][0]["message"]["content"]
        for kept in (json.dumps(found.json), str(rows(made))):
            assert "secret" not in kept
            assert text.split()[0] not in kept


def rows(made: Pool) -> Any:
    with made.gateway.journal.engine.connect() as connection:
        return connection.exec_driver_sql("SELECT * FROM routes").all()


async def test_it_is_told_to_its_own_key_and_to_the_operator_only() -> None:
    async with pool() as made:
        answer = await made.chat()
        request_id = answer.headers[b"x-request-id"].decode()
        await made.gateway.gateway.ledger.add_account("other-key", Account("other", None), 0)
        assert (await explained(made, request_id, [KEY_HEADER])).status == 200
        assert (await explained(made, request_id, CONTROL)).status == 200
        assert (await explained(made, request_id, [])).status == 401
        other = [(b"authorization", b"Bearer other-key")]
        for asked, pairs in ((request_id, other), ("req_none", CONTROL), ("", CONTROL)):
            missing = await explained(made, asked, pairs)
            assert (missing.status, missing.code) == (404, "not_found")


async def test_the_book_is_bounded() -> None:
    journal = MemoryJournal()
    book = RouteBook(journal, kept_max=50)
    for number in range(3000):
        book.note(f"req_{number}", 0, "a", Route([], at_ms=number))
        if number % 100 == 0:
            book.flush()
            await asyncio.sleep(0.01)
    book.flush()
    await asyncio.sleep(0.01)
    with journal.engine.connect() as connection:
        (kept,) = connection.exec_driver_sql("SELECT count(*) FROM routes").one()
    assert 50 <= kept <= 50 + 1200
    assert await book.find("req_0") is None
    assert await book.find("req_2999") == ("a", [Route([], at_ms=2999).trace()])


async def test_a_choice_of_an_earlier_version_is_read() -> None:
    journal = MemoryJournal()
    book, then = RouteBook(journal), Route([], model="m", at_ms=5, passed={"silent": 2}).trace()
    await journal.write([Write(book._save, ("req_then", 0, 5, "a", json.dumps(then).encode()))])
    assert await book.find("req_then") == ("a", [then])
