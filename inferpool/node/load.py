"""How busy OTHER processes keep this machine, from /proc: all CPU time less that of our own.

Our own are the given roots and everything below them; the time of a child that ended is in its
parent's, so that none of it is counted as somebody else's.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

WINDOW_S: Final = 1.0
_TICKS: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_BUSY: Final = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq; not idle, iowait, steal
_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class LoadMeter:
    """Looked at several times a second; answers for about the last second.

    `roots` are the process ids that are ours, by default this one.
    """

    def __init__(
        self,
        roots: Callable[[], Iterable[int]] | None = None,
        now_s: Callable[[], float] = time.monotonic,
        proc: Path = Path("/proc"),
    ) -> None:
        self._roots = roots or (lambda: (os.getpid(),))
        self._now_s, self._proc = now_s, proc
        self._seen: deque[tuple[float, int, int]] = deque()

    def others_percent(self) -> int:
        """CPU time of other processes in percent of ONE core, so that 150 is one and a half."""
        now = (self._now_s(), self._all_ticks(), self._own_ticks())
        self._seen.append(now)
        while len(self._seen) > 2 and now[0] - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()
        then = self._seen[0]
        spent_s = now[0] - then[0]
        if spent_s <= 0:
            return 0
        ticks = max(0, (now[1] - then[1]) - max(0, now[2] - then[2]))
        return int(100 * ticks / _TICKS / spent_s)

    def own_memory(self) -> int:
        """Resident bytes of this process and its children; shared pages count in each.

        The pool's other roles have roots of their own, and are no part of a node's cap.
        """
        total = 0
        for pid in self._tree((os.getpid(),)):
            with suppress(OSError, ValueError, IndexError):
                total += int((self._proc / str(pid) / "statm").read_text().split()[1]) * _PAGE
        return total

    def _all_ticks(self) -> int:
        try:
            line = (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:]
            return sum(int(line[index]) for index in _BUSY)
        except (OSError, ValueError, IndexError):
            return 0

    def _own_ticks(self) -> int:
        total = 0
        for pid in self._tree(self._roots()):
            with suppress(OSError, ValueError, IndexError):
                text = (self._proc / str(pid) / "stat").read_text()
                # After the name in brackets: utime, stime, cutime and cstime are 12th to 15th.
                total += sum(map(int, text.rsplit(")", 1)[1].split()[11:15]))
        return total

    def _tree(self, roots: Iterable[int]) -> set[int]:
        found: set[int] = set()
        left = list(roots)
        while left:
            pid = left.pop()
            if pid in found:
                continue
            found.add(pid)
            for task in (self._proc / str(pid) / "task").glob("*"):
                with suppress(OSError, ValueError):
                    left += map(int, (task / "children").read_text().split())
        return found
