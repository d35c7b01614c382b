"""gRPC messages against tritonclient's own, and as REST bodies."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import orjson
import pytest

pytest.importorskip("google.protobuf", reason="no protobuf: pip install 'inferpool[grpc]'")

from google.protobuf import json_format

from inferpool.protocol import proto
from inferpool.protocol.encoding import sha256
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.oip import DATATYPES, InferRequest
from inferpool.protocol.oip_grpc import grpc_response, metadata, rest_request
from inferpool.protocol.proto import messages
from tests.protocol.vectors import cases, data, encoded

TEXT = Path(proto.__file__).with_name("inference.proto").read_text("utf-8")


def fields(kinds: Any, prefix: str = "") -> dict[str, tuple[int, int, bool]]:
    found = {}
    for kind in kinds:
        for field in kind.fields:
            repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == 3
            found[f"{prefix}{kind.name}.{field.name}"] = (field.number, field.type, repeated)
        found |= fields(kind.nested_types, f"{prefix}{kind.name}.")
    return found


def test_every_field_is_tritonclient_s() -> None:
    service = pytest.importorskip(
        "tritonclient.grpc.service_pb2", reason="no tritonclient: pip install 'tritonclient[grpc]'"
    )
    theirs = fields(service.DESCRIPTOR.message_types_by_name.values())
    ours = fields(kind.DESCRIPTOR for kind in messages().values())
    assert len(ours) > 50
    assert {name: theirs[name] for name in ours} == ours
    assert service.DESCRIPTOR.package == proto.PACKAGE


def test_the_compiled_file_is_the_text_s() -> None:
    """Names and numbers; the types are compared with tritonclient's."""
    written = re.findall(r"^\s+(?:repeated )?[\w<>, ]+? (\w+) = (\d+);", TEXT, re.MULTILINE)
    compiled = fields(kind.DESCRIPTOR for kind in messages().values())
    made = [
        (name.rsplit(".", 1)[1], str(number))
        for name, (number, _, _) in compiled.items()
        if "Entry." not in name
    ]
    assert sorted(written) == sorted(made)
    calls = re.findall(r"rpc (\w+)\(\w+\)", TEXT)
    assert {f"{call}{end}" for call in calls for end in ("Request", "Response")} <= set(messages())


def request(datatype: str, shape: list[int], **contents: Any) -> Any:
    made = messages()["ModelInferRequest"](model_name="m")
    item = made.inputs.add(name="x", datatype=datatype, shape=shape)
    for name, values in contents.items():
        getattr(item.contents, name).extend(values)
    return made


TYPED = [
    ("BOOL", "bool_contents", [True, False], b"\1\0"),
    ("INT8", "int_contents", [-1, 127], b"\xff\x7f"),
    ("INT16", "int_contents", [-2, 300], struct.pack("<2h", -2, 300)),
    ("INT32", "int_contents", [-3, 2**31 - 1], struct.pack("<2i", -3, 2**31 - 1)),
    ("INT64", "int64_contents", [-4, 2**62], struct.pack("<2q", -4, 2**62)),
    ("UINT8", "uint_contents", [0, 255], b"\x00\xff"),
    ("UINT16", "uint_contents", [1, 65535], struct.pack("<2H", 1, 65535)),
    ("UINT32", "uint_contents", [2, 2**32 - 1], struct.pack("<2I", 2, 2**32 - 1)),
    ("UINT64", "uint64_contents", [3, 2**64 - 1], struct.pack("<2Q", 3, 2**64 - 1)),
    ("FP32", "fp32_contents", [1.5, -2.25], struct.pack("<2f", 1.5, -2.25)),
    ("FP64", "fp64_contents", [1.1, -2.2], struct.pack("<2d", 1.1, -2.2)),
    ("BYTES", "bytes_contents", [b"ab", b""], b"\2\0\0\0ab\0\0\0\0"),
]


@pytest.mark.parametrize(("datatype", "field", "values", "raw"), TYPED)
def test_typed_contents_are_the_raw_ones(
    datatype: str, field: str, values: list[Any], raw: bytes
) -> None:
    body, length = rest_request(request(datatype, [2], **{field: values}))
    (tensor,) = InferRequest.parse("m", body, length).inputs
    assert (tensor.datatype, tensor.shape, tensor.raw) == (datatype, (2,), raw)
    made = request(datatype, [2])
    made.raw_input_contents.append(raw)
    assert rest_request(made) == (body, length)


def test_every_datatype_has_a_form() -> None:
    assert {row[0] for row in TYPED} | {"FP16"} == set(DATATYPES)
    made = request("FP16", [1])
    made.raw_input_contents.append(b"\0\0")
    assert InferRequest.parse("m", *rest_request(made)).inputs[0].raw == b"\0\0"


