"""Classes of hardware with rated power and a typical price. A guess to start from, never a truth:

what the machine measures of itself, and what its owner knows, go before. Board powers are the
makers' (4090: 450 W, L40S: 350 W, L4: 72 W, A100: 400 W, H100: 700 W); prices are what such a part
typically costs second-hand or new, rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from inferpool.protocol.units import PICO_USD_PER_USD

Kind = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class HardwareClass:
    """One class: of a CPU power and price are per core, of a GPU per board."""

    name: str
    kind: Kind
    words: tuple[str, ...]  # a model's name in lower case holds one of them
    busy_milliwatts: int
    idle_milliwatts: int
    price_pico_usd: int

    def __post_init__(self) -> None:
        assert 0 <= self.idle_milliwatts <= self.busy_milliwatts, "idle power is the lower one"
        assert self.price_pico_usd >= 0, "a price is never negative"


def _cpu(name: str, words: tuple[str, ...], busy: int, idle: int, usd: int) -> HardwareClass:
    return HardwareClass(name, "cpu", words, busy, idle, usd * PICO_USD_PER_USD)


def _gpu(name: str, words: tuple[str, ...], busy_w: int, idle_w: int, usd: int) -> HardwareClass:
    return HardwareClass(name, "gpu", words, busy_w * 1000, idle_w * 1000, usd * PICO_USD_PER_USD)


# The first whose word is in the name is taken: the more special come first.
CLASSES: Final[tuple[HardwareClass, ...]] = (
    _cpu("apple-cpu", ("apple m",), 5_000, 500, 70),
    _cpu("server-arm-cpu", ("neoverse", "graviton", "ampere", "altra"), 3_500, 1_000, 25),
    _cpu("board-cpu", ("cortex", "raspberry"), 1_800, 700, 15),
    _cpu("server-cpu", ("epyc", "xeon", "opteron"), 6_000, 2_000, 40),
    _cpu("workstation-cpu", ("threadripper",), 8_000, 2_000, 60),
    _cpu("desktop-cpu", ("ryzen", "core(tm)", "intel(r) core", "ultra"), 10_000, 2_000, 35),
    _gpu("h200", ("h200",), 700, 75, 30_000),
    _gpu("h100", ("h100", "gh200"), 700, 70, 25_000),
    _gpu("a100", ("a100",), 400, 50, 9_000),
    _gpu("l40s", ("l40s",), 350, 35, 8_000),
    _gpu("l4", ("nvidia l4",), 72, 16, 2_500),
    _gpu("rtx-6000-pro", ("6000 blackwell", "pro 6000"), 600, 30, 8_500),
    _gpu("rtx-5090", ("5090",), 575, 25, 2_600),
    _gpu("rtx-5080", ("5080",), 360, 18, 1_100),
    _gpu("rtx-4090", ("4090",), 450, 20, 1_800),
    _gpu("rtx-4080", ("4080",), 320, 15, 900),
    _gpu("rtx-4070", ("4070",), 220, 12, 550),
    _gpu("rtx-4060", ("4060",), 160, 10, 300),
    _gpu("rtx-3090", ("3090",), 350, 20, 750),
    _gpu("rtx-3080", ("3080",), 320, 18, 450),
    _gpu("rtx-3060", ("3060",), 170, 12, 250),
    _gpu("mi300x", ("mi300",), 750, 140, 15_000),
    _gpu("rx-7900", ("7900",), 330, 15, 800),
)
# Names that say nothing: eight watts a core, as a desktop under load has them at the plug.
UNKNOWN: Final[dict[Kind, HardwareClass]] = {
    "cpu": _cpu("unknown-cpu", (), 8_000, 2_000, 35),
    "gpu": _gpu("unknown-gpu", (), 250, 20, 500),
}


def classify(kind: Kind, model: str) -> HardwareClass:
    """The class of a part by the name that the machine gives it; unknown ones have a class too."""
    name = model.lower()
    for item in CLASSES:
        if item.kind == kind and any(word in name for word in item.words):
            return item
    return UNKNOWN[kind]
