"""A published trace of arrivals: 19,366 conversations with a language model in Azure, one hour.

Source: "Azure LLM inference trace 2023", conversation, from github.com/Azure/AzurePublicDataset
(CC-BY 4.0), described in Patel et al., "Splitwise: Efficient generative LLM inference using phase
splitting", ISCA 2024. It has times and token counts and no text. `bench/data` holds it as packed
numbers; `python -m bench.trace AzureLLMInferenceTrace_conv.csv` makes the same bytes again from
the file with SHA-256 2f1e5b66...0bf8.
"""

from __future__ import annotations

import csv
import hashlib
import lzma
import struct
import sys
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

PACKED: Final = Path(__file__).parent / "data" / "azure-llm-conversation-2023.xz"
SOURCE_SHA256: Final = "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8"


class Arrival(NamedTuple):
    """One request: seconds since the first one, tokens in and out."""

    at_s: float
    tokens_in: int
    tokens_out: int


def load() -> list[Arrival]:
    """All requests in the order of their arrival."""
    data = lzma.decompress(PACKED.read_bytes())
    count = len(data) // 6
    numbers = struct.unpack(f"<{3 * count}H", data)
    found, at_ms = [], 0
    for number in range(count):
        at_ms += numbers[number]
        tokens = numbers[count + number], numbers[2 * count + number]
        found.append(Arrival(at_ms / 1000, *tokens))
    return found


def pack(source: bytes) -> bytes:
    """Gaps in ms, tokens in, tokens out: three columns of 16-bit numbers, compressed."""
    rows = list(csv.DictReader(source.decode().splitlines()))
    times = []
    for row in rows:
        whole, _, fraction = row["TIMESTAMP"].partition(".")
        seconds = datetime.fromisoformat(f"{whole}+00:00").timestamp()
        times.append(int(seconds) * 1000 + int(fraction[:3]))
    gaps = [0, *(after - before for before, after in pairwise(times))]
    columns = [
        *gaps,
        *(int(row["ContextTokens"]) for row in rows),
        *(int(row["GeneratedTokens"]) for row in rows),
    ]
    return lzma.compress(struct.pack(f"<{len(columns)}H", *columns))


def main() -> int:
    """Make the packed file again."""
    source = Path(sys.argv[1]).read_bytes()
    if hashlib.sha256(source).hexdigest() != SOURCE_SHA256:
        print("another file than the one that was packed")
        return 1
    PACKED.parent.mkdir(exist_ok=True)
    PACKED.write_bytes(pack(source))
    print(f"{len(load())} requests in {PACKED.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
