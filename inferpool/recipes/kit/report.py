"""A run's report: one HTML page without scripts or foreign parts, and the same facts as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import orjson

from inferpool.recipes.kit import svg

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.6rem 0;display:block;overflow-x:auto}
td,th{padding:.25rem .7rem;text-align:left;vertical-align:top;
border-bottom:1px solid #ddd}th{font-weight:600}
.whole,.good,.bad{white-space:nowrap}.bad{color:#b00}.good{color:#15803d}
figure{display:inline-block;margin:.4rem}figcaption{color:#666;font-size:.9em}
.key{color:#666;font-size:.9em}code{font-size:.9em}svg{max-width:100%}
td svg{max-width:none}h2{margin-top:2.5rem}
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
    made = "" if "made" not in facts else f"<p>Run on {escape(facts['made'])}"
    if made:
        made += f", {facts['seconds']} s{', few cases (--small)' if facts['small'] else ''}.</p>"
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return (
        f'<!doctype html><html lang="en">{head}<title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><p>{escape(str(facts['summary']))}</p>"
        f"<p>Data: {escape(str(facts['data']))}</p>{made}"
        f"{_shown(facts.get('shown', {}))}{body}</html>"
    )


def _shown(demands: Mapping[str, Sequence[str]]) -> str:
    """What a whole recipe has to show, and where it does not."""
    items = [
        f'<li class="bad">not for {escape(", ".join(lacking))}: {escape(name)}</li>'
        if lacking
        else f"<li>{escape(name)}</li>"
        for name, lacking in demands.items()
    ]
    return f"<h3>Shown below</h3><ul>{''.join(items)}</ul>" if items else ""


def _case(case: Mapping[str, Any]) -> str:
    parts = [
        f"<h2><code>{escape(case['model'])}</code></h2><p>{escape(case['question'])}</p>",
        f"<p>{case['n']} held-out cases, scored by: {escape(case['scored_by'])}."
        f" {escape(_compared(case))}</p>",
        _figures(case["figures"]),
    ]
    if "calibration" in case:
        points = [(item["said"], item["happened"]) for item in case["calibration"]]
        error = case["expected_calibration_error"]
        meant = ""
        if case.get("calibration_of") == "number":
            meant = " The share of truths below the number and each twentieth of known residuals."
        parts.append(f"<h3>Calibration</h3><p>Expected error {error:.4f}.{meant}</p>")
        parts.append(svg.calibration(points))
    if "band" in case:
        parts.append(_band(case["band"]))
    parts += [_section(item) for item in case.get("sections", ())]
    if "decisions" in case:
        parts += [_decisions(case["decisions"]), _service(case), _drift(case["drift"])]
    if "trace" in case:
        parts.append(_trace(case["trace"]))
    if "failover" in case:
        parts.append(_failover(case["failover"]))
    if case.get("limits"):
        items = "".join(f"<li>{_coded(limit)}</li>" for limit in case["limits"])
        parts.append(f"<h3>Known limits</h3><ul>{items}</ul>")
    return "".join(parts)


def _compared(case: Mapping[str, Any]) -> str:
    """What the results were compared with, and how far apart both are."""
    apart = case["difference_to_engine"]
    if "compared_with" in case:
        return f"{case['compared_with']}: {'the same' if not apart else f'differs by {apart:.2g}'}."
    return f"The engine in this process differs by {apart:.2g}."


def _coded(text: str) -> str:
    """A line of Markdown with nothing but `code` in it."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _section(item: Mapping[str, Any]) -> str:
    """What only this recipe has: a title, a text, and a table or lines."""
    parts = [f"<h3>{escape(item['title'])}</h3><p>{_coded(item['text'])}</p>"]
    if "rows" in item:
        rows = [[escape(cell) for cell in row] for row in item["rows"]]
        parts.append(_table([escape(cell) for cell in item["head"]], rows))
    if "pictures" in item:
        parts += [
            f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{png}">'
            f"<figcaption>{escape(name)}</figcaption></figure>"
            for name, png in item["pictures"]
        ]
    if "lines" in item:
        parts.append(svg.lines(item["lines"], *item["axes"]))
    return "".join(parts)


