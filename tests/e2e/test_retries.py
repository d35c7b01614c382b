"""OpenAI's own client tries again by itself when a connection dies; one answer is paid for once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import openai
import pytest
from poolkit import CHAT, Running

pytestmark = pytest.mark.timeout(120)
ASKED = [{"role": "user", "content": "Say something about retries."}]


class Cutter:
    """A pipe to the gateway that kills its first connections when an answer begins, or before."""

    def __init__(self, url: str, cuts: int, *, let_in: int) -> None:
        parts = urlsplit(url)
        self._to = (parts.hostname or "", parts.port or 0)
        self.cuts, self._let_in = cuts, let_in
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            cut = self.connections <= self.cuts
            threading.Thread(target=self._serve, args=(client, cut), daemon=True).start()

    def _serve(self, client: socket.socket, cut: bool) -> None:
        with suppress(OSError), client, socket.create_connection(self._to) as server:
            threading.Thread(target=self._copy, args=(client, server), daemon=True).start()
            passed = 0
            while data := server.recv(65536):
                if cut:
                    data = data[: self._let_in - passed]
                client.sendall(data)
                passed += len(data)
                if cut and passed >= self._let_in:
                    client.shutdown(socket.SHUT_RDWR)
                    server.shutdown(socket.SHUT_RDWR)
                    return

    @staticmethod
    def _copy(source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                to.sendall(data)


@contextmanager
def cutter(pool: Running, cuts: int, *, let_in: int) -> Iterator[tuple[Cutter, openai.OpenAI]]:
    made = Cutter(pool.url(), cuts, let_in=let_in)
    client = pool.openai(base_url=f"http://127.0.0.1:{made.port}/v1", max_retries=2)
    try:
        yield made, client
    finally:
        client.close()
        made.close()


def spent(pool: Running) -> int:
    (found,) = [item for item in pool.status()["accounts"] if item["name"] == "default"]
    return int(found["spent_pico_usd"])


@pytest.mark.parametrize("let_in", [0, 1, 200], ids=["no byte", "one byte", "half a head"])
def test_an_answer_cut_on_the_way_is_fetched_again_and_paid_once(
    pool: Running, let_in: int
) -> None:
    before, attempts = spent(pool), len(pool.gateway_book())
    with cutter(pool, 2, let_in=let_in) as (made, client):
        answer = client.chat.completions.create(
            model=CHAT, messages=ASKED, max_tokens=8, seed=let_in
        )
    assert made.connections == 3, "the client has tried again by itself"
    assert answer.choices[0].message.content
    proof = (answer.model_extra or {})["inferpool"]
    assert spent(pool) - before == proof["cost_pico_usd"] > 0
    assert len(pool.gateway_book()) - attempts == 1, "no node worked twice"
    pool.books_agree(others=True)  # the pool is shared, with other payers too
