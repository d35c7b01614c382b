"""ONNX Runtime in this process: explicit threads, no spinning, our own batcher.

The defaults (all cores, spinning) cost 27-50 % of throughput beside other work and quadrupled
the 99th percentile. No serving framework: they are 7 to 75 times slower on a small model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inferpool.engines import sandbox
from inferpool.engines.base import Tensor, TensorSpec
from inferpool.engines.heap import give_back
from inferpool.engines.onnx_file import reason_to_refuse
from inferpool.engines.tensor_check import WIDTHS, check_inputs
from inferpool.engines.trial import TIMEOUT_S, tried
from inferpool.protocol.errors import InferpoolError, Unavailable

if TYPE_CHECKING:
    from inferpool.engines.batching import Arrays, Batcher

DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_WARM_RUNS: Final = 5  # the first allocates; the estimate settles with the rest
_WARM_TEXT: Final = (64).to_bytes(4, "little") + b"words of a text, " * 3 + b"long enough.."


class OnnxEngine:
    """A `TensorEngine` for one ONNX file. `threads`: cores that one run uses."""

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        threads: int = 1,
        max_rows: int | None = None,
        max_queued: int | None = None,
        trial_timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.path, self.name = Path(path), name
        self.engine_class = f"onnxruntime@{_version()}/f32/cpu"
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._threads = threads
        self._limits = {"max_rows": max_rows, "max_queued": max_queued}
        self._trial_s = trial_timeout_s
        self.sandbox = sandbox.NONE  # of the trial; the engine itself runs in this process
        self._session: Any = None
        self._batcher: Batcher | None = None

    async def start(self) -> None:
        """Check, try in a child, load, measure. Raises Unavailable(engine_unavailable)."""
        try:
            await asyncio.to_thread(self._check)
            self.sandbox = await tried(
                "onnx", self.name, self.path, threads=self._threads, timeout_s=self._trial_s
            )
            await asyncio.to_thread(self._load)
        except InferpoolError:
            self._session = None
            raise
        except Exception as error:  # onnxruntime raises its own tree, partly RuntimeError
            self._session = None
            raise _unavailable(f"{self.name} cannot be loaded: {error}") from error

    async def close(self) -> None:
        """End what runs, refuse what waits, free the model."""
        batcher, self._batcher, self._session = self._batcher, None, None
        if batcher is not None:
            await batcher.close()
            del batcher
            await give_back()

    def ready(self) -> bool:
        """Whether a call would be taken now."""
        return self._batcher is not None

    async def infer(self, inputs: Sequence[Tensor], rows: int) -> list[Tensor]:
        """Run. Raises BadRequest(invalid_tensor), Unavailable(overloaded, engine_failed)."""
        if self._batcher is None:
            raise _unavailable(f"{self.name} is not loaded")
        from inferpool.engines.tensors import from_numpy, to_numpy

        arrays = [to_numpy(tensor) for tensor in check_inputs(self.inputs, inputs, rows)]
        results = await self._batcher.submit(arrays, rows)
        return [
            from_numpy(spec.name, array) for spec, array in zip(self.outputs, results, strict=True)
        ]

    # -- in a thread -----------------------------------------------------------------------------

    def _check(self) -> None:
        reason = reason_to_refuse(self.path)
        if reason is not None:
            raise _unavailable(f"{self.name} is refused: {reason}")

    def _load(self) -> None:
        import onnxruntime

        from inferpool.engines.batching import Batcher

        session = onnxruntime.InferenceSession(
            str(self.path), _options(onnxruntime, self._threads), providers=["CPUExecutionProvider"]
        )
        self.inputs = tuple(_spec(value) for value in session.get_inputs())
        self.outputs = tuple(_spec(value) for value in session.get_outputs())
        limits = {key: limit for key, limit in self._limits.items() if limit is not None}
        self._session = session
        batcher = Batcher(self._run, joinable=_joinable(session), **limits)
        self._warm(batcher)
        self._batcher = batcher

    def _run(self, arrays: Arrays) -> Arrays:
        feed = {spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}
        try:
            outputs: Arrays = self._session.run(None, feed)
        except Exception as error:
            raise Unavailable(f"{self.name} failed: {error}", code="engine_failed") from error
        return outputs

    def _warm(self, batcher: Batcher) -> None:
        """Measure with one row; a model that dislikes it is measured by its callers."""
        from inferpool.engines.tensors import to_numpy

        arrays = [to_numpy(_row(spec)) for spec in self.inputs]
        for _ in range(_WARM_RUNS):
            try:
                batcher.learn(arrays)
            except Unavailable:
                return


def _options(onnxruntime: Any, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what fails is raised; its log line says no more
    return options


def _spec(value: Any) -> TensorSpec:
    datatype = DATATYPES.get(value.type)
    if datatype is None:
        raise _unavailable(f"{value.name!r} is a {value.type}, which the protocol cannot carry")
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(value.name, datatype, shape)


def _joinable(session: Any) -> bool:
    """Whether every input and output begins with the same free dimension, the row."""
    values = [*session.get_inputs(), *session.get_outputs()]
    first = {value.shape[0] if value.shape else 1 for value in values}
    return len(first) == 1 and not isinstance(first.pop(), int)


def _row(spec: TensorSpec) -> Tensor:
    shape = tuple(1 if size == -1 else size for size in spec.shape)
    count = prod(shape)
    if spec.datatype == "BYTES":
        return Tensor(spec.name, "BYTES", shape, count * _WARM_TEXT)
    return Tensor(spec.name, spec.datatype, shape, bytes(count * WIDTHS[spec.datatype]))


def _version() -> str:
    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return "none"


def _unavailable(message: str) -> Unavailable:
    return Unavailable(message, code="engine_unavailable")
