"""Engines that are other servers: a real llama-server, and a pool as a server of V2 tensors."""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rig import CONFIG, Rig, check_money, hosted, receipt_of

from inferpool.engines.base import Progress, Sampling, Tensor, TextCall, TextChunk
from inferpool.engines.child import Child, start_child
from inferpool.engines.llamacpp import CHILD_SCRIPT
from inferpool.engines.oip import OipEngine
from inferpool.engines.openai import OpenAiEngine
from inferpool.models import catalogue
from inferpool.models.pull import pull_model
from inferpool.models.store import Store
from inferpool.node.services import Hosted
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.receipt import SignedReceipt
from inferpool.sim.parts import API_KEY

REMOTE = "small-model"
KEY = secrets.token_urlsafe(16)

pytestmark = pytest.mark.timeout(60)


def gguf() -> Path:
    try:
        return next(iter(pull_model(Store(), catalogue.load("smollm2-135m-instruct")).values()))
    except Unavailable as error:
        pytest.skip(f"no source of smollm2-135m-instruct answered: {error.message}")


async def llama_server() -> Child:
    """llama.cpp's own server, as `engines.llamacpp` starts it."""
    return await start_child(
        CHILD_SCRIPT,
        {
            "path": str(gguf()),
            "alias": REMOTE,
            "key": KEY,
            "slots": 2,
            "context": 512,
            "batch": 256,
            "threads": 1,
        },
    )


class Upstream:
    """A llama-server and a pool with one node before it, whose engine is that server's URL."""

    def __init__(self, server: Child, rig: Rig) -> None:
        self.server, self.rig = server, rig
        self.service: Hosted = rig.services[0][0]
        self.engine: OpenAiEngine = self.service.engine


@pytest.fixture(scope="module")
def upstream(runner: asyncio.Runner) -> Iterator[Upstream]:
    async def start() -> Upstream:
        server = await llama_server()
        engine = OpenAiEngine(server.answer["url"], REMOTE, "q4_1", key=KEY, slots=2)
        await engine.start()
        manifest = replace(
            catalogue.load("smollm2-135m-instruct"), name="fronted", engine="openai", files=()
        )
        service = Hosted(manifest, engine, 150_000, 600_000, CONFIG.slots)
        return Upstream(server, await Rig([[service]]).start())

    made = runner.run(start())
    yield made
    runner.run(made.rig.close())
    runner.run(made.server.stop())


def call(prompt: str = "Say hello.", max_output: int = 8, **more: Any) -> TextCall:
    messages = ({"role": "user", "content": prompt},)
    sampling = more.pop("sampling", Sampling(seed=1, temperature=0.0))
    return TextCall(messages, None, max_output, sampling, **more)


async def run(engine: OpenAiEngine, made: TextCall) -> list[TextChunk]:
    return [chunk async for chunk in engine.generate(made, Progress())]


async def test_the_service_is_offered_as_unaudited(
    runner: asyncio.Runner, upstream: Upstream
) -> None:
    service = upstream.service.service()
    assert (service.audited, service.resume) == (False, False)
    assert service.engine_class == "openai@llamacpp/q4_1/remote"


