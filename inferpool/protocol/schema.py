"""The part of JSON Schema that an answer can be held to, read into a small tree.

Where the caller asks for `strict`, what a grammar cannot promise is refused by its keyword; where
it does not, nothing is promised, and such a keyword leaves its place looser. Words that only
describe (`title`, `default`, ...) are passed over. Every tree is finite, can be satisfied, and is
decided by its next few characters: alternatives of one place differ in kind, and objects among
them in their first member. So a hostile schema makes a grammar neither large nor ambiguous, which
is what makes engines slow. Source: JSON Schema, draft 2020-12.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn

import orjson

from inferpool.protocol.body import fail
from inferpool.protocol.limits import (
    SCHEMA_BYTES_MAX,
    SCHEMA_DEPTH_MAX,
    SCHEMA_LITERALS_MAX,
    SCHEMA_NAMES_MAX,
    SCHEMA_NODES_MAX,
    SCHEMA_OPTIONAL_MAX,
    SCHEMA_REPEAT_MAX,
    SCHEMA_REPEATS_MAX,
    TEXT_MAX,
)


@dataclass(frozen=True, slots=True)
class Anything:
    """Any JSON value."""


@dataclass(frozen=True, slots=True)
class Text:
    """A string of `least` to `most` characters, or of a known format."""

    least: int = 0
    most: int | None = None
    format: str = ""


@dataclass(frozen=True, slots=True)
class Number:
    """A number, or a whole one."""

    whole: bool = False


@dataclass(frozen=True, slots=True)
class Literals:
    """One of some values, each as compact JSON."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Items:
    """An array."""

    item: Node
    least: int = 0
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an object; members come in their order."""

    name: str
    value: Node
    required: bool


@dataclass(frozen=True, slots=True)
class Members:
    """An object of known members."""

    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Entries:
    """An object of any names, all values of one kind."""

    value: Node


@dataclass(frozen=True, slots=True)
class Either:
    """One of some."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """What stands under a name in the schema's definitions."""

    name: str


Node = Anything | Text | Number | Literals | Items | Members | Entries | Either | Named


@dataclass(frozen=True, slots=True)
class Schema:
    """A tree, with the definitions that it names."""

    root: Node
    definitions: Mapping[str, Node] = field(default_factory=dict)

    def resolve(self, node: Node) -> Node:
        """The node itself, behind any names."""
        while isinstance(node, Named):
            node = self.definitions[node.name]
        return node


ANY_OBJECT: Final = Schema(Entries(Anything()))
FORMATS: Final = ("date", "date-time", "time", "uuid")
_DESCRIBE: Final = frozenset(
    {
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$id", "$comment", "$anchor", "$defs", "definitions"),
    }
)
_TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")


def read_schema(value: object, path: str, *, strict: bool = True) -> Schema:
    """Read a schema that stands at `path` of a request. Raises BadRequest that names the place."""
    if not isinstance(value, dict):
        fail(path, f"{path} must be a JSON Schema: an object.")
    if len(orjson.dumps(value)) > SCHEMA_BYTES_MAX:
        fail(path, f"{path} is over {SCHEMA_BYTES_MAX} bytes.")
    return _Reading(value, path, strict=strict).read()


