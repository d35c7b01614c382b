"""Open Inference Protocol requests: shapes, binary data, rows to price, hostile bodies."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferpool.protocol.errors import BadRequest
from inferpool.protocol.job import Task
from inferpool.protocol.limits import BODY_TENSOR_MAX, RANK_MAX, ROWS_MAX, TENSORS_MAX
from inferpool.protocol.oip import DATATYPES, InferRequest, InputTensor, OutputWish
from tests.protocol import junk


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]} | changes


def binary(size: int, **changes: Any) -> dict[str, Any]:
    item = tensor(parameters={"binary_data_size": size}) | changes
    del item["data"]
    return item


FULL: dict[str, Any] = {
    "id": "one",
    "inputs": [tensor(), tensor(name="y", shape=[2], datatype="BYTES", data=["a", "b"])],
    "outputs": [{"name": "z", "parameters": {"binary_data": True}}, {"name": "label"}],
    "parameters": {"binary_data_output": True, "priority": 1, "timeout": 5_000},
}


def parse(raw: bytes | None = None, **body: Any) -> InferRequest:
    head = json.dumps({"inputs": [tensor()]} | body).encode()
    if raw is None:
        return InferRequest.parse("m", head, None)
    return InferRequest.parse("m", head + raw, str(len(head)).encode())


def refusal(raw: bytes | None = None, **body: Any) -> tuple[str, str | None]:
    with pytest.raises(BadRequest) as caught:
        parse(raw, **body)
    return caught.value.code, caught.value.param


def test_a_full_request() -> None:
    request = parse(**FULL)
    assert request == InferRequest(
        model="m",
        id="one",
        inputs=(
            InputTensor("x", "FP32", (2, 2), None, [1, 2, 3, 4]),
            InputTensor("y", "BYTES", (2,), None, ["a", "b"]),
        ),
        outputs=(OutputWish("z", True), OutputWish("label", False)),
        binary_outputs=True,
    )
    assert request.job.task is Task.TENSOR
    assert (request.job.model, request.job.rows) == ("m", 2)


@pytest.mark.parametrize(("datatype", "width"), DATATYPES.items())
def test_binary_sizes(datatype: str, width: int) -> None:
    raw = bytes(range(6 * (width or 5)))
    request = parse(raw, inputs=[binary(len(raw), shape=[3, 2], datatype=datatype)])
    assert request.inputs[0].raw == raw
    if width:
        wrong = [binary(len(raw), shape=[3, 3], datatype=datatype)]
        assert refusal(raw, inputs=wrong) == ("invalid_tensor", "inputs[0].parameters")


def test_binary_inputs_follow_each_other_among_json_ones() -> None:
    raw = struct.pack("<2f", 1, 2) + struct.pack("<q", 3)
    inputs = [
        binary(8, name="a", shape=[2]),
        tensor(name="b", shape=[1], data=[9]),
        binary(8, name="c", shape=[1], datatype="INT64"),
    ]
    request = parse(raw, inputs=inputs)
    assert [item.raw for item in request.inputs] == [raw[:8], None, raw[8:]]


@pytest.mark.parametrize(
    ("size", "raw", "param"),
    [
        (16, bytes(17), "inputs"),
        (16, bytes(15), "inputs[0].parameters"),
        (16, None, "inputs[0].parameters"),
        (15, bytes(15), "inputs[0].parameters"),
        (-1, bytes(16), "inputs[0].parameters"),
        (True, bytes(1), "inputs[0].parameters"),
        (16.0, bytes(16), "inputs[0].parameters"),
        ("16", bytes(16), "inputs[0].parameters"),
        ([16], bytes(16), "inputs[0].parameters"),
    ],
)
def test_binary_data_must_fit(size: Any, raw: bytes | None, param: str) -> None:
    assert refusal(raw, inputs=[binary(size)]) == ("invalid_tensor", param)


def test_trailing_bytes_belong_to_nobody() -> None:
    assert refusal(b"\0") == ("invalid_tensor", "inputs")
    assert parse(b"").inputs[0].data == [1, 2, 3, 4]


def test_data_is_given_once() -> None:
    both = binary(16) | {"data": [1, 2, 3, 4]}
    assert refusal(bytes(16), inputs=[both]) == ("invalid_tensor", "inputs[0].data")
    neither = binary(16) | {"parameters": {}}
    assert refusal(inputs=[neither]) == ("invalid_tensor", "inputs[0].data")


@pytest.mark.parametrize("value", [b"", b"-1", b"+5", b"5.0", b"0x5", b"9" * 20, b"1000", b" 5"])
def test_header_length_refused(value: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        InferRequest.parse("m", json.dumps({"inputs": [tensor()]}).encode(), value)
    assert caught.value.param == "Inference-Header-Content-Length"


@pytest.mark.parametrize(
    ("shape", "datatype", "param"),
    [
        (None, "FP32", "shape"),
        (4, "FP32", "shape"),
        ([-1], "FP32", "shape"),
        ([1.0], "FP32", "shape"),
        ([True], "FP32", "shape"),
        (["1"], "FP32", "shape"),
        ([[1]], "FP32", "shape"),
        ([1] * (RANK_MAX + 1), "FP32", "shape"),
        ([2**63] * RANK_MAX, "FP32", "shape"),
        ([8_192, 8_193], "FP32", "shape"),
        ([1], "fp32", "datatype"),
        ([1], None, "datatype"),
        ([1], ["FP32"], "datatype"),
        ([1], {}, "datatype"),
    ],
)
def test_shapes_and_types_refused(shape: Any, datatype: Any, param: str) -> None:
    found = refusal(inputs=[tensor(shape=shape, datatype=datatype)])
    assert found == ("invalid_tensor", f"inputs[0].{param}")


@pytest.mark.parametrize("name", [None, "", 1, [], "x" * 257])
def test_names_refused(name: Any) -> None:
    assert refusal(inputs=[tensor(name=name)]) == ("invalid_tensor", "inputs[0].name")
    assert refusal(outputs=[{"name": name}]) == ("invalid_tensor", "outputs[0].name")


@pytest.mark.parametrize("inputs", [None, [], {}, "x", [tensor()] * (TENSORS_MAX + 1)])
def test_inputs_refused(inputs: Any) -> None:
    assert refusal(inputs=inputs) == ("invalid_tensor", "inputs")


def test_two_inputs_of_one_name_are_refused() -> None:
    assert refusal(inputs=[tensor(), tensor()]) == ("invalid_tensor", "inputs")


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [
        ([[]], 1),
        ([[5]], 5),
        ([[1, 900]], 1),
        ([[1], [1_000, 4]], 1_000),  # a decoy first
        ([[], [3]], 3),
        ([[0, 4], [2]], 2),
        ([[ROWS_MAX, 2]], ROWS_MAX),
    ],
)
def test_rows_to_price(shapes: list[list[int]], rows: int) -> None:
    inputs = [tensor(name=f"i{i}", shape=shape) for i, shape in enumerate(shapes)]
    request = parse(inputs=inputs)
    assert request.rows == request.job.rows == rows
    assert parse(inputs=inputs[::-1]).rows == rows


@pytest.mark.parametrize("shape", [[0], [0, 5], [ROWS_MAX + 1]])
def test_rows_are_bounded(shape: list[int]) -> None:
    assert refusal(inputs=[tensor(shape=shape)]) == ("invalid_tensor", "inputs")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"parameters": {"sequence_id": 5}}, "parameters.sequence_id"),
        ({"parameters": {"sequence_start": True}}, "parameters.sequence_start"),
        ({"parameters": {"sequence_end": True}}, "parameters.sequence_end"),
        ({"parameters": {"of_my_own": 1}}, "parameters.of_my_own"),
        ({"stream": True}, "stream"),
        ({"inputs": [tensor(content_type="np")]}, "inputs[0].content_type"),
        (
            {"inputs": [tensor(parameters={"shared_memory_region": "r"})]},
            "inputs[0].parameters.shared_memory_region",
        ),
        (
            {"outputs": [{"name": "z", "parameters": {"classification": 3}}]},
            "outputs[0].parameters.classification",
        ),
        ({"outputs": [{"name": "z", "datatype": "FP32"}]}, "outputs[0].datatype"),
    ],
)
def test_what_would_change_the_answer_is_refused(body: Any, param: str) -> None:
    assert refusal(**body) == ("unsupported_parameter", param)


def test_hints_have_no_effect() -> None:
    hints = {"priority": 7, "timeout": 1_000}
    assert parse(parameters=hints) == parse(parameters=None) == parse()
    assert parse(model_name="other", model_version="1") == parse()


@pytest.mark.parametrize("value", [1, 0, "true", [], {}])
def test_flags_are_flags(value: Any) -> None:
    assert refusal(parameters={"binary_data_output": value}) == (
        "invalid_request",
        "parameters.binary_data_output",
    )
    assert refusal(outputs=[{"name": "z", "parameters": {"binary_data": value}}]) == (
        "invalid_request",
        "outputs[0].parameters.binary_data",
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"id": 5}, "id"),
        ({"id": "x" * 257}, "id"),
        ({"parameters": []}, "parameters"),
        ({"inputs": [tensor(parameters=1)]}, "inputs[0].parameters"),
        ({"outputs": [{"name": "z", "parameters": "p"}]}, "outputs[0].parameters"),
    ],
)
def test_members_of_another_kind_are_refused(body: Any, param: str) -> None:
    assert refusal(**body) == ("invalid_request", param)


@pytest.mark.parametrize("outputs", [{}, "z", [{"name": "z"}] * (TENSORS_MAX + 1)])
def test_outputs_refused(outputs: Any) -> None:
    assert refusal(outputs=outputs) == ("invalid_tensor", "outputs")


def test_bodies_are_bounded() -> None:
    with pytest.raises(BadRequest) as caught:
        InferRequest.parse("m", bytes(BODY_TENSOR_MAX + 1), None)
    assert caught.value.code == "body_too_large"


@given(junk.raw | junk.mutated(FULL), st.none() | st.integers(0, 400))
def test_hostile_bodies(data: bytes, length: int | None) -> None:
    header = None if length is None else str(length).encode()
    request = junk.answer(lambda body: InferRequest.parse("m", body, header), data)
    if isinstance(request, BadRequest):
        assert request.code in (
            "invalid_json", "invalid_request", "invalid_tensor", "unsupported_parameter",
        )  # fmt: skip
        json.dumps(request.oip(), ensure_ascii=False).encode()
    else:
        assert isinstance(request, InferRequest)
        assert request.job.rows >= 1


@given(st.binary(max_size=20))
def test_hostile_header_lengths(value: bytes) -> None:
    head = json.dumps({"inputs": [tensor()]}).encode()
    request = junk.answer(lambda body: InferRequest.parse("m", body, value), head)
    assert isinstance(request, BadRequest) or int(value) == len(head)


def test_tritonclient_is_understood() -> None:
    np = pytest.importorskip("numpy")
    triton = pytest.importorskip("tritonclient.http")
    inputs = [
        triton.InferInput("x", [2, 3], "FP32"),
        triton.InferInput("words", [2], "BYTES"),
        triton.InferInput("plain", [2], "INT32"),
    ]
    inputs[0].set_data_from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))
    inputs[1].set_data_from_numpy(np.array([b"a", b"bc"], dtype=object))
    inputs[2].set_data_from_numpy(np.array([1, 2], dtype=np.int32), binary_data=False)
    body, length = triton.InferenceServerClient.generate_request_body(
        inputs, request_id="r", priority=3, timeout=100
    )
    request = InferRequest.parse("m", body, str(length).encode())
    assert request.binary_outputs
    assert request.id == "r"
    assert request.inputs[0].raw == np.arange(6, dtype="<f4").tobytes()
    assert request.inputs[1].raw == b"\1\0\0\0a\2\0\0\0bc"
    assert request.inputs[2].data == [1, 2]

    outputs = [triton.InferRequestedOutput("z", binary_data=False)]
    body, length = triton.InferenceServerClient.generate_request_body(inputs, outputs=outputs)
    request = InferRequest.parse("m", body, str(length).encode())
    assert (request.outputs, request.binary_outputs) == ((OutputWish("z", False),), False)

    body, length = triton.InferenceServerClient.generate_request_body(
        inputs, sequence_id=9, sequence_start=True
    )
    with pytest.raises(BadRequest) as caught:
        InferRequest.parse("m", body, str(length).encode())
    assert caught.value.code == "unsupported_parameter"
