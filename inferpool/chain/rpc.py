"""JSON-RPC over HTTP, asynchronous, to any chain's URL.

The pipe is one callable, `post(url, body) -> body`, so that another transport can be plugged in.
What the network did wrong is `Unavailable`; what the chain refused is `RpcRefused`.

Several URLs of one chain stand in for each other: a read that one does not answer goes to the next
at once. A transaction does not: whoever sends it must know that a server may have taken it, so it
gets `Unavailable`, and its next try goes to the next URL.
"""

from __future__ import annotations

import asyncio
import logging
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from inferpool.chain.abi import revert_reason
from inferpool.protocol.errors import Refused, Unavailable

Post = Callable[[str, bytes], Awaitable[bytes]]
_LOG = logging.getLogger("inferpool.chain")

TIMEOUT_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 32 * 2**20  # 10,000 logs of 1 kB, three times over
_REVERTED: Final = 3
_SENDING: Final = ("eth_sendRawTransaction",)
_BUSY: Final = (-32005, -32603, 429)  # limit exceeded, internal error: the node's own trouble
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


class RpcRefused(Refused):
    """The chain understood and said no. `rpc_code` and `data` are what it sent."""

    default = "chain_reverted"

    def __init__(self, message: str, rpc_code: int, data: bytes = b"") -> None:
        super().__init__(message)
        self.rpc_code = rpc_code
        self.data = data


def unavailable(message: str) -> Unavailable:
    """The error for a chain that does not answer, or not in sense."""
    return Unavailable(message, code="chain_unavailable")


async def post_by_urllib(url: str, body: bytes) -> bytes:
    """The default pipe: the standard library in a thread. Raises OSError."""
    return await asyncio.to_thread(_post, url, body)


def _post(url: str, body: bytes) -> bytes:
    headers = {"content-type": "application/json", "user-agent": "inferpool"}
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - Rpc checked the scheme
    # A proxy from the environment can never lead to a chain on this machine.
    loopback = urlsplit(url).hostname in _LOOPBACK
    proxies = [urllib.request.ProxyHandler({})] if loopback else []
    opener = urllib.request.build_opener(*proxies)
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            answer: bytes = response.read(ANSWER_BYTES_MAX + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise OSError(f"HTTP {error.code}") from None
    if len(answer) > ANSWER_BYTES_MAX:
        raise OSError(f"an answer over {ANSWER_BYTES_MAX} bytes")
    return answer


class Rpc:
    """One chain's JSON-RPC (http or https), at one URL or at several that stand in for it."""

    def __init__(self, urls: str | Sequence[str], post: Post = post_by_urllib) -> None:
        self._urls = (urls,) if isinstance(urls, str) else tuple(urls)
        if not self._urls or any(urlsplit(u).scheme not in ("http", "https") for u in self._urls):
            raise ValueError("a chain's URL starts with http:// or https://")
        self._post = post
        self._last_id = 0
        self._current = 0  # the URL that answered last
        self._checked: dict[str, str] = {}  # URL -> the chain id that it gave

    @property
    def url(self) -> str:
        """The URL that is asked now."""
        return self._urls[self._current]

    async def call(self, method: str, *parameters: object) -> Any:
        """One request's result. Raises RpcRefused or Unavailable."""
        return (await self.batch([(method, parameters)]))[0]

    async def batch(self, requests: Sequence[tuple[str, Sequence[object]]]) -> list[Any]:
        """Several requests in one round trip; results in order. Raises the first error."""
        bodies = []
        for method, parameters in requests:
            self._last_id += 1
            bodies.append(
                {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": parameters}
            )
        payload = orjson.dumps(bodies[0] if len(bodies) == 1 else bodies)
        is_sent = any(method in _SENDING for method, _ in requests)
        answer = await self._ask(payload, is_sent)
        answers = [answer] if isinstance(answer, dict) else answer
        if not isinstance(answers, list):
            raise unavailable("the chain's answer is no JSON-RPC")
        by_id = {each.get("id"): each for each in answers if isinstance(each, dict)}
        # An error without an id answers the whole body.
        return [_result(by_id.get(body["id"], by_id.get(None))) for body in bodies]

    async def _ask(self, payload: bytes, is_sent: bool) -> Any:
        """The answer of the first URL that gives one, from the one that answered last."""
        tries = 1 if is_sent else len(self._urls)
        while True:
            url, tries = self.url, tries - 1
            try:
                await self._check_chain(url)
                answer = await self._exchange(url, payload)
            except Unavailable as error:
                self._leave(url, error.message)
                if not tries:
                    raise
                continue
            if _busy(answer):
                self._leave(url, "busy")
                if tries:
                    continue
            return answer

    def _leave(self, url: str, why: str) -> None:
        """Go on with the next URL, unless another call has done so already."""
        if self.url == url and len(self._urls) > 1:
            self._current = (self._current + 1) % len(self._urls)
            _LOG.warning("%s: %s; going on with %s", url, why, self.url)

    async def _check_chain(self, url: str) -> None:
        """Believe a stand-in only where it is of the chain that the first answer named."""
        if len(self._urls) == 1 or url in self._checked:
            return
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": "eth_chainId", "params": []}
        answer = await self._exchange(url, orjson.dumps(request))
        found = str(_result(answer))
        if any(found != other for other in self._checked.values()):
            raise unavailable(f"another chain: {found[:80]}")
        self._checked[url] = found

    async def _exchange(self, url: str, body: bytes) -> Any:
        try:
            return orjson.loads(await self._post(url, body))
        except (OSError, TimeoutError) as error:
            raise unavailable(f"the chain does not answer: {error}") from error
        except orjson.JSONDecodeError:
            raise unavailable("the chain's answer is not JSON") from None


def _busy(answer: Any) -> bool:
    """Whether a single answer, or the first of several, says that the server has trouble."""
    first = answer[0] if isinstance(answer, list) and answer else answer
    error = first.get("error") if isinstance(first, dict) else None
    return (
        isinstance(error, dict)
        and error.get("code") in _BUSY
        and not _revert_data(error.get("data"))
    )


def _result(answer: Any) -> Any:
    if not isinstance(answer, dict):
        raise unavailable("the chain left a request without an answer")
    error = answer.get("error")
    if error is None:
        return answer.get("result")
    if not isinstance(error, dict) or not isinstance(error.get("code"), int):
        raise unavailable("the chain's error cannot be read")
    code, message = error["code"], str(error.get("message", ""))[:500]
    data = _revert_data(error.get("data"))
    if code == _REVERTED or data:
        reason = revert_reason(data) if data else message
        raise RpcRefused(f"the chain reverted: {reason}", code, data)
    if code in _BUSY:
        raise unavailable(f"the chain is busy: {message}")
    raise RpcRefused(f"the chain refused: {message}", code)


def _revert_data(data: object) -> bytes:
    if not isinstance(data, str) or not data.startswith("0x"):
        return b""
    try:
        return bytes.fromhex(data[2:])
    except ValueError:
        return b""
