"""What a recipe has to show in every run before it may call itself whole.

Each demand is asked of the run's own results, so that a recipe which stops showing one fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

Results = Mapping[str, Any]  # of one case, as `kit.running.run_case` gives them

EACH: Final[Mapping[str, Callable[[Results], bool]]] = {
    "figures with intervals and baselines": lambda case: (
        bool(case["figures"])
        and all(item["n"] and item["baseline_name"] for item in case["figures"])
    ),
    "calibration": lambda case: len(case["calibration"]) > 1,
    "doubtful cases go to a person": lambda case: case["band"]["low"] < case["band"]["high"],
    "drift is noticed": lambda case: bool(case["drift"]["rehearsal"]["alarm"]),
    "decisions are made again from their files": lambda case: all(
        item["replayed"] for item in case["decisions"]
    ),
    "each is proven by its node's signature": lambda case: all(
        item["late"] or (item["signed"] and item["about_this"]) for item in case["decisions"]
    ),
    "late answers are counted": lambda case: case["waiting"]["n"] >= len(case["decisions"]) > 0,
    "latency beside the bare engine": lambda case: len(case["latency"]) == 2,
    "cost of 1,000 decisions": lambda case: case["cost"]["usd_per_1000_decisions"] > 0,
    "identifiers stay here": lambda case: (
        bool(case["trace"]["left_out"]) and not case["trace"]["leaks"]
    ),
    "known limits": lambda case: bool(case["limits"]),
}
FIRST: Final = "a node is killed and nothing is lost"  # rehearsed on a recipe's first case


def _survived(case: Results) -> bool:
    down = case["failover"]
    answered: bool = down["sent"] == down["answered"] > down["by_killed"] > 0
    return answered and down["charged_for_failed_pico_usd"] == 0


def shown(cases: list[dict[str, Any]], *, small: bool) -> dict[str, list[str]]:
    """For each demand the models whose results do not show it. A small run kills no node."""
    asked = {name: [c["model"] for c in cases if not _holds(ask, c)] for name, ask in EACH.items()}
    if not small:
        asked[FIRST] = [] if _holds(_survived, cases[0]) else [cases[0]["model"]]
    return asked


def shown_together(cases: list[dict[str, Any]], *, small: bool) -> dict[str, list[str]]:
    """As `shown`, for a recipe whose results answer parts of one question: one of them suffices."""
    return shown([{key: part for case in cases for key, part in case.items()}], small=small)


def _holds(ask: Callable[[Results], bool], case: Results) -> bool:
    try:
        return ask(case)
    except KeyError:  # not shown at all
        return False
