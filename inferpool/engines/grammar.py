"""What an answer must look like as a grammar of llama.cpp (GBNF): JSON by a schema, or calls.

JSON is written on one line, with at most one blank after a comma or colon: a model that may indent
as it likes can fill its answer with blanks. Members come in the schema's order. Every choice is
decided by its next few characters (see `protocol.schema`), so that the engine keeps few parses.
"""

from __future__ import annotations

from typing import Final

import orjson

from inferpool.protocol.schema import (
    Either,
    Entries,
    Items,
    Literals,
    Members,
    Named,
    Node,
    Number,
    Schema,
    Text,
)
from inferpool.protocol.shape import JsonShape, Shape
from inferpool.protocol.tools import CALL_CLOSE, CALL_OPEN, Tools

# A call begins here, once the answer may also be text: an engine's pattern of it.
_NAME: Final = '"name":'
CALL_PATTERN: Final = "<tool_call>\\n?\\{"
_BRANCHINGS_MAX: Final = 16  # a tree of texts that is deeper ends in a list of them
_BASE: Final = {
    "sp": '" "?',
    "char": '[^"\\\\\\x00-\\x1F\\x7F] | "\\\\" (["\\\\/bfnrt] | "u" code)',
    "code": "[0-9A-Ca-cE-Fe-f] hex hex hex | [Dd] [0-7] hex hex",
    "hex": "[0-9A-Fa-f]",
    "string": '"\\"" char* "\\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,14})',
    "number": 'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "value": 'object | array | string | number | "true" | "false" | "null"',
    "object": '"{" (string ":" sp value ("," sp string ":" sp value)*)? "}"',
    "array": '"[" (value ("," sp value)*)? "]"',
    "date": '[0-9]{4} "-" ("02-" day | month30 "-" (day | "29" | "30") |'
    ' month31 "-" (day | "29" | "3" [01]))',
    "day": '"0" [1-9] | "1" [0-9] | "2" [0-8]',
    "month30": '"04" | "06" | "09" | "11"',
    "month31": '"0" [13578] | "10" | "12"',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] "Z"',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
}
_FORMATS: Final = {
    "date": '"\\"" date "\\""',
    "time": '"\\"" time "\\""',
    "date-time": '"\\"" date "T" time "\\""',
    "uuid": '"\\"" uuid "\\""',
}


def gbnf(shape: Shape) -> str:
    """The grammar of a shape; its first rule is `root`."""
    rules = _Rules()
    root = rules.schema(shape.schema) if isinstance(shape, JsonShape) else rules.calls(shape)
    return "\n".join(f"{name} ::= {body}" for name, body in rules.all(root).items())


class _Rules:
    """Rules under way."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def all(self, root: str) -> dict[str, str]:
        """Every rule, the root first."""
        return {"root": root, **self._rules, **_BASE}

    def calls(self, tools: Tools) -> str:
        """One call of one of the functions, or several where that is allowed."""
        chosen = [self._call(f.name, f.schema) for f in tools.callable]
        begin = f'{_literal(CALL_OPEN)} nl? "{{" sp {_literal(_NAME)} sp'
        call = f"{begin} ({' | '.join(chosen)})"
        self._rules |= {"nl": '"\\n"', "call": f"{call} {_literal('}')} nl? {_literal(CALL_CLOSE)}"}
        most = tools.calls_max - 1
        return f"call (nl? call){{0,{most}}}" if most else "call"

    def _call(self, name: str, schema: Schema) -> str:
        named, following = _literal(f'"{name}",'), _literal('"arguments":')
        return f"{named} sp {following} sp {self.schema(schema)}"

    def schema(self, schema: Schema) -> str:
        """The body of the rule of a schema."""
        self._names = {}
        root = self._body(schema.root)
        done = 0
        while done < len(self._names):  # one after another: a chain of them is deeper than a stack
            name, rule = list(self._names.items())[done]
            self._rules[rule] = self._body(schema.definitions[name])
            done += 1
        return root

    def _rule(self, body: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules[name] = body
        return name

    def _body(self, node: Node) -> str:
        if isinstance(node, Text):
            return self._text(node)
        if isinstance(node, Number):
            return "integer" if node.whole else "number"
        if isinstance(node, Literals):
            return self._rule(_trie(node.values))
        if isinstance(node, Items):
            return self._rule(_repeated(self._body(node.item), node.least, node.most))
        if isinstance(node, Entries):
            entry = self._rule(f'string ":" sp {self._body(node.value)}')
            return self._rule(f'"{{" ({entry} ("," sp {entry})*)? "}}"')
        if isinstance(node, Members):
            return self._members(node)
        if isinstance(node, Either):
            return self._rule(" | ".join(map(self._body, node.options)))
        return self._named(node) if isinstance(node, Named) else "value"

    def _text(self, node: Text) -> str:
        if node.format:
            return self._rule(_FORMATS[node.format])
        if not node.least and node.most is None:
            return "string"
        most = "" if node.most is None else str(node.most)
        return self._rule(f'"\\"" char{{{node.least},{most}}} "\\""')

    def _named(self, node: Named) -> str:
        if node.name not in self._names:
            self._names[node.name] = self._rule("")  # what it is comes later
        return self._names[node.name]

    def _members(self, node: Members) -> str:
        """Members in order; `after` holds the rest of an object once something was written, `at`
        where nothing was. Those that are not required may be left out."""
        after = at = '"}"'
        for member in reversed(node.members):
            pair = self._rule(
                f'{_literal(orjson.dumps(member.name).decode())} ":" sp {self._body(member.value)}'
            )
            follow = self._rule(after)
            if member.required:
                at, after = f"{pair} {follow}", f'"," sp {pair} {follow}'
            else:
                skip = self._rule(at)
                at = f"{pair} {follow} | {skip}"
                after = f'"," sp {pair} {follow} | {follow}'
        return self._rule(f'"{{" {self._rule(at)}')


def _repeated(item: str, least: int, most: int | None) -> str:
    """An array of so many items."""
    if most == 0:
        return '"[" "]"'
    more = f'("," sp {item}){{{max(0, least - 1)},{"" if most is None else most - 1}}}'
    inner = f"{item} {more}"
    return f'"[" {inner} "]"' if least else f'"[" ({inner})? "]"'


def _trie(values: tuple[str, ...], depth: int = 0) -> str:
    """Texts as a tree of their beginnings: one parse, however many there are."""
    if len(values) == 1 or depth > _BRANCHINGS_MAX:
        return " | ".join(map(_literal, values))
    tree: dict[str, list[str]] = {}
    for value in values:
        tree.setdefault(value[:1], []).append(value[1:])
    parts = []
    for first, rests in sorted(tree.items()):
        shared = _common(rests)
        deeper = tuple(rest[len(shared) :] for rest in rests)
        ends = "" in deeper
        branches = tuple(rest for rest in deeper if rest)
        tail = f" ({_trie(branches, depth + 1)}){'?' * ends}" if branches else ""
        parts.append(_literal(first + shared) + tail)
    return " | ".join(parts)


def _common(texts: list[str]) -> str:
    least, greatest = min(texts), max(texts)
    size = next((i for i, c in enumerate(least) if c != greatest[i]), len(least))
    return least[:size]


def _literal(text: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(c, c) for c in text) + '"'
