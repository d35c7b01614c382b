"""Who asks, and what they may: the caller, the hold on its budget, the rules that it must keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.preferences import trust
from inferpool.gateway.router import Allows, Candidate
from inferpool.payments.budget import Account, Purse
from inferpool.payments.fees import fee_up
from inferpool.payments.rates import Header, Rate
from inferpool.payments.rules import PERCENT, Rules
from inferpool.protocol.errors import BadRequest, Unauthorized
from inferpool.protocol.job import Job
from inferpool.protocol.offer import Service
from inferpool.protocol.price import maximum_pico_usd
from inferpool.protocol.receipt import Outcome
from inferpool.protocol.usage import Usage

if TYPE_CHECKING:
    from inferpool.gateway.walk_ins import WalkIn


class SharedLimits(Protocol):
    """Budgets and rates that other gateway processes count against too. Each raises
    Unavailable(ledger_unavailable) while the common book is away."""

    def concerns(self, account: Account) -> bool:
        """Whether anything of it is limited; else nobody is asked."""
        ...

    async def catch_up(self, *, spending: bool = False) -> None:
        """Read keys and rules that changed elsewhere; also what the others spent and hold."""
        ...

    async def begin(self, account: Account) -> None:
        """A request begins. Raises RateLimited."""
        ...

    def end(self, purses: Sequence[Purse]) -> None:
        """One that began on these ended."""
        ...

    async def reserve(self, account: Account, client_id: str, pico_usd: int) -> bool:
        """Reserve for a request; False where a limit forbids it. Learns how the others stand."""
        ...

    def release(self, account: Account, client_id: str) -> None:
        """Free what was reserved for a request, once its bill is on disk."""
        ...

    async def take_tokens(self, account: Account, units: int) -> None:
        """Count expected tokens. Raises RateLimited."""
        ...

    def correct_tokens(self, account: Account, units: int) -> None:
        """Count more, or fewer where negative."""
        ...


@dataclass(slots=True)
class Caller:
    """Who asks: an account with its id in the book of keys."""

    account_id: bytes
    account: Account
    client_ids: list[str] = field(default_factory=list)  # of its request, once it is held
    shared: SharedLimits | None = None  # that count its request, where others do too
    walk_in: WalkIn | None = None  # where it pays by x402
    purses: list[Purse] = field(init=False)  # and the limits that its requests count against:
    rates: list[Rate] = field(init=False)  # of the key, and of the team that it is in now

    def __post_init__(self) -> None:
        account, team = self.account, self.account.team
        self.purses = [account] if team is None else [account, team]
        self.rates = [account.rate] if team is None else [account.rate, team.rate]

    @property
    def free_pico_usd(self) -> int | None:
        """What its next request may cost; None without a limit."""
        if self.walk_in is not None:
            return self.walk_in.most_pico_usd
        for purse in self.purses:
            if purse.limited:
                return self.account.free_pico_usd
        return None

    async def begin(self, now_ms: int, shared: SharedLimits | None = None) -> None:
        """A request of it begins, and `end` follows. Raises RateLimited, Unavailable."""
        if self.account.team is not (self.purses[1] if len(self.purses) > 1 else None):
            self.__post_init__()  # the key changed its team while the body came
        if shared is not None and shared.concerns(self.account):
            self.shared = shared
        if self.shared is not None:
            await self.shared.begin(self.account)
        else:
            for rate in self.rates:
                rate.check(now_ms)
        for rate in self.rates:
            rate.begin(counted=self.shared is not None)

    def end(self) -> None:
        """A request that began is served."""
        for rate in self.rates:
            rate.end()
        if self.shared is not None:
            self.shared.end(self.purses)

    async def take_tokens(self, units: int, now_ms: int) -> None:
        """Count expected tokens, to be corrected at the end. Raises RateLimited, Unavailable."""
        if self.shared is not None:
            await self.shared.take_tokens(self.account, units)
            return
        for rate in self.rates:
            if rate.tokens.per_minute is not None:
                rate.check_tokens(units, now_ms)
        self.correct_tokens(units)

    def correct_tokens(self, units: int) -> None:
        """Count more, or fewer where negative."""
        if self.shared is not None:
            self.shared.correct_tokens(self.account, units)
            return
        for rate in self.rates:
            if rate.tokens.per_minute is not None:
                rate.tokens.take(units)

    @property
    def tells_rates(self) -> bool:
        """Whether there is a limit that headers would tell of."""
        for rate in self.rates:
            if rate.requests.per_minute is not None or rate.tokens.per_minute is not None:
                return True
        return False

    def rate_headers(self, now_ms: int) -> Sequence[Header]:
        """OpenAI's headers, of the key's own limits, else of its team's."""
        for rate in self.rates:
            if rate.requests.per_minute is not None or rate.tokens.per_minute is not None:
                return rate.headers(now_ms)
        return ()

    def check_model(self, model: str) -> None:
        """Whether its rules name this model, or none. Raises Unauthorized(model_refused)."""
        for purse in self.purses:
            rules = purse.rules
            if rules.models and model not in rules.models:
                raise Unauthorized(
                    f"This API key may not use {model!r}; it may use {', '.join(rules.models)}.",
                    code="model_refused",
                    param="model",
                )

    def allows(self, job: Job, now_ms: int) -> Allows | None:
        """Why a service is ruled out by its rules, "" where it is not; None where nothing is."""
        strict = [purse.rules for purse in self.purses if _strict(purse.rules)]
        if not strict:
            return None

        def why(node: KnownNode, service: Service) -> str:
            reasons = (_why_not(rules, job, now_ms, node, service) for rules in strict)
            return next(filter(None, reasons), "")

        return why


