"""llama.cpp in its child process: crashes, orphans, refusals, characters, long prompts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from inferpool.engines.base import UNKNOWN_LOGPROB, Phase, Progress, Sampling, TextCall, TextChunk
from inferpool.engines.child import clean_environment
from inferpool.engines.llamacpp import CHILD_SCRIPT, LlamaCppEngine, cpu_isa
from inferpool.engines.llamacpp_wire import CompletionReader, completion_body, template_messages
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.logprobs import TokenLogprob
from inferpool.protocol.tools import take_tools
from inferpool.transport.http import HttpTransport
from inferpool.transport.memory import MemoryTransport, Message

pytestmark = pytest.mark.timeout(60)
CONTEXT = 1024


@asynccontextmanager
async def running(path: Path, silence_s: float = 60) -> AsyncIterator[LlamaCppEngine]:
    engine = LlamaCppEngine(
        path, "small", "Q4_1", slots=2, context=CONTEXT, threads=1, silence_s=silence_s
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def chat(prompt: str, max_output: int = 8) -> TextCall:
    messages = ({"role": "user", "content": prompt},)
    return TextCall(messages, None, max_output, Sampling(seed=1, temperature=0))


async def collect(engine: LlamaCppEngine, call: TextCall) -> list[TextChunk]:
    return [chunk async for chunk in engine.generate(call, Progress())]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def gone(pid: int, within_s: float = 5) -> bool:
    end_s = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < end_s:  # noqa: ASYNC110 - not our own child
        await asyncio.sleep(0.01)
    return not alive(pid)


async def test_killed_child_fails_its_calls_and_comes_back(gguf: Path) -> None:
    async with running(gguf) as engine:
        first = engine.pid
        assert first is not None
        stream = engine.generate(chat("Tell me a long story.", 900), Progress())
        await anext(stream)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(Unavailable) as caught:
            async for _ in stream:
                pass
        assert caught.value.code == "engine_failed"
        while engine.ready():  # noqa: ASYNC110 - what is awaited is another task's next step
            await asyncio.sleep(0)
        with pytest.raises(Unavailable) as caught:
            await collect(engine, chat("Hello"))
        assert caught.value.code == "engine_unavailable"
        assert caught.value.retry_after_s == 1
        assert "-9" in caught.value.message
        while not engine.ready():  # noqa: ASYNC110 - bounded by the test's own limit
            await asyncio.sleep(0.02)
        assert engine.restarts == 1
        assert engine.pid not in (first, None)
        assert len(await collect(engine, chat("Hello"))) > 1
        second = engine.pid
    assert second is not None
    assert not alive(first)
    assert not alive(second)


async def test_a_child_that_hangs_is_ended_and_another_started(gguf: Path) -> None:
    """Stopped, it is as silent as one in an endless loop: it holds its connections and its slot."""
    async with running(gguf, silence_s=3) as engine:
        first = engine.pid
        assert first is not None
        stream = engine.generate(chat("Tell me a long story.", 900), Progress())
        await anext(stream)
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(Unavailable) as caught:
            async for _ in stream:
                pass
        assert caught.value.code == "engine_failed"
        assert "nothing for 3 s" in caught.value.message
        assert await gone(first)
        while engine.restarts == 0:  # noqa: ASYNC110 - bounded by the test's own limit
            await asyncio.sleep(0.02)
        assert len(await collect(engine, chat("Hello"))) > 1


async def test_close_fails_calls_under_way(gguf: Path) -> None:
    async with running(gguf) as engine:
        stream = engine.generate(chat("Tell me a long story.", 900), Progress())
        await anext(stream)
    with pytest.raises(Unavailable):
        async for _ in stream:
            pass


PARENT = """
import asyncio, sys
from pathlib import Path
from inferpool.engines.llamacpp import LlamaCppEngine

