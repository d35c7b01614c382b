"""llama.cpp by the program `llama-server`. The program here is a script with its flags around the
wheel's server, which is the same code; no test ran one that somebody else built."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import orjson
import pytest

from inferpool.config import NodeConfig
from inferpool.daemon.engines import llama_server
from inferpool.engines.base import Progress, Sampling, TextCall, TextChunk
from inferpool.engines.llama_server import Program
from inferpool.engines.llamacpp import LlamaCppEngine
from inferpool.protocol.errors import Refused, Unavailable
from inferpool.transport.base import Response
from inferpool.transport.http import HttpTransport

pytestmark = pytest.mark.timeout(60)

SCRIPT = """#!{python} -I
import argparse, os, sys, threading
if sys.argv[1:] == ["--version"]:
    print("version: 5162 (0123abcd)", file=sys.stderr)
    sys.exit()
parser = argparse.ArgumentParser()
for flag in ("model", "alias", "host", "parallel", "ctx-size", "batch-size", "ubatch-size",
             "threads", "threads-batch", "threads-http", "n-gpu-layers", "port", "cache-ram"):
    parser.add_argument("--" + flag, required=flag != "cache-ram")
parser.add_argument("--no-slots", action="store_true")
args = parser.parse_args()
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.model_alias = args.model, {{args.alias}}
params.hostnames, params.port = [args.host], int(args.port)
params.api_keys = [os.environ["LLAMA_API_KEY"]]
params.n_parallel, params.n_ctx = int(args.parallel), int(args.ctx_size)
params.n_batch = params.n_ubatch = int(args.batch_size)
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(args.threads)
params.n_threads_http = int(args.threads_http)
params.fit_params, params.cache_ram_mib = False, int(args.cache_ram)
params.endpoint_slots = not args.no_slots
params.verbosity = 1
server = xllamacpp.Server(params)
threading.Event().wait()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text(SCRIPT.format(python=sys.executable))
    path.chmod(0o755)
    return path


def chat(max_output: int) -> TextCall:
    messages = ({"role": "user", "content": "Tell me a long story."},)
    return TextCall(messages, None, max_output, Sampling(seed=1, temperature=0))


async def collect(engine: LlamaCppEngine, call: TextCall) -> list[TextChunk]:
    return [chunk async for chunk in engine.generate(call, Progress())]


def servers(of: int | None) -> list[int]:
    """The processes that a child has started."""
    assert of is not None
    return [int(pid) for pid in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


def runs(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def ended(pid: int) -> None:
    while runs(pid):  # noqa: ASYNC110 - not a child of ours
        await asyncio.sleep(0.02)


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_it_serves_and_comes_back_and_leaves_nothing(gguf: Path, program: Path) -> None:
    found = Program.find(str(program))
    engine = LlamaCppEngine(gguf, "small", "Q4_1", slots=2, context=512, threads=1, program=found)
    assert engine.engine_class.startswith("llamacpp@b5162-0123abcd/q4_1/cpu-")
    await engine.start()
    try:
        assert engine.sandbox.startswith("none: llama-server")
        chunks = await collect(engine, chat(6))
        assert sum(len(chunk.ids) for chunk in chunks) == 6
        assert await open_to_all(engine) == 401  # without the key
        (first,) = servers(engine.pid)
        key = dict(engine._headers)[b"authorization"].removeprefix(b"Bearer ")
        assert key not in command_line(first)  # which everyone on the machine may read

        stream = engine.generate(chat(400), Progress())
        await anext(stream)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(Unavailable) as caught:
            async for _ in stream:
                pass
        assert caught.value.code == "engine_failed"
        while engine.restarts == 0:  # noqa: ASYNC110 - bounded by the test's own limit
            await asyncio.sleep(0.02)
        assert len(await collect(engine, chat(2))) > 1

        (second,) = servers(engine.pid)
        child = engine.pid
        assert child is not None
        os.kill(child, signal.SIGKILL)  # not even then is one left behind
        await ended(second)
        while engine.restarts == 1:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        (third,) = servers(engine.pid)
    finally:
        await engine.close()
    await ended(third)


async def open_to_all(engine: LlamaCppEngine) -> int:
    assert engine._child is not None
    pipe = HttpTransport(engine._child.answer["url"])
    try:
        body = orjson.dumps({"prompt": "Hi", "n_predict": 1})
        answer: Response = await pipe.request("POST", "/completion", [], body, timeout_s=20)
        await answer.read(10_000)
        return answer.status
    finally:
        await pipe.close()


async def test_a_model_that_it_refuses(tmp_path: Path, program: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    engine = LlamaCppEngine(broken, "small", "Q4_1", program=Program.find(str(program)))
    with pytest.raises(Unavailable, match="did not start"):
        await engine.start()
    await engine.close()


def test_flags_of_older_releases_are_left_out(program: Path) -> None:
    flags = Program.find(str(program)).flags(
        Path("/m.gguf"), "small", {"slots": 2, "context": 512, "batch": 64, "threads": 3}
    )
    line = " ".join(flags)
    assert "--model /m.gguf --alias small --host 127.0.0.1 --parallel 2 --ctx-size 1024" in line
    assert "--no-slots" in line
    assert "--cache-ram 0" in line
    assert "--no-webui" not in line


def test_where_it_is_looked_for(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    assert Program.find("llama-server").path == program.resolve()
    assert llama_server(NodeConfig()) == ""  # the wheel is here
    assert llama_server(NodeConfig(llama_server="other")) == "other"
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho hello\n")
    other.chmod(0o755)
    for name in ("other", "nothing-of-this-name"):
        with pytest.raises(Refused) as caught:
            Program.find(name)
        assert (caught.value.code, caught.value.param) == ("bad_config", "node.llama_server")
