"""The fleet's table as a picture: price against the slowest answers, one point a rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

WIDTH: Final = 720
HEIGHT: Final = 440
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 20, 50


def draw(points: Sequence[tuple[str, float, float]]) -> str:
    """An SVG. `points`: name, USD per 1,000 requests, seconds of the 99th percentile."""
    least_x, most_x = _range([x for _, x, _ in points])
    least_y, most_y = _range([y for _, _, y in points])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - math.log(least_x)) / (math.log(most_x) - math.log(least_x))
        up = (math.log(y) - math.log(least_y)) / (math.log(most_y) - math.log(least_y))
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for value in _ticks(least_x, most_x):
        x, _ = at(value, least_y)
        parts.append(f'<path d="M{x:.0f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
                     f"${value:g}</text>")  # fmt: skip
    for value in _ticks(least_y, most_y):
        _, y = at(least_x, value)
        parts.append(f'<path d="M{LEFT} {y:.0f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{value:g} s</text>')
    for name, x, y in points:
        across, down = at(x, y)
        fill = "#0a6" if name.startswith("ours") else "#a33"
        right = across > WIDTH * 0.65
        anchor, shift = ("end", -8) if right else ("start", 8)
        parts.append(f'<circle cx="{across:.0f}" cy="{down:.0f}" r="5" fill="{fill}"/>')
        parts.append(f'<text x="{across + shift:.0f}" y="{down + 4:.0f}" text-anchor="{anchor}">'
                     f"{escape(name)}</text>")  # fmt: skip
    parts.append(f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">'
                 "price of 1,000 requests</text>")  # fmt: skip
    parts.append(f'<text x="14" y="{HEIGHT / 2:.0f}" text-anchor="middle" transform="rotate(-90 14'
                 f' {HEIGHT / 2:.0f})">99 of 100 answers are whole within</text>')  # fmt: skip
    return "\n".join([*parts, "</svg>", ""])


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / 1.2, max(values) * 1.2


def _ticks(least: float, most: float) -> list[float]:
    marks = [m * 10.0**power for power in range(-4, 5) for m in (1, 1.5, 2, 3, 5, 7)]
    return [value for value in marks if least <= value <= most]
