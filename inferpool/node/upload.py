"""How fast this machine sends to a gateway: what its answers will be sent with.

A small body first, whose time says how large the second may be; both together take seconds, and at
most a few MiB.
"""

from __future__ import annotations

import asyncio
from typing import Final

from inferpool.protocol.errors import Refused
from inferpool.protocol.limits import UPLOAD_MAX
from inferpool.transport.base import Transport

PATH: Final = "/inferpool/upload"
_FIRST: Final = 64 * 1024
_WANTED_S: Final = 1.0  # of sending: short of it the way's own delay counts too much
_TIMEOUT_S: Final = 20.0


async def measure_upload(pipe: Transport) -> int:
    """Bytes a second, the round trip deducted. Raises TransportError, Refused."""
    await _send(pipe, 1)  # the connection, with its handshakes, is made
    turn_s = await _send(pipe, 1)
    first_s = await _send(pipe, _FIRST)
    rate = _FIRST / max(first_s - turn_s, 1e-4)
    size = min(UPLOAD_MAX, int(rate * _WANTED_S))
    if size > 2 * _FIRST:
        rate = size / max(await _send(pipe, size) - turn_s, 1e-4)
    return int(rate)


async def _send(pipe: Transport, size: int) -> float:
    """Seconds until the other side has it all."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    response = await pipe.request("POST", PATH, (), bytes(size), timeout_s=_TIMEOUT_S)
    try:
        await response.read(1 << 16)
        if response.status != 200:
            raise Refused(f"it answered {response.status}", code="bad_encoding")
    finally:
        await response.close()
    return loop.time() - begun
