"""What engines with whole answers must do alike: start, refuse, be left, close; with real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inferpool.engines import sandbox
from inferpool.engines.base import Engine
from inferpool.engines.embedding import MiniLmEngine
from inferpool.engines.terrain import TerrainEngine
from inferpool.engines.whisper import WhisperEngine
from inferpool.models import catalogue
from inferpool.models.pull import pull_model
from inferpool.models.store import Store
from inferpool.node.speed import measure_engine
from inferpool.protocol.errors import BadRequest, Unavailable

pytestmark = pytest.mark.timeout(60)
CLIP = Path(catalogue.__file__).parent / "data" / "speech" / "sense-0880.wav"

ABI = sandbox.landlock_abi()
Work = Callable[[Any], Coroutine[Any, Any, Any]]


@dataclass
class Case:
    """How to make an engine, broken or not; work that succeeds, and work that it must refuse."""

    make: Callable[[Path | None], Any]  # with those weights instead of the real ones
    weights: Path
    model: str
    good: Work
    bad: Work


def paths_of(model: str) -> dict[str, Path]:
    try:
        return pull_model(Store(), catalogue.load(model))
    except Unavailable as error:
        pytest.skip(f"no source of {model} answered: {error.message}")


def embedding() -> Case:
    found = paths_of("all-minilm-l6-v2")
    tokenizer = found["tokenizer.json"]
    return Case(
        lambda bad: MiniLmEngine(
            bad or found["model.onnx"], tokenizer, "minilm", "int8", context=512
        ),
        found["model.onnx"],
        "all-minilm-l6-v2",
        lambda engine: engine.embed(["one", "two"]),
        lambda engine: engine.embed(["word " * 600]),
    )


def whisper() -> Case:
    pytest.importorskip("faster_whisper", reason="the extra 'whisper' is not installed")
    found = paths_of("whisper-base")
    return Case(
        lambda bad: WhisperEngine(
            found | {"model.bin": bad} if bad else found, "whisper", "int8", threads=1
        ),
        found["model.bin"],
        "whisper-base",
        lambda engine: engine.transcribe(CLIP.read_bytes(), "en", 2990),
        lambda engine: engine.transcribe(CLIP.read_bytes(), "en", 500),  # longer than was paid
    )


def terrain() -> Case:
    found = paths_of("terrain-128")["terrain.onnx"]
    return Case(
        lambda bad: TerrainEngine(bad or found, "terrain", "f32"),
        found,
        "terrain-128",
        lambda engine: engine.draw("terrain", 1, 1),
        lambda engine: engine.draw("a cat", 1, 1),
    )


@pytest.fixture(scope="module", params=[embedding, whisper, terrain], ids=lambda f: f.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = request.param()
    return made


@pytest.fixture(scope="module")
def engine(case: Case, runner: asyncio.Runner) -> Iterator[Engine]:
    engine = case.make(None)
    runner.run(engine.start())
    yield engine
    runner.run(engine.close())


async def test_class_names_everything_that_rounds(engine: Engine) -> None:
    runtime, quant, where = engine.engine_class.split("/")
    assert "@" in runtime
    assert quant in ("int8", "f32")
    assert where == "cpu"
    assert engine.engine_class == engine.engine_class.lower()
    assert engine.ready()


async def test_refused_and_left_calls_hurt_nobody(
    runner: asyncio.Runner, engine: Engine, case: Case
) -> None:
    """And the same question has the same answer, whatever happened in between."""
    before = await case.good(engine)
    with pytest.raises(BadRequest) as caught:
        await case.bad(engine)
    assert caught.value.param
    left = asyncio.create_task(case.good(engine))
    await asyncio.sleep(0.005)
    left.cancel()
    await asyncio.wait([left])
    assert left.cancelled()
    assert await case.good(engine) == before


async def test_its_pace_can_be_measured(runner: asyncio.Runner, engine: Engine, case: Case) -> None:
    speed = await measure_engine(catalogue.load(case.model), engine)
    out = case.model == "terrain-128"  # its unit is a step of a picture
    assert (speed.out_per_hour > 0, speed.in_per_hour > 0) == (out, not out)
    assert 0 < speed.first_ms < speed.took_ms


async def test_broken_weights_are_refused(case: Case, tmp_path: Path) -> None:
    broken = tmp_path / "weights"
    broken.write_bytes(b"these are no weights" * 100)
    engine = case.make(broken)
    with pytest.raises(Unavailable) as caught:
        await engine.start()
    assert caught.value.code == "engine_unavailable"
    assert not engine.ready()
    await engine.close()


async def test_weights_are_tried_in_the_sandbox_first(engine: Engine) -> None:
    held = f"landlock abi {ABI}" if ABI else "none: "
    assert engine.sandbox.startswith(f"in the node's process; tried before in {held}")  # type: ignore[attr-defined]


@pytest.mark.parametrize("at", [0, 3, 200])
async def test_a_cut_file_ends_in_the_child(
    case: Case, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head of the real weights, then nothing: only the child reads it."""
    path = tmp_path / "weights"
    path.write_bytes(case.weights.read_bytes()[:at])
    engine = case.make(path)
    monkeypatch.setattr(type(engine), "_load", None)  # here it would be read in this process
    with pytest.raises(Unavailable) as caught:
        await engine.start()
    assert caught.value.code == "engine_unavailable"
    assert not engine.ready()
    await engine.close()


async def test_before_the_start(case: Case) -> None:
    engine = case.make(None)
    assert not engine.ready()
    with pytest.raises(Unavailable) as caught:
        await case.good(engine)
    assert caught.value.code == "engine_unavailable"
    await engine.close()
