"""The gateway's database goes away under it: honest refusals, no answer that nobody pays for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.database.server import Server
from tests.database.test_workers import ask, inferpool, load, rows, until
from tests.faults.kit import PRICE, faulty_pool

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(240)]


def test_without_its_database_a_gateway_refuses_and_comes_back(
    server: Server, tmp_path: Path
) -> None:
    book = server.new_database()
    with faulty_pool(tmp_path, [PRICE], proxied=False, db=book) as pool:
        limited = inferpool(pool, "keys", "create", "web", "--budget", "1")["key"]
        with load(pool, limited) as found:
            until("load runs", lambda: len(found) > 10)
            server.kill()
            until("callers are refused", lambda: 503 in found)

        def at_rest() -> bool:
            before = pool.nodes[0].book()
            time.sleep(1)
            return pool.nodes[0].book() == before

        until("the node is at rest", at_rest)
        served = pool.nodes[0].book()
        for key in (limited, pool.api_key):
            for _ in range(3):
                answer = ask(pool, key)
                assert answer.status_code == 503, answer.text
                assert answer.json()["error"]["code"] == "ledger_unavailable"
                assert int(answer.headers["retry-after"]) >= 1
        assert pool.nodes[0].book() == served, "no node was asked meanwhile"
        server.start()
        for key in (limited, pool.api_key):
            until("it serves again", lambda key=key: ask(pool, key).status_code == 200)

        def ours() -> dict[bytes, int]:
            query = "SELECT request_id, charge_pico_usd FROM attempts WHERE state = 'settled'"
            return {bytes(row[0]): int(row[1]) for row in rows(book, query)}

        until("both sides hold the same receipts", lambda: pool.nodes[0].book() == ours())
        billed = rows(book, "SELECT billed_pico_usd FROM attempts WHERE account = 'web'")
        spent = rows(
            book,
            "SELECT s.total FROM spending s JOIN accounts a ON a.key_hash = s.owner"
            " WHERE a.name = 'web'",
        )
        assert sum(int(row[0]) for row in spent) == sum(int(row[0]) for row in billed) > 0
        pool.nothing_held()
