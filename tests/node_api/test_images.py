"""`POST /v1/images/generations` through a gateway with the terrain model behind it."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from rig import Rig, check_money, hosted, receipt_of

PATH = "/v1/images/generations"
BODY: dict[str, Any] = {"model": "terrain-128", "prompt": "terrain, difficulty 60", "seed": 7}

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def rig(runner: asyncio.Runner) -> Iterator[Rig]:
    async def start() -> Rig:
        return await Rig([[await hosted("terrain-128")]]).start()

    rig = runner.run(start())
    yield rig
    runner.run(rig.close())


def pixels(png: bytes) -> bytes:
    """Grey pixels of a PNG file as we write them; each chunk's checksum is verified."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        data = png[at + 8 : at + 8 + size]
        assert zlib.crc32(kind + data) == int.from_bytes(png[at + 8 + size : at + 12 + size])
        chunks[kind] = data
        at += 12 + size
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (width, height, rest) == (128, 128, [8, 0, 0, 0, 0])
    rows = zlib.decompress(chunks[b"IDAT"])
    return b"".join(rows[at + 1 : at + 129] for at in range(0, len(rows), 129))


def images(body: dict[str, Any]) -> list[bytes]:
    return [pixels(base64.b64decode(item["b64_json"])) for item in body["data"]]


async def test_seeded_images_and_money(runner: asyncio.Runner, rig: Rig) -> None:
    before = rig.charged(), rig.spent()
    answer = await rig.post(PATH, BODY | {"n": 2, "size": "128x128"})
    first, second = images(answer.json())
    signed = receipt_of(answer)
    assert (signed.receipt.prompt_units, signed.receipt.output_units) == (0, 2)
    assert signed.receipt.seed == 7
    assert check_money(rig, rig.services[0][0], signed, before) == 2 * 500_000_000
    assert first != second
    assert len(set(first)) > 20  # a landscape, not a plain
    assert images((await rig.post(PATH, BODY | {"seed": 8})).json()) == [second]  # seed + 1


async def test_openai_python(runner: asyncio.Runner, rig: Rig) -> None:
    made = await rig.openai().images.generate(
        model="terrain-128", prompt="terrain", response_format="b64_json", size="auto"
    )
    assert made.data
    assert len(pixels(base64.b64decode(made.data[0].b64_json or ""))) == 128 * 128


async def test_a_stream_has_an_event_for_each_image(runner: asyncio.Runner, rig: Rig) -> None:
    whole = images((await rig.post(PATH, BODY | {"n": 2})).json())
    before = rig.charged(), rig.spent()
    answer = await rig.post(PATH, BODY | {"n": 2, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]
    assert [pixels(base64.b64decode(item["b64_json"])) for item in found] == whole
    assert {item["type"] for item in found} == {"image_generation.completed"}
    check_money(rig, rig.services[0][0], receipt_of(answer), before)
    stream = await rig.openai().images.generate(
        model="terrain-128", prompt="terrain", stream=True, partial_images=0
    )
    assert [event.type async for event in stream] == ["image_generation.completed"]


async def test_without_a_model_the_cheapest_one_draws(runner: asyncio.Runner, rig: Rig) -> None:
    """OpenAI's API lets a request for images name none."""
    named = images((await rig.post(PATH, BODY)).json())
    unnamed = {name: value for name, value in BODY.items() if name != "model"}
    assert images((await rig.post(PATH, unnamed)).json()) == named


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompt": "a cat on the moon"}, "prompt"),
        ({"prompt": "terrain, difficulty 101"}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"size": "256x256"}, "size"),
        ({"size": "large"}, "size"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"response_format": "url"}, "response_format"),
        ({"output_format": "jpeg"}, "output_format"),
        ({"quality": "hd"}, "quality"),
        ({"style": "vivid"}, "style"),
        ({"background": "transparent"}, "background"),
        ({"stream": True, "partial_images": 2}, "partial_images"),
        ({"stream": "yes"}, "stream"),
    ],
)
async def test_refused_by_name(
    runner: asyncio.Runner, rig: Rig, more: dict[str, Any], param: str
) -> None:
    error = await rig.refused(PATH, BODY | more)
    assert (error["param"], error["status"]) == (param, 400)
