"""What is measured: one process for each row, in front of the same upstream.

usage: python -m bench.doors bare UPSTREAM
       python -m bench.doors features FLAGS     (INFERPOOL_HOME as for any role)

`bare` is the least that a gateway in this design can be: uvicorn, a plain ASGI callable and our
HTTP client, every byte passed on as it came. `features` is the gateway itself but for the money of
its channels: keys, budgets, rates, routing, traces, hashes, metering; no voucher, no check of a
receipt, no book. The third, paid, is `python -m inferpool.daemon gateway`, nothing changed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import Any

import orjson
import uvicorn

from inferpool.config import load
from inferpool.daemon import gateway as role
from inferpool.daemon.serving import listen, run, url_of
from inferpool.daemon.workers import Worker
from inferpool.gateway import gateway as part
from inferpool.gateway.flights import Flight, Flights
from inferpool.home import Home
from inferpool.payments.payer import PayerChannel
from inferpool.protocol.attempt import Attempt
from inferpool.protocol.receipt import Receipt, SignedReceipt
from inferpool.protocol.receipt_chain import ChainedReceipt
from inferpool.protocol.voucher import Voucher
from inferpool.transport.asgi import HttpRequest, Receive, Scope, Send
from inferpool.transport.http import open_transport

_KEPT = frozenset((b"content-type",))


class Bare:
    """Passes a request on and its answer back."""

    def __init__(self, upstream: str) -> None:
        self._pipe = open_transport(upstream)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = HttpRequest(scope, receive, send)
        body = await request.body(1 << 26)
        response = await self._pipe.request(
            request.method,
            request.path,
            [item for item in scope["headers"] if item[0] in _KEPT],
            body,
            timeout_s=60.0,
        )
        try:
            head = [item for item in response.headers if item[0] in _KEPT]
            if response.header(b"content-length") is not None:
                await request.answer(response.status, await response.read(1 << 26), head)
                return
            left = asyncio.create_task(request.disconnected())
            try:
                await request.start(head)
                async for part_ in response.chunks():
                    await request.send(part_)
                    if left.done():
                        return
                await request.end()
            finally:
                left.cancel()
        finally:
            await response.close()


class Unpaid(Flights):
    """Attempts without voucher, check or book."""

    async def _voucher(self, attempt: Attempt, channel: PayerChannel) -> Voucher:
        channel.honest_pico_usd = 10**15  # takes chained receipts, the short ones
        return Voucher(bytes(32), 1, bytes(65))  # no channel: what it charges is nobody's

    def settle(
        self, flight: Flight, signed: SignedReceipt, response_hash: bytes, output_units: int
    ) -> None:
        """Take the node's word."""
        flight.record.settle(signed)
        flight.record.ended_ms = self.clock.now_ms()

    def settle_chained(
        self, flight: Flight, short: ChainedReceipt, response_hash: bytes, output_units: int
    ) -> SignedReceipt:
        """Take the node's word."""
        signed = SignedReceipt(_receipt(short, flight), b"")
        self.settle(flight, signed, response_hash, output_units)
        return signed

    def save(self, flight: Flight, key_hash: bytes | None) -> asyncio.Future[None]:
        """Nothing is kept."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


def _receipt(short: ChainedReceipt, flight: Flight) -> Receipt:
    return short.receipt(flight.attempt, flight.request_hash, bytes(32))


async def bare(upstream: str) -> None:
    """Serve until standard input ends."""
    listening = listen("127.0.0.1", 0, "")
    config: dict[str, Any] = {"http": "httptools", "lifespan": "off", "log_level": "warning"}
    server = uvicorn.Server(
        uvicorn.Config(Bare(upstream), access_log=False, server_header=False, **config)
    )
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    sys.stdout.write(orjson.dumps({"url": url_of(listening)}).decode() + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = server.force_exit = True
    with suppress(asyncio.CancelledError):
        await serving


async def features(flags: bytes) -> None:
    """The gateway's own process, with attempts that cost nothing."""
    setattr(part, "Flights", Unpaid)  # noqa: B010 - what it makes its attempts with
    home = Home.of()
    config = load(home.config, os.environ, orjson.loads(flags))
    await role.serve_gateway(config, home, Worker.here())


def main() -> None:
    """Run one of them."""
    kind, argument = sys.argv[1:]
    if kind == "bare":
        run(lambda: bare(argument))
    else:
        run(lambda: features(argument.encode()))


if __name__ == "__main__":
    main()
