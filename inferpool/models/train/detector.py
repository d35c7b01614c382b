"""The detector `yolox-nano`: YOLOX-Nano's published weights, with a head that boxes can leave by.

    python -m inferpool.models.train.detector yolox_nano.onnx

The export of its authors takes one picture of floats and answers 3,549 unfinished rows of 85
numbers. Here it takes pictures of bytes, any number of them, and answers the 200 best boxes of
each: a quarter of the bytes go in, 1 in 250 comes out. The weights are not touched.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

SIDE: Final = 416
STRIDES: Final = (8, 16, 32)
KEPT: Final = 200
ROWS: Final = sum((SIDE // stride) ** 2 for stride in STRIDES)
OUT: Final = Path(__file__).parents[1] / "data" / "yolox-nano.onnx"


def finished(upstream: bytes) -> bytes:
    """`frame` UINT8 [-1, 3, 416, 416] (blue, green, red) in; `boxes` FP32 [-1, 200, 6] out: left,
    top, right, bottom in pixels, score, COCO class; the best score first."""
    onnx = importlib.import_module("onnx")
    model = onnx.load_model_from_string(upstream)
    graph, kind = model.graph, onnx.TensorProto
    _free_batch(graph, onnx)
    (given,), (answer,) = graph.input, graph.output
    assert [dim.dim_value for dim in answer.type.tensor_type.shape.dim] == [1, ROWS, 85]
    tail = _Tail(onnx, answer.name)
    graph.node.insert(0, onnx.helper.make_node("Cast", ["frame"], [given.name], to=kind.FLOAT))
    graph.node.extend(tail.nodes)
    graph.initializer.extend(tail.constants)
    info = onnx.helper.make_tensor_value_info
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(info("frame", kind.UINT8, [None, 3, SIDE, SIDE]))
    graph.output.append(info("boxes", kind.FLOAT, [None, KEPT, 6]))
    graph.name, graph.doc_string = "model", ""
    for node in graph.node:
        node.doc_string = ""
    model.producer_name, model.producer_version, model.doc_string = "inferpool", "", ""
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _free_batch(graph: Any, onnx: Any) -> None:
    """The reshapes keep the number of pictures that they are given."""
    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    found = [item for item in graph.initializer if item.name in shapes]
    assert len(found) == len(shapes) == len(STRIDES)
    for item in found:
        shape = onnx.numpy_helper.to_array(item)
        assert shape.tolist() == [1, 85, -1]
        kept = np.array([0, 85, -1], dtype=np.int64)
        item.CopyFrom(onnx.numpy_helper.from_array(kept, item.name))


class _Tail:
    """From rows of offsets, log sizes, objectness and 80 classes to the best boxes."""

    def __init__(self, onnx: Any, rows: str) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._onnx = onnx
        cells, strides = _grid()
        place = self._cut(rows, 0, 2)
        size = self._cut(rows, 2, 4)
        centre = self._op("Mul", self._op("Add", place, self._const(cells)), self._const(strides))
        half = self._op("Mul", self._op("Exp", size), self._const(strides / 2))
        classes = self._cut(rows, 5, 85)
        best = self._op("ReduceMax", classes, axes=[2], keepdims=1)
        score = self._op("Mul", self._cut(rows, 4, 5), best)
        name = self._op("Cast", self._op("ArgMax", classes, axis=2), to=onnx.TensorProto.FLOAT)
        corners = self._op("Sub", centre, half), self._op("Add", centre, half)
        found = self._op("Concat", *corners, score, name, axis=2)
        count = self._const(np.array([KEPT], dtype=np.int64))
        self.nodes.append(
            onnx.helper.make_node("TopK", [score, count], ["top_score", "top"], axis=1)
        )
        six = self._const(np.array([1, 1, 6], dtype=np.int64))
        index = self._op("Tile", "top", six)
        self._op("GatherElements", found, index, axis=1, output="boxes")

    def _op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"tail_{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, [name], **attributes))
        return name

    def _const(self, value: Any) -> str:
        name = f"tail_const_{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(value, name))
        return name

    def _cut(self, rows: str, start: int, end: int) -> str:
        bounds = (np.array([number], dtype=np.int64) for number in (start, end, 2))
        return self._op("Slice", rows, *map(self._const, bounds))


def _grid() -> tuple[Any, Any]:
    """Each row's cell [1, ROWS, 2] (column, line) and its stride [1, ROWS, 1]."""
    cells, strides = [], []
    for stride in STRIDES:
        line, column = np.mgrid[: SIDE // stride, : SIDE // stride]
        cells.append(np.stack([column, line], axis=-1).reshape(-1, 2))
        strides.append(np.full((column.size, 1), stride))
    made = (np.concatenate(parts)[None].astype(np.float32) for parts in (cells, strides))
    return tuple(made)  # type: ignore[return-value]


if __name__ == "__main__":
    OUT.write_bytes(finished(Path(sys.argv[1]).read_bytes()))
    print(f"wrote {OUT}")
