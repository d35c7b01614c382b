"""The gap that a client sees when the first node fails, with real processes.

`python -m bench.faults` prints for each fault what came and the longest silence, with the second
node's own prefill (a fixed 0.1 s here) apart. The bars: 0.3 s after a reset, 3.3 s after silence.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Final

from tests.faults.kit import CHEAP, PRICE, FaultyPool, expected, faulty_pool
from tests.faults.node import PREFILL_S
from tests.faults.streams import stream

TRIES: Final = 5
TOKENS: Final = 30
FAULTS: Final = (
    ("none", "", ""),
    ("refused", "network", "refuse"),
    ("500", "network", "status 500"),
    ("429", "network", "status 429"),
    ("first token after 5 s", "engine", "slow 5"),
    ("dies after 10 tokens", "network", "die 10"),
    ("silent after 10 tokens", "network", "stall 10"),
    ("engine hangs, front end beats", "engine", "hang 10"),
)


def heal(pool: FaultyPool) -> None:
    """The first node is well, and comes first again."""
    node = pool.nodes[0]
    node.engine_fault()
    node.network_fault()

    def first() -> bool:
        proofs = [stream(pool, f"well {n}", 5, 2).proof for n in range(4)]
        return all(proof["node"] == node.facts["node"] for proof in proofs)

    pool.until("the first node serves again", first, 120)


def main() -> int:
    """Print the table; 1 where an answer was not whole."""
    bad = 0
    print(f"openai-python, {TRIES} streams of {TOKENS} tokens at 10 ms each")
    print("| fault of the first node | whole | legs | first token, s | longest gap, s |"
          " without the second prefill, s |")  # fmt: skip
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with (
        tempfile.TemporaryDirectory() as root,
        faulty_pool(Path(root), [CHEAP, PRICE], proxied=True) as pool,
    ):
        for name, where, fault in FAULTS:
            seen = []
            for number in range(TRIES):
                heal(pool)
                if where:
                    getattr(pool.nodes[0], f"{where}_fault")(fault)
                seen.append(stream(pool, f"{name} {number}", TOKENS, number))
            wanted = [expected(f"{name} {n}", n, TOKENS) for n in range(TRIES)]
            whole = sum(item.text == text for item, text in zip(seen, wanted, strict=True))
            bad += TRIES - whole
            gap = median(item.gap_s for item in seen)
            first = median(item.first_s for item in seen)
            legs = max(item.proof.get("legs", 0) for item in seen)
            cut = "after" in name or "hangs" in name
            own = f"{gap - PREFILL_S:.2f}" if cut and legs > 1 else "-"
            row = (name, f"{whole} of {TRIES}", legs, f"{first:.2f}", f"{gap:.2f}", own)
            print(f"| {' | '.join(map(str, row))} |", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
