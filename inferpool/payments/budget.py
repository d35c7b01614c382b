"""Budgets of API keys and teams: held + spent never exceeds a limit. Pure; amounts in pico-USD.

A budget has up to three limits: in all, in a calendar month and on a day (UTC). A key's request is
held against the key's budget and against its team's. Where several gateway processes share a
book, each spends in its own lane; what the others spent and hold is `elsewhere`, as last read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from inferpool.payments.rates import Rate
from inferpool.payments.rules import NO_RULES, Rules
from inferpool.protocol.errors import PaymentRequired
from inferpool.protocol.units import format_usd

_DAY_MS: Final = 86_400_000


def day_of(now_ms: int) -> int:
    """Days since 1970-01-01, UTC."""
    return now_ms // _DAY_MS


def month_of(day: int) -> int:
    """Months since year 0 of a day."""
    at = datetime.fromtimestamp(day * (_DAY_MS // 1000), UTC)
    return at.year * 12 + at.month - 1


@dataclass(slots=True)
class Spent:
    """What was spent in all, in the month and on the day that it names."""

    total: int = 0
    month: int = 0
    in_month: int = 0
    day: int = 0
    on_day: int = 0

    def turn(self, day: int, month: int) -> None:
        """Begin a new day, and month; time that runs backwards changes nothing."""
        if day > self.day:
            self.day, self.on_day = day, 0
        if month > self.month:
            self.month, self.in_month = month, 0

    def add(self, amount: int) -> None:
        """Spend on the day that it names."""
        self.total += amount
        self.in_month += amount
        self.on_day += amount

    def plus(self, other: Spent) -> None:
        """Count another lane's spending in, as far as it is of the same day and month."""
        self.total += other.total
        self.in_month += other.in_month if other.month == self.month else 0
        self.on_day += other.on_day if other.day == self.day else 0


@dataclass(slots=True)
class Purse:
    """One budget. `limit_pico_usd` None: no limit in all; the others are in `rules`."""

    name: str
    limit_pico_usd: int | None
    before_pico_usd: int = 0  # spent before lanes were counted
    rules: Rules = NO_RULES
    own: Spent = field(default_factory=Spent)  # this process's lane, this run and earlier ones
    elsewhere: Spent = field(default_factory=Spent)
    held_pico_usd: int = 0
    held_elsewhere_pico_usd: int = 0
    owner: bytes = b""  # its id in the book of keys

    def __post_init__(self) -> None:
        if self.limit_pico_usd is not None:
            self.rules = replace(self.rules, total_pico_usd=self.limit_pico_usd)

    @property
    def spent_pico_usd(self) -> int:
        """Everything ever spent."""
        return self.before_pico_usd + self.own.total + self.elsewhere.total

    @property
    def limited(self) -> bool:
        """Whether any limit is set."""
        rules = self.rules
        return not (
            self.limit_pico_usd is None
            and rules.month_pico_usd is None
            and rules.day_pico_usd is None
        )

    @property
    def tightest(self) -> tuple[int, str] | None:
        """What may still be held, and of which limit; None without one."""
        if not self.limited:
            return None
        spent, rules = self._now(), self.rules
        found = [
            (limit - used, when)
            for limit, used, when in (
                (self.limit_pico_usd, self.spent_pico_usd, ""),
                (rules.month_pico_usd, spent.in_month, " this month"),
                (rules.day_pico_usd, spent.on_day, " today"),
            )
            if limit is not None
        ]
        free, when = min(found)
        return free - self.held_pico_usd - self.held_elsewhere_pico_usd, when

    def _now(self) -> Spent:
        if not self.elsewhere.total:
            return self.own
        both = Spent(0, self.own.month, 0, self.own.day, 0)
        both.plus(self.own)
        both.plus(self.elsewhere)
        return both

    def spent_now(self) -> tuple[int, int, int]:
        """In all, this month, today."""
        now = self._now()
        return self.spent_pico_usd, now.in_month, now.on_day

    def turn(self, day: int, month: int) -> None:
        """Begin a new day."""
        self.own.turn(day, month)
        self.elsewhere.turn(day, month)


