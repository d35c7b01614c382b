"""Counters, gauges and histograms in Prometheus' text format, without a library.

Names are vLLM's where it has one, so that dashboards made for it work here; else `inferpool_*`.
Format: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Final

CONTENT_TYPE: Final = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
SERIES_MAX: Final = 1000  # label values of one metric: names of models and codes, all bounded
# vLLM's own bounds for the time to first token, in seconds.
FIRST_TOKEN_BUCKETS_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)

Labels = tuple[str, ...]
Read = Callable[[], Iterable[tuple[Labels, float]]]


class Count:
    """A counter by label values."""

    def __init__(self) -> None:
        self.values: Counter[Labels] = Counter()

    def add(self, amount: int, *labels: str) -> None:
        """Count; label values beyond the bound are counted together as `other`."""
        if labels not in self.values and len(self.values) >= SERIES_MAX:
            labels = ("other",) * len(labels)
        self.values[labels] += amount


class Histogram:
    """How often a value fell below each bound, by label values."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.series: dict[Labels, tuple[list[int], list[float]]] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Count one value, of label values beyond the bound among those of `other`."""
        if labels not in self.series and len(self.series) >= SERIES_MAX:
            labels = ("other",) * len(labels)
        counts, total = self.series.setdefault(labels, ([0] * (len(self.bounds) + 1), [0.0]))
        counts[bisect_left(self.bounds, value)] += 1
        total[0] += value


class Registry:
    """Metrics in the order in which they were declared. Names of labels come with each."""

    def __init__(self) -> None:
        self._blocks: list[Callable[[], Iterable[str]]] = []

    def count(self, name: str, what: str, *labels: str) -> Count:
        """A counter."""
        made = Count()
        self._add(name, "counter", what, lambda: _lines(name, labels, made.values.items()))
        return made

    def gauge(self, name: str, what: str, read: Read, *labels: str, kind: str = "gauge") -> None:
        """A value that is read at each scrape; `kind` counter where it can only grow."""
        self._add(name, kind, what, lambda: _lines(name, labels, read()))

    def histogram(self, name: str, what: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
        """A histogram."""
        made = Histogram(bounds)
        self._add(name, "histogram", what, lambda: _buckets(name, labels, made))
        return made

    def _add(self, name: str, kind: str, what: str, lines: Callable[[], Iterable[str]]) -> None:
        head = (f"# HELP {name} {what}", f"# TYPE {name} {kind}")
        self._blocks.append(lambda: (*head, *lines()))

    def text(self) -> bytes:
        """Everything, as a scrape reads it."""
        return "".join(f"{line}\n" for block in self._blocks for line in block()).encode()


def added_up(pages: Sequence[bytes], greatest: Container[str] = ()) -> bytes:
    """The pages of several processes as one: series of one name and labels are added, but of the
    metrics in `greatest` the greatest counts. Raises ValueError for what is no page of ours."""
    heads: dict[str, list[str]] = {}  # metric -> its HELP and TYPE
    found: dict[str, dict[str, float]] = {}  # metric -> series -> value
    for page in pages:
        name = ""
        for line in page.decode().splitlines():
            if line.startswith("# "):
                name = line.split(" ", 3)[2]
                known = heads.setdefault(name, [])
                known += [line] if line not in known else []
                continue
            series, _, text = line.rpartition(" ")
            value = float(text) if "." in text or "e" in text else int(text)
            of = found.setdefault(name, {})
            old = of.get(series, 0)
            of[series] = max(old, value) if name in greatest else old + value
    lines = [
        line
        for name, head in heads.items()
        for line in (*head, *(f"{series} {v}" for series, v in found.get(name, {}).items()))
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _lines(name: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> Iterable[str]:
    return [f"{name}{_braces(labels, found)} {value}" for found, value in values]


def _buckets(name: str, labels: Labels, histogram: Histogram) -> Iterable[str]:
    for found, (counts, total) in histogram.series.items():
        below = 0
        for bound, count in zip((*histogram.bounds, "+Inf"), counts, strict=True):
            below += count
            yield f"{name}_bucket{_braces((*labels, 'le'), (*found, str(bound)))} {below}"
        yield f"{name}_sum{_braces(labels, found)} {total[0]}"
        yield f"{name}_count{_braces(labels, found)} {below}"


def _braces(labels: Labels, values: Labels) -> str:
    pairs = ",".join(f'{n}="{_escaped(v)}"' for n, v in zip(labels, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
