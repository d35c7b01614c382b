"""Which addresses a stranger may make us call: only those of the public internet.

A name is looked up once, here, and what was checked is what is dialled: a name that changes its
address between a check and a dial (DNS rebinding) gets nowhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Final

from inferpool.protocol.errors import Refused

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4
_V4_BITS: Final = 2**32 - 1


async def public_addresses(host: str, port: int = 0) -> list[str]:
    """Every address of a host, as literals to dial. Raises Refused where one is not public."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port or None, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:
        raise Refused(f"{host} has no address: {error}", code="bad_encoding") from None
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    for address in addresses:
        if not is_public(address):
            raise Refused(
                f"{host} is a private address; allow it with gateway.allow_private",
                code="bad_encoding",
            )
    if not addresses:
        raise Refused(f"{host} has no address", code="bad_encoding")
    return addresses


def is_public(address: str) -> bool:
    """Whether an IP address, with or without its zone, is one of the public internet.

    An IPv6 address that stands for an IPv4 address is judged as that one.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        within: ipaddress.IPv4Address | None = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            within = ipaddress.IPv4Address(int(found) & _V4_BITS)
        if within is not None:
            return is_public(str(within))
    return found.is_global and not found.is_multicast and not found.is_reserved
