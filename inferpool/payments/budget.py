"""Budgets of API keys: held + spent never exceeds the limit. Pure; amounts in pico-USD."""

from __future__ import annotations

from dataclasses import dataclass, field

from inferpool.protocol.errors import PaymentRequired
from inferpool.protocol.units import format_usd


@dataclass(slots=True)
class Account:
    """One key's account. `limit_pico_usd` None: no limit but the operator's own."""

    name: str
    limit_pico_usd: int | None
    spent_pico_usd: int = 0
    held: dict[bytes, int] = field(default_factory=dict)
    held_pico_usd: int = 0

    @property
    def free_pico_usd(self) -> int | None:
        """What may still be held, or None without a limit."""
        if self.limit_pico_usd is None:
            return None
        return self.limit_pico_usd - self.spent_pico_usd - self.held_pico_usd

    def hold(self, request_id: bytes, maximum_pico_usd: int) -> None:
        """Reserve the maximum of one client request. Raises PaymentRequired(budget_exceeded).

        One step without an await: of 100 parallel requests on a budget for 10, 10 pass.
        """
        assert request_id not in self.held, "one hold for a request"
        free = self.free_pico_usd
        if free is not None and maximum_pico_usd > free:
            raise PaymentRequired(
                f"This request may cost {format_usd(maximum_pico_usd)}; the key has"
                f" {format_usd(free)} left. Lower max_tokens or raise the key's budget.",
                code="budget_exceeded",
            )
        self.held[request_id] = maximum_pico_usd
        self.held_pico_usd += maximum_pico_usd

    def hold_more(self, request_id: bytes, more_pico_usd: int) -> bool:
        """Raise a hold that stands; False, and nothing changed, where the budget is too small."""
        assert request_id in self.held, "only a hold that stands is raised"
        assert more_pico_usd > 0, "holds are raised here, never lowered"
        free = self.free_pico_usd
        if free is not None and more_pico_usd > free:
            return False
        self.held[request_id] += more_pico_usd
        self.held_pico_usd += more_pico_usd
        return True

    def release(self, request_id: bytes) -> None:
        """End a hold: what is left of it is free again."""
        self.held_pico_usd -= self.held.pop(request_id, 0)
        assert self.held_pico_usd >= 0, "holds are never negative"

    def spend(self, request_id: bytes, charge_pico_usd: int) -> None:
        """Turn a part of a hold into spending while the rest stays held.

        Without the hold (an earlier run's) it is spending all the same: the node is owed it.
        """
        held = self.held.get(request_id, 0)
        self.spent_pico_usd += charge_pico_usd
        if held:
            rest = max(0, held - charge_pico_usd)
            self.held[request_id] = rest
            self.held_pico_usd -= held - rest
