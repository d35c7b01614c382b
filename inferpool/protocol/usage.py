"""What one attempt used, in the units that its service sells."""

from __future__ import annotations

from inferpool.protocol.value import value


@value
class Usage:
    """Units that went in and came out: tokens; rows in; seconds in; steps out."""

    prompt_units: int
    output_units: int

    def __post_init__(self) -> None:
        assert self.prompt_units >= 0, "units are never negative"
        assert self.output_units >= 0, "units are never negative"
