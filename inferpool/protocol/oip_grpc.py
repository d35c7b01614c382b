"""The Open Inference Protocol's gRPC messages as its REST bodies, and back; pure.

One path for tensors: a gRPC request becomes the binary REST body that says the same, so that
limits, price, payment, hashes and receipt are those of REST. What the bodies mean is `oip`'s.
"""

from __future__ import annotations

import array
import sys
from math import prod
from typing import Any, Final

import orjson

from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.limits import TENSORS_MAX
from inferpool.protocol.oip import DATATYPES
from inferpool.protocol.proto import messages

# Where typed contents lie, and their elements' form in raw ones (codes of `array`). FP16 has no
# typed form in the specification.
_CONTENTS: Final = {
    "BOOL": ("bool_contents", "B"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
}
assert all(array.array(code).itemsize == DATATYPES[name] for name, (_, code) in _CONTENTS.items())


def rest_request(message: Any) -> tuple[bytes, bytes]:
    """Body and length of its JSON part from a ModelInferRequest. Raises BadRequest.

    Raw contents come either for every input, in order, or for none (the specification's rule).
    """
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise _wrong(f"{len(raw)} raw contents for {len(message.inputs)} inputs")
    if len(message.inputs) > TENSORS_MAX or len(message.outputs) > TENSORS_MAX:
        raise _wrong(f"more than {TENSORS_MAX} tensors")
    inputs, parts = [], []
    for index, item in enumerate(message.inputs):
        if raw and item.HasField("contents"):
            raise _wrong(f"input {item.name!r} has both contents and raw contents")
        data = raw[index] if raw else _raw(item)
        parameters = {**_parameters(item.parameters), "binary_data_size": len(data)}
        inputs.append(
            {
                "name": item.name,
                "datatype": item.datatype,
                "shape": list(item.shape),
                "parameters": parameters,
            }
        )
        parts.append(data)
    head: dict[str, object] = {
        "inputs": inputs,
        "parameters": {**_parameters(message.parameters), "binary_data_output": True},
    }
    if message.id:
        head["id"] = message.id
    if message.outputs:
        head["outputs"] = [
            {"name": item.name, "parameters": {**_parameters(item.parameters), "binary_data": True}}
            for item in message.outputs
        ]
    text = orjson.dumps(head)
    return b"".join([text, *parts]), str(len(text)).encode()


def grpc_response(body: bytes, header_length: bytes | None) -> Any:
    """A ModelInferResponse from a node's body, with raw contents. Raises Unavailable."""
    try:
        length = len(body) if header_length is None else int(header_length)
        head, at = orjson.loads(body[:length]), length
        message = messages()["ModelInferResponse"](
            model_name=head["model_name"],
            model_version=head.get("model_version", ""),
            id=head.get("id", ""),
        )
        for item in head["outputs"]:
            message.outputs.add(name=item["name"], datatype=item["datatype"], shape=item["shape"])
            size = item.get("parameters", {}).get("binary_data_size", 0)
            if not 0 <= size <= len(body) - at or (size == 0 and prod(item["shape"])):
                raise ValueError(f"output {item['name']!r} has no binary data")
            message.raw_output_contents.append(body[at : at + size])
            at += size
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unavailable(
            f"The node's tensors cannot be read: {error}", code="node_failed"
        ) from None
    return message


def metadata(name: str, body: bytes) -> Any:
    """ServerMetadataResponse or ModelMetadataResponse from the REST answer. Raises Unavailable."""
    try:
        found: dict[str, Any] = orjson.loads(body)
        kind = messages()[name]
        known = {field.name for field in kind.DESCRIPTOR.fields}
        return kind(**{key: value for key, value in found.items() if key in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise Unavailable(f"The metadata cannot be read: {error}", code="node_failed") from None


def _wrong(message: str) -> BadRequest:
    return BadRequest(f"The request is malformed: {message}.", code="invalid_tensor")


def _parameters(found: Any) -> dict[str, object]:
    return {
        key: getattr(value, choice)
        for key, value in found.items()
        if (choice := value.WhichOneof("parameter_choice"))
    }


def _raw(item: Any) -> bytes:
    """Typed contents in raw form. Raises BadRequest."""
    contents = item.contents
    filled = [field.name for field, _ in contents.ListFields()]
    if item.datatype == "BYTES":
        wanted, values = "bytes_contents", contents.bytes_contents
        data = b"".join(len(value).to_bytes(4, "little") + value for value in values)
    elif item.datatype in _CONTENTS:
        wanted, code = _CONTENTS[item.datatype]
        values = getattr(contents, wanted)
        try:
            numbers = array.array(code, values)
        except (OverflowError, TypeError) as error:
            raise _wrong(f"input {item.name!r} is not {item.datatype}: {error}") from None
        if sys.byteorder == "big":
            numbers.byteswap()
        data = numbers.tobytes()
    else:
        raise _wrong(f"input {item.name!r}: {item.datatype!r} comes in raw_input_contents only")
    if filled not in ([wanted], []):
        raise _wrong(f"input {item.name!r} of {item.datatype} must fill {wanted} alone")
    return data
