"""What an answer must look like, for engines that hold their decoding to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inferpool.protocol.body import fail, flag
from inferpool.protocol.schema import ANY_OBJECT, Schema, read_schema
from inferpool.protocol.tools import NAME, Tools


@dataclass(frozen=True, slots=True)
class JsonShape:
    """JSON by a schema. `asked`: `response_format` as the client sent it."""

    schema: Schema
    asked: dict[str, Any]


Shape = JsonShape | Tools


def read_format(value: object) -> JsonShape | None:
    """`response_format`; None where it asks for text. Raises BadRequest."""
    if value is None:
        return None
    if not isinstance(value, dict):
        fail("response_format", "response_format must be an object.")
    kind = value.get("type")
    known = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    extra = value.keys() - known
    if extra:
        name = f"response_format.{min(extra)[:64]}"
        fail(name, f"{name} is not served; leave it out.", "unsupported_parameter")
    if kind == "text":
        return None
    if kind == "json_object":
        return JsonShape(ANY_OBJECT, value)
    if kind != "json_schema":
        fail("response_format.type", "type must be text, json_object or json_schema.")
    return JsonShape(_named_schema(value.get("json_schema")), value)


def _named_schema(value: object) -> Schema:
    path = "response_format.json_schema"
    if not isinstance(value, dict):
        fail(path, f"{path} must be an object with name and schema.")
    extra = value.keys() - {"name", "description", "schema", "strict"}
    if extra:
        place = f"{path}.{min(extra)[:64]}"
        fail(place, f"{place} is not served; leave it out.", "unsupported_parameter")
    name = value.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        fail(f"{path}.name", "name must be 1 to 64 letters, digits, _ or -.")
    strict = flag(value.get("strict"), f"{path}.strict")
    if value.get("schema") is None:
        return ANY_OBJECT
    return read_schema(value["schema"], f"{path}.schema", strict=strict)
