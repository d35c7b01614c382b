"""Sentence vectors from an ONNX encoder: mean over the tokens, brought to length 1.

The weights are 8-bit with scales that ONNX Runtime computes for each run from everything in it,
so that a text's vector would depend on its neighbours in a batch. Each text is therefore run
alone: a vector is a function of the text and the model, and the same for every caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event
from typing import Any, Final

from inferpool.engines import sandbox
from inferpool.engines.base import Embeddings
from inferpool.engines.heap import give_back
from inferpool.engines.onnx_file import reason_to_refuse
from inferpool.engines.trial import tried
from inferpool.protocol.errors import BadRequest, InferpoolError, Unavailable

MAX_QUEUED: Final = 64  # calls; the node's own admission is stricter
_INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")


class MiniLmEngine:
    """An `EmbeddingEngine` for a BERT-like encoder. `context`: tokens of one text at most.

    `threads`: texts at once, each on one core.
    """

    def __init__(
        self, path: Path, tokenizer: Path, name: str, quant: str, *, context: int, threads: int = 1
    ) -> None:
        self.path, self.tokenizer, self.name = Path(path), Path(tokenizer), name
        self.engine_class = f"onnxruntime@{_version()}/{quant.lower()}/cpu"
        self.context, self.dimensions = context, 0
        self._threads = threads
        self.sandbox = sandbox.NONE  # of the trial; the engine itself runs in this process
        self._session: Any = None
        self._encoder: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._waiting = 0

    async def start(self) -> None:
        """Try in a child, load. Raises Unavailable(engine_unavailable)."""
        try:
            await asyncio.to_thread(self._check)
            self.sandbox = await tried("onnx", self.name, self.path)
            await asyncio.to_thread(self._load)
        except InferpoolError:
            raise
        except Exception as error:  # both libraries raise their own trees
            raise _unavailable(f"{self.name} cannot be loaded: {error}") from error
        self._pool = ThreadPoolExecutor(self._threads, "inferpool-embedding")

    async def close(self) -> None:
        """Let what runs end, free the model."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)
        self._session = self._encoder = None
        await give_back()

    def ready(self) -> bool:
        """Whether a call would be taken now."""
        return self._pool is not None

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """See `base.EmbeddingEngine`. Raises Unavailable: overloaded, engine_failed."""
        pool = self._pool
        if pool is None:
            raise _unavailable(f"{self.name} is not loaded")
        if self._waiting >= MAX_QUEUED:
            message = f"{MAX_QUEUED} calls wait for this model already"
            raise Unavailable(message, code="overloaded", retry_after_s=1)
        loop, left = asyncio.get_running_loop(), Event()
        self._waiting += 1
        try:
            encoded = await loop.run_in_executor(pool, self._tokens, list(texts))
            parts = [encoded[at :: self._threads] for at in range(self._threads)]
            runs = [loop.run_in_executor(pool, self._vectors, part, left) for part in parts if part]
            found = await asyncio.gather(*runs)
        except RuntimeError as error:  # the pool was closed in between
            raise _unavailable(f"{self.name} was closed") from error
        finally:
            left.set()
            self._waiting -= 1
        vectors = [found[i % self._threads][i // self._threads] for i in range(len(texts))]
        return Embeddings(tuple(vectors), sum(len(ids) for ids in encoded))

    # -- in a thread -----------------------------------------------------------------------------

    def _check(self) -> None:
        reason = reason_to_refuse(self.path)
        if reason is not None:
            raise _unavailable(f"{self.name} is refused: {reason}")

    def _load(self) -> None:
        import onnxruntime

        try:
            tokenizers = import_module("tokenizers")
        except ImportError as error:
            raise _unavailable(f"{self.name} needs the package tokenizers") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            str(self.path), options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_inputs()]
        width = session.get_outputs()[0].shape[-1]
        if not set(names) <= set(_INPUTS) or not isinstance(width, int):
            raise _unavailable(f"{self.name} is not a sentence encoder: inputs {names}")
        encoder = tokenizers.Tokenizer.from_file(str(self.tokenizer))
        # The file cuts at 128 tokens and fills up to them; nothing is cut here, nothing filled.
        encoder.no_truncation()
        encoder.no_padding()
        self._session, self._encoder, self.dimensions = session, encoder, width
        self._vectors(self._tokens(["warm"]), Event())

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        encoded = [item.ids for item in self._encoder.encode_batch_fast(texts)]
        for i, ids in enumerate(encoded):
            if len(ids) > self.context:
                raise BadRequest(
                    f"input {i} has {len(ids)} tokens, {self.name} takes {self.context}; cut it.",
                    code="context_length_exceeded",
                    param="input",
                )
        return encoded

    def _vectors(self, encoded: list[list[int]], left: Event) -> list[bytes]:
        found = []
        for ids in encoded:
            if left.is_set():  # the caller is gone
                break
            found.append(self._vector(ids))
        return found

    def _vector(self, ids: list[int]) -> bytes:
        import numpy as np

        row = np.array([ids], dtype=np.int64)
        values = (row, np.ones_like(row), np.zeros_like(row))
        wanted = {value.name for value in self._session.get_inputs()}
        feed = {n: v for n, v in zip(_INPUTS, values, strict=True) if n in wanted}
        try:
            hidden = self._session.run(None, feed)[0][0]
        except Exception as error:
            raise Unavailable(f"{self.name} failed: {error}", code="engine_failed") from error
        mean = hidden.mean(axis=0, dtype=np.float64)
        unit = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return bytes(unit.astype("<f4").tobytes())


def _version() -> str:
    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return "none"


def _unavailable(message: str) -> Unavailable:
    return Unavailable(message, code="engine_unavailable")
