"""Several gateway processes behind one port, on one machine: a supervisor and its workers.

The supervisor opens the door and hands the listening socket to each worker, so that a connection
which waits when a worker dies is taken by another. A worker has a number: its lane, its voucher
key and its channels go with it, also after it was killed and started again. The supervisor touches
no money.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from inferpool.config import Config
from inferpool.daemon.door import open_door
from inferpool.daemon.serving import SHUTDOWN_S, until_told
from inferpool.home import Home
from inferpool.identity.keys import KeyRing
from inferpool.protocol.errors import Refused, Unavailable
from inferpool.protocol.limits import WORKERS_MAX

_LOG = logging.getLogger("inferpool.workers")
VARIABLE: Final = "INFERPOOL_WORKER"
_FIRST_PAUSE_S: Final = 0.2
_LAST_PAUSE_S: Final = 10.0
_STEADY_S: Final = 60.0  # a worker that ran for so long begins with a short pause again


@dataclass(frozen=True, slots=True)
class Worker:
    """Which of how many processes this is. `handle`: of the listening socket, -1 for its own."""

    number: int = 0
    of: int = 1
    handle: int = -1
    flags: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def here(cls, environ: Mapping[str, str] = os.environ) -> Worker:
        """What a supervisor said, else the only one."""
        given = environ.get(VARIABLE)
        return cls(**orjson.loads(given)) if given else cls()

    @property
    def role(self) -> str:
        """The name under which it announces itself: the supervisor's is that of the whole."""
        return "gateway" if self.of == 1 else f"gateway-{self.number}"

    @property
    def first(self) -> bool:
        """Whether it does what only one process can: the ports beside the door, the canaries."""
        return self.number == 0

    def keys(self, home: Home) -> KeyRing:
        """Where its voucher key lies; the others of the gateway are the same for all."""
        return home.keys("gateway" if self.first else f"gateway-{self.number}")

    def lane(self, home: Home, *, shared: bool) -> str:
        """The name of its lane. `shared`: other homes write in the same book."""
        number = "" if self.first else str(self.number)
        return f"{home.secret('lane')[:16]}/{number}".rstrip("/") if shared else number

    def listening(self) -> socket.socket | None:
        """The socket that the supervisor opened."""
        return None if self.handle < 0 else socket.socket(fileno=self.handle)


async def supervise(config: Config, home: Home) -> None:
    """Run `gateway.workers` workers until told to stop. Raises Refused, Unavailable."""
    settings = config.gateway
    if not 1 <= settings.workers <= WORKERS_MAX:
        message = f"gateway.workers must be 1 to {WORKERS_MAX}, not {settings.workers}"
        raise Refused(message, code="bad_config", param="gateway.workers")
    door = open_door(home, "gateway", settings.host, settings.port, settings.endpoint)
    flags = {key: _value(config, key) for key, where in config.origins.items() if where == "flag"}
    handle = door.listening.fileno()
    crew = [
        Crew(Worker(number, settings.workers, handle, flags)) for number in range(settings.workers)
    ]
    try:
        facts = await crew[0].start()  # it makes the tables, the first key and the channels
        await asyncio.gather(*(each.start() for each in crew[1:]))
        keeping = [asyncio.create_task(each.keep(), name="worker") for each in crew]
        said: dict[str, object] = {**facts, "workers": settings.workers, "pid": os.getpid()}
        home.announce("gateway", said)
        try:
            await until_told("gateway", {k: v for k, v in said.items() if k not in ("role", "pid")})
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)
    finally:
        await asyncio.gather(*(each.stop() for each in crew))
        home.gone("gateway")
        door.listening.close()


def _value(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    value = getattr(getattr(config, section), name)
    return list(value) if isinstance(value, tuple) else value


@dataclass(slots=True)
class Crew:
    """One worker's process, and those that follow it."""

    worker: Worker
    process: subprocess.Popen[bytes] | None = None

    async def start(self) -> dict[str, Any]:
        """Start it and wait until it serves. Raises Unavailable."""
        worker = self.worker
        said = {
            "number": worker.number,
            "of": worker.of,
            "handle": worker.handle,
            "flags": worker.flags,
        }
        self.process = process = subprocess.Popen(  # noqa: ASYNC220 - our own module
            [sys.executable, "-m", "inferpool.daemon", "gateway"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, VARIABLE: orjson.dumps(said).decode(), "INFERPOOL_FOLLOW": "1"},
            pass_fds=(worker.handle,),
            start_new_session=True,  # Ctrl-C reaches the supervisor, which ends them in order
        )
        assert process.stdout is not None, "it is a pipe"
        line = await asyncio.to_thread(process.stdout.readline)
        if not line:
            await asyncio.to_thread(process.wait)
            raise Unavailable(
                f"Worker {worker.number} did not start (exit code {process.returncode});"
                " it says why above.",
                code="shutting_down",
            )
        facts: dict[str, Any] = orjson.loads(line)
        return facts

    async def keep(self) -> None:
        """Start it again whenever it ends, with growing pauses."""
        pause_s, loop = _FIRST_PAUSE_S, asyncio.get_running_loop()
        while True:
            began_s, process = loop.time(), self.process
            assert process is not None, "it was started"
            await asyncio.to_thread(process.wait)
            _close(process)
            if loop.time() - began_s > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            _LOG.error(
                "worker %d ended with %d: again in %.1f s",
                self.worker.number,
                process.returncode,
                pause_s,
            )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)
            try:
                await self.start()
            except Unavailable:  # it ended again, which the next round sees
                pass
            except OSError as error:  # no process now, for whatever reason
                _LOG.error("worker %d cannot be started: %s", self.worker.number, error)

    async def stop(self) -> None:
        """End it: its input first, then a signal."""
        process = self.process
        if process is None:
            return
        assert process.stdin is not None, "it is a pipe"
        with suppress(OSError):
            process.stdin.close()
        try:
            await asyncio.to_thread(process.wait, 2 * SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
        _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
