"""A run's report: one HTML page without scripts or foreign parts, and the same facts as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import orjson

from inferpool.recipes.kit import svg

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.6rem 0}td,th{padding:.25rem .7rem;text-align:left;
vertical-align:top;border-bottom:1px solid #ddd}th{font-weight:600}
.bad{color:#b00}.good{color:#15803d}
code{font-size:.9em}svg{max-width:100%}h2{margin-top:2.5rem}
"""


def write(facts: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write `report.html` and `report.json`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "report.html", folder / "report.json"
    page.write_text(html(facts), "utf-8")
    data.write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
    return page, data


def html(facts: Mapping[str, Any]) -> str:
    """The page."""
    title = escape(str(facts["title"]))
    body = "".join(_case(item) for item in facts["cases"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><p>{escape(str(facts['summary']))}</p>"
        f"<p>Data: {escape(str(facts['data']))}</p>{body}</html>"
    )


def _case(case: Mapping[str, Any]) -> str:
    parts = [
        f"<h2><code>{escape(case['model'])}</code></h2><p>{escape(case['question'])}</p>",
        f"<p>{case['n']} held-out cases, scored by: {escape(case['scored_by'])}. The engine in"
        f" this process differs by {case['difference_to_engine']:.2g}.</p>",
        _figures(case["figures"]),
    ]
    if "calibration" in case:
        points = [(item["said"], item["happened"]) for item in case["calibration"]]
        error = case["expected_calibration_error"]
        parts.append(f"<h3>Calibration</h3><p>Expected error {error:.4f}.</p>")
        parts.append(svg.calibration(points))
    if "band" in case:
        parts.append(_band(case["band"]))
    if "decisions" in case:
        parts += [_decisions(case["decisions"]), _service(case), _drift(case["drift"])]
    return "".join(parts)


def _figures(figures: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for item in figures:
        wanted = "-"
        if item["bar"] is not None:
            wanted = f"{'≥' if item['more_is_better'] else '≤'} {item['bar']:.4g}"
        rows.append(
            [
                escape(item["name"]),
                f"{item['value']:.4f} ({item['low']:.4f} to {item['high']:.4f})",
                str(item["n"]),
                f"{item['baseline']:.4f} ({escape(item['baseline_name'])})",
                f'<span class="{"good" if item["reached"] else "bad"}">{wanted}</span>',
            ]
        )
    return _table(["figure", "value (95 % interval)", "n", "baseline", "wanted"], rows)


def _band(band: Mapping[str, Any]) -> str:
    return (
        f"<h3>Referred to a person</h3><p>Scores from {band['low']:.3f} to {band['high']:.3f}:"
        f" {band['share']:.1%} of {band['n']} cases. The model's error rate is"
        f" {band['error_all']:.2%} on all cases and {band['error']:.2%} on those it decides.</p>"
    )


def _decisions(decisions: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{item['score']:.4g}",
            escape(item["verdict"]),
            escape(item["why"]),
            f"<code>{escape(item['node'][:14])}</code>",
            f"<code>{escape(item['file'])}</code>",
            "bit for bit" if item["bitwise"] else "same" if item["replayed"] else "DIFFERENT",
        ]
        for item in decisions
    ]
    head = ["score", "verdict", "what moved it", "node", "audit file", "replay"]
    return "<h3>Decisions</h3>" + _table(head, rows)


def _service(case: Mapping[str, Any]) -> str:
    times = [
        [escape(name), str(item["n"]), f"{item['p50_ms']} ms", f"{item['p99_ms']} ms"]
        for name, item in case["latency"].items()
    ]
    return (
        "<h3>Latency and cost</h3>"
        + _table(["one row by", "calls", "p50", "p99"], times)
        + f"<p>1,000 decisions: {escape(case['cost']['per_1000_decisions'])}.</p>"
    )


def _drift(drift: Mapping[str, Any]) -> str:
    bars = [(item["field"], item["psi"]) for item in drift["worst"]]
    again = drift["rehearsal"]
    return (
        f"<h3>Drift</h3><p>PSI of {drift['n']} held-out cases against the known ones, alarm from"
        f" 0.2: {drift['alarms']} alarms. Rehearsal: {escape(again['shifted'])} shifted by two"
        f" deviations gives {again['psi']:.2f}"
        f" ({'alarm' if again['alarm'] else 'NO ALARM'}).</p>{svg.bars(bars, '')}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
