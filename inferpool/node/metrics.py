"""What a node tells Prometheus: vLLM's names where it has one, `inferpool_node_*` for money."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from inferpool.metrics import FIRST_TOKEN_BUCKETS_S, Labels, Registry
from inferpool.node.services import Hosted, Services
from inferpool.node.work import Work
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.protocol.receipt import Outcome

_MODEL = "model_name"


@dataclass(slots=True)
class Tally:
    """What the receipts of one model and outcome add up to."""

    receipts: int = 0
    prompt_units: int = 0
    output_units: int = 0
    charged_pico_usd: int = 0


class NodeMetrics:
    """Counts since the start; what is running and what is owed is read at each scrape."""

    def __init__(self, services: Services, ledger: PayeeLedger) -> None:
        made = self._registry = Registry()
        self.refusals: Counter[str] = Counter()  # since the start, by error code
        self._services, self._ledger = services, ledger
        self._tallies: dict[tuple[str, Outcome], Tally] = {}  # by model: as many as are hosted
        made.gauge(
            "vllm:num_requests_running",
            "Requests that run now.",
            self._each(lambda item: min(item.running, item.slots)),
            _MODEL,
        )
        made.gauge(
            "vllm:num_requests_waiting",
            "Requests that wait for a slot.",
            self._each(lambda item: max(0, item.running - item.slots)),
            _MODEL,
        )
        made.gauge(
            "vllm:prompt_tokens_total",
            "Units that came in: tokens, rows, seconds.",
            lambda: self._by_model(lambda tally: tally.prompt_units),
            _MODEL,
            kind="counter",
        )
        made.gauge(
            "vllm:generation_tokens_total",
            "Units that went out: tokens, steps.",
            lambda: self._by_model(lambda tally: tally.output_units),
            _MODEL,
            kind="counter",
        )
        self._first = made.histogram(
            "vllm:time_to_first_token_seconds",
            "From the start of a call in the engine to its first token.",
            FIRST_TOKEN_BUCKETS_S,
            _MODEL,
        )
        made.gauge(
            "inferpool_node_receipts_total",
            "Receipts signed.",
            lambda: [
                ((model, outcome.name.lower()), tally.receipts)
                for (model, outcome), tally in self._tallies.items()
            ],
            *(_MODEL, "outcome"),
            kind="counter",
        )
        made.gauge(
            "inferpool_node_charged_pico_usd_total",
            "Charged since the start.",
            lambda: self._by_model(lambda tally: tally.charged_pico_usd),
            _MODEL,
            kind="counter",
        )
        self._refused = made.count(
            "inferpool_node_refusals_total", "Requests answered with an error.", "code"
        )
        made.gauge(
            "inferpool_node_unclaimed_base_units",
            "Charged on channels, and not claimed on the chain yet.",
            lambda: [((), sum(c.unclaimed for c in self._channels()))],
        )
        made.gauge(
            "inferpool_node_channels",
            "Channels of payers that this node knows.",
            lambda: [((), len(ledger.channels))],
        )

    def _each(self, read: Callable[[Hosted], int]) -> Callable[[], Iterable[tuple[Labels, float]]]:
        return lambda: [((item.manifest.name,), read(item)) for item in self._services.hosted]

    def _by_model(self, read: Callable[[Tally], int]) -> Iterable[tuple[Labels, float]]:
        sums: Counter[str] = Counter()
        for (model, _), tally in self._tallies.items():
            sums[model] += read(tally)
        return [((model,), total) for model, total in sums.items()]

    def _channels(self) -> list[PayeeChannel]:
        return list(self._ledger.channels.values())

    def first_token(self, model: str, first_ms: float) -> None:
        """A call gave its first token."""
        self._first.observe(first_ms / 1000, model)

    def finished(self, work: Work, outcome: Outcome) -> None:
        """A receipt was signed."""
        assert work.signed is not None, "finished with a receipt"
        receipt, key = work.signed.receipt, (work.service.model, outcome)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally()
        tally.receipts += 1
        tally.prompt_units += receipt.prompt_units
        tally.output_units += receipt.output_units
        tally.charged_pico_usd += receipt.charge_pico_usd

    def refused(self, code: str) -> None:
        """A request was answered with an error of this code."""
        self._refused.add(1, code)
        self.refusals[code] += 1

    def text(self) -> bytes:
        """A scrape's answer."""
        return self._registry.text()
