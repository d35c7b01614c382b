"""The brake's decision, for the recipe `driving`: a file for it, and made again from that."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from inferpool.protocol.errors import Refused
from inferpool.recipes import fusion
from inferpool.recipes.fusion import Drive
from inferpool.recipes.kit.audit import Replay
from inferpool.recipes.scenes import FRAMES

BRAKE_AT: Final = {"lidar": 0.52, "radar": 0.64, "camera": 0.42, "fused": 0.48}
BAND: Final = (0.17, 0.79)  # the driver is warned: at most 1 % of the other frames were wrong
CLASS: Final = f"numpy@{np.__version__}/f64/cpu"
CLOSE: Final = 1e-9  # of two chances, by other builds of numpy


def record_of(number: int, found: Drive, out: Path) -> Path:
    """What the sensors said until the car first braked in a scene (or its end), and the decision:
    enough to make it again, and nothing about who was there but places."""
    braked = np.flatnonzero(found.chance >= BRAKE_AT["fused"])
    last = int(braked[0]) if len(braked) else FRAMES - 1
    sweeps = orjson.dumps(found.sweeps[: last + 1])
    record = {
        "recipe": "driving",
        "class": CLASS,
        "scene": number,
        "frame": last,
        "input_sha256": hashlib.sha256(sweeps).hexdigest(),
        "sweeps": orjson.loads(sweeps),
        "chance": float(found.chance[last]),
        "verdict": verdict(float(found.chance[last])),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"brake-{number:03}.json"
    path.write_bytes(orjson.dumps(record))
    return path


def replay(record: Mapping[str, Any]) -> Replay:
    """Make the decision again, from what the sensors said. Raises `Refused(bad_hash)` where that
    was altered."""
    said = orjson.dumps(record["sweeps"])
    if hashlib.sha256(said).hexdigest() != record["input_sha256"]:
        raise Refused("the decision's input does not have its hash", code="bad_hash")
    tracker, tracks = fusion.Tracker(), list[fusion.Track]()
    for sweeps in record["sweeps"]:
        tracks = tracker.step([[fusion.seen_again(item) for item in sweep] for sweep in sweeps])
    chance = fusion.danger(tracks)
    apart = abs(chance - record["chance"])
    same = apart <= CLOSE and verdict(chance) == record["verdict"]
    return Replay(same, apart == 0, apart, record["class"], CLASS, None, None)


def verdict(chance: float) -> str:
    """What is done at this chance of a danger."""
    if BAND[0] <= chance <= BAND[1]:
        return "warn the driver" + (" and brake" if chance >= BRAKE_AT["fused"] else "")
    return "brake" if chance >= BRAKE_AT["fused"] else "go on"
