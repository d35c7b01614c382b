"""Chaos with real processes: `python -m tests.faults.chaos 200` kills a node every few seconds.

Each stream must be the complete answer of one node, whoever died meanwhile; at the end both sides
hold the same receipts and nothing is held.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

from tests.faults.kit import PRICE, FaultyPool, expected, faulty_pool
from tests.faults.streams import Seen, stream

NODES: Final = 4
LIVING: Final = 3  # before one is killed
AT_ONCE: Final = 8
TOKENS: Final = 250  # 2.5 s at least
KILL_EVERY_S: Final = 3.0


@dataclass(slots=True)
class Report:
    """What happened. `broken` says what, for each stream that was not whole."""

    streams: int = 0
    whole: int = 0
    continued: int = 0
    kills: int = 0
    longest_gap_s: float = 0.0
    booked_pico_usd: int = 0
    broken: list[str] = field(default_factory=list)


class Killer(threading.Thread):
    """Kills one node after the other, and starts each again; two at least always live."""

    def __init__(self, pool: FaultyPool, seed: int) -> None:
        super().__init__(daemon=True)
        self._pool, self._random = pool, Random(seed)
        self._over = threading.Event()
        self.kills = 0

    def run(self) -> None:
        """Until `stop`."""
        while not self._over.wait(self._random.uniform(0.5, 1.5) * KILL_EVERY_S):
            node = self._random.choice(self._pool.nodes)
            self._pool.living(LIVING)
            node.kill()
            self.kills += 1
            node.start()

    def stop(self) -> None:
        """End with every node alive."""
        self._over.set()
        self.join()


def run(root: Path, streams: int, kills: int = 0, seed: int = 1) -> Report:
    """Run so many streams, a few at once, and on until so many nodes were killed."""
    report, numbers, lock = Report(), count(), threading.Lock()
    with faulty_pool(root, [PRICE] * NODES, proxied=False) as pool:
        killer = Killer(pool, seed)

        def work(_: int) -> None:
            while (number := next(numbers)) < streams or killer.kills < kills:
                seen = stream(pool, f"story {number}", TOKENS, number)
                with lock:
                    _judge(report, number, seen)

        killer.start()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(work, range(AT_ONCE)))
        killer.stop()
        report.kills = killer.kills
        pool.nothing_held()
        report.booked_pico_usd = pool.books_agree()
    return report


def _judge(report: Report, number: int, seen: Seen) -> None:
    report.streams += 1
    if seen.error or seen.text != expected(f"story {number}", number, TOKENS):
        report.broken.append(f"{number}: {seen.error} after {len(seen.text.split())} tokens")
        return
    report.whole += 1
    report.continued += seen.proof["legs"] > 1
    report.longest_gap_s = max(report.longest_gap_s, seen.gap_s)


def main() -> int:
    """Print what happened; 1 where a stream broke."""
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        report = run(Path(root), streams)
    print(
        f"{report.whole} of {report.streams} streams whole, {report.continued} of them by more"
        f" than one node; {report.kills} kills in {time.monotonic() - begun:.0f} s; longest gap"
        f" {report.longest_gap_s:.2f} s; both ledgers hold {report.booked_pico_usd} pico-USD"
    )
    for line in report.broken:
        print("broken:", line)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
