"""Control tokens that somebody wrote into a message: they are to be read as the text they are.

llama.cpp reads a prompt's text once, and cannot tell the `<|im_end|>` that a template wrote from
the one that a stranger did; whoever gets the second through ends his message and begins the
system's. So each such text within a message is replaced by a marker before the template is
applied, and by one control token that the template did not use before the prompt is cut into
tokens; that token's places then take what the text is as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

Messages = Sequence[dict[str, str]]

_MARK: Final = "m{nonce}x{index}m"  # letters and digits: no template trims or escapes them


class ControlText:
    """A model's control tokens, by their texts; see `gguf_control.control_texts`."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(dict.fromkeys(texts))
        self._index = {text: index for index, text in enumerate(self.texts)}
        self._any = re.compile(_pattern(sorted(self.texts)) if self.texts else r"(?!)")

    def count(self, texts: Iterable[str]) -> int:
        """How many there are in all: a prompt with them has no fewer tokens."""
        return sum(1 for text in texts for _ in self._any.finditer(text))

    def marked(self, messages: Messages, nonce: str) -> list[dict[str, str]]:
        """The messages with a marker in the place of each; `nonce`: what no message can contain."""

        def mark(found: re.Match[str]) -> str:
            return _MARK.format(nonce=nonce, index=self._index[found[0]])

        return [{name: self._any.sub(mark, text) for name, text in m.items()} for m in messages]

    def unused(self, prompt: str) -> Iterator[str]:
        """The control tokens that a prompt with markers does not have."""
        return (text for text in self.texts if text not in prompt)

    def unmarked(self, prompt: str, nonce: str, stand_in: str) -> tuple[str, list[str]]:
        """The prompt with `stand_in` for each marker, and what each stands for, in order."""
        stands_for: list[str] = []

        def stand(found: re.Match[str]) -> str:
            stands_for.append(self.texts[int(found[1])])
            return stand_in

        mark = _MARK.format(nonce=nonce, index="([0-9]+)")
        return re.sub(mark, stand, prompt), stands_for


def _pattern(texts: Sequence[str]) -> str:
    """A regular expression for any of sorted texts, the longest first, that branches by their next
    character only: thousands of alternatives cost what the longest of them is long."""
    ends = "" in texts
    by_first: dict[str, list[str]] = {}
    for text in filter(None, texts):
        by_first.setdefault(text[0], []).append(text[1:])
    branches = []
    for first, rests in by_first.items():
        while "" not in rests and len({rest[0] for rest in rests}) == 1:  # a run without a branch
            first, rests = first + rests[0][0], [rest[1:] for rest in rests]
        branches.append(re.escape(first) + (_pattern(rests) if rests != [""] else ""))
    whole = "|".join(branches)
    if ends:
        return f"(?:{whole})?" if whole else ""
    return whole if len(branches) == 1 else f"(?:{whole})"
