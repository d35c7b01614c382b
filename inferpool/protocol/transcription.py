"""OpenAI's transcription request and answer.

A form with a file; what it costs follows from the length of the audio, which the caller of
`parse` measures (formats other than WAV need a library). Source: OpenAI's API reference, `POST
/v1/audio/transcriptions`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import orjson

from inferpool.protocol.body import fail, model_name
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.limits import AUDIO_MS_MAX, BODY_AUDIO_MAX
from inferpool.protocol.multipart import Part, parse_form

FORMATS: Final = ("json", "text", "verbose_json")
# Accepted and without effect here, with the values that mean "as usual".
NO_OPS: Final[dict[str, tuple[str, ...]]] = {
    "temperature": ("0", "0.0"),
    "stream": ("false", "False"),
    "prompt": ("",),
    "timestamp_granularities[]": ("segment",),
    "timestamp_granularities": ("segment",),
}
_LANGUAGE: Final = re.compile(r"[a-z]{2,3}")


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """A valid form. `language`: ISO-639 code, or None where the model is to find out."""

    model: str
    audio: bytes
    language: str | None = None
    response_format: str = "json"

    def job(self, audio_ms: int) -> Job:
        """The request's size, by the measured length of its audio. Raises BadRequest."""
        if not 0 < audio_ms <= AUDIO_MS_MAX:
            minutes = AUDIO_MS_MAX // 60_000
            fail("file", f"The audio must be longer than nothing and at most {minutes} minutes.")
        return Job(task=Task.TRANSCRIPTION, model=self.model, audio_ms=audio_ms)

    @classmethod
    def parse(cls, data: bytes, content_type: bytes) -> TranscriptionRequest:
        """Validate a form. Raises BadRequest with a stable code and the parameter's name."""
        if len(data) > BODY_AUDIO_MAX:
            raise BadRequest(f"The body is over {BODY_AUDIO_MAX} bytes.", code="body_too_large")
        fields: dict[str, Part] = {}
        for part in parse_form(data, content_type):
            if part.name in fields:
                fail(part.name, f"{part.name} is given twice.")
            fields[part.name] = part
        file = fields.pop("file", None)
        if file is None or not file.data:
            fail("file", "file must be an audio file.")
        values = {name: part.text() for name, part in fields.items()}
        request = cls(
            model=model_name(values.pop("model", None)),
            audio=file.data,
            language=_language(values.pop("language", None)),
            response_format=_format(values.pop("response_format", "json")),
        )
        for name, value in values.items():
            if value not in NO_OPS.get(name, ()):
                fail(
                    name,
                    f"The parameter {name!r} with this value is not served; leave it out.",
                    "unsupported_parameter",
                )
        return request


def _language(value: str | None) -> str | None:
    if not value:
        return None
    if not _LANGUAGE.fullmatch(value):
        fail("language", "language must be an ISO-639 code, such as en.")
    return value


def _format(value: str) -> str:
    if value not in FORMATS:
        fail(
            "response_format",
            f"response_format must be one of {', '.join(FORMATS)}.",
            "unsupported_parameter",
        )
    return value


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech; times in ms from the start. The rest is what whisper says of it."""

    start_ms: int
    end_ms: int
    text: str
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said. `audio_ms` is the length of what was decoded, not what a header claims."""

    text: str
    language: str
    audio_ms: int
    segments: tuple[Segment, ...] = ()


def answer(request: TranscriptionRequest, found: Transcript, seconds: int) -> bytes:
    """The body of an answer; plain text for `text`. `seconds`: what is charged."""
    if request.response_format == "text":
        return found.text.encode() + b"\n"
    usage = {"type": "duration", "seconds": seconds}
    if request.response_format == "json":
        return orjson.dumps({"text": found.text, "usage": usage})
    body = {
        "task": "transcribe",
        "language": found.language,
        "duration": found.audio_ms / 1000,
        "text": found.text,
        "segments": [_segment(i, segment) for i, segment in enumerate(found.segments)],
        "usage": usage,
    }
    return orjson.dumps(body)


def _segment(index: int, segment: Segment) -> dict[str, object]:
    return {
        "id": index,
        "seek": 0,
        "start": segment.start_ms / 1000,
        "end": segment.end_ms / 1000,
        "text": segment.text,
        "tokens": segment.tokens,
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }
