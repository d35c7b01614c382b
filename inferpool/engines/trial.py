"""A model file is first loaded and run once in a sandboxed child, where nothing can be lost.

ONNX Runtime and CTranslate2 run in the node's own process, since a pipe would cost more than a
small model's run. What crashes, hangs or hoards on a malformed file does it in the child instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from inferpool.engines.child import start_child
from inferpool.protocol.errors import Unavailable

SCRIPT: Final = Path(__file__).with_name("trial_child.py")
TIMEOUT_S: Final = 60.0  # a large model is optimised for some seconds


async def tried(
    runtime: str,
    name: str,
    path: Path,
    *,
    readable: Iterable[Path] = (),
    threads: int = 1,
    quant: str = "",
    timeout_s: float = TIMEOUT_S,
) -> str:
    """Load and run `path` once; what held the child back, in words.

    `runtime`: `onnx` (a file) or `ctranslate2` (a folder). `readable`: what else it may read.
    Raises Unavailable(engine_unavailable) where the child failed, died or took too long.
    """
    config = {
        "runtime": runtime,
        "path": str(path),
        "readable": [str(path), *map(str, readable)],
        "threads": threads,
        "quant": quant,
    }
    try:
        child = await start_child(SCRIPT, config, timeout_s)
    except Unavailable as error:
        message = f"{name} cannot be loaded, tried in a child: {error.message}"
        raise Unavailable(message, code="engine_unavailable") from error
    await child.stop()
    return f"in the node's process; tried before in {child.answer['sandbox']}"
