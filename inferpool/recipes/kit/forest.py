"""A LightGBM forest as ONNX, written from LightGBM's own text: the same branches for every float32
input, and a sum that no number of threads changes.

ONNX Runtime adds up the trees of a large forest in as many parts as it has threads. So a class of
many trees is several operators of fewer than 80 trees each, which it adds up in order.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inferpool.recipes.kit.export import TREES_MAX, graph

Tree = Mapping[str, Sequence[str]]
Node = tuple[str, list[str], str, dict[str, Any]]


def export_forest(text: str, fields: int, output: str) -> bytes:
    """The model of a LightGBM text: `x` FP32 [-1, fields] in; out P(1) [-1, 1] or, of several
    classes, all P(k) [-1, k]."""
    head, *parts = re.split(r"\nTree=\d+\n", text)
    classes = int(re.search(r"^num_class=(\d+)$", head, re.M)[1])  # type: ignore[index]
    goal = re.search(r"^objective=(\w+) ", head, re.M)
    assert goal is not None
    assert goal[1] == ("multiclass" if classes > 1 else "binary")
    trees = [
        {name: cells.split() for name, _, cells in (line.partition("=") for line in part)}
        for part in map(str.splitlines, parts)
    ]
    nodes: list[Node] = []
    names = []
    for number in range(classes):
        prefix = f"class {number} " if classes > 1 else ""
        names.append(f"{prefix}score")
        nodes += _class(trees[number::classes], prefix, names[-1])
    if classes > 1:
        nodes.append(("Concat", names, "scores", {"axis": 1}))
        nodes.append(("Softmax", ["scores"], output, {"axis": 1}))
    else:
        nodes.append(("Sigmoid", names, output, {}))
    return graph(nodes, {}, fields, output, classes)


def _class(trees: Sequence[Tree], prefix: str, name: str) -> list[Node]:
    """One class's score: the sum of its parts."""
    count = -(-len(trees) // TREES_MAX)
    parts = [f"{prefix}part {number}" for number in range(count)]
    nodes: list[Node] = [
        ("TreeEnsemble", ["x"], part, _trees(trees[number::count]))
        for number, part in enumerate(parts)
    ]
    return [*nodes, ("Sum", parts, name, {})]


def _trees(trees: Sequence[Tree]) -> dict[str, Any]:
    """The settings of a TreeEnsemble (ai.onnx.ml 5) of these trees."""
    from_array = importlib.import_module("onnx").numpy_helper.from_array
    features, splits, leaves, roots = list[int](), list[Any](), list[Any](), list[int]()
    to: dict[bool, list[int]] = {True: [], False: []}
    ends: dict[bool, list[int]] = {True: [], False: []}
    for tree in trees:
        assert set(tree["decision_type"]) == {"2"}, "plain numbers, nothing missing"
        first, leaf = len(features), len(leaves)
        roots.append(first)
        features += map(int, tree["split_feature"])
        splits += map(float32_below, tree["threshold"])
        leaves += map(np.float32, tree["leaf_value"])
        for side, name in ((True, "left_child"), (False, "right_child")):
            children = [int(cell) for cell in tree[name]]
            to[side] += [first + c if c >= 0 else leaf + ~c for c in children]
            ends[side] += [int(c < 0) for c in children]
    return {
        "domain": "ai.onnx.ml",
        "aggregate_function": 1,  # sum
        "post_transform": 0,
        "n_targets": 1,
        "tree_roots": roots,
        "nodes_featureids": features,
        "nodes_modes": from_array(np.zeros(len(features), dtype=np.uint8)),  # at most the split
        "nodes_splits": from_array(np.array(splits, dtype=np.float32)),
        "nodes_truenodeids": to[True],
        "nodes_trueleafs": ends[True],
        "nodes_falsenodeids": to[False],
        "nodes_falseleafs": ends[False],
        "leaf_targetids": [0] * len(leaves),
        "leaf_weights": from_array(np.array(leaves, dtype=np.float32)),
    }


def float32_below(cell: str) -> np.float32:
    """The greatest float32 that is not above a threshold: for float32 `x` the same branch."""
    near = np.float32(cell)
    return np.nextafter(near, np.float32(-np.inf)) if float(near) > float(cell) else near
