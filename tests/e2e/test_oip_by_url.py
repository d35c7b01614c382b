"""A pool's gateway as the Open Inference Protocol server that another node has by URL."""

from __future__ import annotations

import asyncio

import pytest
from poolkit import SPAM, Running

from inferpool.engines.base import Tensor
from inferpool.engines.oip import OipEngine
from inferpool.engines.onnx import OnnxEngine
from inferpool.models import catalogue
from inferpool.models.store import Store
from inferpool.protocol.errors import BadRequest, Unavailable

pytestmark = pytest.mark.timeout(60)


def text(*values: str) -> Tensor:
    packed = [value.encode() for value in values]
    data = b"".join(len(item).to_bytes(4, "little") + item for item in packed)
    return Tensor("text", "BYTES", (len(values), 1), data)


def test_the_answers_are_the_models_own(pool: Running) -> None:
    """Bit for bit those of ONNX Runtime here: tensors cross binary, both ways."""

    async def asked() -> None:
        there = OipEngine(pool.url(), SPAM, "f32", key=pool.api_key)
        here = OnnxEngine(Store().path(catalogue.load(SPAM).files[0]), SPAM)
        await there.start()
        await here.start()
        try:
            assert there.ready()
            assert there.inputs == here.inputs
            assert there.engine_class.startswith("oip@inferpool")
            rows = text("free money click here now", "the meeting is on monday", "ünïcode €")
            wanted = await here.infer([rows], 3)
            found = await there.infer([rows], 3)
            assert {item.name for item in found} == {item.name for item in wanted}
            assert sorted(found, key=str) == sorted(wanted, key=str)
            many = await asyncio.gather(*(there.infer([text(f"call {i}")], 1) for i in range(20)))
            assert len(many) == 20
            with pytest.raises(BadRequest) as raised:
                await there.infer([Tensor("text", "FP32", (1, 1), bytes(4))], 1)
            assert raised.value.code == "invalid_tensor"
        finally:
            await here.close()
            await there.close()
        with pytest.raises(Unavailable):
            await there.infer([text("after the end")], 1)

    asyncio.run(asked())


def test_a_model_that_it_has_not_is_told_at_the_start(pool: Running) -> None:
    async def asked() -> None:
        engine = OipEngine(pool.url(), "no-such-model", "f32", key=pool.api_key)
        with pytest.raises(Unavailable) as raised:
            await engine.start()
        assert raised.value.code == "engine_unavailable"

    asyncio.run(asked())
