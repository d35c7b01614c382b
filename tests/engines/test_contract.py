"""What every text engine must do: the fake one, llama.cpp with real weights, and the same server
as anybody's, by its URL, which tells no ids: it cannot go on from them, and counts by its usage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
import pytest

from inferpool.engines.base import FinishReason, Phase, Progress, Sampling, TextCall, TextEngine
from inferpool.engines.child import start_child
from inferpool.engines.fake import FakeTextEngine
from inferpool.engines.llamacpp import CHILD_SCRIPT, LlamaCppEngine
from inferpool.engines.openai import OpenAiEngine
from inferpool.protocol import parameters
from inferpool.protocol.calls import CallReader, whole_objects
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.logprobs import UNLIKELY, TokenLogprob

SLOTS = 4
STORY = "Tell me a long story about a river."


@dataclass
class Answer:
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason | None = None
    prompt_units: int | None = None
    chunks: int = 0
    told_units: int = 0
    tokens: list[TokenLogprob] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)

    @property
    def units(self) -> int:
        return len(self.ids) or self.told_units

    @property
    def drawn(self) -> object:
        """What a seed decides: the ids, or the text where no ids are told."""
        return self.ids or self.text


def chat(
    prompt: str = STORY,
    max_output: int = 12,
    *,
    seed: int = 1,
    temperature: float = 0.0,
    stop: tuple[str, ...] = (),
    resume: tuple[int, ...] = (),
    top_logprobs: int | None = None,
) -> TextCall:
    messages = ({"role": "user", "content": prompt},)
    sampling = Sampling(seed=seed, temperature=temperature)
    return TextCall(messages, None, max_output, sampling, stop, resume, top_logprobs=top_logprobs)


async def run(engine: TextEngine, call: TextCall) -> Answer:
    answer = Answer()
    async for chunk in engine.generate(call, answer.progress):
        assert answer.reason is None, "a chunk after the last"
        assert len(chunk.ids) == len(chunk.logprobs)
        assert (chunk.finish_reason is None) == (chunk.prompt_units is None)
        answer.text += chunk.text
        answer.ids += chunk.ids
        answer.logprobs += chunk.logprobs
        answer.tokens += chunk.tokens
        answer.reason, answer.prompt_units = chunk.finish_reason, chunk.prompt_units
        answer.chunks += 1
        answer.told_units = max(answer.told_units, chunk.output_units)
        answer.phases.append(answer.progress.phase)
    return answer


Make = Callable[[], TextEngine]


@pytest.fixture(scope="module", params=["fake", "llamacpp", "openai"])
def make(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Make]:
    if request.param == "fake":
        yield lambda: FakeTextEngine(slots=SLOTS, token_delay_s=0.002)
        return
    path: Path = request.getfixturevalue("gguf")
    if request.param == "llamacpp":
        yield lambda: LlamaCppEngine(path, "small", "Q4_1", slots=SLOTS, context=1024, threads=1)
        return
    config = {"path": str(path), "alias": "small", "key": "secret", "slots": SLOTS}
    server = runner.run(
        start_child(CHILD_SCRIPT, {**config, "context": 1024, "batch": 256, "threads": 1})
    )
    url = server.answer["url"]
    yield lambda: OpenAiEngine(
        url, "small", "Q4_1", key="secret", slots=SLOTS, parameters=parameters.ALL
    )
    runner.run(server.stop())


def tells_ids(engine: TextEngine) -> bool:
    return not isinstance(engine, OpenAiEngine)


@pytest.fixture(scope="module")
def engine(make: Make, runner: asyncio.Runner) -> Iterator[TextEngine]:
    engine = make()
    runner.run(engine.start())
    yield engine
    runner.run(engine.close())


pytestmark = pytest.mark.timeout(60)


async def test_class_names_everything_that_rounds(engine: TextEngine) -> None:
    parts = engine.engine_class.split("/")
    assert len(parts) == 3
    assert "@" in parts[0]
    assert engine.engine_class == engine.engine_class.lower()
    assert engine.slots == SLOTS
    assert engine.ready()


async def test_streams_and_counts(engine: TextEngine) -> None:
    answer = await run(engine, chat(max_output=12, top_logprobs=0 if tells_ids(engine) else None))
    assert answer.chunks > 3
    assert answer.units == 12
    assert len(answer.ids) == len(answer.logprobs) == (12 if tells_ids(engine) else 0)
    assert answer.reason == "length"
    assert answer.prompt_units is not None
    assert answer.prompt_units > 0
    assert all(logprob <= 0 for logprob in answer.logprobs)
    assert answer.text
    assert (answer.progress.phase, answer.progress.count) == (Phase.TOKENS, 12)
    if tells_ids(engine):  # the others tell it at the end
        assert answer.progress.prompt_units == answer.prompt_units
    assert set(answer.phases) == {Phase.TOKENS}


async def test_prompt_units_follow_the_prompt(engine: TextEngine) -> None:
    short = await run(engine, chat("Hello", 1))
    long = await run(engine, chat("Hello " * 50, 1))
    assert short.prompt_units is not None
    assert long.prompt_units is not None
    assert short.units == 1
    assert 20 < long.prompt_units - short.prompt_units < 6 * 50


async def test_plain_prompt(engine: TextEngine) -> None:
    call = TextCall(None, "The capital of France is", 4, Sampling(seed=1, temperature=0))
    answer = await run(engine, call)
    assert answer.units == 4
    assert answer.prompt_units is not None
    assert answer.prompt_units <= len("The capital of France is")


async def test_the_seed_fixes_the_draw(engine: TextEngine) -> None:
    one = await run(engine, chat(seed=7, temperature=1.0, max_output=16))
    same = await run(engine, chat(seed=7, temperature=1.0, max_output=16))
    other = await run(engine, chat(seed=8, temperature=1.0, max_output=16))
    assert one.drawn == same.drawn
    assert one.text == same.text
    assert one.logprobs == same.logprobs
    assert one.drawn != other.drawn


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
async def test_every_seed_repeats(engine: TextEngine, seed: int) -> None:
    one = await run(engine, chat(seed=seed, temperature=1.0))
    same = await run(engine, chat(seed=seed, temperature=1.0))
    assert one.drawn == same.drawn


async def test_stop(engine: TextEngine) -> None:
    whole = await run(engine, chat(max_output=16))
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 6]
    answer = await run(engine, chat(max_output=16, stop=("never said", stop)))
    assert answer.reason == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.ids == whole.ids[: len(answer.ids)]
    assert answer.units < 16


async def test_text_held_back_for_a_stop_is_not_lost(engine: TextEngine) -> None:
    whole = await run(engine, chat(max_output=16))
    almost = (whole.text[4:8] + "\0", whole.text[-3:] + "\0")
    answer = await run(engine, chat(max_output=16, stop=almost))
    assert answer.reason == "length"
    if not tells_ids(engine):  # llama-server itself loses it there; ours looks for stops itself
        assert whole.text.startswith(answer.text)
        return
    assert (answer.text, answer.ids) == (whole.text, whole.ids)


async def test_resume_repeats_nothing(engine: TextEngine) -> None:
    if not tells_ids(engine):
        with pytest.raises(BadRequest) as caught:
            await run(engine, chat(resume=(1, 2)))
        assert caught.value.code == "unsupported_parameter"
        return
    whole = await run(engine, chat(max_output=12))
    for done in (1, 5):
        kept = tuple(whole.ids[:done])
        rest = await run(engine, chat(max_output=12 - done, resume=kept))
        assert len(rest.ids) == 12 - done
        assert rest.prompt_units == (whole.prompt_units or 0) + done
        if isinstance(engine, FakeTextEngine):  # a real prefill may round otherwise
            assert rest.ids == whole.ids[done:]
            assert rest.text == whole.text[len(whole.text) - len(rest.text) :]


async def test_four_at_once(engine: TextEngine) -> None:
    calls = [chat(f"Write about the number {number}.", 8, seed=number) for number in range(4)]
    alone = [await run(engine, call) for call in calls]
    together = await asyncio.gather(*(run(engine, call) for call in calls))
    assert [answer.units for answer in together] == [8] * 4
    assert [answer.prompt_units for answer in together] == [a.prompt_units for a in alone]
    assert len({answer.text for answer in together}) > 1
    if isinstance(engine, FakeTextEngine):
        assert [answer.ids for answer in together] == [answer.ids for answer in alone]


async def test_cancelling_frees_the_slot(engine: TextEngine) -> None:
    streams = [engine.generate(chat(f"{STORY} {n}", 900), Progress()) for n in range(SLOTS)]
    await asyncio.gather(*(anext(stream) for stream in streams))
    waiting, after = Progress(), Progress()
    queued = asyncio.create_task(anext(engine.generate(chat("Hello", 1), waiting)))
    second = asyncio.create_task(anext(engine.generate(chat("Hello", 1), after)))
    await asyncio.sleep(0.05)
    assert (waiting, after) == (Progress(Phase.QUEUED, 1), Progress(Phase.QUEUED, 2))
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await streams[0].aclose()
    await queued
    # It got the slot of the one that was left: the others are still at work.
    still = await asyncio.gather(*(anext(stream) for stream in streams[1:]))
    assert all(chunk.finish_reason is None for chunk in still)
    await asyncio.gather(*(stream.aclose() for stream in streams))
    assert (await run(engine, chat(max_output=2))).units == 2


async def test_cancelled_task(engine: TextEngine) -> None:
    async def read() -> None:
        async with aclosing(engine.generate(chat(max_output=900), Progress())) as chunks:
            async for _ in chunks:
                started.set()

    started = asyncio.Event()
    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await run(engine, chat(max_output=2))).units == 2


async def test_not_started_and_closed(make: Make) -> None:
    engine = make()
    assert not engine.ready()
    with pytest.raises(Unavailable) as caught:
        await run(engine, chat())
    assert caught.value.code == "engine_unavailable"
    await engine.close()
    await engine.close()
    with pytest.raises(Unavailable):
        await run(engine, chat())


# -- beyond the common parameters ------------------------------------------------------------------

ANIMAL = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "legs": {"type": "integer"}},
    "required": ["name", "legs"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
WEATHER = {"name": "weather", "parameters": CITY}


def ask(prompt: str, **more: object) -> TextCall:
    """As a node makes the call of a client's request."""
    told = {"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": 96}
    request = ChatRequest.parse(orjson.dumps({**told, **more}))
    return TextCall(
        request.plain_messages,
        None,
        request.max_output or 0,
        Sampling(seed=1, temperature=0),
        shape=request.shape,
        top_logprobs=request.top_logprobs,
        conversation=request.messages,
    )


