"""A port of this machine that leads to one node behind a relay, for clients that dial addresses.

It checks the node's key before anything is sent, and passes HTTP and gRPC on as they are.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from inferpool.clock import SystemClock
from inferpool.daemon.serving import listen, until_told, url_of
from inferpool.gateway.directory import OFFER_PATH
from inferpool.identity.signing import verify
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import Refused, Unavailable
from inferpool.protocol.limits import OFFER_FETCH_TIMEOUT_S, OFFER_MAX, RELAY_OPEN_TIMEOUT_S
from inferpool.protocol.offer import SignedOffer
from inferpool.protocol.reach import parse_relay_url
from inferpool.transport.http import LEARN, open_transport
from inferpool.transport.piping import pass_on
from inferpool.transport.relayed import open_stream
from inferpool.transport.tls import HTTP2, client_context, pin_matches

_LOG = logging.getLogger("inferpool.forward")
CONNECTIONS_MAX: Final = 256
_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0"  # how a gRPC client begins (RFC 9113, section 3.4)
_FIRST_BYTE_S: Final = 30.0


async def pin_of(url: str) -> bytes:
    """SHA-256 of the TLS key of a node behind a relay, by its own signed offer.

    The URL names the node's key, so that nobody in between can give another offer.
    Raises Refused, Unavailable.
    """
    _, _, node = parse_relay_url(url)
    pipe = open_transport(url, LEARN)
    try:
        answer = await pipe.request("GET", OFFER_PATH, (), timeout_s=2 * OFFER_FETCH_TIMEOUT_S)
        async with asyncio.timeout(OFFER_FETCH_TIMEOUT_S):
            signed = SignedOffer.decode(await answer.read(OFFER_MAX))
    except TimeoutError:
        raise Unavailable("The node's offer came too slowly.", code="timeout") from None
    finally:
        await pipe.close()
    verify(signed.offer.digest(), signed.signature, node)
    if signed.offer.valid_until_ms <= SystemClock().now_ms():
        raise Refused("the node's offer has ended", code="expired")
    pins = [item.tls_spki for item in signed.offer.endpoints if item.url == url]
    if answer.peer_spki not in pins:
        raise Refused("what answers there shows another TLS key than the node's offer names")
    return answer.peer_spki


class Forwarder:
    """Serves connections of this machine. `url`: of the node, under the pinned key."""

    def __init__(self, url: str, pin: bytes) -> None:
        self._host, self._port, self._node = parse_relay_url(url)
        self._pin, self._open = pin, 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        if self._open >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._open += 1
        try:
            async with asyncio.timeout(_FIRST_BYTE_S):
                first = await reader.read(64 * 1024)
            if first:
                there, back = await self._dial(first.startswith(_HTTP2_PREFACE[: len(first)]))
                back.write(first)
                await pass_on(reader, writer, there, back)
        except OSError as error:
            _LOG.warning("%s", error)
        finally:
            self._open -= 1
            writer.transport.abort()

    async def _dial(self, http2: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(2 * RELAY_OPEN_TIMEOUT_S):
            sock = await open_stream(self._host, self._port, self._node)
            context = client_context(True, HTTP2 if http2 else "")
            try:
                there, back = await asyncio.open_connection(
                    sock=sock, ssl=context, server_hostname=""
                )
            except BaseException:
                sock.close()
                raise
        shown = back.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if not pin_matches(shown, self._pin):
            back.transport.abort()
            raise ConnectionError("the node shows another key than its offer names")
        return there, back


async def serve_forward(url: str, port: int) -> None:
    """Forward a loopback port until told to stop. Raises Refused, Unavailable."""
    pin = await pin_of(url)
    listening = listen("127.0.0.1", port, "--port")
    server = await asyncio.start_server(Forwarder(url, pin).serve, sock=listening)
    try:
        await until_told("forward", {"url": url_of(listening), "to": url, "pin": to_hex(pin)})
    finally:
        server.close()
