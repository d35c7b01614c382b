"""Speaking to a gateway as its operator: to the one that runs here, else to its book on disk."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from inferpool.cli.owner import opened
from inferpool.config import Config
from inferpool.home import Home
from inferpool.protocol.errors import CODES, BadRequest, Refused, Unavailable

_ANSWER_MAX = 1 << 26


def call(home: Home, method: str, path: str, body: object = None, *, key: str = "") -> Any:
    """One call of a running gateway's API. Raises Unavailable, or the gateway's own error.

    `key` stands in for the control token where a caller's own key is meant.
    """
    running = home.running("gateway")
    if running is None:
        raise Unavailable("No gateway runs on this machine; start one with `inferpool gateway`.")
    request = urllib.request.Request(  # noqa: S310 - the gateway's own loopback URL
        f"{running['url']}{path}",
        data=None if method == "GET" else orjson.dumps(body),
        method=method,
        headers={"Authorization": f"Bearer {key or home.secret('control-token')}"},
    )
    try:
        with opened(running, request, 30) as response:
            return orjson.loads(response.read(_ANSWER_MAX))
    except urllib.error.HTTPError as error:
        raise _told(error) from None
    except (urllib.error.URLError, OSError) as error:
        raise Unavailable(f"The gateway does not answer: {error}") from None


def _told(error: urllib.error.HTTPError) -> BadRequest:
    try:
        told = orjson.loads(error.read(1 << 16))["error"]
        code = told["code"] if told["code"] in CODES else "invalid_request"
        return BadRequest(str(told["message"]), code=code)
    except (ValueError, KeyError, TypeError):
        return BadRequest(f"The gateway answered {error.code}.")


def administer(config: Config, home: Home, method: str, path: str, body: object = None) -> Any:
    """A request of the admin API: to the running gateway, which takes it at once, else to the book
    that it will read when it starts. Raises BadRequest, Refused, Unavailable."""
    if home.running("gateway") is not None:
        return call(home, method, f"/inferpool/admin/{path}", body)
    return asyncio.run(_offline(config, home, method, path, body))


async def _offline(config: Config, home: Home, method: str, path: str, body: object) -> Any:
    from inferpool.clock import SystemClock
    from inferpool.daemon.shared import book_of
    from inferpool.gateway.admin import Admin
    from inferpool.payments.access import Access
    from inferpool.payments.journal import SqlJournal
    from inferpool.payments.key_book import KeyBook

    book = book_of(config.gateway, home)
    if method == "GET" and isinstance(book, Path) and not book.exists():
        raise Refused("No gateway has run here yet: there is no book to read.", code="not_found")
    journal = SqlJournal(book)
    try:
        admin = Admin(Access(KeyBook(journal), SystemClock().now_ms), journal)
        where, _, query = path.partition("?")
        if method == "GET":
            return await admin.read(where, query)
        return await admin.write(where, body)
    finally:
        journal.close()


def part(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")
