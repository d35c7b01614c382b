"""A node's process whose engine fails on command: the daemon itself, with another fake engine.

`python -m tests.faults.node CONTROL FLAGS`: the file CONTROL holds the fault, read anew for each
call: nothing, `hang 8` (the engine stops after eight tokens and its front end beats on),
`fail 8`, or `slow 30` (seconds before the first token). FLAGS as for `inferpool.daemon`.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from inferpool.daemon import engines
from inferpool.daemon.__main__ import main
from inferpool.engines.base import Progress, TextCall, TextChunk
from inferpool.engines.fake import FakeTextEngine
from inferpool.protocol.job import Task

PREFILL_S = 0.1


class FaultyEngine(FakeTextEngine):
    """Reads its fault at each call."""

    control = Path()

    async def generate(self, call: TextCall, progress: Progress) -> AsyncGenerator[TextChunk, None]:
        """See FakeTextEngine."""
        fault = self.control.read_text().split() if self.control.exists() else []
        name, amount = (fault[0], int(fault[1])) if len(fault) == 2 else ("", 0)
        self.hang_after = amount if name == "hang" else None
        self.fail_after = amount if name == "fail" else None
        self.prefill_delay_s = float(amount) if name == "slow" else PREFILL_S
        async for chunk in super().generate(call, progress):
            yield chunk


def make(manifest: Any, store: Any, config: Any) -> FaultyEngine:
    return FaultyEngine(slots=config.slots, token_delay_s=0.01)


if __name__ == "__main__":
    FaultyEngine.control = Path(sys.argv[1])
    engines._MAKERS[("fake", Task.CHAT)] = make  # type: ignore[index]
    sys.exit(main(["node", *sys.argv[2:]]))
