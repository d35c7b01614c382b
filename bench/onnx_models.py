"""Two ONNX models to measure servers with, written as protocol buffers, the same on every machine.

`small`: 100 trees of depth 3 over 30 fields, two classes (5 us a row: the server is all that one
sees). `wide`: 30-2048-2048-2, 17 MB of weights (bound by memory at one row, so that batching pays).
Both: `x` FP32 [N, 30] in, `probabilities` FP32 [N, 2] out. Field numbers are onnx.proto's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

FIELDS = 30
TREES = 100
WIDTH = 2048
_FLOAT = 1
_IS_FLOAT, _IS_INT, _IS_FLOATS, _IS_INTS, _IS_STRINGS, _IS_STRING = 1, 2, 6, 7, 8, 3


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _floats(name: str, values: Sequence[float]) -> bytes:
    data = b"".join(_varint(7 << 3 | 5) + struct.pack("<f", value) for value in values)
    return _message(5, _message(1, name) + data + _number(20, _IS_FLOATS))


def _ints(name: str, values: Sequence[int]) -> bytes:
    data = b"".join(_number(8, value) for value in values)
    return _message(5, _message(1, name) + data + _number(20, _IS_INTS))


def _strings(name: str, values: Sequence[str]) -> bytes:
    data = b"".join(_message(9, value) for value in values)
    return _message(5, _message(1, name) + data + _number(20, _IS_STRINGS))


def _string(name: str, value: str) -> bytes:
    return _message(5, _message(1, name) + _message(4, value) + _number(20, _IS_STRING))


def _node(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str, attributes: bytes = b""
) -> bytes:
    names = [_message(1, name) for name in inputs] + [_message(2, name) for name in outputs]
    return b"".join([*names, _message(4, kind), attributes, _message(7, domain)])


def _value(name: str, width: int) -> bytes:
    dims = _message(1, _message(2, "N")) + _message(1, _number(1, width))
    return _message(1, name) + _message(2, _message(1, _number(1, _FLOAT) + _message(2, dims)))


def _weights(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(_number(1, size) for size in array.shape)
    return dims + _number(2, _FLOAT) + _message(8, name) + _message(9, array.tobytes())


def _model(nodes: Sequence[bytes], weights: Sequence[bytes] = ()) -> bytes:
    graph = [_message(1, node) for node in nodes] + [_message(2, "bench")]
    graph += [_message(5, item) for item in weights]
    graph += [_message(11, _value("x", FIELDS)), _message(12, _value("probabilities", 2))]
    opsets = b"".join(
        _message(8, _message(1, domain) + _number(2, version))
        for domain, version in (("", 17), ("ai.onnx.ml", 3))
    )
    return _number(1, 8) + opsets + _message(7, b"".join(graph))


def small() -> bytes:
    """Boosted trees with drawn thresholds, as exporters of scikit-learn write them."""
    random = Random(1)
    tree, ids, fields, values, modes, yes, no = [], [], [], [], [], [], []
    at_tree, at_node, weights = [], [], []
    for index in range(TREES):
        for node in range(15):  # complete, depth 3: 7 branches, 8 leaves
            leaf = node >= 7
            tree.append(index)
            ids.append(node)
            fields.append(0 if leaf else random.randrange(FIELDS))
            values.append(0.0 if leaf else random.gauss(0, 1))
            modes.append("LEAF" if leaf else "BRANCH_LEQ")
            yes.append(0 if leaf else 2 * node + 1)
            no.append(0 if leaf else 2 * node + 2)
            if leaf:
                at_tree.append(index)
                at_node.append(node)
                weights.append(random.gauss(0, 0.05))
    leaves = len(weights)
    attributes = b"".join(
        [
            _ints("nodes_treeids", tree),
            _ints("nodes_nodeids", ids),
            _ints("nodes_featureids", fields),
            _floats("nodes_values", values),
            _strings("nodes_modes", modes),
            _ints("nodes_truenodeids", yes),
            _ints("nodes_falsenodeids", no),
            _ints("class_treeids", at_tree),
            _ints("class_nodeids", at_node),
            _ints("class_ids", [0] * leaves),
            _floats("class_weights", weights),
            _ints("classlabels_int64s", [0, 1]),
            _string("post_transform", "LOGISTIC"),
        ]
    )
    outputs = ["label", "probabilities"]
    return _model([_node("TreeEnsembleClassifier", ["x"], outputs, "ai.onnx.ml", attributes)])


def wide() -> bytes:
    """A multilayer perceptron with drawn weights."""
    random = np.random.default_rng(1)
    nodes, weights, last = [], [], "x"
    for layer, (rows, columns) in enumerate([(FIELDS, WIDTH), (WIDTH, WIDTH), (WIDTH, 2)]):
        drawn = random.normal(0, rows**-0.5, (rows, columns)).astype("<f4")
        weights.append(_weights(f"w{layer}", drawn))
        nodes.append(_node("MatMul", [last, f"w{layer}"], [f"m{layer}"], ""))
        last = f"m{layer}"
        if layer < 2:
            nodes.append(_node("Relu", [last], [f"r{layer}"], ""))
            last = f"r{layer}"
    nodes.append(_node("Softmax", [last], ["probabilities"], ""))
    return _model(nodes, weights)


def write(folder: Path) -> dict[str, Path]:
    """Both models as files, by name."""
    made = {}
    for name, data in (("small", small()), ("wide", wide())):
        made[name] = folder / f"{name}.onnx"
        made[name].write_bytes(data)
    return made
