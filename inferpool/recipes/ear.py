"""The pool's transcription by OpenAI's client, for the recipe `transcribe`: a file, or a stream."""

from __future__ import annotations

import time
from typing import Any, Final

from inferpool.recipes import speech_desk
from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.pool import PoolScorer
from inferpool.recipes.kit.use import Meter
from inferpool.recipes.speech import (
    RATE,
    wav_of,
)
from inferpool.recipes.speech_desk import Heard

STEP_S: Final = 2.0  # of speech between two partial results
WINDOW_S: Final = 12.0  # of speech that is heard again at most
SETTLED_S: Final = 2.0  # a segment that ends before this much of the end will not change


class Ear:
    """The pool's transcription by OpenAI's client."""

    def __init__(self, pool: PoolScorer, meter: Meter) -> None:
        self._api = pool.openai().audio.transcriptions.with_raw_response
        self.meter = meter

    def hear(self, wav: bytes) -> Heard:
        """One paid request."""
        sent = []

        def ask() -> Any:
            raw = self._api.create(
                model=speech_desk.MODEL,
                file=("speech.wav", wav),
                language="en",
                response_format="verbose_json",
            )
            sent.append(raw.http_response.request)
            return raw

        begun = time.monotonic()
        answer = self.meter.call(ask)
        ms = 1000 * (time.monotonic() - begun)
        (form,) = sent
        kind = form.headers["content-type"]
        now_ms = time.time_ns() // 1_000_000
        return Heard(answer.text, tuple(answer.segments or ()), form.read(), kind, ms, now_ms)

    def stream(self, samples: Array, partial: Any) -> str:
        """Listen as to a microphone: every `STEP_S` what was not settled yet is heard again."""
        settled, begin = "", 0
        for end in [*range(int(STEP_S * RATE), len(samples), int(STEP_S * RATE)), len(samples)]:
            heard = self.hear(wav_of(samples[begin:end]))
            if end == len(samples):
                return f"{settled} {heard.text}".strip()
            partial(f"{settled} {heard.text}".strip())
            until_s = (end - begin) / RATE - SETTLED_S
            sure = [item for item in heard.segments[:-1] if item.end <= until_s]
            if not sure and (end - begin) / RATE > WINDOW_S:
                sure = list(heard.segments)
            if sure:
                settled = f"{settled} {''.join(item.text for item in sure).strip()}".strip()
                begin += int(sure[-1].end * RATE)
        return settled
