"""The load of other processes, with a real one that burns a core."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inferpool.node.load import LoadMeter


@contextmanager
def hog() -> Iterator[int]:
    """A process id that burns a core until it is told to end; it is outside our process tree."""
    # Double fork: its parent ends at once, so that it is nobody's child but init's.
    script = (
        "import os, sys\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid(); sys.stdout.write(str(os.getpid()) + '\\n'); sys.stdout.flush()\n"
        "import threading\n"
        "threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()\n"
        "while True: pass\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


def apart(one: LoadMeter, other: LoadMeter) -> int:
    """How far two meters come apart, looked at side by side: what else runs here counts in both."""
    end, found = time.monotonic() + 20, 0
    while time.monotonic() < end and found <= 10:
        found = one.others_percent() - other.others_percent()
        time.sleep(0.1)
    return found


def test_a_hog_is_somebody_else() -> None:
    with hog() as pid:
        ours = LoadMeter(lambda: (os.getpid(), pid))
        assert apart(LoadMeter(), ours) > 10, "the one that does not own the hog sees it"


def test_our_own_work_is_nobody_elses() -> None:
    script = "import time\nend = time.time() + 60\nwhile time.time() < end: pass"
    child = subprocess.Popen([sys.executable, "-c", script])
    try:
        assert apart(LoadMeter(lambda: ()), LoadMeter()) > 10, "a child is ours"
    finally:
        child.kill()
        child.wait()


def test_a_child_that_ended_stays_ours() -> None:
    """Its time moves to its parent when it is reaped: the sum never falls."""
    meter = LoadMeter(lambda: (os.getpid(),))
    before = meter._own_ticks()
    burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert meter._own_ticks() - before >= 20


def test_memory_of_our_own_processes_is_told() -> None:
    assert LoadMeter().own_memory() > 10 << 20


def test_a_machine_without_proc_has_no_load(tmp_path: Path) -> None:
    meter = LoadMeter(proc=tmp_path)
    assert (meter.others_percent(), meter.own_memory()) == (0, 0)
