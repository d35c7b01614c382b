"""What a gateway tells Prometheus: vLLM's names where it has one, and `inferpool_*` for money."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from inferpool.gateway.directory import Directory
from inferpool.gateway.flights import Flights
from inferpool.metrics import FIRST_TOKEN_BUCKETS_S, SERIES_MAX, Labels, Registry
from inferpool.payments.payer_ledger import AttemptRecord, PayerLedger

_MODEL = "model_name"
_NODES = "inferpool_gateway_nodes"
KNOWN_TO_ALL = frozenset({_NODES})  # which each process of a gateway tells of the same things
_SETTLED = (  # what is summed up of each settled attempt, in this order
    ("vllm:prompt_tokens_total", "Units that went to nodes: tokens, rows, seconds."),
    ("vllm:generation_tokens_total", "Units that nodes gave: tokens, steps."),
    ("inferpool_gateway_receipts_total", "Receipts checked and booked."),
    ("inferpool_gateway_charged_pico_usd_total", "What nodes charged."),
    ("inferpool_gateway_billed_pico_usd_total", "What clients were billed."),
)


class GatewayMetrics:
    """Counts since the start; what is in flight and what is locked is read at each scrape."""

    def __init__(
        self, ledger: PayerLedger, directory: Directory, flights: Callable[[], Flights]
    ) -> None:
        made = self._registry = Registry()
        self._flights = flights
        made.gauge("vllm:num_requests_running", "Attempts at nodes now.", self._running, _MODEL)
        self._settled: dict[str, list[int]] = {}  # by model, in the order of `_SETTLED`
        for at, (name, what) in enumerate(_SETTLED[:2]):
            made.gauge(name, what, partial(self._sums, at), _MODEL, kind="counter")
        self._first = made.histogram(
            "vllm:time_to_first_token_seconds",
            "From the start of an attempt to its first chunk.",
            FIRST_TOKEN_BUCKETS_S,
            _MODEL,
        )
        for at, (name, what) in enumerate(_SETTLED[2:], 2):
            made.gauge(name, what, partial(self._sums, at), _MODEL, kind="counter")
        self._refused = made.count(
            "inferpool_gateway_refusals_total", "Requests answered with an error.", "code"
        )
        made.gauge(
            "inferpool_gateway_node_failures",
            "Attempts that failed by a node's fault, since it was found.",
            lambda: _failures(directory),
            "reason",
            kind="counter",
        )
        made.gauge(
            "inferpool_gateway_channel_balance_base_units",
            "Deposits in channels, less what was charged.",
            lambda: [((), sum(c.balance - c.charged for _, c in ledger.channels.values()))],
        )
        made.gauge(_NODES, "Nodes known.", lambda: [((), len(directory.nodes))])

    def _running(self) -> list[tuple[Labels, float]]:
        now = Counter(flight.record.model for flight in self._flights().active.values())
        return [((model,), count) for model, count in now.items()]

    def _sums(self, at: int) -> list[tuple[Labels, float]]:
        return [((model,), sums[at]) for model, sums in self._settled.items()]

    def settled(self, record: AttemptRecord) -> None:
        """An attempt was settled by its receipt, and billed."""
        model = record.model
        sums = self._settled.get(model)
        if sums is None:
            name = model if len(self._settled) < SERIES_MAX else "other"
            sums = self._settled.setdefault(name, [0] * len(_SETTLED))
        sums[0] += record.prompt_units
        sums[1] += record.output_units
        sums[2] += 1
        sums[3] += record.charge_pico_usd
        sums[4] += record.billed_pico_usd
        if record.first_ms:
            self._first.observe((record.first_ms - record.started_ms) / 1000, model)

    def refused(self, code: str) -> None:
        """A request was answered with an error of this code."""
        self._refused.add(1, code)

    def text(self) -> bytes:
        """A scrape's answer."""
        return self._registry.text()


def _failures(directory: Directory) -> list[tuple[Labels, float]]:
    found: Counter[str] = Counter()
    for node in directory.nodes.values():
        found.update(node.reasons)
    return [((reason,), count) for reason, count in found.items()]
