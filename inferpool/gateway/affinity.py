"""Which node has seen the beginning of a prompt: hashes of blocks, in memory only.

A prompt is cut into blocks, each hashed together with all before it, so that one look-up a block
finds the longest beginning that a node served before. Nothing of the text is kept: a hash is the
interpreter's own, keyed anew in each process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.completion import CompletionRequest

BLOCKS_MAX: Final = 64
# Fine where prompts differ, coarse where they are long: 4 KiB, then 36 KiB, then 292 KiB.
_SIZES: Final = (*[256] * 16, *[1024] * 32, *[16_384] * 16)
ENDS: Final = tuple(accumulate(_SIZES))  # bytes of a prompt up to the end of each block
HOLDERS_MAX: Final = 4  # nodes that are remembered for one block, the latest
KEPT_MAX: Final = 200_000  # blocks
WARM_MS: Final = 600_000  # an engine has thrown it out by then

Blocks = tuple[int, ...]
assert len(_SIZES) == BLOCKS_MAX, "one size a block"


def texts(parsed: ChatRequest | CompletionRequest) -> list[str]:
    """All of a prompt's text, in the order in which an engine reads it."""
    if isinstance(parsed, CompletionRequest):
        return [parsed.prompt]
    return [
        str(message.get(key)) for message in parsed.plain_messages for key in ("role", "content")
    ]


def blocks(texts: Iterable[str]) -> Blocks:
    """The hashes of a prompt's whole blocks; none for a prompt that is shorter than one."""
    data = "\x1f".join(texts).encode("utf-8", "surrogatepass")
    found, begun, chain = [], 0, 0
    for end in ENDS:
        if end > len(data):
            break
        chain = hash((chain, data[begun:end]))
        found.append(chain)
        begun = end
    return tuple(found)


@dataclass(slots=True)
class PrefixMap:
    """Block -> nodes that served a prompt with it, and when (UNIX ms)."""

    _holders: OrderedDict[int, dict[bytes, int]] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._holders)

    def note(self, prompt: Blocks, node: bytes, now_ms: int) -> None:
        """A node served this prompt."""
        for block in prompt:
            holders = self._holders.setdefault(block, {})
            self._holders.move_to_end(block)
            holders.pop(node, None)
            holders[node] = now_ms
            if len(holders) > HOLDERS_MAX:
                del holders[next(iter(holders))]
        while len(self._holders) > KEPT_MAX:
            self._holders.popitem(last=False)

    def warm(self, prompt: Blocks, now_ms: int) -> dict[bytes, int]:
        """Node -> bytes of the prompt's beginning that it knows; the deepest only."""
        depth = 0
        for block in prompt:
            if block not in self._holders:
                break
            depth += 1
        while depth:
            holders = self._holders[prompt[depth - 1]]
            fresh = {node: ENDS[depth - 1] for node, at in holders.items() if at > now_ms - WARM_MS}
            if fresh:
                return fresh
            depth -= 1
        return {}
