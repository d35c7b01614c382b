"""What a service takes beyond the common parameters of a text request, told beside its offer.

An offer's structs are fixed, and courts read them; so the names travel in a statement of their own
that the node signs over the offer's hash: one text for each service, in the offer's order, the
names sorted and joined by commas. A service that says nothing takes none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from inferpool.protocol import eip712
from inferpool.protocol.limits import PARAMETERS_MAX

LOGPROBS: Final = "logprobs"
LOGIT_BIAS: Final = "logit_bias"
RESPONSE_FORMAT: Final = "response_format"
TOOLS: Final = "tools"
ALL: Final = (LOGIT_BIAS, LOGPROBS, RESPONSE_FORMAT, TOOLS)

# A name -> the parameters of OpenAI's API that it stands for, as OpenRouter lists them.
STANDS_FOR: Final[dict[str, tuple[str, ...]]] = {
    LOGPROBS: ("logprobs", "top_logprobs"),
    RESPONSE_FORMAT: ("response_format", "structured_outputs"),
    TOOLS: ("parallel_tool_calls", "tool_choice", "tools"),
}
# What every text service takes.
COMMON: Final = (
    "frequency_penalty",
    "max_tokens",
    "min_p",
    "presence_penalty",
    "repeat_penalty",
    "seed",
    "stop",
    "temperature",
    "top_k",
    "top_p",
)

_TYPE: Final = eip712.keccak256(b"Parameters(bytes32 offer,string[] services)")
_TEXT: Final = re.compile("([a-z_]{1,32}(,[a-z_]{1,32})*)?")


def join(names: Iterable[str]) -> str:
    """One service's names as they travel."""
    return ",".join(sorted(names))


def split(text: str) -> tuple[str, ...]:
    """The names in a stranger's text. Raises ValueError where it is not the one form of them."""
    if not _TEXT.fullmatch(text):
        raise ValueError("names are lower-case letters and _, joined by commas")
    names = text.split(",") if text else []
    if len(names) > PARAMETERS_MAX:
        raise ValueError(f"at most {PARAMETERS_MAX} names")
    if names != sorted(set(names)):
        raise ValueError("names are sorted, each once")
    return tuple(names)


def digest(offer_hash: bytes, services: Sequence[str], chain_id: int) -> bytes:
    """What the node key signs, over the texts of an offer's services."""
    struct = eip712.keccak256(
        _TYPE + eip712.word(offer_hash) + eip712.array(eip712.string(text) for text in services)
    )
    return eip712.digest(eip712.inferpool_domain(chain_id), struct)


def supported(names: Iterable[str]) -> list[str]:
    """OpenAI's names of all that a text service takes."""
    return sorted({*COMMON, *(p for name in names for p in STANDS_FOR.get(name, (name,)))})
