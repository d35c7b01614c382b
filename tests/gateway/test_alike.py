"""Chunks that are read by comparison say what they say when they are parsed."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any, cast

import orjson
import pytest

from inferpool.gateway.alike import _PROBES, Alike, Plain, _joined
from inferpool.gateway.node_stream import NodeStream, _plain
from inferpool.protocol.errors import InferpoolError
from inferpool.protocol.forms import CHAT, COMPLETION, Form
from inferpool.transport.base import Response

TEXTS = (
    "a",
    " word",
    "é",
    "漢字",
    'a "quote"',
    "back\\slash",
    "line\nend",
    "\x7f",
    "",
    "1",
    "ids",
    "[7]",
)
FORMS = {"chat": CHAT, "completion": COMPLETION}


def chunk(form: Form, text: str, ids: list[int], finish: str | None = None, **more: Any) -> bytes:
    said: dict[str, Any] = {"delta": {"content": text}} if form is CHAT else {"text": text}
    choice = {"index": 0, **said, "finish_reason": finish}
    value = {"id": "cmpl-7", "choices": [choice], "inferpool": {"ids": ids}, **more}
    return orjson.dumps(value)


def stream(form: Form, *, alike: bool) -> NodeStream:
    made = NodeStream(cast(Response, None), 1000, form)
    if not alike:
        made._alike = None
    return made


def read(made: NodeStream, data: bytes) -> object:
    """A chunk's piece, or what is wrong with it; and what was counted until then."""
    try:
        found: object = made._read(data)
    except InferpoolError as error:
        found = (type(error), error.message)
    return found, made.output_units, made._bytes, made.texts, made.finish, made.answer_hash


@pytest.mark.parametrize("name", FORMS)
def test_what_is_read_by_comparison_is_what_parsing_reads(name: str) -> None:
    random, form, compared = Random(3), FORMS[name], 0
    for _ in range(300):
        ours, theirs = stream(form, alike=True), stream(form, alike=False)
        more = random.choice(({}, {"model": "m"}, {"model": "a"}, {"usage": None}))
        for _ in range(12):
            ids = [
                random.choice((0, 1, 7, 11, 2**32 - 1))
                for _ in range(random.choice((1, 1, 1, 2, 0)))
            ]
            data = chunk(
                form, random.choice(TEXTS), ids, random.choice((None, None, None, "stop")), **more
            )
            if random.random() < 0.3:
                at = random.randrange(len(data))
                junk = random.choice(
                    (b"", b"0", b",", b'"', b"\\", b"\n", b"\xff", b"}", b"]", b"9" * 11)
                )
                data = data[:at] + junk + data[at + random.randrange(2) :]
            assert ours._alike is not None
            compared += ours._alike.read(data) is not None
            assert read(ours, data) == read(theirs, data), data
    assert compared > 800, "most of what can be compared is"


def test_a_text_that_stands_elsewhere_too_is_parsed() -> None:
    made = stream(CHAT, alike=True)
    read(made, chunk(CHAT, "m", [1], model="m"))  # where the text is cannot be told
    assert made._alike is not None
    assert made._alike.read(chunk(CHAT, "x", [2], model="m")) is None
    read(made, chunk(CHAT, "x", [2], model="m"))
    assert made._alike.read(chunk(CHAT, "y", [3], model="m")) == ("y", (3,))


def test_words_that_only_look_like_the_text_are_not_taken_for_it() -> None:
    def parse(data: bytes) -> Plain:
        return _plain(CHAT, data)

    alike = Alike(parse)
    choices = rb'"choices":[{"index":0,"delta":{"content":"s\u0061id"}}]'
    escaped = rb'{"note":"said",' + choices + rb',"inferpool":{"ids":[4]}}'
    text, ids = parse(escaped)
    assert (text, ids) == ("said", (4,))
    alike.learn(escaped, text, ids)
    assert alike.read(escaped.replace(b'"said"', b'"other"')) is None


def test_a_chunk_that_knows_what_is_tried_gains_nothing() -> None:
    """Names and notes in the place of the text and the ids, around those that are tried."""
    alike = Alike(partial(_plain, CHAT))
    tried = orjson.dumps(_PROBES[0][0])
    delta = b'{"content":' + tried + rb',"content":"cont\u0065nt"}'
    named = b'{"choices":[{"delta":%b}],"inferpool":{"ids":[4]}}' % delta
    assert _plain(CHAT, named) == ("content", (4,))
    alike.learn(named, "content", (4,))
    swapped = named.replace(b',"content":', b',"other":')
    assert alike.read(swapped) in (None, _plain(CHAT, swapped))
    ids = _joined(_PROBES[0][1])
    noted = b'{"choices":[{"delta":{"content":"a"}}],"inferpool":{"ids":[ %b]},"note":"[%b]"}'
    noted = noted % (ids, ids)
    alike.learn(noted, "a", _PROBES[0][1])
    longer = noted.replace(b'"[' + ids, b'"[1,2,3')
    assert alike.read(longer) in (None, _plain(CHAT, longer))


def test_few_chunks_are_looked_at() -> None:
    seen: list[bytes] = []

    def parse(data: bytes) -> Plain:
        seen.append(data)
        return "never what is tried", (1,)

    alike = Alike(parse)
    for number in range(50):
        data = chunk(CHAT, f"t{number}", [number])
        alike.learn(data, f"t{number}", (number,))
    assert len(seen) == 4
    assert alike.read(chunk(CHAT, "t", [1])) is None
    assert partial(_plain, CHAT)(chunk(CHAT, "t", [1])) == ("t", (1,))
