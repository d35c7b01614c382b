"""Drawings as SVG text: lines, bars, intervals, said against happened. No plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

WIDTH: Final = 520
HEIGHT: Final = 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 34
_COLOURS: Final = ("#1f6feb", "#c2410c", "#15803d", "#7c3aed")

Points = Sequence[tuple[float, float]]


def lines(series: dict[str, Points], x_label: str, y_label: str) -> str:
    """One line for each series, with a legend."""
    frame = _Frame([point for points in series.values() for point in points], x_label, y_label)
    for number, (name, points) in enumerate(series.items()):
        frame.line(points, _COLOURS[number % len(_COLOURS)])
        frame.legend(number, name, _COLOURS[number % len(_COLOURS)])
    return frame.text()


def bars(items: Sequence[tuple[str, float]], unit: str) -> str:
    """Horizontal bars, one for each item, from zero; negative ones in another colour."""
    most = max((abs(value) for _, value in items), default=0.0) or 1.0
    row, width = 22, WIDTH - 250
    parts = []
    for number, (name, value) in enumerate(items):
        y = 6 + number * row
        colour = _COLOURS[1] if value < 0 else _COLOURS[0]
        length = abs(value) / most * width
        parts.append(
            f'<text x="150" y="{y + 12}" text-anchor="end">{escape(name[:26])}</text>'
            f'<rect x="156" y="{y}" width="{length:.1f}" height="15" fill="{colour}"/>'
            f'<text x="{162 + length:.1f}" y="{y + 12}">{_short(value)} {escape(unit)}</text>'
        )
    return _svg("".join(parts), len(items) * row + 12)


def calibration(said_happened: Points) -> str:
    """Probability said against how often it happened; the diagonal is a perfect one.

    Rare events fill the drawing too: it ends at a round number above all points.
    """
    most = max((max(point) for point in said_happened), default=1.0)
    end = next(end for end in (0.05, 0.1, 0.2, 0.5, 1.0) if most <= end or end == 1.0)
    frame = _Frame([(0.0, 0.0), (end, end)], "probability said", "share that happened")
    frame.line([(0.0, 0.0), (end, end)], "#999", dashed=True)
    frame.line(said_happened, _COLOURS[0])
    frame.dots(said_happened, _COLOURS[0])
    return frame.text()


def interval(figure: Mapping[str, Any]) -> str:
    """A figure on a small line of its own: the interval, the value (dot), the baseline (tick), and
    the bar to reach (dashed)."""
    marks = [figure[key] for key in ("low", "high", "value", "baseline")]
    marks += [figure["bar"]] if figure["bar"] is not None else []
    known = [mark for mark in marks if math.isfinite(mark)]
    low, high = min(known), max(known)
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low) or 1.0

    def at(value: float) -> float:
        return 4 + 132 * (value - low) / ((high - low) or 1.0) if math.isfinite(value) else 4.0

    left, right, value, base = (at(mark) for mark in marks[:4])
    parts = [
        '<path d="M4 9H136" stroke="#ddd"/>',
        f'<path d="M{left:.1f} 9H{max(right, left + 1):.1f}" stroke="{_COLOURS[0]}"'
        ' stroke-width="5" stroke-opacity="0.45"/>',
        f'<path d="M{base:.1f} 2V16" stroke="{_COLOURS[1]}" stroke-width="2"/>',
        f'<circle cx="{value:.1f}" cy="9" r="3.5" fill="{_COLOURS[0]}"/>',
    ]
    if figure["bar"] is not None:
        x = at(figure["bar"])
        parts.append(f'<path d="M{x:.1f} 1V17" stroke="#222" stroke-dasharray="2 2"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 140 18" width="140" height="18"'
        f' role="img">{"".join(parts)}</svg>'
    )


class _Frame:
    """Axes around a plot; data coordinates in, pixels out."""

    def __init__(self, points: Points, x_label: str, y_label: str) -> None:
        xs, ys = [x for x, _ in points] or [0.0], [y for _, y in points] or [0.0]
        self._x0, self._y0 = min(xs), min(ys)
        self._dx, self._dy = (max(xs) - self._x0) or 1.0, (max(ys) - self._y0) or 1.0
        self._parts = [
            f'<path d="M{_LEFT} {_TOP}V{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}" class="axis"/>',
            f'<text x="{WIDTH // 2}" y="{HEIGHT - 4}" text-anchor="middle">'
            f"{escape(x_label)}</text>",
            f'<text transform="translate(11 {HEIGHT // 2}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>",
        ]
        for share in (0.0, 0.5, 1.0):
            x, y = self._x0 + share * self._dx, self._y0 + share * self._dy
            px, _ = self._at(x, self._y0)
            _, py = self._at(self._x0, y)
            self._parts.append(
                f'<text x="{px:.1f}" y="{HEIGHT - 20}" text-anchor="middle">{_short(x)}</text>'
                f'<text x="{_LEFT - 4}" y="{py + 4:.1f}" text-anchor="end">{_short(y)}</text>'
            )

    def line(self, points: Points, colour: str, *, dashed: bool = False) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self._at(*point) for point in points))
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>'
        )

    def dots(self, points: Points, colour: str) -> None:
        for x, y in (self._at(*point) for point in points):
            self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')

    def legend(self, number: int, name: str, colour: str) -> None:
        y = _TOP + 12 * number
        self._parts.append(
            f'<text x="{WIDTH - _RIGHT}" y="{y}" text-anchor="end" fill="{colour}">'
            f"{escape(name)}</text>"
        )

    def text(self) -> str:
        return _svg("".join(self._parts), HEIGHT)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        wide, high = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
        px = _LEFT + (x - self._x0) / self._dx * wide
        return px, HEIGHT - _BOTTOM - (y - self._y0) / self._dy * high


def _svg(inner: str, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" font-family="sans-serif" font-size="11" role="img">'
        f"<style>.axis{{fill:none;stroke:#666}}</style>{inner}</svg>"
    )


def _short(value: float) -> str:
    return f"{value:.4g}"
