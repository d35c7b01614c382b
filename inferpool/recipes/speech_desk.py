"""What was heard, kept so that it can be heard again; how sure that is; a line that got worse.

A record holds the very form that was sent, so the receipt's request hash is checked against it. A
segment's confidence is the mean probability of its tokens. What that means in words that are right
was fitted on the clips in noise; the reports' noise is another.
"""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from inferpool.models import catalogue
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import Refused, Unavailable
from inferpool.protocol.transcription import TranscriptionRequest
from inferpool.recipes.kit import audit
from inferpool.recipes.kit.audit import Replay
from inferpool.recipes.kit.data import Array
from inferpool.recipes.kit.deciding import Decision
from inferpool.recipes.kit.drift import Monitor, reference
from inferpool.recipes.kit.pool import PoolScorer
from inferpool.recipes.kit.use import in_process

MODEL: Final = "whisper-base"
SLOPE, SHIFT = 2.37, 0.37  # of the log-odds of a segment's confidence; fitted, see the docstring
DOUBT: Final = 0.87  # below it a person listens: 5 % of the other words were wrong where fitted
DOUBT_NO_SPEECH: Final = 0.6
OTHER_CLASS: Final = 0.05  # of the words may differ in another engine class
WINDOW: Final = 800  # samples, 50 ms
WATCHED: Final = ("loudness", "crossings", "flatness")


@dataclass(frozen=True, slots=True)
class Heard:
    """What the pool wrote down of one clip, and the form that was sent for it."""

    text: str
    segments: tuple[Any, ...]
    form: bytes = b""
    form_type: str = ""
    ms: float = 0.0
    time_ms: int = 0

    @property
    def doubts(self) -> int:
        """Segments that go to a person."""
        return sum(chance(item) < DOUBT for item in self.segments)

    @property
    def chance(self) -> float:
        """That a word is right, of the least certain segment; 0 where nothing was heard."""
        return min(map(chance, self.segments), default=0.0)


def chance(segment: Any) -> float:
    """That a word of the segment is right; 0 where it may be no speech at all."""
    if segment.no_speech_prob > DOUBT_NO_SPEECH:
        return 0.0
    sure = min(max(math.exp(segment.avg_logprob), 1e-6), 0.999)
    return 1 / (1 + math.exp(-SLOPE * math.log(sure / (1 - sure)) - SHIFT))


def right(reference: Sequence[str], heard: Sequence[str]) -> list[bool]:
    """Which heard words are the reference's, in the alignment with the fewest errors."""
    rows = [list(range(len(heard) + 1))]
    for i, word in enumerate(reference, 1):
        row = [i]
        for j, other in enumerate(heard, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (word != other)))
        rows.append(row)
    found, i, j = [False] * len(heard), len(reference), len(heard)
    while i and j:
        same = reference[i - 1] == heard[j - 1]
        if rows[i][j] == rows[i - 1][j - 1] + (not same):
            found[j - 1] = same
            i, j = i - 1, j - 1
        elif rows[i][j] == rows[i][j - 1] + 1:
            j -= 1
        else:
            i -= 1
    return found


# -- records -------------------------------------------------------------------------------------


def record(heard: Heard, attempt: Mapping[str, Any], chain_id: int | None) -> dict[str, Any]:
    """One clip's decision as data; `attempt` is the gateway's, with the receipt."""
    receipt = attempt["proof"]["receipt"]
    return {
        "version": audit.VERSION,
        "recipe": "transcribe",
        "model": MODEL,
        "manifest": receipt["manifest"],
        "class": receipt["class"],
        "node": attempt["node"],
        "time_ms": heard.time_ms,
        "left_out": ["tags", "file name"],
        "input_sha256": hashlib.sha256(heard.form).hexdigest(),
        "form_type": heard.form_type,
        "form_base64": base64.b64encode(heard.form).decode(),
        "text": heard.text,
        "reasons": [
            {
                "field": item.text.strip()[:60],
                "value": f"log-probability {item.avg_logprob:.3f}",
                "effect": chance(item),
            }
            for item in heard.segments
        ],
        "score": heard.chance,
        "verdict": "a person listens" if heard.doubts or not heard.segments else "written down",
        "receipt": attempt["proof"],
        "chain_id": chain_id,
        "reviewer": None,
        "outcome": None,
    }


def kept(pool: PoolScorer, found: Sequence[Heard], out: Path) -> list[tuple[dict[str, Any], Path]]:
    """A file for each clip, with its receipt. Call it soon: the gateway's book is short."""
    proofs, made = pool.proofs(MODEL), []
    for heard in found:
        attempt = proofs.get(to_hex(hashlib.sha256(heard.form).digest()))
        if attempt is None:
            raise Unavailable("the gateway's book has no receipt for a clip")
        decision = record(heard, attempt, pool.chain_id)
        made.append((decision, audit.write(decision, out)))
    return made


