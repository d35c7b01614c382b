"""The chain behind HTTP: a plain ASGI application, and the process that serves it.

All requests go through one worker thread in the order of their arrival: the chain is written for
one thread, and the event loop stays free to refuse what is too large.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import orjson

from inferpool.chain.addresses import DEV_CHAIN_ID
from inferpool.chain.devchain.errors import (
    INVALID_REQUEST,
    LIMIT_EXCEEDED,
    PARSE_ERROR,
    RpcError,
)
from inferpool.chain.devchain.limits import BATCH_MAX, BATCH_SECONDS_MAX, BODY_BYTES_MAX

if TYPE_CHECKING:
    from inferpool.chain.devchain.node import Node

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_JSON: Final = [(b"content-type", b"application/json")]


def reply(node: Node, body: bytes) -> bytes:
    """Answer one HTTP body: a request or a batch. In order, and never raises."""
    from inferpool.chain.devchain.methods import answer

    deadline_s = time.monotonic() + BATCH_SECONDS_MAX
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _refusal(PARSE_ERROR, "not JSON")
    if not isinstance(payload, list):
        return orjson.dumps(answer(node, payload))
    if not payload or len(payload) > BATCH_MAX:
        return _refusal(INVALID_REQUEST, f"a batch has 1 to {BATCH_MAX} requests")
    answers = []
    for request in payload:
        if time.monotonic() < deadline_s:
            answers.append(answer(node, request))
        else:
            late = RpcError(LIMIT_EXCEEDED, f"the batch took over {BATCH_SECONDS_MAX:g} s")
            request_id = request.get("id") if isinstance(request, dict) else None
            answers.append({"jsonrpc": "2.0", "id": request_id, "error": late.to_json()})
    return orjson.dumps(answers)


def _refusal(code: int, message: str) -> bytes:
    error = RpcError(code, message).to_json()
    return orjson.dumps({"jsonrpc": "2.0", "id": None, "error": error})


def create_app(node: Node, allowed_origin: str | None = None) -> App:
    """The ASGI application. `allowed_origin` lets pages of one web origin in; by default no page
    may reach the chain, since anyone who can reach it can steer it."""
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="devchain")
    headers = list(_JSON)
    if allowed_origin is not None:
        headers += [
            (b"access-control-allow-origin", allowed_origin.encode()),
            (b"access-control-allow-headers", b"content-type"),
        ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send, worker)
        elif scope["type"] == "http":
            status, body = await _respond(scope, receive)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _respond(scope: Scope, receive: Receive) -> tuple[int, bytes]:
        if scope["method"] == "OPTIONS" and allowed_origin is not None:
            return 204, b""
        if scope["method"] != "POST":
            return 405, _refusal(INVALID_REQUEST, "POST a JSON-RPC request")
        body = await _read(receive)
        if body is None:
            return 413, _refusal(INVALID_REQUEST, f"a body has at most {BODY_BYTES_MAX} bytes")
        loop = asyncio.get_running_loop()
        return 200, await loop.run_in_executor(worker, reply, node, body)

    return app


async def _read(receive: Receive) -> bytes | None:
    """The body, or None where it is over the limit; then the rest is never read."""
    body = bytearray()
    while True:
        event = await receive()
        body += event.get("body", b"")
        if len(body) > BODY_BYTES_MAX:
            return None
        if not event.get("more_body"):
            return bytes(body)


async def _lifespan(receive: Receive, send: Send, worker: ThreadPoolExecutor) -> None:
    while True:
        event = await receive()
        if event["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            worker.shutdown(wait=True)  # the last block is written before the process ends
            await send({"type": "lifespan.shutdown.complete"})
            return


def serve(
    *,
    port: int = 8545,
    host: str = "127.0.0.1",
    state: str = ":memory:",
    chain_id: int = DEV_CHAIN_ID,
    announce: bool = False,
) -> None:
    """Serve a chain until SIGTERM or SIGINT, then return. Call it in the main thread.

    Port 0 takes a free one; `announce` prints one JSON line with `url` and `chainId` when ready.
    Raises OSError where the port is taken, sqlite3.OperationalError where the file is.
    """
    import uvicorn

    from inferpool.chain.devchain.node import Node

    listener = socket.create_server((host, port))
    node = Node(state, chain_id)
    url = f"http://{host}:{listener.getsockname()[1]}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if announce:
                sys.stdout.write(json.dumps({"url": url, "chainId": chain_id}) + "\n")
                sys.stdout.flush()

    server = Server(uvicorn.Config(create_app(node), log_level="warning", access_log=False))
    # uvicorn raises the signal again after it has shut down; the process shall end with code 0.
    handlers = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        listener.close()
        node.close()