class _Reading:
    """One schema under way."""

    def __init__(self, value: dict[str, Any], path: str, *, strict: bool) -> None:
        self._value, self._path, self._strict = value, path, strict
        self._definitions: dict[str, Node] = {}
        self._nodes = self._literals = self._repeats = 0

    def read(self) -> Schema:
        """The tree, checked as a whole."""
        root = self._node(self._value, self._path, 0)
        self._definitions.setdefault("#", root)
        waiting = self._wanted()
        while waiting:
            if len(self._definitions) + len(waiting) > SCHEMA_NAMES_MAX:
                self._refuse(self._path, f"has more than {SCHEMA_NAMES_MAX} definitions")
            for name in waiting:
                self._define(name)
            waiting = self._wanted()
        schema = Schema(root, self._definitions)
        self._check_names(schema)
        found = {name: self._decided(schema, node) for name, node in self._definitions.items()}
        schema = Schema(self._decided(schema, root), found)
        if not _can_end(schema):
            self._refuse(self._path, "has no finite value")
        return schema

    def _refuse(self, path: str, why: str, code: str = "invalid_request") -> NoReturn:
        short = path if len(path) <= TEXT_MAX else path[: TEXT_MAX - 3] + "..."
        fail(short, f"{short} {why}.", code)

    # -- one place -------------------------------------------------------------------------------

    def _node(self, value: Any, path: str, depth: int) -> Node:
        self._nodes += 1
        if self._nodes > SCHEMA_NODES_MAX:
            self._refuse(self._path, f"has more than {SCHEMA_NODES_MAX} places")
        if depth > SCHEMA_DEPTH_MAX:
            self._refuse(path, f"is nested more than {SCHEMA_DEPTH_MAX} deep")
        if value is True:
            return Anything()
        if not isinstance(value, dict):
            self._refuse(path, "must be a JSON Schema: an object")
        rest = {key: item for key, item in value.items() if key not in _DESCRIBE}
        node = self._taken(rest, path, depth)
        if rest and self._strict:
            name = min(rest)
            self._refuse(f"{path}.{name}", "is not served here; leave it out", _UNSERVED)
        return node

    def _taken(self, rest: dict[str, Any], path: str, depth: int) -> Node:
        """The node of a place, its keywords taken out of `rest`."""
        if "$ref" in rest:
            return self._ref(rest.pop("$ref"), f"{path}.$ref")
        for name in ("anyOf", "oneOf", "allOf"):
            single = isinstance(rest.get(name), list) and len(rest[name]) == 1
            any_of = name == "anyOf" or (name == "oneOf" and not self._strict)
            if single or (any_of and name in rest):
                rest.pop("type", None)
                return self._options(rest.pop(name), f"{path}.{name}", depth)
        kinds = rest.pop("type", None)
        if "const" in rest:
            return self._values([rest.pop("const")], kinds, path)
        if "enum" in rest:
            return self._values(rest.pop("enum"), kinds, path)
        return self._typed(rest, kinds, path, depth)

    def _options(self, options: Any, path: str, depth: int) -> Node:
        if not isinstance(options, list) or not options:
            self._refuse(path, "must be a list with at least one schema")
        found = [self._node(option, f"{path}[{i}]", depth + 1) for i, option in enumerate(options)]
        return found[0] if len(found) == 1 else Either(tuple(found))

    def _typed(self, rest: dict[str, Any], kinds: Any, path: str, depth: int) -> Node:
        if kinds is None:
            if "properties" in rest or "additionalProperties" in rest:
                kinds = "object"
            elif "items" in rest:
                kinds = "array"
            else:
                return Anything()
        several = kinds if isinstance(kinds, list) else [kinds]
        if not several or any(kind not in _TYPES for kind in several):
            self._refuse(f"{path}.type", f"must be one of {', '.join(_TYPES)}, or a list of them")
        found = [self._of_type(kind, rest, path, depth) for kind in dict.fromkeys(several)]
        return found[0] if len(found) == 1 else Either(tuple(found))

    def _of_type(self, kind: str, rest: dict[str, Any], path: str, depth: int) -> Node:
        if kind == "object":
            return self._object(rest, path, depth)
        if kind == "array":
            least, most = self._bounds(rest, "minItems", "maxItems", path)
            item = rest.pop("items", True)
            return Items(self._node(item, f"{path}.items", depth + 1), least, most)
        if kind == "string":
            least, most = self._bounds(rest, "minLength", "maxLength", path)
            form = rest.pop("format", "")
            if form and (form not in FORMATS or least or most is not None):
                if self._strict:
                    self._refuse(f"{path}.format", "is not served here; leave it out", _UNSERVED)
                form = ""
            return Text(least, most, form)
        if kind in ("number", "integer"):
            return Number(kind == "integer")
        return Literals(("null",) if kind == "null" else ("true", "false"))

    def _object(self, rest: dict[str, Any], path: str, depth: int) -> Node:
        listed = "properties" in rest and "additionalProperties" not in rest
        properties = rest.pop("properties", {})
        more = rest.pop("additionalProperties", True)
        required = rest.pop("required", [])
        if not isinstance(properties, dict):
            self._refuse(f"{path}.properties", "must be an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self._refuse(f"{path}.required", "must be a list of names")
        if not (properties or listed or required) and more is not False:
            return Entries(self._node(more, f"{path}.additionalProperties", depth + 1))
        missing = [name for name in required if name not in properties]
        if missing:
            self._refuse(f"{path}.required", f"names {missing[0][:TEXT_MAX]!r}, no property")
        if len(properties) - len(set(required)) > SCHEMA_OPTIONAL_MAX:
            most = SCHEMA_OPTIONAL_MAX
            self._refuse(f"{path}.properties", f"has more than {most} that are not required")
        # More members are never written: what has none of them is valid too.
        members = [
            Member(name, self._node(item, f"{path}.properties.{name}", depth + 1), name in required)
            for name, item in properties.items()
        ]
        return Members(tuple(members))

    def _bounds(self, rest: dict[str, Any], low: str, high: str, path: str) -> tuple[int, Any]:
        found = []
        for name in (low, high):
            bound = rest.pop(name, None)
            if bound is not None and (type(bound) is not int or not bound >= 0):
                self._refuse(f"{path}.{name}", "must be a whole number")
            if bound is not None and bound > SCHEMA_REPEAT_MAX:
                if self._strict:
                    self._refuse(f"{path}.{name}", f"is above {SCHEMA_REPEAT_MAX}", _UNSERVED)
                bound = None if name == high else SCHEMA_REPEAT_MAX
            found.append(bound)
            self._repeats += bound or 0
        if self._repeats > SCHEMA_REPEATS_MAX:
            self._refuse(self._path, f"has bounds of more than {SCHEMA_REPEATS_MAX} in all")
        least, most = found[0] or 0, found[1]
        if most is not None and most < least:
            self._refuse(f"{path}.{high}", f"is below {low}")
        return least, most

    def _values(self, values: Any, kinds: Any, path: str) -> Node:
        if not isinstance(values, list) or not values:
            self._refuse(f"{path}.enum", "must be a list with at least one value")
        self._literals += len(values)
        if self._literals > SCHEMA_LITERALS_MAX:
            self._refuse(self._path, f"has more than {SCHEMA_LITERALS_MAX} values")
        named = kinds if isinstance(kinds, list) else [kinds]
        fits = [v for v in values if kinds is None or any(_is_of(v, kind) for kind in named)]
        if not fits:
            self._refuse(f"{path}.enum", "has no value of its type")
        return Literals(tuple(dict.fromkeys(orjson.dumps(value).decode() for value in fits)))

    # -- names -----------------------------------------------------------------------------------

    def _ref(self, value: Any, path: str) -> Node:
        if value == "#":
            return Named("#")
        parts = value.split("/") if isinstance(value, str) else []
        if len(parts) != 3 or parts[0] != "#" or parts[1] not in ("$defs", "definitions"):
            self._refuse(path, "must be # or #/$defs/NAME")
        definitions = self._value.get(parts[1])
        if not isinstance(definitions, dict) or parts[2] not in definitions:
            self._refuse(path, "names no definition")
        return Named("/".join(parts[1:]))

    def _wanted(self) -> list[str]:
        found: set[str] = set()
        for node in (*self._definitions.values(),):
            _walk(node, lambda n: found.add(n.name) if isinstance(n, Named) else None)
        return sorted(found - self._definitions.keys())

    def _define(self, name: str) -> None:
        where, _, key = name.partition("/")
        path = f"{self._path}.{where}.{key}"
        self._definitions[name] = self._node(self._value[where][key], path, 0)

    def _check_names(self, schema: Schema) -> None:
        """No name stands for itself."""
        for name in schema.definitions:
            seen = {name}
            node = schema.definitions[name]
            while isinstance(node, Named):
                if node.name in seen:
                    self._refuse(self._path, f"has a definition that is itself: {name[:TEXT_MAX]}")
                seen.add(node.name)
                node = schema.definitions[node.name]

    # -- alternatives ----------------------------------------------------------------------------

    def _decided(self, schema: Schema, node: Node) -> Node:
        """The node with every place of alternatives decided by its next characters: where they
        are not, it is refused, or, without `strict`, anything may stand there."""
        if isinstance(node, Either):
            why = self._undecided(schema, node)
            if why and self._strict:
                self._refuse(self._path, why, _UNSERVED)
            if why:
                return Anything()
        return _with_parts(node, [self._decided(schema, part) for part in _parts(node)])

    def _undecided(self, schema: Schema, node: Either) -> str:
        """Why the alternatives of a place are not told apart; "" where they are."""
        flat: list[Node] = []
        if not self._flatten(schema, node, 0, flat):
            return "has alternatives that are themselves, or too many"
        kinds: dict[str, int] = {}
        objects: list[Members] = []
        for option in flat:
            for kind in _kinds(option):
                kinds[kind] = kinds.get(kind, 0) + 1
            if isinstance(option, Members):
                objects.append(option)
        for kind, count in kinds.items():
            if count > 1 and kind != "literal" and (kind != "object" or len(objects) < count):
                return f"has alternatives that begin alike: two {kind}s"
        if len(objects) > 1 and not _told_apart(objects, schema):
            return "has objects as alternatives that their first property does not tell apart"
        return ""

    def _flatten(self, schema: Schema, node: Node, depth: int, found: list[Node]) -> bool:
        """Collect the alternatives that are none themselves; False where they do not end."""
        node = schema.resolve(node)
        if not isinstance(node, Either):
            found.append(node)
            return len(found) <= SCHEMA_OPTIONAL_MAX
        return depth <= SCHEMA_DEPTH_MAX and all(
            self._flatten(schema, option, depth + 1, found) for option in node.options
        )


_UNSERVED: Final = "unsupported_parameter"


def _is_of(value: object, kind: object) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if value is None:
        return kind == "null"
    if isinstance(value, int):
        return kind in ("integer", "number")
    names: dict[type, str] = {float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value)) == kind


