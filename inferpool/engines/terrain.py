"""Height maps from a one-step consistency model: noise in, terrain out.

The model knows one word, a difficulty from 1 to 100, and a prompt must say nothing else: what it
cannot draw is refused, not ignored. Numbers of the sampler: adaptive-terrain-diffusion 0.4.2.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event
from typing import Any, Final

from inferpool.engines import sandbox
from inferpool.engines.heap import give_back
from inferpool.engines.onnx_file import reason_to_refuse
from inferpool.engines.png import grey_png
from inferpool.engines.trial import tried
from inferpool.protocol.errors import BadRequest, InferpoolError, Unavailable

SIDE: Final = 128
_SIGMA: Final = 80.0  # of the noise that is taken away in the one step
_LEVELS: Final = 100
_PROMPT: Final = re.compile(r"\s*(?:terrain)?\s*,?\s*(?:difficulty\s*[:=]?\s*(\d{1,3}))?\s*", re.I)
_DEFAULT: Final = 50


class TerrainEngine:
    """An `ImageEngine` for 128 x 128 grey height maps. `slots`: calls at once, a core each.

    Grey is the model's own scale, the same in all pictures: asinh(height / 0.1), from 0 (black) to
    22.17 units of height (white); straight heights would be all but black.
    """

    size = (SIDE, SIDE)

    def __init__(self, path: Path, name: str, quant: str, *, slots: int = 1) -> None:
        self.path, self.name, self.slots = Path(path), name, slots
        self.engine_class = f"onnxruntime@{_version()}/{quant.lower()}/cpu"
        self.sandbox = sandbox.NONE  # of the trial; the engine itself runs in this process
        self._session: Any = None
        self._pool: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        """Try in a child, load. Raises Unavailable(engine_unavailable)."""
        try:
            await asyncio.to_thread(self._check)
            self.sandbox = await tried("onnx", self.name, self.path)
            await asyncio.to_thread(self._load)
        except InferpoolError:
            raise
        except Exception as error:  # onnxruntime raises its own tree
            message = f"{self.name} cannot be loaded: {error}"
            raise Unavailable(message, code="engine_unavailable") from error
        self._pool = ThreadPoolExecutor(self.slots, "inferpool-image")

    async def close(self) -> None:
        """Let what runs end, free the model."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)
        self._session = None
        await give_back()

    def ready(self) -> bool:
        """Whether a call would be taken now."""
        return self._pool is not None

    async def draw(self, prompt: str, count: int, seed: int) -> list[bytes]:
        """See `base.ImageEngine`. Raises Unavailable(engine_failed)."""
        if self._pool is None:
            raise Unavailable(f"{self.name} is not loaded", code="engine_unavailable")
        level = difficulty_of(prompt, self.name)
        left, loop = Event(), asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, self._all, level, count, seed, left)
        finally:
            left.set()

    # -- in a thread -----------------------------------------------------------------------------

    def _check(self) -> None:
        reason = reason_to_refuse(self.path)
        if reason is not None:
            message = f"{self.name} is refused: {reason}"
            raise Unavailable(message, code="engine_unavailable")

    def _load(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            str(self.path), options, providers=["CPUExecutionProvider"]
        )

    def _all(self, level: int, count: int, seed: int, left: Event) -> list[bytes]:
        images = []
        for i in range(count):
            if left.is_set():  # the caller is gone
                break
            images.append(self._one(level, seed + i))
        return images

    def _one(self, level: int, seed: int) -> bytes:
        import numpy as np

        noise = np.random.default_rng(seed).standard_normal((1, 1, SIDE, SIDE), dtype=np.float32)
        feed = {
            "noisy": noise * np.float32(_SIGMA),
            "sigma": np.array([_SIGMA], dtype=np.float32),
            "difficulty": np.array([(level - 1) / (_LEVELS - 1)], dtype=np.float32),
        }
        try:
            (drawn,) = self._session.run(["denoised"], feed)
        except Exception as error:
            raise Unavailable(f"{self.name} failed: {error}", code="engine_failed") from error
        unit = np.clip((drawn[0, 0].astype(np.float64) + 1.0) / 2.0, 0.0, 1.0)
        return grey_png(SIDE, SIDE, np.round(255 * unit).astype(np.uint8).tobytes())


def difficulty_of(prompt: str, name: str) -> int:
    """What a prompt such as `terrain, difficulty 60` asks for. Raises BadRequest for another."""
    found = _PROMPT.fullmatch(prompt)
    level = int(found[1] or _DEFAULT) if found else 0
    if not 1 <= level <= _LEVELS:
        raise BadRequest(
            f"{name} draws terrain only; write 'terrain' or 'terrain, difficulty N', N 1 to 100.",
            param="prompt",
        )
    return level


def _version() -> str:
    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return "none"
