"""An engine's child process: one JSON line in, one JSON line out, gone when its stdin closes.

An engine may crash, leak or be killed for memory; in a child it takes nobody with it. And the
child holds on to its parent by a pipe, so that not even kill -9 of the parent leaves an orphan.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from inferpool.protocol.errors import Unavailable

STDERR_BYTES: Final = 16 * 1024  # the last words, for diagnosis
MAX_LINE_BYTES: Final = 1024 * 1024  # the names of some thousand control tokens
START_TIMEOUT_S: Final = 120.0  # a large model from a slow disk
STOP_TIMEOUT_S: Final = 2.0  # measured: 0.2 s after its stdin closed
# What a process needs to run at all. No proxies (the child talks to nobody), no PYTHON* (another
# interpreter's start-up files), no credentials of the parent.
_KEPT: Final = ("PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SYSTEMROOT")


# libgomp's threads wait for each other by spinning for milliseconds. Where something else wants
# the core, that stalls every layer of a model: measured with 2 threads on 2 shared cores, 3
# tokens/s by default, 29-66 with "passive", 50 with 300 turns (about 1 us); alone 138 with 300.
# When ggml aborts it reads /proc/self/status without looking whether it may, which the sandbox
# forbids: a segmentation fault in place of the reason. It would start a debugger next.
# OpenBLAS: see inferpool.daemon.__main__.
_OWN: Final = {"GOMP_SPINCOUNT": "300", "GGML_NO_BACKTRACE": "1", "OPENBLAS_NUM_THREADS": "1"}


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of an engine's child: a part of the parent's, and how its threads wait."""
    return {name: environment[name] for name in _KEPT if name in environment} | _OWN


class Child:
    """A running child; made by `start_child`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.answer: dict[str, Any] = {}
        self._stderr = bytearray()
        self._listener = asyncio.get_running_loop().create_task(self._listen())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def last_words(self) -> str:
        """The end of what it wrote to stderr, at most 16 KiB."""
        return bytes(self._stderr).decode(errors="replace").strip()

    async def greet(self, config: Mapping[str, object]) -> None:
        """Send the configuration, wait for the answer. Raises Unavailable(engine_unavailable)."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(config).encode() + b"\n")
            await stdin.drain()
            line = await stdout.readline()
            answer = json.loads(line) if line else {}
        except (OSError, ValueError) as error:
            raise await self._failed(str(error)) from error
        if not isinstance(answer, dict) or "error" in answer or not answer:
            told = str(answer.get("error", "")) if isinstance(answer, dict) else ""
            raise await self._failed(told)
        self.answer = answer

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        status = await self._process.wait()
        await asyncio.wait((self._listener,), timeout=STOP_TIMEOUT_S)
        return status

    async def ask(self, data: bytes) -> bytes:
        """Send more, return the next line that it answers. Raises OSError, EOFError, ValueError."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(data)
        await stdin.drain()
        return await stdout.readline()

    async def more(self, size: int) -> bytes:
        """So many bytes after that line. Raises EOFError where they do not come."""
        assert self._process.stdout is not None
        return await self._process.stdout.readexactly(size)

    def kill(self) -> None:
        """End it at once, where it does not do what it is told."""
        # Not by `Process.kill`: that looks first whether the child has ended, which takes its exit
        # status away from the thread of asyncio that waits for it and then warns.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """Close its stdin; kill it where it has not left after two seconds."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        # asyncio takes a process for ended when its pipes are: an answer that nobody reads any
        # more would keep it for ever.
        rest = asyncio.get_running_loop().create_task(self._discard())
        try:
            await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self.kill()
            await self._process.wait()
        finally:
            rest.cancel()
            self._listener.cancel()
            await asyncio.wait((self._listener, rest))

    async def _failed(self, reason: str) -> Unavailable:
        # It is on its way out: what it wrote to stderr may come after what it wrote to stdout.
        await asyncio.wait((self._listener,), timeout=STOP_TIMEOUT_S)
        words = self.last_words().splitlines()[-3:]
        told = "; ".join(filter(None, [reason, *words])) or "it ended without a word"
        return Unavailable(f"the engine did not start: {told}", code="engine_unavailable")

    async def _discard(self) -> None:
        assert self._process.stdout is not None
        while await self._process.stdout.read(MAX_LINE_BYTES):
            pass

    async def _listen(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        while data := await stderr.read(4096):
            self._stderr += data
            del self._stderr[:-STDERR_BYTES]


async def start_child(
    script: Path, config: Mapping[str, object], timeout_s: float = START_TIMEOUT_S
) -> Child:
    """Run a script with `config`; return once it has answered.

    Raises Unavailable(engine_unavailable); then no process is left.
    """
    # -I: neither PYTHON* variables nor the working directory decide what is imported. The file, not
    # the module's name: it runs wherever this package runs, installed or not. A session of its
    # own: Ctrl-C in a terminal reaches the parent, which ends its calls before the child.
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(script),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            limit=MAX_LINE_BYTES,
            env=clean_environment(os.environ),
            start_new_session=True,
        )
    except OSError as error:  # no memory or no descriptor is left, at this moment
        message = f"the engine did not start: {error}"
        raise Unavailable(message, code="engine_unavailable") from error
    child = Child(process)
    try:
        async with asyncio.timeout(timeout_s):
            await child.greet({**config, "parent": os.getpid()})
    except BaseException as error:
        child.kill()
        await child.stop()
        if isinstance(error, TimeoutError):
            message = f"the engine did not start within {timeout_s:g} s"
            raise Unavailable(message, code="engine_unavailable") from error
        raise
    return child