def _trace(trace: Mapping[str, Any]) -> str:
    stays = ", ".join(
        f"{escape(name)} = {escape(value[:60])}" for name, value in trace["left_out"].items()
    )
    said = "none of them" if not trace["leaks"] else f"FOUND: {escape(', '.join(trace['leaks']))}"
    return (
        f"<h3>What leaves</h3><p>An example, <code>{escape(trace['file'])}</code>, with a made-up"
        f" identity. Stays here: {stays}.</p><p>Sent: {escape(trace['sent'])}, SHA-256 <code>"
        f"{trace['sent_sha256'][:16]}…</code>. Searched for the values above: {said}.</p>"
    )


def _failover(facts: Mapping[str, Any]) -> str:
    lost = facts["sent"] - facts["answered"]
    return (
        f"<h3>A node killed in the middle</h3><p>Of two nodes one was killed after"
        f" {facts['killed_after']} of {facts['sent']} cases; it had answered"
        f" {facts['by_killed']}. {facts['answered']} answers came, {facts['by_pool']} from the pool"
        f" and the rest from this process; {lost} were lost. {facts['receipts']} receipts, nothing"
        f" charged without one ({facts['charged_for_failed_pico_usd']} pico-USD). The slowest"
        f" answer took {facts['slowest_ms']:.0f} ms; the greatest difference to the engine in this"
        f" process is {facts['difference_to_engine']:.2g}.</p>"
    )


def _figures(figures: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for item in figures:
        wanted = "-"
        if item["bar"] is not None:
            wanted = f"{'≥' if item['more_is_better'] else '≤'} {item['bar']:.4g}"
        rows.append(
            [
                escape(item["name"]),
                svg.interval(item),
                f'<span class="whole">{item["value"]:.4f} ({item["low"]:.4f} to'
                f" {item['high']:.4f})</span>",
                str(item["n"]),
                f"{item['baseline']:.4f} ({escape(item['baseline_name'])})",
                f'<span class="{"good" if item["reached"] else "bad"}">{wanted}</span>',
            ]
        )
    key = (
        '<p class="key">Drawn: value (dot), its interval (wide), baseline (red),'
        " wanted (dashed).</p>"
    )
    return key + _table(["figure", "", "value (95 % interval)", "n", "baseline", "wanted"], rows)


def _band(band: Mapping[str, Any]) -> str:
    return (
        f"<h3>Referred to a person</h3><p>Scores from {band['low']:.3f} to {band['high']:.3f}:"
        f" {band['share']:.2%} of {band['n']} cases. The model's error rate is"
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
    wait = case["waiting"]
    return (
        "<h3>Latency and cost</h3>"
        + _table(["one row by", "calls", "p50", "p99"], times)
        + f"<p>1,000 decisions: {escape(case['cost']['per_1000_decisions'])}. Of the"
        f" {wait['n']} decisions above the pool was late for {wait['late']} (after"
        f" {wait['deadline_ms']:g} ms), and this process took them; the slowest took"
        f" {wait['slowest_ms']:.0f} ms. A late answer is paid for and not used.</p>"
    )


def _drift(drift: Mapping[str, Any]) -> str:
    bars = [(item["field"], item["psi"]) for item in drift["worst"]]
    again = drift["rehearsal"]
    return (
        f"<h3>Drift</h3><p>PSI of {drift['n']} held-out cases against the known ones, alarm from"
        f" 0.2: {drift['alarms']} alarms. Rehearsal: {escape(again['shifted'])}"
        f" {escape(again.get('how', 'shifted by two deviations'))} gives {again['psi']:.2f}"
        f" ({'alarm' if again['alarm'] else 'NO ALARM'}).</p>{svg.bars(bars, '')}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
