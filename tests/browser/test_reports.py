"""A recipe's report as its reader opens it: from a file, without a network, on a telephone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import poolkit
import pytest

from inferpool.home import Home

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


def test_the_report_of_a_run_reads_well(page: Any, tmp_path: Path) -> None:
    poolkit.pull_weights()
    out = tmp_path / "report"
    ran = poolkit.inferpool(
        "recipe", "run", "spam", "--small", "--out", str(out), home=Home(tmp_path / "home"),
        timeout_s=150,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    path = next(out.rglob("report.html"))
    facts = json.loads(path.with_suffix(".json").read_text())
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert asked == [path.as_uri()], "it fetches nothing"
    assert facts["title"] in page.inner_text("h1")
    pictures = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    drawings = page.evaluate(
        "[...document.querySelectorAll('svg')].map(item => item.getBoundingClientRect().width)"
    )
    assert all(width > 0 for width in pictures + drawings)
    assert drawings, "there is a plot to look at"
    wide, screen = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= screen, "nothing runs off the side of a telephone"
