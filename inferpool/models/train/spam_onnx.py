"""The spam pipeline as an ONNX graph: text [-1, 1] in; probability [-1, 1] and label [-1] out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

# The oldest that has all operators in use: older runtimes can read it too.
OPSET: Final = 17


def export(pipeline: Any) -> bytes:
    """The ONNX file. That it computes the same is for the caller to check."""
    from onnx import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        TensorProto,
        checker,
        helper,
    )
    from skl2onnx import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        to_onnx,
    )
    from skl2onnx.common.data_types import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        StringTensorType,
    )

    model = to_onnx(
        pipeline,
        initial_types=[("text", StringTensorType([None, 1]))],
        options={id(pipeline.steps[-1][1]): {"zipmap": False}},
        target_opset=OPSET,
    )
    graph = model.graph
    label, both = (output.name for output in graph.output)
    assert (label, both) == ("label", "probabilities"), "the converter's names have changed"
    # scikit-learn gives the probability of each class; the second is spam's.
    column = helper.make_tensor("spam_column", TensorProto.INT64, [1], [1])
    graph.initializer.append(column)
    graph.node.append(helper.make_node("Gather", [both, "spam_column"], ["probability"], axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("probability", TensorProto.FLOAT, [None, 1]))
    graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, [None]))
    graph.name, model.producer_name, model.doc_string = "spam", "inferpool", ""
    checker.check_model(model)
    return bytes(model.SerializeToString())


def run(model: bytes, texts: Sequence[str]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Probability of spam (float32) and label (0 or 1) of each text, by ONNX Runtime on the CPU."""
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = {"text": np.array(texts, dtype=object).reshape(-1, 1)}
    probability, label = session.run(["probability", "label"], given)
    return np.asarray(probability)[:, 0], np.asarray(label)
