"""One stream as a client of today sees it: openai-python, its chunks and when they came."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import openai

from tests.faults.kit import MODEL, FaultyPool


@dataclass(slots=True)
class Seen:
    """What came. `gap_s`: the longest silence between two chunks with text."""

    text: str = ""
    finish: str | None = None
    error: str | None = None
    done: bool = False  # the stream ended as a whole one does
    proof: dict[str, Any] = field(default_factory=dict)
    first_s: float = 0.0
    gap_s: float = 0.0


def stream(pool: FaultyPool, content: str, tokens: int, seed: int, **options: Any) -> Seen:
    """Ask for an answer of that many tokens."""
    seen = Seen()
    begun = last = time.monotonic()
    with pool.client() as client:
        try:
            chunks = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": content}],
                max_tokens=tokens,
                seed=seed,
                stream=True,
                **options,
            )
            for chunk in chunks:
                now = time.monotonic()
                choice = chunk.choices[0]
                if choice.delta.content:
                    if seen.text:
                        seen.gap_s = max(seen.gap_s, now - last)
                    else:
                        seen.first_s = now - begun
                    seen.text += choice.delta.content
                    last = now
                seen.finish = choice.finish_reason or seen.finish
                seen.proof = getattr(chunk, "inferpool", None) or seen.proof
            seen.done = seen.finish is not None
        except openai.APIError as error:
            seen.error = error.code or type(error).__name__
    return seen