async def main():
    engine = LlamaCppEngine(Path(sys.argv[1]), "small", "q", slots=1, context=256, threads=1)
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_no_orphan_after_the_parent_was_killed(gguf: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(gguf)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(await asyncio.to_thread(parent.stdout.readline))
        assert alive(child)
        parent.kill()
        parent.wait()
    assert await gone(child)


def test_the_child_leaves_when_its_stdin_closes(gguf: Path) -> None:
    config = {
        "path": str(gguf),
        "alias": "small",
        "key": "k",
        "slots": 1,
        "context": 256,
        "batch": 256,
        "threads": 1,
        "parent": os.getpid(),
    }
    command = [sys.executable, "-I", str(CHILD_SCRIPT)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as child:  # type: ignore[call-overload]
        child.stdin.write(json.dumps(config).encode() + b"\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["url"].startswith("http://127.0.0.1:")
        child.stdin.close()
        assert child.wait(5) == 0


@pytest.mark.parametrize("kind", ["missing", "garbage", "truncated"])
async def test_bad_file_is_refused_and_takes_nobody_down(
    gguf: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "model.gguf"
    if kind == "garbage":
        path.write_bytes(b"GGUF" + bytes(1000))
    elif kind == "truncated":
        with gguf.open("rb") as whole:
            path.write_bytes(whole.read(4 << 20))
    engine = LlamaCppEngine(path, "bad", "q4_1", threads=1)
    with pytest.raises(Unavailable, match="did not start") as caught:
        await engine.start()
    assert caught.value.code == "engine_unavailable"
    # The library's own words come from a thread of its own, which its end does not always wait for.
    assert re.search("failed to (load model|init server)", caught.value.message.lower())
    assert not engine.ready()
    assert engine.pid is None
    await engine.close()


async def test_only_who_has_the_key_is_served(gguf: Path) -> None:
    async with running(gguf) as engine:
        assert engine._child is not None
        transport = HttpTransport(engine._child.answer["url"])
        headers = [(b"origin", b"https://evil.example"), (b"content-type", b"application/json")]
        for path in ("/completion", "/v1/chat/completions", "/tokenize", "/apply-template"):
            answer = await transport.request("POST", path, headers, b"{}", timeout_s=5)
            assert answer.status == 401
            assert answer.header(b"access-control-allow-origin") != b"https://evil.example"
            assert answer.header(b"access-control-allow-credentials") in (None, b"false")
            await answer.read(10_000)
        await transport.close()


async def test_requests_that_the_engine_refuses(gguf: Path) -> None:
    async with running(gguf) as engine:
        with pytest.raises(BadRequest) as caught:
            await collect(engine, chat("word " * 2 * CONTEXT))
        assert caught.value.code == "context_length_exceeded"
        picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
        call = TextCall(({"role": "user", "content": picture},), None, 1, Sampling(seed=1))
        with pytest.raises(BadRequest) as caught:
            await collect(engine, call)
        assert caught.value.code == "unsupported_parameter"
        bad_id = TextCall(None, "Hello", 1, Sampling(seed=1), resume=(10**7,))
        for refused in (bad_id, TextCall(None, "", 1, Sampling(seed=1))):
            with pytest.raises(BadRequest):
                await collect(engine, refused)
        assert len(await collect(engine, chat("Hello"))) > 1  # every slot came back


async def test_no_id_of_a_character_in_pieces_is_lost(gguf: Path) -> None:
    """One emoji is three tokens here, of which the engine names only the last."""
    async with running(gguf) as engine:
        call = replace(chat("Repeat exactly: 😀🦄", 9), top_logprobs=0)
        chunks = await collect(engine, call)
        text = "".join(chunk.text for chunk in chunks)
        ids = [token for chunk in chunks for token in chunk.ids]
        logprobs = [number for chunk in chunks for number in chunk.logprobs]
        assert "🦄" in text
        assert len(ids) == len(logprobs) == 9
        assert UNKNOWN_LOGPROB in logprobs
        assert any(number < 0 for number in logprobs)
        assert engine._transport is not None
        assert await engine._tokens(engine._transport, text, special=False) == ids


async def test_progress_and_leaving_during_a_long_prefill(gguf: Path) -> None:
    async with running(gguf) as engine:
        progress = Progress()
        stream = engine.generate(chat("The quick brown fox. " * 100, 4), progress)
        first = asyncio.create_task(anext(stream))
        while progress.phase is Phase.QUEUED:  # noqa: ASYNC110 - the engine's word, not ours
            await asyncio.sleep(0.005)
        assert progress.phase is Phase.PREFILL
        seen = {progress.count}
        while not first.done():
            if progress.phase is Phase.PREFILL:
                seen.add(progress.count)
            await asyncio.sleep(0.005)
        assert len(seen) >= 3  # 256 tokens at a time
        assert seen == {0, *(count for count in seen if 256 <= count <= CONTEXT)}
        await stream.aclose()

        progress = Progress()
        task = asyncio.create_task(
            anext(engine.generate(chat("The slow brown fox. " * 100, 4), progress))
        )
        while progress.phase is Phase.QUEUED:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(await collect(engine, chat("Hello", 2))) > 1


async def test_concurrent_streams_share_the_engine(gguf: Path) -> None:
    async with running(gguf) as engine:
        calls = [chat(f"Count from {number}.", 6) for number in range(5)]  # over two slots
        answers = await asyncio.gather(*(collect(engine, call) for call in calls))
        assert all(sum(len(chunk.ids) for chunk in answer) == 6 for answer in answers)


# -- the wire, without the engine ----------------------------------------------------------------


async def read(
    *events: bytes, stop: tuple[str, ...] = (), top: int | None = None
) -> list[TextChunk]:
    async def app(scope: Message, receive: object, send: object) -> None:
        assert callable(send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for event in events:
            await send({"type": "http.response.body", "body": event + b"\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def tokenize(text: str) -> list[int]:
        return [1, 2, 3]

    transport = MemoryTransport(app)
    response = await transport.request("POST", "/", [], b"", timeout_s=5)
    reader = CompletionReader(stop, Progress(), tokenize, top)
    try:
        return [chunk async for chunk in reader.chunks(response)]
    finally:
        await transport.close()


def token(text: str, number: int, counted: int, logprob: float | None = None) -> bytes:
    event: dict[str, object] = {
        "content": text,
        "tokens": [number],
        "stop": False,
        "tokens_predicted": counted,
        "tokens_evaluated": 5,
    }
    if logprob is not None:
        entry = {"id": number, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
        event["completion_probabilities"] = [entry]
    return b"data: " + orjson.dumps(event)


END = b'data: {"stop":true,"stop_type":"eos","tokens_evaluated":5,"tokens":[]}'


async def test_events_become_chunks() -> None:
    progress = b'data: {"tokens":[0],"stop":false,"prompt_progress":{"processed":5}}'
    assert await read(progress, b": ping", token("a", 7, 1), END) == [
        TextChunk("a", (7,), (UNKNOWN_LOGPROB,)),
        TextChunk("", (), (), "stop", 5),
    ]


async def test_log_probabilities_come_where_they_are_asked_for() -> None:
    told, _ = await read(token("a", 7, 1, -0.5), END, top=0)
    assert (told.ids, told.logprobs) == ((7,), (-0.5,))
    assert told.tokens == (TokenLogprob(b"a", -0.5, ()),)


def test_the_engine_sorts_its_vocabulary_only_for_whoever_asks() -> None:
    call = chat("Hello")
    asked = {top: replace(call, top_logprobs=top) for top in (None, 0, 1, 5)}
    sent = {top: orjson.loads(completion_body(c, "Hello"))["n_probs"] for top, c in asked.items()}
    assert sent == {None: 0, 0: 1, 1: 1, 5: 5}


async def test_a_gap_is_filled_only_where_the_ids_agree() -> None:
    whole, _ = await read(token("é", 3, 3), END)
    assert whole.ids == (1, 2, 3)
    for other in (await read(token("é", 4, 3), END), await read(token("é", 3, 2), END)):
        assert len(other[0].ids) == 1
        assert other[0].logprobs == (UNKNOWN_LOGPROB,)


async def test_stop_text_over_several_tokens() -> None:
    events = [token("x E", 1, 1), token("N", 2, 2), token("D y", 3, 3), token("z", 4, 4), END]
    assert await read(*events, stop=("END",)) == [
        TextChunk("x ", (1,), (UNKNOWN_LOGPROB,)),
        TextChunk("", (2,), (UNKNOWN_LOGPROB,)),
        TextChunk("", (3,), (UNKNOWN_LOGPROB,), "stop", 5),
    ]
    held = await read(token("x E", 1, 1), END, stop=("END",))
    assert "".join(chunk.text for chunk in held) == "x E"


@pytest.mark.parametrize(
    "events",
    [
        (),
        (token("a", 7, 1),),
        (b'data: {"error":{"message":"out of memory"}}',),
        (b"data: not json",),
        (b"data: []",),
        (b"data: {}",),
        (b'data: {"stop":false,"content":"a","tokens":[],"tokens_predicted":1}',),
    ],
)
async def test_streams_that_are_not_whole_fail(events: tuple[bytes, ...]) -> None:
    with pytest.raises(Unavailable) as caught:
        await read(*events)
    assert caught.value.code == "engine_failed"


def test_every_sampler_number_is_sent() -> None:
    sampling = Sampling(9, 0.5, 40, 0.9, 0.05, 1.1, 0.2, 0.3)
    body = orjson.loads(completion_body(TextCall(None, "p", 3, sampling, ("x",)), "p"))
    assert (body["seed"], body["temperature"], body["top_k"], body["top_p"]) == (9, 0.5, 40, 0.9)
    assert (body["min_p"], body["repeat_penalty"]) == (0.05, 1.1)
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0.2, 0.3)
    assert body["n_predict"] == 3
    assert body["stream"] is True
    assert body["cache_prompt"] is False
    assert "stop" not in body


def test_messages() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = template_messages(({"role": "user", "content": parts, "name": "x"}, {"role": "system"}))
    assert found == [{"role": "user", "content": "ab"}, {"role": "system", "content": ""}]


def test_environment_of_the_child() -> None:
    given = {"PATH": "/bin", "HTTPS_PROXY": "x", "PYTHONPATH": "x", "SECRET": "x", "LANG": "C"}
    found = clean_environment(given)
    assert {name: found[name] for name in found.keys() & given} == {"PATH": "/bin", "LANG": "C"}
    assert found.keys() - given == {
        "GOMP_SPINCOUNT",
        "GGML_NO_BACKTRACE",
        "OPENBLAS_NUM_THREADS",
    }


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        ("fpu avx avx2 fma f16c avx512f", "avx2"),
        ("fpu avx avx2", "avx"),
        ("fpu sse4_2", "sse42"),
        ("", "sse42"),
    ],
)
def test_isa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, isa: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
    assert cpu_isa(cpuinfo) == isa
    assert cpu_isa(tmp_path / "none") == "x86_64"
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert cpu_isa(cpuinfo) == "aarch64"


async def test_a_call_in_the_middle_of_text_is_held_to_its_form(gguf: Path) -> None:
    """The model is led to begin a call by examples of another form; the grammar takes over."""
    tool = {"type": "function", "function": {"name": "get_time"}}
    shape = take_tools({"tools": [tool], "parallel_tool_calls": False})
    led = 'Time? Wait. <tool_call>{"city": "Rome"}</tool_call>\n' * 8 + "Time? Wait."
    call = TextCall(None, led, 40, Sampling(seed=1, temperature=0), shape=shape)
    free = replace(call, shape=None)
    async with running(gguf) as engine:
        text = "".join([chunk.text for chunk in await collect(engine, call)])
        other = "".join([chunk.text for chunk in await collect(engine, free)])
    assert '<tool_call>{"city"' in other, "the examples lead it"
    before, mark, after = text.partition("<tool_call>{")
    assert mark
    assert other.startswith(before)
    assert re.fullmatch(r' ?"name": ?"get_time", ?"arguments": ?\{\}\}\n?</tool_call>', after)
