"""How long one choice of a node takes, by the number of offers of one model.

The bars: 100 us at 1,000 offers, 1 ms at 100,000. `python -m bench.routing` prints a table; the
choices run over the real index with nodes of mixed prices and speeds, one node changing between
two choices, as a node does whose call has just ended.
"""

from __future__ import annotations

import gc
import platform
import sys
import time
from collections.abc import Callable
from random import Random
from statistics import median
from typing import Any, Final

from inferpool.gateway.affinity import PrefixMap, blocks
from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.offer_index import OfferIndex
from inferpool.gateway.router import Wanted, choose
from inferpool.protocol.encoding import sha256
from inferpool.protocol.job import Job, Task
from inferpool.protocol.lease import Lease
from inferpool.protocol.offer import Endpoint, Offer, Service, Terms

NOW_MS: Final = 1_800_000_000_000
TERMS: Final = Terms(1, bytes(20), "D", "1", 6, bytes(20), bytes(20), 0, 900)
JOB: Final = Job(Task.CHAT, "m", prompt_bytes=4000, messages=3, max_output=256)
VALUE: Final = 277_777_777  # pico-USD a second: a dollar an hour
CHOICES: Final = 2000


def known_node(number: int, random: Random) -> KnownNode:
    """A node of a mixed fleet: prices over 1:4, speeds over 1:10, all alive."""
    price = random.randint(100_000, 400_000)
    service = Service(
        manifest=sha256(b"m"),
        model="m",
        task=Task.CHAT,
        engine_class="fake@1/none/none",
        price_in_pico_usd_per_unit=price,
        price_out_pico_usd_per_unit=4 * price,
        context=32_768,
        default_max_output=1024,
        template_overhead=16,
        message_overhead=8,
        resume=True,
        audited=True,
    )
    url = f"http://{number}.test"
    offer = Offer(
        owner=bytes(20),
        node=sha256(b"node %d" % number)[:20],
        epoch=1,
        sequence=1,
        valid_until_ms=NOW_MS + 600_000,
        endpoints=(Endpoint(url),),
        services=(service,),
        terms=TERMS,
    )
    nobody: Any = None
    node = KnownNode(offer, bytes(32), url, nobody)
    first_ms = random.randint(50, 500)
    node.renew(Lease(1, 1, 8, 0, first_ms, random.randint(5_000, 50_000)), NOW_MS)
    for units in (100, 1000, 3000):
        node.memory.learn(service.call_class, units, first_ms + units / 10, 100, 2000, NOW_MS)
    node.memory.served = random.choice((3, 50))
    return node


def timed(run: Callable[[int], object], count: int) -> list[float]:
    """Microseconds of each call."""
    found = []
    for number in range(count):
        begun = time.perf_counter()
        run(number)
        found.append((time.perf_counter() - begun) * 1e6)
    return found


def measure(offers: int) -> tuple[float, float, float, float, float]:
    """First choice in ms; then median, p99 of a choice, with a long known prompt, in us; and one
    changed offer, in us."""
    random = Random(offers)
    nodes = [known_node(number, random) for number in range(offers)]
    index, prefixes = OfferIndex.of(nodes), PrefixMap()
    prompt = blocks(["You are a helpful assistant. " * 150])
    for node in nodes[:4]:
        prefixes.note(prompt, node.address, NOW_MS)
    wanted, warm = Wanted(NOW_MS, VALUE), Wanted(NOW_MS, VALUE, prompt=prompt)
    gc.collect()
    gc.freeze()

    def one(number: int) -> object:
        index.touch(nodes[number % offers].address)
        return choose(JOB, index, wanted, random, prefixes)

    first = timed(one, 1)[0] / 1000
    cold = sorted(timed(one, CHOICES))
    known = timed(lambda _: choose(JOB, index, warm, random, prefixes), CHOICES)
    put = timed(lambda number: index.put(nodes[number % offers]), CHOICES)
    gc.unfreeze()
    return first, median(cold), cold[int(0.99 * len(cold))], median(known), median(put)


def main() -> None:
    """Print the table."""
    print(f"one choice of a node; {platform.machine()}, Python {platform.python_version()}")
    print("| offers | first, ms | median, us | p99, us | known prompt, us | changed offer, us |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for offers in [int(item) for item in sys.argv[1:]] or [8, 100, 1_000, 10_000, 100_000]:
        first, middle, late, known, put = measure(offers)
        print(f"| {offers:,} | {first:.2f} | {middle:.0f} | {late:.0f} | {known:.0f} | {put:.0f} |")


if __name__ == "__main__":
    main()
