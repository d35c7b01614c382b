"""A real browser, a page of another origin, and the pool that it calls.

The browser is Debian's or Playwright's own (`playwright install chromium`);
`INFERPOOL_TEST_BROWSER` names another one's executable.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "e2e"))

import poolkit

ELSEWHERE = "pages.example"  # a site whose names the browser finds at this machine

# `make test` names the group at its end, so that it is not left out in silence
collect_ignore_glob = [] if find_spec("playwright") else ["test_*.py"]


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[poolkit.Running]:
    """One that lets programs of this machine in without a key, for pages to try."""
    flags = {**poolkit.FREE_PORTS, "gateway.open": True}
    running = poolkit.start(tmp_path_factory.mktemp("open"), flags)
    yield running
    assert running.pool.close() == {"gateway": 0, "node": 0, "chain": 0}
    assert "Traceback" not in running.logs()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        named = os.environ.get("INFERPOOL_TEST_BROWSER") or shutil.which("chromium")
        options = [f"--host-resolver-rules=MAP *.{ELSEWHERE} 127.0.0.1"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # Chromium has none for root
        found = started.chromium.launch(executable_path=named, args=options)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """An empty tab, as wide as a telephone; an error of a page's own script fails the test."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert not errors


class Quiet(SimpleHTTPRequestHandler):
    """Says nothing of each request."""

    def log_message(self, *told: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """A site elsewhere, which is another origin: HTML in, URL out."""
    site = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=site.serve_forever, daemon=True)
    thread.start()

    def serve(html: str) -> str:
        (tmp_path / "page.html").write_text(html, "utf-8")
        return f"http://www.{ELSEWHERE}:{site.server_port}/page.html"

    yield serve
    site.shutdown()
    site.server_close()
    thread.join()