@dataclass(slots=True)
class Team(Purse):
    """A budget and rules that several keys have in common."""

    rate: Rate = field(default_factory=Rate)


@dataclass(slots=True)
class Account(Purse):
    """One key's account. Its name is what attempts, traces and usage are kept under."""

    held: dict[bytes, int] = field(default_factory=dict)
    team: Team | None = None
    rate: Rate = field(default_factory=Rate)

    @property
    def purses(self) -> list[Purse]:
        """The budgets that its requests count against."""
        return [self] if self.team is None else [self, self.team]

    @property
    def free_pico_usd(self) -> int | None:
        """What may still be held, or None without a limit."""
        found = [purse.tightest for purse in self.purses]
        return min((item[0] for item in found if item is not None), default=None)

    @property
    def tightest_purse(self) -> Purse:
        """The one that has the least left; itself where nothing is limited."""
        found = [(purse.tightest, purse) for purse in self.purses]
        limited = [(free[0], purse) for free, purse in found if free is not None]
        return min(limited, key=lambda item: item[0])[1] if limited else self

    def at(self, now_ms: int) -> None:
        """Begin a new day or month where one began."""
        day = day_of(now_ms)
        for purse in self.purses:
            if day > purse.own.day:
                purse.turn(day, month_of(day))

    def hold(self, request_id: bytes, maximum_pico_usd: int) -> None:
        """Reserve the maximum of one client request. Raises PaymentRequired(budget_exceeded).

        One step without an await: of 100 parallel requests on a budget for 10, 10 pass.
        """
        assert request_id not in self.held, "one hold for a request"
        for purse in self.purses:
            tightest = purse.tightest
            if tightest is not None and maximum_pico_usd > tightest[0]:
                raise self.refusal(purse, maximum_pico_usd)
        self.held[request_id] = maximum_pico_usd
        self._held(maximum_pico_usd)

    def refusal(self, purse: Purse, maximum_pico_usd: int) -> PaymentRequired:
        """What to tell a caller whose budget is too small."""
        assert purse.tightest is not None, "only a limit refuses"
        free, when = purse.tightest
        whose = "the key" if purse is self else f"its team {purse.name}"
        return PaymentRequired(
            f"This request may cost {format_usd(maximum_pico_usd)}; {whose} has"
            f" {format_usd(free)} left{when}. Lower max_tokens or raise the budget.",
            code="budget_exceeded",
        )

    def hold_more(self, request_id: bytes, more_pico_usd: int) -> bool:
        """Raise a hold that stands; False, and nothing changed, where the budget is too small."""
        assert request_id in self.held, "only a hold that stands is raised"
        assert more_pico_usd > 0, "holds are raised here, never lowered"
        free = self.free_pico_usd
        if free is not None and more_pico_usd > free:
            return False
        self.held[request_id] += more_pico_usd
        self._held(more_pico_usd)
        return True

    def release(self, request_id: bytes) -> None:
        """End a hold: what is left of it is free again."""
        self._held(-self.held.pop(request_id, 0))

    def spend(self, request_id: bytes, charge_pico_usd: int) -> None:
        """Turn a part of a hold into spending while the rest stays held.

        Without the hold (an earlier run's) it is spending all the same: the node is owed it.
        """
        held = self.held.get(request_id, 0)
        for purse in self.purses:
            purse.own.add(charge_pico_usd)
        if held:
            rest = max(0, held - charge_pico_usd)
            self.held[request_id] = rest
            self._held(rest - held)

    def refund(self, billed_pico_usd: int) -> None:
        """Take back what was spent."""
        for purse in self.purses:
            own = purse.own
            own.total -= billed_pico_usd
            own.in_month = max(0, own.in_month - billed_pico_usd)
            own.on_day = max(0, own.on_day - billed_pico_usd)

    def _held(self, more_pico_usd: int) -> None:
        for purse in self.purses:
            purse.held_pico_usd += more_pico_usd
            assert purse.held_pico_usd >= 0, "holds are never negative"