async def test_every_parameter_is_declared(engine: TextEngine) -> None:
    assert engine.parameters == set(parameters.ALL)


async def test_json_by_a_schema(engine: TextEngine) -> None:
    named = {"name": "animal", "strict": True, "schema": ANIMAL}
    form = {"type": "json_schema", "json_schema": named}
    answer = await run(engine, ask("Describe a dog in JSON.", response_format=form))
    if answer.reason == "stop":
        animal = orjson.loads(answer.text)
        assert isinstance(animal["name"], str)
        assert isinstance(animal["legs"], int)
    else:
        assert answer.text.lstrip().startswith("{")


async def test_a_call_that_must_come(engine: TextEngine) -> None:
    tools = [{"type": "function", "function": WEATHER}]
    call = ask("What is the weather?", tools=tools, tool_choice="required")
    if isinstance(engine, OpenAiEngine):  # this model's own template knows no functions
        with pytest.raises(Unavailable, match="did not call") as caught:
            await run(engine, call)
        assert caught.value.code == "engine_failed"
        return
    answer = await run(engine, call)
    assert answer.reason == "stop"
    reader = CallReader()
    text, calls = reader.take(answer.text)
    assert (text + reader.rest(), reader.ended >= 1) == ("", True)
    (first, *_) = whole_objects(calls, "call_")
    assert first["function"]["name"] == "weather"
    assert orjson.loads(first["function"]["arguments"])["city"] in ("Rome", "Oslo")


async def test_log_probabilities(engine: TextEngine) -> None:
    answer = await run(engine, replace(chat(max_output=6), top_logprobs=2))
    assert len(answer.tokens) == 6
    assert all(UNLIKELY <= token.logprob <= 0 for token in answer.tokens)
    assert all(len(token.top) <= 2 for token in answer.tokens)
    assert b"".join(token.text for token in answer.tokens).decode() == answer.text
    assert (await run(engine, chat(max_output=2))).tokens == []


async def test_a_bias(engine: TextEngine) -> None:
    if isinstance(engine, FakeTextEngine):
        return  # its vocabulary is its own
    usual = await run(engine, chat(max_output=4))
    assert usual.text.startswith("The ")
    other = await run(engine, replace(chat(max_output=4), logit_bias=((504, -100.0),)))
    assert other.units == 4
    assert not other.text.startswith("The ")
