"""A child that is killed at the moment at which it ends anyway."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import pytest

from inferpool.engines.child import start_child
from inferpool.protocol.errors import Unavailable

SCRIPT = """
import sys
sys.stdin.readline()
print("{}".replace("{", '{"ready": 1'), flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="it looks at a child without taking it")
async def test_killing_what_has_just_ended_takes_no_exit_status_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "short.py"
    script.write_text(SCRIPT)
    with caplog.at_level(logging.WARNING, "asyncio"):
        for _ in range(25):
            child = await start_child(script, {})
            await child.ask(b"go\n")
            # asyncio's own waiting thread and this one are told at the same time.
            with suppress(ChildProcessError):  # the thread was faster
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
            child.kill()
            await child.stop()
            assert await child.wait() == 0
    assert not caplog.records, caplog.text


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="it counts its own descriptors")
async def test_where_no_descriptor_is_left_no_child_starts_and_its_keeper_tries_again(
    tmp_path: Path,
) -> None:
    """As while strangers hold every connection; what keeps an engine waits for this error only."""
    import resource

    script = tmp_path / "short.py"
    script.write_text(SCRIPT)
    child = await start_child(script, {})  # asyncio has what it needs
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(Unavailable) as caught:
            await start_child(script, {})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.code == "engine_unavailable"
    await child.stop()
