"""What engines with whole answers must do alike: start, refuse, be left, close; with real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inferpool.engines.base import Engine
from inferpool.engines.embedding import MiniLmEngine
from inferpool.engines.terrain import TerrainEngine
from inferpool.engines.whisper import WhisperEngine
from inferpool.models import catalogue
from inferpool.models.pull import pull_model
from inferpool.models.store import Store
from inferpool.protocol.errors import BadRequest, Unavailable

pytestmark = pytest.mark.timeout(60)
CLIP = Path(__file__).parents[1] / "node_api" / "data" / "ill-disposed.wav"

Work = Callable[[Any], Coroutine[Any, Any, Any]]


@dataclass
class Case:
    """How to make an engine, broken or not; work that succeeds, and work that it must refuse."""

    make: Callable[[bool], Any]
    good: Work
    bad: Work


def paths_of(model: str) -> dict[str, Path]:
    try:
        return pull_model(Store(), catalogue.load(model))
    except Unavailable as error:
        pytest.skip(f"no source of {model} answered: {error.message}")


def embedding(broken: Path) -> Case:
    found = paths_of("all-minilm-l6-v2")
    tokenizer = found["tokenizer.json"]
    return Case(
        lambda bad: MiniLmEngine(
            broken if bad else found["model.onnx"], tokenizer, "minilm", "int8", context=512
        ),
        lambda engine: engine.embed(["one", "two"]),
        lambda engine: engine.embed(["word " * 600]),
    )


def whisper(broken: Path) -> Case:
    pytest.importorskip("faster_whisper", reason="the extra 'whisper' is not installed")
    found = paths_of("whisper-base")
    return Case(
        lambda bad: WhisperEngine(
            found | {"model.bin": broken} if bad else found, "whisper", "int8", threads=1
        ),
        lambda engine: engine.transcribe(CLIP.read_bytes(), "en", 2990),
        lambda engine: engine.transcribe(CLIP.read_bytes(), "en", 500),  # longer than was paid
    )


def terrain(broken: Path) -> Case:
    found = paths_of("terrain-128")["terrain.onnx"]
    return Case(
        lambda bad: TerrainEngine(broken if bad else found, "terrain", "f32"),
        lambda engine: engine.draw("terrain", 1, 1),
        lambda engine: engine.draw("a cat", 1, 1),
    )


@pytest.fixture(scope="module", params=[embedding, whisper, terrain], ids=lambda f: f.__name__)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    broken = tmp_path_factory.mktemp("broken") / "weights"
    broken.write_bytes(b"these are no weights" * 100)
    made: Case = request.param(broken)
    return made


@pytest.fixture(scope="module")
def engine(case: Case, runner: asyncio.Runner) -> Iterator[Engine]:
    engine = case.make(False)
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


async def test_broken_weights_are_refused(case: Case) -> None:
    engine = case.make(True)
    with pytest.raises(Unavailable) as caught:
        await engine.start()
    assert caught.value.code == "engine_unavailable"
    assert not engine.ready()
    await engine.close()


async def test_before_the_start(case: Case) -> None:
    engine = case.make(False)
    assert not engine.ready()
    with pytest.raises(Unavailable) as caught:
        await case.good(engine)
    assert caught.value.code == "engine_unavailable"
    await engine.close()