def _kinds(node: Node) -> set[str]:
    """What a value of this node can begin like."""
    if isinstance(node, Anything):
        return {"object", "array", "string", "number", "literal"}
    if isinstance(node, Literals):
        kinds = {{"{": "object", "[": "array"}.get(v[0], "literal") for v in node.values}
        return kinds
    if isinstance(node, Items):
        return {"array"}
    if isinstance(node, Members | Entries):
        return {"object"}
    return {"string"} if isinstance(node, Text) else {"number"}


def _told_apart(objects: list[Members], schema: Schema) -> bool:
    """Whether the first member decides: by its name, or by literal values that are not shared."""
    seen: dict[str, set[str] | None] = {}
    for found in objects:
        first = found.members[0] if found.members else None
        if first is None or not first.required:
            return False
        value = schema.resolve(first.value)
        values = set(value.values) if isinstance(value, Literals) else None
        if first.name in seen:
            before = seen[first.name]
            if before is None or values is None or before & values:
                return False
            values |= before
        seen[first.name] = values
    return True


def _walk(node: Node, visit: Callable[[Node], object]) -> None:
    """Visit a node and all below it, names not followed."""
    visit(node)
    for part in _parts(node):
        _walk(part, visit)


def _parts(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Items):
        return (node.item,)
    if isinstance(node, Entries):
        return (node.value,)
    if isinstance(node, Members):
        return tuple(member.value for member in node.members)
    return node.options if isinstance(node, Either) else ()


def _with_parts(node: Node, parts: list[Node]) -> Node:
    """The same node with other parts, in the order of `_parts`."""
    if isinstance(node, Items):
        return replace(node, item=parts[0])
    if isinstance(node, Entries):
        return Entries(parts[0])
    if isinstance(node, Members):
        members = zip(node.members, parts, strict=True)
        return Members(tuple(replace(member, value=value) for member, value in members))
    return Either(tuple(parts)) if isinstance(node, Either) else node


def _can_end(schema: Schema) -> bool:
    """Whether the root has a finite value: definitions are marked until nothing changes."""
    good: set[str] = set()

    def ends(node: Node) -> bool:
        if isinstance(node, Named):
            return node.name in good
        if isinstance(node, Items):
            return node.least == 0 or ends(node.item)
        if isinstance(node, Members):
            return all(ends(member.value) for member in node.members if member.required)
        return any(map(ends, node.options)) if isinstance(node, Either) else True

    while True:
        more = {name for name, node in schema.definitions.items() if ends(node)} - good
        if not more:
            return ends(schema.root)
        good |= more
