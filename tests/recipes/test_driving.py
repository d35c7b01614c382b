"""What the car decides, from its record once more; and that all sensors beat each alone."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from inferpool.cli.main import app
from inferpool.protocol.errors import Refused
from inferpool.recipes import brake, driving
from inferpool.recipes.brake import BAND, BRAKE_AT


def test_small_run_fusion_beats_each_sensor_and_its_decisions_repeat(tmp_path: Path) -> None:
    (found,) = driving.play(None, True, lambda label, done, total: None, tmp_path)
    assert found["agrees"]
    assert all(item["reached"] for item in found["figures"])
    assert [item["baseline_name"].startswith("best alone") for item in found["figures"]]
    assert found["expected_calibration_error"] < 0.1
    band = found["band"]
    assert band["error"] < band["error_all"]
    lost = next(item for item in found["sections"] if item["title"] == "A sensor is lost")
    alarms = {row[0]: row[-3] for row in lost["rows"]}
    assert alarms["none"] == "none"
    assert all(name in alarms[name] for name in driving.SENSORS)
    assert len(list(tmp_path.glob("decisions/brake-*.json"))) == driving.SMALL_SCENES
    assert "inferpool[video]" in found["limits"][-1]


def test_a_record_that_was_altered_is_not_the_same_decision(tmp_path: Path) -> None:
    world = driving.scene(0, 1)
    found = driving.drive(world, driving.SENSORS, 1)
    record = orjson.loads(brake.record_of(0, found, tmp_path).read_bytes())
    assert brake.replay(record).bitwise
    assert not brake.replay(record | {"chance": record["chance"] - 0.5}).same
    file = str(next(tmp_path.glob("*.json")))
    assert CliRunner().invoke(app, ["recipe", "replay", file]).exit_code == 0
    record["sweeps"][0][0] = []
    with pytest.raises(Refused, match="hash"):
        brake.replay(record)


@pytest.mark.parametrize(
    ("chance", "said"),
    [
        (0.0, "go on"),
        ((BAND[0] + BRAKE_AT["fused"]) / 2, "warn the driver"),
        ((BAND[1] + BRAKE_AT["fused"]) / 2, "warn the driver and brake"),
        (1.0, "brake"),
    ],
)
def test_verdict(chance: float, said: str) -> None:
    assert brake.verdict(chance) == said
