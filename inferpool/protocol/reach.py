"""How a node without a reachable address is reached: three words, spoken once per connection.

A node keeps one connection to a relay and proves by its node key who it is. Whoever wants it dials
the same relay and names it; the relay tells the node a token; the node dials once more with that
token, and from there the relay copies bytes. Those bytes are TLS 1.3 between the two ends, under
the key that the node's signed offer pins: the relay forwards what it cannot read or alter.

One line ends in LF and is at most `RELAY_LINE_MAX` bytes:

| who | line | answer |
| --- | --- | --- |
| node | `INFERPOOL-RELAY/1 NODE` | `OK`; then TLS by the relay's key, see `Hello` |
| node | `INFERPOOL-RELAY/1 JOIN token` | none: the bytes of who waits for it |
| anyone | `INFERPOOL-RELAY/1 OPEN 0xnode` | `OK` and the bytes of the node, or `NO reason` |
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from inferpool.protocol import eip712
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.errors import Refused

VERSION: Final = "INFERPOOL-RELAY/1"
SCHEME: Final = "relay"
TOKEN_BYTES: Final = 16
NONCE_BYTES: Final = 32
_HELLO_TYPE: Final = eip712.keccak256(b"RelayHello(address node,bytes32 nonce,bytes32 relaySpki)")


def hello_digest(node: bytes, nonce: bytes, relay_spki: bytes) -> bytes:
    """What a node key signs for a relay: the relay's 32 random bytes and the SHA-256 of the TLS key
    that the node saw, so that a relay cannot pass the answer on to another one."""
    struct = eip712.keccak256(
        _HELLO_TYPE + eip712.address(node) + eip712.word(nonce) + eip712.word(relay_spki)
    )
    return eip712.digest(eip712.inferpool_domain(0), struct)


def relay_url(host: str, port: int, node: bytes) -> str:
    """The endpoint of a node behind a relay, as its offer names it."""
    return f"{SCHEME}://{f'[{host}]' if ':' in host else host}:{port}/{to_hex(node)}"


def parse_relay_url(url: str) -> tuple[str, int, bytes]:
    """(host, port, node key's address). Raises Refused(bad_config)."""
    try:
        parts = urlsplit(url)
        host, port, node = parts.hostname, parts.port, from_hex(parts.path[1:], 20)
        # One way to write it: offers are compared by text.
        if host and port and url == relay_url(host, port, node):
            return host, port, node
    except ValueError:
        pass
    raise Refused(f"{url!r} is not relay://HOST:PORT/0xNODE in lower case", code="bad_config")