@pytest.mark.parametrize(
    "made",
    [
        request("INT8", [1], int_contents=[128]),
        request("UINT8", [1], uint_contents=[256]),
        request("INT32", [1], int64_contents=[1]),
        request("FP32", [1], fp32_contents=[1], fp64_contents=[1]),
        request("FP16", [1], fp32_contents=[1]),
        request("COMPLEX", [1], fp32_contents=[1]),
    ],
    ids=["range", "range unsigned", "field", "two fields", "half", "unknown"],
)
def test_contents_that_do_not_fit_are_refused(made: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        rest_request(made)
    assert caught.value.code == "invalid_tensor"


def test_raw_contents_come_for_all_inputs_or_for_none() -> None:
    made = request("FP32", [1])
    made.raw_input_contents.extend([bytes(4), bytes(4)])
    with pytest.raises(BadRequest, match="2 raw contents for 1 inputs"):
        rest_request(made)
    made = request("FP32", [1], fp32_contents=[1])
    made.raw_input_contents.append(bytes(4))
    with pytest.raises(BadRequest, match="both"):
        rest_request(made)


def test_shape_and_size_are_checked_as_over_rest() -> None:
    for shape in ([3], [-1], [2**40, 2**40]):
        made = request("FP32", shape)
        made.raw_input_contents.append(bytes(4))
        with pytest.raises(BadRequest):
            InferRequest.parse("m", *rest_request(made))


def test_outputs_and_parameters_are_passed_on() -> None:
    made = request("FP32", [1], fp32_contents=[1])
    made.id = "é"
    made.outputs.add(name="y")
    made.parameters["priority"].uint64_param = 3
    body, length = rest_request(made)
    parsed = InferRequest.parse("m", body, length)
    assert [(wish.name, wish.binary) for wish in parsed.outputs] == [("y", True)]
    assert (parsed.id, parsed.binary_outputs) == ("é", True)
    made.outputs[0].parameters["classification"].int64_param = 3
    with pytest.raises(BadRequest, match="classification"):
        InferRequest.parse("m", *rest_request(made))


def answer(*outputs: dict[str, Any], data: bytes = b"", **head: Any) -> tuple[bytes, bytes]:
    text = orjson.dumps({"model_name": "m", "model_version": "1", "outputs": outputs} | head)
    return text + data, str(len(text)).encode()


def output(size: object, shape: list[int], **changes: Any) -> dict[str, Any]:
    made = {"name": "y", "datatype": "FP32", "shape": shape}
    return made | {"parameters": {"binary_data_size": size}} | changes


def test_answers() -> None:
    made = grpc_response(*answer(output(8, [2]), output(0, [0, 4]), data=b"12345678", id="7"))
    assert (made.model_name, made.id) == ("m", "7")
    assert list(made.raw_output_contents) == [b"12345678", b""]
    assert [list(item.shape) for item in made.outputs] == [[2], [0, 4]]


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"not json", None),
        (b"[]", None),
        (b"{}", None),
        answer(output(9, [2]), data=b"12345678"),
        answer(output(-1, [2]), data=b"12345678"),
        answer(output("8", [2]), data=b"12345678"),
        answer({"name": "y", "datatype": "FP32", "shape": [2], "data": [1, 2]}),
        answer(output(8, ["two"]), data=b"12345678"),
        answer(output(8, [2**63]), data=b"12345678"),
        (answer(output(8, [2]))[0], b"-5"),
        (b"{}", b"words"),
    ],
)
def test_answers_of_a_liar_are_errors(body: bytes, length: bytes | None) -> None:
    with pytest.raises(Unavailable) as caught:
        grpc_response(body, length)
    assert caught.value.code == "node_failed"


def test_metadata() -> None:
    made = metadata("ServerMetadataResponse", b'{"name":"n","version":"1","extensions":[],"x":1}')
    assert (made.name, made.version) == ("n", "1")
    for body in (b"[]", b"words", b'{"name": 5}', b"null"):
        with pytest.raises(Unavailable):
            metadata("ServerMetadataResponse", body)


@pytest.mark.parametrize("case", cases("tensor_request"), ids=lambda case: case["name"])
def test_a_request_becomes_the_body_that_its_payer_is_charged_for(case: Any) -> None:
    """The receipt's request hash is over this body: both sides of a wire must write it alike."""
    message = json_format.ParseDict(case["message"], messages()["ModelInferRequest"]())
    body, length = rest_request(message)
    assert body == encoded(case)
    assert int(length) == case["headerLength"]
    assert sha256(body) == data(case["sha256"])
    assert InferRequest.parse("m", body, length).rows > 0
