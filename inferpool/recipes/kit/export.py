"""Fitting and exporting small models (dependency group `train`). Imports scikit-learn or LightGBM
only where it is used.

A forest has fewer than 80 trees: from 80 on ONNX Runtime may add a single row's trees up in another
order on another number of threads, and a replay would no longer be bit for bit.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.split import crossed

OPSET: Final = 17
ML_OPSET: Final = 3
TREES_OPSET: Final = 5  # of a TreeEnsemble that is written out
TREES_MAX: Final = 79
SEED: Final = 20260101


def boosted(kind: str, x: Array, y: Array, **settings: Any) -> Any:
    """A fitted LightGBM model: `kind` is Classifier or Regressor. Same data, same model."""
    lightgbm = importlib.import_module("lightgbm")
    chosen = {
        "n_estimators": TREES_MAX,
        "num_leaves": 15,
        "learning_rate": 0.08,
        "min_child_samples": 20,
        "n_jobs": 1,
        "verbose": -1,
        "random_state": SEED,
        "deterministic": True,
        "force_row_wise": True,
        **settings,
    }
    assert int(chosen["n_estimators"]) <= TREES_MAX
    return getattr(lightgbm, f"LGBM{kind}")(**chosen).fit(x, y)


def crossed_boosted(
    kind: str, x: Array, y: Array, folds: Array, known: Array, **settings: Any
) -> Array:
    """Each known case's score (P(1), or the value) by a model of the other folds' known cases."""

    def fit(rows: Array) -> Callable[[Array], Array]:
        model = boosted(kind, x[rows], y[rows], **settings)
        if kind == "Classifier":
            return lambda held: model.predict_proba(x[held])[:, 1]
        return lambda held: model.predict(x[held])

    return crossed(fit, folds, known)


def export_boosted(model: Any, fields: int, output: str) -> bytes:
    """A LightGBM model as ONNX: `x` FP32 [-1, fields] in, `output` FP32 out."""
    convert = importlib.import_module("onnxmltools").convert_lightgbm
    types = importlib.import_module("onnxmltools.convert.common.data_types")
    made = convert(
        model,
        initial_types=[("x", types.FloatTensorType([None, fields]))],
        target_opset=15,
        zipmap=False,
    )
    _floor_thresholds(made, model)
    return _finished(made, output)


def _floor_thresholds(made: Any, model: Any) -> None:
    """Make the file's branches those of the model, for every float32 input.

    The converter takes the nearest float32 of a threshold, which may lie above it and then sends an
    equal value the other way. For float32 `x`, `x <= t` is `x <= f` exactly where `f` is the
    greatest float32 that is not above `t`.
    """
    exact: dict[tuple[int, np.float32], float] = {}
    for tree in model.booster_.dump_model()["tree_info"]:
        waiting = [tree["tree_structure"]]
        while waiting:
            node = waiting.pop()
            if "threshold" in node:
                key = int(node["split_feature"]), np.float32(node["threshold"])
                exact[key] = min(exact.get(key, float("inf")), float(node["threshold"]))
                waiting += [node["left_child"], node["right_child"]]
    (trees,) = [node for node in made.graph.node if node.op_type.startswith("TreeEnsemble")]
    found = {attribute.name: attribute for attribute in trees.attribute}
    features, values = found["nodes_featureids"].ints, found["nodes_values"].floats
    for place, mode in enumerate(found["nodes_modes"].strings):
        nearest = np.float32(values[place])
        if mode == b"BRANCH_LEQ" and float(nearest) > exact[features[place], nearest]:
            values[place] = np.nextafter(nearest, np.float32(-np.inf))


def export_sklearn(model: Any, fields: int, output: str) -> bytes:
    """A scikit-learn pipeline as ONNX: `x` FP32 [-1, fields] in, `output` FP32 out."""
    types = importlib.import_module("skl2onnx.common.data_types")
    classifier = hasattr(model, "predict_proba")
    made = importlib.import_module("skl2onnx").to_onnx(
        model,
        initial_types=[("x", types.FloatTensorType([None, fields]))],
        options={id(model.steps[-1][1]): {"zipmap": False}} if classifier else None,
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
    )
    return _finished(made, output)


def graph(
    nodes: Sequence[tuple[str, Sequence[str], str, Mapping[str, Any]]],
    constants: Mapping[str, Array],
    fields: int,
    output: str,
    width: int = 1,
) -> bytes:
    """A model written out: each node is (operator, inputs, output, settings, its domain among
    them where it is not ONNX's own); `x` FP32 [-1, fields] in, `output` FP32 [-1, width] out."""
    onnx = importlib.import_module("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    opsets = [helper.make_opsetid("", OPSET)]
    if any("domain" in how for *_, how in nodes):
        opsets.append(helper.make_opsetid("ai.onnx.ml", TREES_OPSET))
    made = helper.make_model(
        helper.make_graph(
            [helper.make_node(what, given, [name], **how) for what, given, name, how in nodes],
            "model",
            [helper.make_tensor_value_info("x", kind, [None, fields])],
            [helper.make_tensor_value_info(output, kind, [None, width])],
            [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=opsets,
        producer_name="inferpool",
        ir_version=9,
    )
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def only_output(model: bytes, output: str) -> bytes:
    """The model without its other outputs: what is not declared is not answered for."""
    onnx = importlib.import_module("onnx")
    found = onnx.load_model_from_string(model)
    wanted = [value for value in found.graph.output if value.name == output]
    del found.graph.output[:]
    found.graph.output.extend(wanted)
    onnx.checker.check_model(found)
    return bytes(found.SerializeToString())


def _finished(model: Any, output: str) -> bytes:
    """Only one output, under our name: P(1) [-1, 1], all P(k) [-1, k], or a value [-1, 1]."""
    onnx = importlib.import_module("onnx")
    helper = onnx.helper
    graph = model.graph
    found = graph.output[-1].name
    classes = _width(graph.output[-1])
    if output == "probability":
        graph.initializer.append(
            helper.make_tensor("wanted_class", onnx.TensorProto.INT64, [1], [1])
        )
        graph.node.append(helper.make_node("Gather", [found, "wanted_class"], [output], axis=1))
        classes = 1
    elif found != output:
        graph.node.append(helper.make_node("Identity", [found], [output]))
    del graph.output[:]
    shape = [None, classes or 1]
    graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, shape))
    graph.name, graph.doc_string = "model", ""
    model.producer_name, model.producer_version, model.doc_string = "inferpool", "", ""
    model.domain = ""
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _width(value: Any) -> int:
    dims = value.type.tensor_type.shape.dim
    return int(dims[1].dim_value) if len(dims) == 2 else 0
