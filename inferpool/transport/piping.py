"""Bytes from one connection to another, both ways, with backpressure."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

_READ_BYTES: Final = 64 * 1024


async def pass_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    there: asyncio.StreamReader,
    back: asyncio.StreamWriter,
) -> None:
    """Both directions until either side ends; then both end."""
    ways = [
        asyncio.create_task(_pump(reader, back)),
        asyncio.create_task(_pump(there, writer)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        back.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # a side that ends hard ends the other
        while data := await source.read(_READ_BYTES):
            sink.write(data)
            await sink.drain()
