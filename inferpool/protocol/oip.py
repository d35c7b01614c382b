"""The Open Inference Protocol, V2, over REST: a request's shape and size, without numpy.

A body is JSON, or JSON followed by the raw data of the inputs whose parameters give a
`binary_data_size`; the header `Inference-Header-Content-Length` is the length of the JSON part.
The gateway reads only this; the node turns the parts into tensors.
Source: KServe's Open Inference Protocol and Triton's binary tensor data extension.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Final, NamedTuple, NoReturn

from inferpool.protocol.body import read_json
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.limits import BODY_TENSOR_MAX, RANK_MAX, ROWS_MAX, TENSORS_MAX, TEXT_MAX
from inferpool.protocol.value import value

# Bytes of one element; BYTES has no fixed size.
DATATYPES: Final[dict[str, int]] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": 0,
}

# What each object may hold. The scheduling hints `priority` and `timeout` are accepted and have no
# effect, and so have the names that the path already gives. Everything else would change the
# answer (sequences, shared memory, classification) and is refused by its name.
_REQUEST: Final = frozenset({"id", "inputs", "outputs", "parameters"})
_REQUEST_IGNORED: Final = frozenset({"model_name", "model_version"})
_REQUEST_PARAMETERS: Final = frozenset({"binary_data_output", "priority", "timeout"})
_INPUT: Final = frozenset({"name", "shape", "datatype", "parameters", "data"})
_PLAIN_INPUT: Final = _INPUT - {"parameters"}
_INPUT_PARAMETERS: Final = frozenset({"binary_data_size"})
_OUTPUT: Final = frozenset({"name", "parameters"})
_OUTPUT_PARAMETERS: Final = frozenset({"binary_data"})


class InputTensor(NamedTuple):
    """One input as it was sent: raw little-endian bytes, or JSON data (flat or nested)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | None
    data: object


@dataclass(frozen=True, slots=True)
class OutputWish:
    """An output that the caller asked for by name."""

    name: str
    binary: bool


@value
class InferRequest:
    """A valid request. `outputs` empty: all of them, `binary_outputs` says in which form.

    `rows` are those to price: the greatest first dimension of any input, 1 for a scalar. The caller
    orders the inputs, so the first one alone could be a decoy of one row.
    """

    model: str
    id: str
    inputs: tuple[InputTensor, ...]
    outputs: tuple[OutputWish, ...]
    binary_outputs: bool
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        rows = max((item.shape[0] if item.shape else 1 for item in self.inputs), default=0)
        object.__setattr__(self, "rows", rows)

    @property
    def job(self) -> Job:
        """The request's size."""
        return Job(task=Task.TENSOR, model=self.model, rows=self.rows)

    @classmethod
    def parse(cls, model: str, data: bytes, header_length: bytes | None) -> InferRequest:
        """Validate a body. Raises BadRequest(invalid_tensor and others)."""
        return _parse(model, data, header_length)


def _fail(param: str, message: str, code: str = "invalid_tensor") -> NoReturn:
    raise BadRequest(message, code=code, param=param)


def _parse(model: str, data: bytes, header_length: bytes | None) -> InferRequest:
    if len(data) > BODY_TENSOR_MAX:
        raise BadRequest(f"The body is over {BODY_TENSOR_MAX} bytes.", code="body_too_large")
    head, raw = _split(data, header_length)
    body = read_json(head, BODY_TENSOR_MAX)
    _refuse_rest(body, _REQUEST | _REQUEST_IGNORED, "")
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or not 0 < len(inputs) <= TENSORS_MAX:
        _fail("inputs", f"inputs must be a list of 1 to {TENSORS_MAX} tensors.")
    tensors = (_plain(inputs) if not raw else None) or _strict(inputs, raw)
    if len(tensors) > 1 and len({tensor.name for tensor in tensors}) < len(tensors):
        _fail("inputs", "Two inputs have the same name.")
    if len(body) == 1:
        request = InferRequest(model, "", tuple(tensors), (), False)
    else:
        parameters = _parameters(body, "parameters", _REQUEST_PARAMETERS)
        binary = _flag(parameters, "binary_data_output", "parameters")
        outputs = _outputs(body.get("outputs"))
        request = InferRequest(model, _id(body.get("id")), tuple(tensors), outputs, binary)
    if not 0 < request.rows <= ROWS_MAX:
        _fail("inputs", f"a request must have 1 to {ROWS_MAX} rows.")
    return request


def _plain(inputs: list[object]) -> list[InputTensor] | None:
    """Inputs in JSON without a fault: what most callers send. None: `_strict` says what it is."""
    tensors = []
    for item in inputs:
        if type(item) is not dict or item.keys() != _PLAIN_INPUT:
            return None
        name, datatype, shape = item["name"], item["datatype"], item["shape"]
        if type(name) is not str or not 0 < len(name) <= TEXT_MAX:
            return None
        if type(datatype) is not str or datatype not in DATATYPES:
            return None
        if type(shape) is not list or len(shape) > RANK_MAX:
            return None
        count = 1
        for size in shape:
            if type(size) is not int or not 0 <= size <= BODY_TENSOR_MAX:
                return None
            count *= size
        if count > BODY_TENSOR_MAX:
            return None
        tensors.append(InputTensor(name, datatype, tuple(shape), None, item["data"]))
    return tensors


