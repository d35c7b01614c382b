"""Stop texts: an answer ends before the first of them, however the tokens cut it up."""

from __future__ import annotations


class StopText:
    """The text of one answer, held back as long as it may be the start of a stop text."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""

    def take(self, text: str) -> tuple[str, bool]:
        """(what may be shown now, whether a stop text ended the answer)."""
        if not self._stop:
            return text, False
        held = self._held + text
        ends = [at for stop in self._stop if stop and (at := held.find(stop)) >= 0]
        if ends:
            return held[: min(ends)], True
        shown = len(held) - max(_overlap(held, stop) for stop in self._stop)
        self._held = held[shown:]
        return held[:shown], False

    def rest(self) -> str:
        """What was held back, at an end for another reason."""
        return self._held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