async def test_chat_through_the_pool(runner: asyncio.Runner, upstream: Upstream) -> None:
    rig = upstream.rig
    before = rig.charged(), rig.spent()
    body = {
        "model": "fronted",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    answer = await rig.post("/v1/chat/completions", body)
    value = answer.json()
    assert value["choices"][0]["message"]["content"].strip(), value
    signed = receipt_of(answer)
    assert signed.receipt.evidence_hash == bytes(32)
    assert 0 < signed.receipt.output_units <= 12
    assert value["usage"]["completion_tokens"] == signed.receipt.output_units
    assert value["usage"]["prompt_tokens"] == signed.receipt.prompt_units > 20
    check_money(rig, upstream.service, signed, before)


async def test_streams_and_bills_the_servers_count(
    runner: asyncio.Runner, upstream: Upstream
) -> None:
    rig = upstream.rig
    before = rig.charged(), rig.spent()
    stream = await rig.openai().completions.create(
        model="fronted", prompt="One, two, three,", max_tokens=10, temperature=0, stream=True
    )
    chunks: list[Any] = [chunk async for chunk in stream]
    assert "four" in "".join(chunk.choices[0].text for chunk in chunks)
    proof = chunks[-1].model_extra["inferpool"]
    assert proof["output_units"] == 10
    signed = SignedReceipt.from_wire({key: proof[key] for key in ("receipt", "signature")})
    check_money(rig, upstream.service, signed, before)


async def test_context_and_parameters(runner: asyncio.Runner, upstream: Upstream) -> None:
    rig = upstream.rig
    long = {"model": "fronted", "prompt": "word " * 900, "max_tokens": 4}
    assert (await rig.refused("/v1/completions", long))["code"] == "context_length_exceeded"
    with pytest.raises(BadRequest, match="token ids"):
        await run(upstream.engine, call(resume=(1, 2)))
    assert (await rig.post("/v1/completions", long | {"prompt": "a", "top_k": 5})).is_success


async def test_a_left_call_frees_the_slot(runner: asyncio.Runner, upstream: Upstream) -> None:
    stream = upstream.engine.generate(call("Tell a long story.", 400), Progress())
    await anext(stream)
    await stream.aclose()
    chunks = await run(upstream.engine, call())
    assert chunks[-1].finish_reason is not None


async def test_wrong_key_and_wrong_model(runner: asyncio.Runner, upstream: Upstream) -> None:
    url = upstream.server.answer["url"]
    with pytest.raises(Unavailable, match="401"):
        await OpenAiEngine(url, REMOTE, "q4_1", key="wrong").start()
    with pytest.raises(Unavailable, match=f"has no model 'other'; it has {REMOTE}"):
        await OpenAiEngine(url + "/v1/", "other", "q4_1", key=KEY).start()


async def test_a_dead_server_is_noticed(runner: asyncio.Runner) -> None:
    server = await llama_server()
    engine = OpenAiEngine(server.answer["url"], REMOTE, "q4_1", key=KEY)
    await engine.start()
    stream = engine.generate(call("Tell a long story.", 400), Progress())
    await anext(stream)
    await server.stop()
    with pytest.raises(Unavailable) as caught:
        async for _ in stream:
            pass
    assert caught.value.code == "engine_failed"
    with pytest.raises(Unavailable):
        await run(engine, call())
    assert not engine.ready()
    await engine.close()


# -- a server of the Open Inference Protocol -------------------------------------------------------


@asynccontextmanager
async def two_pools() -> AsyncGenerator[tuple[Rig, Rig, OipEngine], None]:
    """A pool whose node fronts another pool's gateway by V2 over REST."""
    inner = await Rig([[await hosted("fake-tensor")]]).start()
    engine = OipEngine(
        "http://inner.test/v2",
        "fake-tensor",
        "f32",
        key=API_KEY,
        transport=inner.gateway.transport(),
    )
    await engine.start()
    manifest = replace(catalogue.load("fake-tensor"), name="fronted-sums", engine="oip")
    outer = await Rig([[Hosted(manifest, engine, 300_000, 0, 8)]]).start()
    try:
        yield inner, outer, engine
    finally:
        await outer.close()
        await inner.close()


async def test_tensors_through_two_pools() -> None:
    async with two_pools() as (inner, outer, engine):
        assert [spec.name for spec in engine.inputs] == ["x"]
        before = outer.charged(), outer.spent()
        data = [[1, 2, 3, 4], [5, 6, 7, 8]]
        inputs = [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": data}]
        answer = await outer.post("/v2/models/fronted-sums/infer", {"inputs": inputs})
        assert answer.json()["outputs"][0]["data"] == [10.0, 26.0], answer.text
        check_money(outer, outer.services[0][0], receipt_of(answer), before)
        assert inner.charged() == 2 * inner.services[0][0].price_in_pico_usd_per_unit


async def test_tensors_raw_and_wrong() -> None:
    async with two_pools() as (inner, _, engine):
        row = Tensor("x", "FP32", (1, 4), struct.pack("<4f", 1, 2, 3, 4))
        (found,) = await engine.infer([row], 1)
        assert (found.shape, struct.unpack("<f", found.data)) == ((1, 1), (10.0,))
        with pytest.raises(BadRequest, match="no input 'y'"):
            await engine.infer([replace(row, name="y")], 1)
        engine._binary = False  # a server without the extension
        (found,) = await engine.infer([row], 1)
        assert struct.unpack("<f", found.data) == (10.0,)
        await inner.services[0][0].engine.close()
        with pytest.raises(Unavailable):
            await engine.infer([row], 1)


async def test_a_model_that_is_not_there() -> None:
    inner = await Rig([[await hosted("fake-tensor")]]).start()
    pipe = inner.gateway.transport()
    with pytest.raises(Unavailable, match="404"):
        await OipEngine("http://inner.test", "none", "f32", key=API_KEY, transport=pipe).start()
    await inner.close()


def test_keys_do_not_show() -> None:
    assert KEY not in repr(OpenAiEngine("http://127.0.0.1:1", "m", "q", key=KEY))
