"""Streams while nodes are killed: none breaks, and both sides hold the same receipts.

The small form; `make chaos` runs 200 streams over some minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.chaos import run

pytestmark = pytest.mark.timeout(180)


def test_no_stream_breaks_while_nodes_are_killed(tmp_path: Path) -> None:
    report = run(tmp_path, streams=16, kills=2)
    assert report.whole == report.streams >= 16, report.broken
    assert report.kills >= 2
    assert report.booked_pico_usd > 0
