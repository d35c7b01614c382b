"""Rate limits of one key or team: requests and tokens a minute, requests at once. Pure.

A bucket holds a minute's allowance and fills evenly, so that no burst at the turn of a minute
passes twice. Levels are integers: units times 60,000, of which a millisecond brings `per_minute`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from inferpool.payments.rules import Rules
from inferpool.protocol.errors import RateLimited

_MINUTE_MS: Final = 60_000
Header = tuple[bytes, bytes]


@dataclass(slots=True)
class Bucket:
    """What is left of a minute's allowance. `per_minute` None: no limit."""

    per_minute: int | None = None
    level: int = 0
    at_ms: int = 0

    def set(self, per_minute: int | None, now_ms: int) -> None:
        """Another limit; what was used before counts against it."""
        if per_minute == self.per_minute:
            return
        used = 0 if self.per_minute is None else self.per_minute * _MINUTE_MS - self._fill(now_ms)
        self.per_minute, self.at_ms = per_minute, now_ms
        self.level = 0 if per_minute is None else max(0, per_minute * _MINUTE_MS - used)

    def _fill(self, now_ms: int) -> int:
        if self.per_minute is None:
            return 0
        brought = max(0, now_ms - self.at_ms) * self.per_minute
        self.level = min(self.per_minute * _MINUTE_MS, self.level + brought)
        self.at_ms = max(self.at_ms, now_ms)
        return self.level

    def wait_ms(self, units: int, now_ms: int) -> int:
        """How long until so many are there; 0: now. What is more than a minute's is a minute's."""
        if self.per_minute is None:
            return 0
        missing = min(units, self.per_minute) * _MINUTE_MS - self._fill(now_ms)
        return max(0, -(-missing // self.per_minute))

    def take(self, units: int) -> None:
        """Use units, or give them back where negative. The level may go below 0."""
        if self.per_minute is not None:
            full = self.per_minute * _MINUTE_MS
            self.level = max(-full, min(full, self.level - units * _MINUTE_MS))

    def headers(self, kind: bytes, now_ms: int) -> list[Header]:
        """OpenAI's three headers."""
        if self.per_minute is None:
            return []
        left = max(0, self._fill(now_ms)) // _MINUTE_MS
        full_ms = -(-(self.per_minute * _MINUTE_MS - self.level) // self.per_minute)
        return [
            (b"x-ratelimit-limit-" + kind, b"%d" % self.per_minute),
            (b"x-ratelimit-remaining-" + kind, b"%d" % left),
            (b"x-ratelimit-reset-" + kind, duration(full_ms)),
        ]


@dataclass(slots=True)
class Rate:
    """The three limits with their state."""

    requests: Bucket
    tokens: Bucket
    concurrent: int | None
    running: int
    running_elsewhere: int  # in other processes, as last read

    def __init__(self) -> None:
        self.requests, self.tokens = Bucket(), Bucket()
        self.concurrent, self.running, self.running_elsewhere = None, 0, 0

    def set(self, rules: Rules, now_ms: int) -> None:
        """The limits of rules."""
        self.requests.set(rules.requests_per_minute, now_ms)
        self.tokens.set(rules.tokens_per_minute, now_ms)
        self.concurrent = rules.concurrent

    def check(self, now_ms: int) -> None:
        """Whether one more request may begin. Raises RateLimited with the time to wait."""
        if self.concurrent is not None and self.running >= self.concurrent:
            raise concurrent_reached(self.concurrent)
        wait_ms = self.requests.wait_ms(1, now_ms)
        if wait_ms:
            raise late(f"{self.requests.per_minute} requests a minute", wait_ms)

    def check_tokens(self, units: int, now_ms: int) -> None:
        """Whether so many tokens may be used. Raises RateLimited with the time to wait."""
        wait_ms = self.tokens.wait_ms(units, now_ms)
        if wait_ms:
            raise late(f"{self.tokens.per_minute} tokens a minute", wait_ms)

    def begin(self, *, counted: bool = False) -> None:
        """A request begins; `counted`: the common book has counted it already."""
        if not counted:
            self.requests.take(1)
        self.running += 1

    def end(self) -> None:
        """It ended."""
        self.running -= 1
        assert self.running >= 0, "what ends has begun"

    def headers(self, now_ms: int) -> list[Header]:
        """Nothing where nothing is limited."""
        return [
            *self.requests.headers(b"requests", now_ms),
            *self.tokens.headers(b"tokens", now_ms),
        ]


def concurrent_reached(limit: int) -> RateLimited:
    """What a caller is told that has too many requests under way."""
    return RateLimited(
        f"{limit} requests of this key run at once, which is its limit.", retry_after_s=1
    )


def late(what: str, wait_ms: int) -> RateLimited:
    """What a caller is told that asks too often."""
    return RateLimited(
        f"This key is limited to {what}; try again in {duration(wait_ms).decode()}.",
        retry_after_s=-(-wait_ms // 1000),
    )


def duration(ms: int) -> bytes:
    """As OpenAI writes it: 120ms, 1.5s, 6m0s."""
    if ms < 1000:
        return b"%dms" % ms
    minutes, rest = divmod(ms, _MINUTE_MS)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return (f"{minutes}m{seconds}s" if minutes else f"{seconds}s").encode()
