"""Files from a web address: https only, redirects included, resumed by `Range`, bounded in size."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import IO, Any, Final, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)

from inferpool.models.partial import CHUNK_BYTES, Partial, SourceError

# Without a way out, the next source has to get its turn soon.
CONNECT_TIMEOUT_S: Final = 5.0
# Between two reads of a transfer that runs.
READ_TIMEOUT_S: Final = 30.0

_HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": "inferpool"}

OpenUrl = Callable[[Request], AbstractContextManager[http.client.HTTPResponse]]


class _Connection(http.client.HTTPSConnection):
    """Short patience to connect, more once bytes flow; urllib knows one time-out only."""

    def connect(self) -> None:
        self.timeout = CONNECT_TIMEOUT_S
        super().connect()
        self.sock.settimeout(READ_TIMEOUT_S)


class _Https(HTTPSHandler):
    def https_open(self, req: Request) -> http.client.HTTPResponse:
        open_ = cast(Callable[..., http.client.HTTPResponse], self.do_open)
        return open_(_Connection, req, context=ssl.create_default_context())


class SafeRedirect(HTTPRedirectHandler):
    """Follows a few redirects, and only to these schemes."""

    max_redirections = 5

    def __init__(self, schemes: frozenset[str]) -> None:
        self._schemes = schemes

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in self._schemes:
            raise SourceError(f"redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def url_opener(schemes: frozenset[str] = frozenset({"https"})) -> OpenUrl:
    """The function that opens a request; only these schemes, at the start and on redirects."""
    director: OpenerDirector = build_opener(ProxyHandler(), _Https(), SafeRedirect(schemes))

    def open_url(request: Request) -> AbstractContextManager[http.client.HTTPResponse]:
        if urlsplit(request.full_url).scheme not in schemes:
            raise SourceError("is not an https address")
        return cast(http.client.HTTPResponse, director.open(request, timeout=READ_TIMEOUT_S))

    return open_url


def fetch_hub(url: str, partial: Partial, open_url: OpenUrl) -> None:
    """Continue the file from the web address. Raises `SourceError`; what came is kept."""
    if partial.complete:
        return
    try:
        _fetch(url, partial, open_url)
    except HTTPError as error:
        error.close()
        # The address holds less than we have: it is another file, or ours is broken.
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not partial.written:
            raise SourceError(f"answers {error.code} {error.reason}") from error
        partial.restart()
        fetch_hub(url, partial, open_url)
    except (URLError, http.client.HTTPException, OSError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise SourceError(
            f"cannot be reached or broke off ({reason}); check the network, a new try resumes"
        ) from error


def _fetch(url: str, partial: Partial, open_url: OpenUrl) -> None:
    request = Request(url, headers=_HEADERS)  # noqa: S310 - `open_url` checks the scheme
    if partial.written:
        request.add_header("Range", f"bytes={partial.written}-")
    with open_url(request) as reply:
        if not _continues(reply, partial.written):
            partial.restart()
        while chunk := reply.read(CHUNK_BYTES):
            partial.write(chunk)


def _continues(reply: http.client.HTTPResponse, start: int) -> bool:
    """Whether the answer begins at our next byte (True) or at the first byte (False)."""
    if reply.status == http.HTTPStatus.OK:
        return False
    said = reply.headers.get("Content-Range", "")
    if reply.status != http.HTTPStatus.PARTIAL_CONTENT or not said.startswith(f"bytes {start}-"):
        raise SourceError(f"answers {reply.status} with the range {said!r}; expected {start}-")
    return True
