"""Embeddings, transcriptions and images: parsed alike at each hop, sized, refused by name."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferpool.protocol import embeddings, images, transcription
from inferpool.protocol.embeddings import EmbeddingsRequest
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.images import ImagesRequest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.limits import FORM_HEADER_MAX, FORM_PARTS_MAX
from inferpool.protocol.multipart import Part, parse_form
from inferpool.protocol.transcription import Segment, Transcript, TranscriptionRequest
from tests.protocol import junk

FORM = b"multipart/form-data; boundary=XyZ"


def form(*parts: tuple[str, str | None, bytes], boundary: str = "XyZ") -> bytes:
    body = b""
    for name, filename, data in parts:
        file = f'; filename="{filename}"' if filename is not None else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


# -- multipart -------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.binary(max_size=60), st.booleans()), max_size=6))
def test_forms_round_trip(contents: list[tuple[bytes, bool]]) -> None:
    parts = [(f"p{i}", "f" if file else None, data) for i, (data, file) in enumerate(contents)]
    parts = [part for part in parts if b"--XyZ" not in part[2]]
    assert parse_form(form(*parts), FORM) == [Part(*part) for part in parts]


@pytest.mark.parametrize(
    "content_type",
    [b"multipart/form-data; boundary=XyZ", b'Multipart/Form-Data; charset=x; Boundary="XyZ"'],
)
def test_boundaries_as_clients_write_them(content_type: bytes) -> None:
    assert parse_form(b"preamble\r\n" + form(("a", None, b"1")), content_type)[0].data == b"1"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(("a", None, b"1")), b"application/json"),
        (form(("a", None, b"1")), b"multipart/form-data"),
        (form(("a", None, b"1")), b"multipart/form-data; boundary=other"),
        (form(("a", None, b"1"))[:-12], FORM),
        (b"", FORM),
        (b"--XyZ", FORM),
        (b"--XyZ\r\n\r\n\r\n--XyZ--", FORM),
        (b"--XyZ\r\nContent-Type: text/plain\r\n\r\nx\r\n--XyZ--", FORM),
        (form(("a" * FORM_HEADER_MAX, None, b"1")), FORM),
        (form(*[("a", None, b"")] * (FORM_PARTS_MAX + 1)), FORM),
    ],
)
def test_broken_forms_are_refused(body: bytes, content_type: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_form(body, content_type)


@given(st.binary(max_size=300), st.binary(max_size=80))
def test_junk_forms_are_refused_or_parsed(body: bytes, content_type: bytes) -> None:
    for data, kind in ((body, FORM), (form(("a", None, b"1")), content_type), (body, content_type)):
        try:
            parse_form(data, kind)
        except BadRequest:
            continue


# -- embeddings ------------------------------------------------------------------------------------


def embed(**changes: Any) -> EmbeddingsRequest:
    body = {"model": "m", "input": ["é", "two"]} | changes
    return EmbeddingsRequest.parse(json.dumps(body).encode())


def test_embeddings_size_and_way_on() -> None:
    request = embed(encoding_format="base64", user="u", dimensions=None)
    assert request.job == Job(Task.EMBEDDING, "m", prompt_bytes=5, messages=2)
    assert EmbeddingsRequest.parse(request.encode()) == request
    assert EmbeddingsRequest.parse(replace(request, base64=False).encode()).base64 is False


@pytest.mark.parametrize("as_base64", [True, False])
def test_embeddings_answer(as_base64: bool) -> None:
    vector = struct.pack("<3f", 0.5, -1.0, 0.25)
    body = json.loads(embeddings.answer("m", [vector], 7, as_base64=as_base64))
    written = body["data"][0]["embedding"]
    assert written == (base64.b64encode(vector).decode() if as_base64 else [0.5, -1.0, 0.25])
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


# -- transcriptions --------------------------------------------------------------------------------


def ask(*more: tuple[str, bytes]) -> TranscriptionRequest:
    fields = [(name, None, value) for name, value in more]
    return TranscriptionRequest.parse(
        form(("file", "a.wav", b"sound"), ("model", None, b"m"), *fields), FORM
    )


def test_transcription_form() -> None:
    request = ask(("language", b"de"), ("response_format", b"text"), ("temperature", b"0"))
    assert (request.audio, request.language, request.response_format) == (b"sound", "de", "text")
    assert request.job(1500) == Job(Task.TRANSCRIPTION, "m", audio_ms=1500)


@pytest.mark.parametrize("audio_ms", [0, -1, 30 * 60_000 + 1])
def test_audio_has_a_length_within_bounds(audio_ms: int) -> None:
    with pytest.raises(BadRequest):
        ask().job(audio_ms)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ([("model", b"again")], "model"),
        ([("language", b"German")], "language"),
        ([("response_format", b"vtt")], "response_format"),
        ([("temperature", b"1")], "temperature"),
        ([("hotwords", b"x")], "hotwords"),
        ([("language", b"\xff\xfe")], "language"),
        ([("prompt", b"x" * 2000)], "prompt"),
    ],
)
def test_transcription_refusals(more: list[tuple[str, bytes]], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        ask(*more)
    assert caught.value.param == param


def test_a_file_is_needed() -> None:
    for parts in ([("model", None, b"m")], [("model", None, b"m"), ("file", "f", b"")]):
        with pytest.raises(BadRequest) as caught:
            TranscriptionRequest.parse(form(*parts), FORM)
        assert caught.value.param == "file"


def test_transcription_answers() -> None:
    found = Transcript("Hello.", "en", 1490, (Segment(0, 1490, " Hello.", (1, 2)),))
    assert transcription.answer(ask(("response_format", b"text")), found, 2) == b"Hello.\n"
    plain = json.loads(transcription.answer(ask(), found, 2))
    assert plain == {"text": "Hello.", "usage": {"type": "duration", "seconds": 2}}
    full = json.loads(transcription.answer(ask(("response_format", b"verbose_json")), found, 2))
    assert (full["duration"], full["language"], full["task"]) == (1.49, "en", "transcribe")
    assert full["segments"][0]["end"] == 1.49


# -- images ----------------------------------------------------------------------------------------


def draw(**changes: Any) -> ImagesRequest:
    return ImagesRequest.parse(json.dumps({"model": "m", "prompt": "hills"} | changes).encode())


def test_images_size_and_way_on() -> None:
    request = draw(n=3, size="128x128", seed=-1, response_format="b64_json", quality="auto")
    assert request.job == Job(Task.IMAGE, "m", choices=3, steps=images.STEPS)
    assert request.seed == 2**32 - 1
    assert ImagesRequest.parse(request.encode()) == request


@pytest.mark.parametrize("param", sorted(images.NO_OPS))
def test_images_no_ops(param: str) -> None:
    for usual in images.NO_OPS[param]:
        assert draw(**{param: usual}) == draw()
    with pytest.raises(BadRequest) as caught:
        draw(**{param: "other"})
    assert caught.value.param == param


def test_images_answer() -> None:
    body = json.loads(images.answer(5, [b"one", b"two"]))
    assert [base64.b64decode(item["b64_json"]) for item in body["data"]] == [b"one", b"two"]


EMBED = {"model": "m", "input": ["a", "b"], "encoding_format": "float", "user": "u"}
DRAW = {"model": "m", "prompt": "p", "n": 2, "size": "1x1", "seed": 1, "quality": "auto"}


@given(junk.raw | junk.mutated(EMBED))
def test_any_bytes_to_embed(data: bytes) -> None:
    request = junk.answer(EmbeddingsRequest.parse, data)
    if isinstance(request, EmbeddingsRequest):
        assert EmbeddingsRequest.parse(request.encode()) == request


@given(junk.raw | junk.mutated(DRAW))
def test_any_bytes_to_draw(data: bytes) -> None:
    request = junk.answer(ImagesRequest.parse, data)
    if isinstance(request, ImagesRequest):
        assert ImagesRequest.parse(request.encode()) == request
