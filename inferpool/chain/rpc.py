"""JSON-RPC over HTTP, asynchronous, to any chain's URL.

The pipe is one callable, `post(url, body) -> body`, so that another transport can be plugged in.
What the network did wrong is `Unavailable`; what the chain refused is `RpcRefused`.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from inferpool.chain.abi import revert_reason
from inferpool.protocol.errors import Refused, Unavailable

Post = Callable[[str, bytes], Awaitable[bytes]]

TIMEOUT_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 32 * 2**20  # 10,000 logs of 1 kB, three times over
_REVERTED: Final = 3
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
    """One chain's JSON-RPC URL (http or https)."""

    def __init__(self, url: str, post: Post = post_by_urllib) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("a chain's URL starts with http:// or https://")
        self.url = url
        self._post = post
        self._last_id = 0

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
        payload = bodies[0] if len(bodies) == 1 else bodies
        answer = await self._exchange(orjson.dumps(payload))
        answers = [answer] if isinstance(answer, dict) else answer
        if not isinstance(answers, list):
            raise unavailable("the chain's answer is no JSON-RPC")
        by_id = {each.get("id"): each for each in answers if isinstance(each, dict)}
        # An error without an id answers the whole body.
        return [_result(by_id.get(body["id"], by_id.get(None))) for body in bodies]

    async def _exchange(self, body: bytes) -> Any:
        try:
            return orjson.loads(await self._post(self.url, body))
        except (OSError, TimeoutError) as error:
            raise unavailable(f"the chain does not answer: {error}") from error
        except orjson.JSONDecodeError:
            raise unavailable("the chain's answer is not JSON") from None


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
