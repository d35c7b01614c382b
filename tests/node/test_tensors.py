"""Tensors in JSON: what is sent is what the engine gets, or it is refused; nothing is bent."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inferpool.engines.base import Tensor, TensorSpec
from inferpool.node.tensors import _checked, _raw, read_inputs, write_answer
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.oip import InferRequest, InputTensor

SETTINGS = settings(derandomize=True, deadline=None, database=None, max_examples=100)


def read(datatype: str, data: Any, shape: list[int] | None = None) -> bytes:
    shape = [len(data), 1] if shape is None else shape
    tensor = {"name": "x", "datatype": datatype, "shape": shape, "data": data}
    request = InferRequest.parse("m", json.dumps({"inputs": [tensor]}).encode(), None)
    (found,) = read_inputs(request, [TensorSpec("x", datatype, (-1, 1))])
    return found.data


LIMITS = {
    "INT8": ("b", -(2**7), 2**7 - 1),
    "UINT8": ("B", 0, 2**8 - 1),
    "INT32": ("i", -(2**31), 2**31 - 1),
    "INT64": ("q", -(2**63), 2**63 - 1),
    "UINT64": ("Q", 0, 2**64 - 1),
}


@pytest.mark.parametrize("datatype", LIMITS)
def test_integers_to_their_limits_and_not_beyond(datatype: str) -> None:
    code, least, most = LIMITS[datatype]
    assert read(datatype, [least, most]) == struct.pack(f"<2{code}", least, most)
    for beyond in (least - 1, most + 1):
        if -(2**63) <= beyond < 2**64:  # what JSON's integers may be here
            with pytest.raises(BadRequest) as raised:
                read(datatype, [beyond, 0])
            assert raised.value.code == "invalid_tensor"


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("FP32", [None, 1.0]),
        ("FP32", ["1.5", 1.0]),
        ("FP32", ["1.5", "2"]),
        ("FP32", [{}, 1.0]),
        ("FP32", [1e39, 1.0]),
        ("FP16", [70000.0, 1.0]),
        ("INT32", [1.5, 2.0]),
        ("INT32", ["1", "2"]),
        ("INT64", [None, 1]),
        ("BOOL", [1, 0]),
        ("BOOL", ["true", "false"]),
        ("BYTES", [1, 2]),
        ("BYTES", [None, "a"]),
    ],
    ids=str,
)
def test_what_is_not_of_the_datatype_is_refused_not_bent(datatype: str, data: list[Any]) -> None:
    with pytest.raises(BadRequest) as raised:
        read(datatype, data)
    assert (raised.value.code, raised.value.param) == ("invalid_tensor", "x")


@pytest.mark.parametrize("nested", [False, True])
def test_a_long_string_among_many_numbers_takes_no_memory(nested: bool) -> None:
    """numpy would give each number the room of the string: here 6.4 GB for a body of 120 kB."""
    data: list[Any] = ["a" * 40_000, *[1] * 40_000]
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest) as raised:
            read("FP32", [data] if nested else data, [1, len(data)])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert raised.value.code == "invalid_tensor"
    assert most < 20e6


def test_integers_are_numbers_and_booleans_are_booleans() -> None:
    assert read("FP32", [1, 2]) == struct.pack("<2f", 1, 2)
    assert read("FP32", [1, 2.5]) == struct.pack("<2f", 1, 2.5)
    assert read("BOOL", [True, False]) == b"\x01\x00"
    assert read("UINT64", [[0, 2**64 - 1]], [1, 2]) == struct.pack("<2Q", 0, 2**64 - 1)


@SETTINGS
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_floats_arrive_to_the_bit_and_return_so(numbers: list[float]) -> None:
    data = read("FP32", numbers)
    assert data == struct.pack(f"<{len(numbers)}f", *numbers)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}
    request = InferRequest.parse("m", json.dumps({"inputs": [tensor]}).encode(), None)
    body, _ = write_answer(request, [Tensor("y", "FP32", (len(numbers), 1), data)])
    (output,) = json.loads(body)["outputs"]
    assert output["data"] == numbers


@SETTINGS
@given(st.lists(st.text(), min_size=1))
def test_strings_arrive_with_their_lengths(texts: list[str]) -> None:
    texts = [text.encode(errors="ignore").decode() for text in texts]
    encoded = [text.encode() for text in texts]
    wanted = b"".join(struct.pack("<I", len(item)) + item for item in encoded)
    assert read("BYTES", texts) == wanted


JSON_NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.text(max_size=2),
    st.lists(st.integers(0, 3), max_size=2),
)
DATATYPES = st.sampled_from(["FP32", "FP64", "INT8", "UINT16", "INT32", "INT64", "UINT64"])


@example("UINT64", [0, 2**63, False])  # numpy takes the second for a float: read one by one
@settings(SETTINGS, max_examples=1000)
@given(DATATYPES, st.lists(JSON_NUMBERS, min_size=1, max_size=4) | st.lists(st.integers(-130, 300)))
def test_the_quick_way_takes_and_refuses_what_the_careful_one_does(
    datatype: str, data: list[Any]
) -> None:
    item = InputTensor("x", datatype, (len(data),), None, data)

    def found(read: Any) -> Any:
        try:
            return read(item)
        except BadRequest as error:
            return error.code, error.message

    assert found(_raw) == found(_checked)