def both(one: Allows | None, other: Allows | None) -> Allows | None:
    """What passes the rules of a key and its caller's own preferences."""
    if one is None or other is None:
        return one or other
    return lambda node, service: one(node, service) or other(node, service)


def _strict(rules: Rules) -> bool:
    return not (
        rules.min_trust_percent == 0
        and rules.max_in_pico_usd_per_unit is None
        and rules.max_out_pico_usd_per_unit is None
        and rules.max_request_pico_usd is None
    )


def _why_not(rules: Rules, job: Job, now_ms: int, node: KnownNode, service: Service) -> str:
    most_in, most_out = rules.max_in_pico_usd_per_unit, rules.max_out_pico_usd_per_unit
    if most_in is not None and service.price_in_pico_usd_per_unit > most_in:
        return "over the key's price"
    if most_out is not None and service.price_out_pico_usd_per_unit > most_out:
        return "over the key's price"
    if rules.min_trust_percent > PERCENT * trust(node, now_ms):
        return "under the key's trust"
    if rules.max_request_pico_usd is not None:
        try:
            if maximum_pico_usd(job, service) > rules.max_request_pico_usd:
                return "over the key's price of a request"
        except BadRequest:  # no maximum there: the router says so
            return ""
    return ""


@dataclass(slots=True)
class Hold:
    """The budget's reservation for one client request. `complete`: its bill is final."""

    client_id: str
    caller: Caller
    candidates: list[Candidate]  # those that the budget covers, in the order to try
    most_pico_usd: int  # reserved so far: the dearest maximum of those that were tried
    complete: bool = False
    manifest: bytes = b""  # of the node that serves it
    expected_units: int = 0  # counted against token rates before, corrected at the end
    choices: int = 0  # made for it so far
    units: int = 0  # that settled attempts used
    fee_bps: int = 0
    fee_pico_usd: int = 0  # billed so far

    async def settle(self, usage: Usage | None = None) -> None:
        """The answer is whole: what was billed is what a walk-in pays, told with the answer."""
        if self.caller.walk_in is not None:
            await self.caller.walk_in.settle(Outcome.COMPLETE, usage)

    async def covers_too(self, candidate: Candidate) -> bool:
        """Whether the budget covers this candidate beside the one that is tried."""
        return await self._more(max(1, candidate.maximum_pico_usd))

    async def covers(self, candidate: Candidate) -> bool:
        """Whether the budget covers this candidate's maximum too; reserves what is missing."""
        more = candidate.maximum_pico_usd - self.most_pico_usd
        if more > 0:
            if not await self._more(more):
                return False
            self.most_pico_usd = candidate.maximum_pico_usd
        return True

    async def _more(self, more_pico_usd: int) -> bool:
        most = more_pico_usd + fee_up(more_pico_usd, self.fee_bps)
        account, shared = self.caller.account, self.caller.shared
        walk_in = self.caller.walk_in
        if walk_in and not walk_in.covers(account.held[self.client_id.encode()] + most):
            return False
        if shared is not None and not await shared.reserve(account, self.client_id, most):
            return False
        return account.hold_more(self.client_id.encode(), most)
