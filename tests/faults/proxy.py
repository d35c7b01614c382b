"""A process between a gateway and a node that breaks the network on command.

`python -m tests.faults.proxy PORT UPSTREAM_PORT CONTROL`: the file CONTROL holds the fault, read
anew for each request: nothing, `refuse`, `status 500`, `die 10` (reset after ten chunks with token
ids) or `stall 10` (silence after ten). Only work is hurt: offers and leases pass.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

WORK = b"POST /v1/"


class Proxy:
    """One listening port."""

    def __init__(self, port: int, upstream: int, control: Path) -> None:
        self._port, self._upstream, self._control = port, upstream, control
        self._server: asyncio.Server | None = None

    def _fault(self) -> list[str]:
        return self._control.read_text().split() if self._control.exists() else []

    async def run(self) -> None:
        """Listen, except while connections are to be refused."""
        while True:
            refuse = self._fault() == ["refuse"]
            if refuse and self._server is not None:
                self._server.close()  # what is connected stays
                self._server = None
            if not refuse and self._server is None:
                self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
                print("ready", flush=True)
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        fault: list[str] = []
        chunks = 0  # of the answer that is on its way

        def abort() -> None:
            writer.transport.abort()
            up_writer.transport.abort()

        async def requests() -> None:
            nonlocal chunks
            while data := await reader.read(1 << 16):
                if data.startswith(WORK):
                    fault[:], chunks = self._fault(), 0
                    if fault == ["refuse"]:
                        abort()
                        return
                    if fault[:1] == ["status"]:
                        body = b'{"error":{"message":"told to fail","code":"none"}}'
                        head = f"HTTP/1.1 {fault[1]} No\r\ncontent-length: {len(body)}\r\n\r\n"
                        writer.write(head.encode() + body)
                        continue
                up_writer.write(data)
                await up_writer.drain()
            up_writer.close()

        async def answers() -> None:
            nonlocal chunks
            while data := await up_reader.read(1 << 16):
                chunks += data.count(b'"ids"')
                if fault[:1] in (["die"], ["stall"]) and chunks > int(fault[1]):
                    if fault[0] == "die":
                        abort()
                        return
                    continue  # read on and say nothing
                writer.write(data)
                await writer.drain()
            writer.close()

        with suppress(OSError):
            await asyncio.gather(requests(), answers())
        abort()


if __name__ == "__main__":
    port, upstream = int(sys.argv[1]), int(sys.argv[2])
    asyncio.run(Proxy(port, upstream, Path(sys.argv[3])).run())