def replay(decision: Mapping[str, Any]) -> Replay:
    """Hear it again, by the engine in this process. Raises `Refused(bad_hash)` where the file was
    altered or is about another model than it says."""
    return replays([decision])[0][0]


def replays(decisions: Sequence[Mapping[str, Any]]) -> list[tuple[Replay, float]]:
    """As `replay`, with one engine for all; also the milliseconds of each."""
    asked = [_request(decision) for decision in decisions]

    async def hear(engine: Any) -> list[tuple[Replay, float]]:
        made = []
        for decision, request in zip(decisions, asked, strict=True):
            begun = time.perf_counter()
            now = await engine.transcribe(request.audio, request.language, _length_ms(request))
            ms = 1000 * (time.perf_counter() - begun)
            made.append((_compared(decision, now.text, engine.engine_class), ms))
        return made

    return in_process(MODEL, hear)


def _request(decision: Mapping[str, Any]) -> TranscriptionRequest:
    form = base64.b64decode(decision["form_base64"], validate=True)
    if hashlib.sha256(form).hexdigest() != decision["input_sha256"]:
        raise Refused("the decision's input does not have its hash", code="bad_hash")
    if catalogue.load(MODEL).id != decision["manifest"]:
        message = f"{MODEL} is now another model than the one that decided"
        raise Refused(message, code="bad_hash")
    return TranscriptionRequest.parse(form, decision["form_type"].encode())


def _length_ms(request: TranscriptionRequest) -> int:
    """Of 16 kHz mono WAV of 16 bits, whose header has 44 bytes: what `Ear` sends."""
    return -(-(len(request.audio) - 44) // 32)


def _compared(decision: Mapping[str, Any], text: str, now: str) -> Replay:
    then, again = decision["text"].split(), text.split()
    wrong = len(then) + len(again) - 2 * sum(right(then, again))
    apart = wrong / max(1, len(then) + len(again))
    bitwise = text == decision["text"]
    same = bitwise or (now != decision["class"] and apart <= OTHER_CLASS)
    asked = bytes.fromhex(decision["input_sha256"])
    signed, about_this = audit.proven(decision, asked)
    return Replay(same, bitwise, apart, decision["class"], now, signed, about_this)


def shown(decision: Mapping[str, Any], path: Path, again: Replay, ms: float) -> dict[str, Any]:
    """The decision for the report's table."""
    charge = int(decision["receipt"]["receipt"]["chargePico"])
    return asdict(
        Decision(
            MODEL, decision["score"], decision["verdict"], decision["text"][:60], decision["node"],
            charge, again.same, again.bitwise, path.name, tuple(decision["left_out"]),
            again.signed, again.about_this, False, round(ms, 1),
        )
    )  # fmt: skip


# -- the line ------------------------------------------------------------------------------------


def watched(samples: Array) -> Array:
    """What the monitor looks at, before anything is heard: [windows, 3]."""
    count = len(samples) // WINDOW
    windows = samples[: count * WINDOW].reshape(count, WINDOW).astype(np.float64)
    power = np.abs(np.fft.rfft(windows, axis=1))[:, 1:] ** 2 + 1.0
    loud = 10 * np.log10((windows**2).mean(axis=1) + 1.0)
    crossed = (np.diff(np.sign(windows), axis=1) != 0).mean(axis=1)
    flat = np.exp(np.log(power).mean(axis=1)) / power.mean(axis=1)
    return np.stack([loud, crossed, flat], axis=1).astype(np.float32)


def line(clean: Array, noisy: Array) -> dict[str, Any]:
    """Drift: every second window of the clean clips is known, the others are today's, and a noisy
    line is the rehearsal."""
    found = watched(clean)
    monitor = Monitor(WATCHED, *reference(found[0::2]))
    now, worse = monitor.check(found[1::2]), monitor.check(watched(noisy))[0]
    return {
        "n": len(found[1::2]),
        "worst": [asdict(item) for item in now],
        "alarms": sum(item.alarm for item in now),
        "rehearsal": {
            "shifted": worse.field, "how": "on a noisy line", "psi": worse.psi,
            "alarm": worse.alarm,
        },
    }  # fmt: skip


def loaded(path: Path) -> dict[str, Any]:
    """A record from its file."""
    found: dict[str, Any] = orjson.loads(path.read_bytes())
    return found
