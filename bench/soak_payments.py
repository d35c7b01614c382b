"""10,000 paid requests, 32 in flight on one channel, and none may fail for its payment.

    python -m bench.soak_payments [REQUESTS] [IN_FLIGHT]

A late voucher (one that others overtook) is answered by a corrective 402 and signed again; no
caller may see that. Runs the real gateway and node on in-memory pipes in virtual time, at windows
of 1 and of 32 maxima. Exits with 1 where any request was not answered with 200, or where the books
differ; prints how many vouchers were late.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from random import Random

from inferpool.sim.loop import run_virtual
from inferpool.transport.faulty import FaultyTransport, RandomFaults
from tests.gateway.parts import Pool, pool


async def soak(requests: int, in_flight: int, window: int) -> tuple[Counter[int], int, bool]:
    """Statuses, corrective answers, and whether both books agree."""
    statuses: Counter[int] = Counter()
    async with pool(window=window) as made:
        left = iter(range(requests))

        async def caller(made: Pool) -> None:
            for at in left:
                answer = await (made.chat() if at % 10 == 0 else made.infer(rows=1 + at % 7))
                statuses[answer.status] += 1

        await made.infer()  # opens the channel
        slow = RandomFaults(Random(1), delay=0.5, max_delay_s=0.05)  # vouchers overtake each other
        made.liar.inner = FaultyTransport(made.liar.inner, slow)
        sent_before = len(made.liar.vouchers)
        await asyncio.gather(*(caller(made) for _ in range(in_flight)))
        late = len(made.liar.vouchers) - sent_before - requests
        await asyncio.sleep(10)
        return statuses, late, made.booked() == made.earned()


def main() -> int:
    """Both windows; one line of JSON each."""
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    in_flight = int(sys.argv[2]) if len(sys.argv) > 2 else 32
    failed = 0
    for window in (1, 32):
        began = time.process_time()
        statuses, late, agreed = run_virtual(soak(requests, in_flight, window))
        lost = requests - statuses[200]
        failed += lost + (not agreed)
        line = {
            "window": window,
            "requests": requests,
            "in_flight": in_flight,
            "not_200": lost,
            "late_vouchers": late,
            "books_agree": agreed,
            "cpu_s": round(time.process_time() - began, 1),
        }
        sys.stdout.write(json.dumps(line) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