def _strict(inputs: list[object], raw: memoryview) -> list[InputTensor]:
    """Inputs in JSON and binary. Raises BadRequest that names what is wrong."""
    tensors, offset = [], 0
    for i, item in enumerate(inputs):
        tensor, used = _input(item, f"inputs[{i}]", raw[offset:] if raw else b"")
        tensors.append(tensor)
        offset += used
    if offset != len(raw):
        _fail("inputs", f"{len(raw) - offset} bytes of binary data belong to no input.")
    return tensors


def _split(data: bytes, header_length: bytes | None) -> tuple[bytes, memoryview]:
    if header_length is None:
        return data, memoryview(b"")
    if not header_length.isdigit() or len(header_length) > 12 or int(header_length) > len(data):
        _fail(
            "Inference-Header-Content-Length",
            "Inference-Header-Content-Length must be the length of the JSON part.",
            "invalid_request",
        )
    length = int(header_length)
    return data[:length], memoryview(data)[length:]


def _id(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        _fail("id", f"id must be a string of at most {TEXT_MAX} characters.", "invalid_request")
    return value


def _refuse_rest(item: dict[str, object], known: frozenset[str], path: str) -> None:
    if not item.keys() <= known:
        name = path + min(item.keys() - known)[:TEXT_MAX]
        _fail(name, f"{name} is not served; leave it out.", "unsupported_parameter")


def _flag(parameters: dict[str, object], name: str, path: str) -> bool:
    value = parameters.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    _fail(f"{path}.{name}", f"{path}.{name} must be true or false.", "invalid_request")


def _parameters(item: dict[str, object], path: str, known: frozenset[str]) -> dict[str, object]:
    value = item.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        _fail(path, f"{path} must be an object.", "invalid_request")
    _refuse_rest(value, known, f"{path}.")
    return value


def _input(item: object, path: str, raw: memoryview | bytes) -> tuple[InputTensor, int]:
    if not isinstance(item, dict):
        _fail(path, f"{path} must be an object with name, shape, datatype and data.")
    _refuse_rest(item, _INPUT, f"{path}.")
    name, datatype = item.get("name"), item.get("datatype")
    if not isinstance(name, str) or not 0 < len(name) <= TEXT_MAX:
        _fail(f"{path}.name", f"{path}.name must name an input of the model.")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        _fail(f"{path}.datatype", f"{path}.datatype must be one of {', '.join(DATATYPES)}.")
    shape = _shape(item.get("shape"), f"{path}.shape")
    size = _parameters(item, f"{path}.parameters", _INPUT_PARAMETERS).get("binary_data_size")
    if size is None:
        if "data" not in item:
            _fail(f"{path}.data", f"{path} has neither data nor binary_data_size.")
        return InputTensor(name, datatype, shape, None, item["data"]), 0
    if "data" in item:
        _fail(f"{path}.data", f"{path} has both data and binary_data_size.")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(raw):
        _fail(f"{path}.parameters", f"{path}: binary_data_size is not what the body holds.")
    width = DATATYPES[datatype]
    if width and size != width * prod(shape):
        _fail(
            f"{path}.parameters",
            f"{path}: {datatype} of shape {list(shape)} takes {width * prod(shape)} bytes,"
            f" not {size}.",
        )
    return InputTensor(name, datatype, shape, bytes(raw[:size]), None), size


def _shape(value: object, path: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > RANK_MAX:
        _fail(path, f"{path} must be a list of at most {RANK_MAX} sizes.")
    for size in value:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= BODY_TENSOR_MAX:
            _fail(path, f"{path} must hold sizes from 0 up.")
    if prod(value) > BODY_TENSOR_MAX:
        _fail(path, f"{path} is over {BODY_TENSOR_MAX} elements.")
    return tuple(value)


def _outputs(value: object) -> tuple[OutputWish, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > TENSORS_MAX:
        _fail("outputs", f"outputs must be a list of at most {TENSORS_MAX} objects.")
    wishes = []
    for i, item in enumerate(value):
        path = f"outputs[{i}]"
        if not isinstance(item, dict):
            _fail(path, f"{path} must be an object with a name.")
        _refuse_rest(item, _OUTPUT, f"{path}.")
        name = item.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= TEXT_MAX:
            _fail(f"{path}.name", f"{path}.name must name an output of the model.")
        parameters = _parameters(item, f"{path}.parameters", _OUTPUT_PARAMETERS)
        wishes.append(OutputWish(name, _flag(parameters, "binary_data", f"{path}.parameters")))
    return tuple(wishes)
