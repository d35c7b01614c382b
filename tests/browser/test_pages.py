"""What a web page can do with a gateway, by a browser's rules and not by our reading of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import poolkit
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]
Serve = Callable[[str], str]
EMPTY = "<!doctype html><title>a page</title>"

# Asks for a chat as a page does that streams it; returns what its user would see.
ASK = """async ({url, key, body, stopAfter}) => {
  const leave = new AbortController();
  const headers = {"content-type": "application/json", "x-stainless-lang": "js"};
  if (key) headers.authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(url, {
      method: "POST", headers, body: JSON.stringify(body), signal: leave.signal});
  } catch (error) { return {blocked: String(error)}; }
  const seen = {status: answer.status, id: answer.headers.get("x-request-id"), pieces: []};
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const {done, value} = await reader.read();
      if (done) break;
      seen.pieces.push(value);
      if (stopAfter && seen.pieces.length >= stopAfter) leave.abort();
    }
  } catch (error) { seen.left = error.name; }
  return seen;
}"""


def ask(page: Any, pool: poolkit.Running, *, key: bool = True, **more: Any) -> dict[str, Any]:
    body = {
        "model": poolkit.CHAT,
        "messages": [{"role": "user", "content": "Name three colours."}],
        "max_tokens": 12,
        "stream": True,
        **more.pop("body", {}),
    }
    url = more.pop("url", f"{pool.url()}/v1/chat/completions")
    given = {"url": url, "key": pool.api_key if key else None, "body": body, **more}
    found: dict[str, Any] = page.evaluate(ASK, given)
    return found


def test_a_page_elsewhere_streams_with_its_users_key(
    page: Any, served: Serve, pool: poolkit.Running
) -> None:
    page.goto(served(EMPTY))
    seen = ask(page, pool)
    assert seen["status"] == 200
    assert seen["id"], "a page may read the request's id"
    assert len(seen["pieces"]) > 1, "it comes piece by piece"
    assert "".join(seen["pieces"]).rstrip().endswith("data: [DONE]")


def test_a_page_elsewhere_has_no_account_of_its_own(
    page: Any, served: Serve, pool: poolkit.Running
) -> None:
    """Programs of this machine need no key here; a page in this machine's browser does."""
    page.goto(served(EMPTY))
    seen = ask(page, pool, key=False)
    assert seen["status"] == 401
    assert "invalid_api_key" in "".join(seen["pieces"])


def test_a_name_that_was_made_to_resolve_to_us_gets_nothing(
    page: Any, pool: poolkit.Running
) -> None:
    """DNS rebinding: to the browser the gateway is the page's own site, so that CORS is silent."""
    port = pool.url().rsplit(":", 1)[1]
    site = f"http://rebound.pages.example:{port}"
    page.goto(f"{site}/openapi.json")
    seen = ask(page, pool, key=False, url=f"{site}/v1/chat/completions")
    assert seen["status"] == 401


def test_the_owners_routes_are_closed_to_pages(
    page: Any, served: Serve, pool: poolkit.Running
) -> None:
    page.goto(served(EMPTY))
    for role in ("gateway", "node"):
        seen = ask(page, pool, key=False, url=f"{pool.url(role)}/inferpool/status")
        assert seen.get("status") != 200
        assert "channels" not in "".join(seen.get("pieces", ()))


def test_a_page_that_leaves_pays_for_what_it_got(
    page: Any, served: Serve, pool: poolkit.Running
) -> None:
    page.goto(served(EMPTY))
    before = pool.books_agree()
    whole = ask(page, pool, body={"max_tokens": 200, "messages": poolkit.LONG_STORY})
    full_price = pool.books_agree() - before
    seen = ask(page, pool, body={"max_tokens": 200, "messages": poolkit.LONG_STORY}, stopAfter=3)
    assert seen["left"] == "AbortError"
    assert "[DONE]" in "".join(whole["pieces"])
    assert "[DONE]" not in "".join(seen["pieces"])
    receipts = len(pool.node_book())

    def paid() -> int:
        return pool.books_agree() - before - full_price

    cost = poolkit.until("the part is paid", paid)
    assert 0 < cost < full_price
    assert len(pool.node_book()) in (receipts, receipts + 1), "one answer, one receipt"
    assert pool.chat().status_code == 200
