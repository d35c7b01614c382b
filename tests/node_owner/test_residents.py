"""Models come and go under the owner's memory cap; what they weigh is told by a meter, or real."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from owner_kit import Net, net, until
from test_duty import services

from inferpool.engines.fake import FakeTensorEngine, FakeTextEngine
from inferpool.engines.llamacpp import LlamaCppEngine
from inferpool.engines.onnx import OnnxEngine
from inferpool.gateway.feedback import Unmet
from inferpool.models import catalogue
from inferpool.models.pull import pull_model
from inferpool.models.store import Store
from inferpool.node.load import LoadMeter
from inferpool.node.policy import Policy
from inferpool.node.push import _ANSWER_MAX as ANSWER_MAX
from inferpool.node.residents import STAY_MS, Residents, least_used
from inferpool.node.services import Hosted, Services
from inferpool.protocol.errors import Unavailable
from inferpool.protocol.lifecycle import NodeState
from inferpool.protocol.limits import UNMET_MAX

MB = 1 << 20
NODE = 50 * MB  # of the node itself
WEIGHT = {"fake-chat": 300 * MB, "fake-tensor": 100 * MB}


class Scales(LoadMeter):
    """A meter of engines that weigh nothing: each adds what the test says while it is loaded."""

    def __init__(self) -> None:
        super().__init__(proc=Path("/nowhere"))
        self.weight = dict(WEIGHT)
        self.hosted: Any = ()

    def own_memory(self) -> int:
        loaded = [item.manifest.name for item in self.hosted if item.engine.ready()]
        return NODE + sum(self.weight[name] for name in loaded)


async def weighed(world: Net, cap_mb: int) -> Scales:
    """The node on scales, every model in memory for a while, and then the cap."""
    meter = world.duty.meter
    assert isinstance(meter, Scales)
    meter.hosted = world.node.node.services.hosted
    for item in meter.hosted:
        item.memory = WEIGHT[item.manifest.name]
    await asyncio.sleep(STAY_MS / 1000)
    world.duty.policy = Policy(memory_max=cap_mb * MB)
    return meter


def states(world: Net) -> dict[str, str]:
    found = {}
    for item in world.node.node.services.hosted:
        how = "loaded" if item.engine.ready() else "cold" if item.cold else "closed"
        found[item.manifest.name] = how
    return found


async def test_the_least_used_model_leaves_and_the_other_is_served(tmp_path: Path) -> None:
    async with net(tmp_path, meter=Scales()) as world:
        await weighed(world, 400)
        assert (await world.chat())[0] == 200
        await world.duty.tick()
        assert states(world) == {"fake-chat": "loaded", "fake-tensor": "cold"}
        assert world.duty.state is NodeState.OFFERING
        await until("the gateway knows", lambda: services(world) == ["fake-chat"])
        assert (await world.chat())[0] == 200
        told = await world.control("status")
        assert [item["cold"] for item in told["models"]] == [False, True]
        assert told["models"][1]["memory_bytes"] == WEIGHT["fake-tensor"]


async def test_what_runs_on_it_ends_first(tmp_path: Path) -> None:
    async with net(tmp_path, meter=Scales()) as world:
        await weighed(world, 370)
        world.node.node.services.hosted[1].running += 1  # used as well, and later
        chat = asyncio.create_task(world.chat(max_tokens=200))
        await until("the chat runs", lambda: world.node.node.busy)
        world.node.node.services.hosted[1].used_ms = world.clock.now_ms() + 1
        await world.duty.tick()
        await until("no new ones come", lambda: services(world) == ["fake-tensor"])
        assert world.node.engine.ready(), "it answers"
        status, answer = await chat
        assert (status, answer["usage"]["completion_tokens"]) == (200, 200)
        await world.duty.tick()
        assert states(world) == {"fake-chat": "cold", "fake-tensor": "loaded"}


async def test_far_over_the_cap_what_runs_is_cut(tmp_path: Path) -> None:
    async with net(tmp_path, meter=Scales()) as world:
        await weighed(world, 200)
        chat = asyncio.create_task(world.chat(max_tokens=900))
        await until("the chat runs", lambda: world.node.node.busy)
        world.node.node.services.hosted[1].engine.up = False
        world.node.node.services.hosted[1].closed = True
        begun = world.clock.now_ms()
        await world.duty.tick()
        assert world.clock.now_ms() - begun <= 2000
        assert not world.node.engine.ready()
        assert (await chat)[0] != 200


async def test_there_is_room_again_and_it_comes_back(tmp_path: Path) -> None:
    async with net(tmp_path, meter=Scales()) as world:
        meter = await weighed(world, 400)
        await world.duty.tick()
        assert "cold" in states(world).values()
        meter.weight = dict.fromkeys(WEIGHT, 10 * MB)
        for item in meter.hosted:
            item.memory = 10 * MB
        await world.duty.tick()
        assert "cold" in states(world).values(), "not again at once"
        await asyncio.sleep(STAY_MS / 1000)
        await world.duty.tick()
        assert set(states(world).values()) == {"loaded"}
        await until("it is offered", lambda: services(world) == ["fake-chat", "fake-tensor"])


async def test_a_model_that_takes_more_than_was_known_leaves_itself(tmp_path: Path) -> None:
    async with net(tmp_path, meter=Scales()) as world:
        meter = await weighed(world, 400)
        tensor = meter.hosted[1]
        assert (await world.chat())[0] == 200
        await world.duty.tick()
        tensor.memory = 10 * MB  # so it was taken for
        await asyncio.sleep(STAY_MS / 1000)
        await world.duty.tick()
        assert states(world) == {"fake-chat": "loaded", "fake-tensor": "cold"}
        assert tensor.memory == WEIGHT["fake-tensor"], "now it is known"


async def test_an_idle_model_makes_room_for_one_that_somebody_would_pay_for(tmp_path: Path) -> None:
    async with net(tmp_path, meter=Scales()) as world:
        meter = await weighed(world, 400)
        chat, tensor = meter.hosted
        assert (await world.chat())[0] == 200
        await world.duty.tick()
        assert states(world) == {"fake-chat": "loaded", "fake-tensor": "cold"}
        await asyncio.sleep(STAY_MS / 1000)
        await world.duty.tick()
        assert tensor.cold, "nobody wants it, and there is no room"
        running = asyncio.create_task(world.chat(max_tokens=200))
        await until("the chat runs", lambda: world.node.node.busy)
        tensor.wanted_ms = world.clock.now_ms()
        await world.duty.tick()
        assert chat.engine.ready(), "a busy model makes no room"
        assert (await running)[0] == 200
        await world.duty.tick()
        assert states(world) == {"fake-chat": "cold", "fake-tensor": "loaded"}
        await until("the gateway knows", lambda: services(world) == ["fake-tensor"])
        chat.wanted_ms = world.clock.now_ms()
        await world.duty.tick()
        assert tensor.engine.ready(), "it came a moment ago: it stays a while"
        await asyncio.sleep(STAY_MS / 1000 - 1)
        chat.wanted_ms = world.clock.now_ms()
        await asyncio.sleep(1)
        await world.duty.tick()
        assert states(world) == {"fake-chat": "loaded", "fake-tensor": "cold"}


async def test_a_gateways_callers_bring_a_model_back(tmp_path: Path) -> None:
    async with net(tmp_path, meter=Scales()) as world:
        meter = await weighed(world, 400)
        tensor = meter.hosted[1]
        tensor.used_ms = world.clock.now_ms()
        await world.duty.tick()
        assert states(world) == {"fake-chat": "cold", "fake-tensor": "loaded"}
        await until("the gateway knows", lambda: services(world) == ["fake-tensor"])
        pushing = asyncio.create_task(world.pusher.run())
        duty = asyncio.create_task(world.duty.run())
        await asyncio.sleep(STAY_MS / 1000)
        assert states(world)["fake-chat"] == "cold", "nobody asked for it"
        assert (await world.chat())[0] == 404
        await until("it is back", lambda: services(world) == ["fake-chat"])
        assert (await world.chat())[0] == 200
        for task in (pushing, duty):
            task.cancel()
        await asyncio.wait([pushing, duty])


@pytest.mark.parametrize("letter", ["m", "\x01", "\U0001f600"])
def test_what_callers_ask_for_never_fills_the_answer_that_a_node_reads(letter: str) -> None:
    """One that is over 64 KiB is an offer that was not taken, as the node hears it."""
    unmet = Unmet()
    for number in range(UNMET_MAX):
        unmet.note(letter * 250 + f"{number:03}", 0)
    unmet.note("small", 0)
    assert len(orjson.dumps(unmet.names(0))) < ANSWER_MAX // 2
    assert "small" in unmet.names(0)
    assert (len(unmet.names(0)) > 1) == (letter == "m")


async def test_no_model_leaves_for_one_that_would_not_fit_without_it(tmp_path: Path) -> None:
    async with net(tmp_path, meter=Scales()) as world:
        meter = await weighed(world, 200)
        chat, tensor = meter.hosted
        await world.duty.tick()
        assert states(world) == {"fake-chat": "loaded", "fake-tensor": "cold"}
        await world.duty.tick()
        tensor.used_ms = world.clock.now_ms()
        await asyncio.sleep(STAY_MS / 1000)
        await world.duty.tick()
        assert states(world) == {"fake-chat": "cold", "fake-tensor": "loaded"}
        await asyncio.sleep(STAY_MS / 1000)
        chat.wanted_ms = world.clock.now_ms()
        await world.duty.tick()
        assert states(world) == {"fake-chat": "cold", "fake-tensor": "loaded"}


async def test_where_nothing_fits_the_node_pauses_and_says_so(tmp_path: Path) -> None:
    async with net(tmp_path, meter=Scales()) as world:
        await weighed(world, 10)
        await world.duty.tick()
        await world.duty.tick()
        await world.duty.tick()
        assert set(states(world).values()) == {"cold"}
        assert world.duty.state is NodeState.PAUSED
        assert world.duty.reason == "no model fits: the memory cap is 10 MB, 50 are used"
        world.duty.policy = Policy()
        await asyncio.sleep(STAY_MS / 1000)
        await world.duty.tick()
        assert set(states(world).values()) == {"loaded"}
        assert world.duty.state is NodeState.OFFERING


@pytest.mark.parametrize(
    ("error", "told_of"),
    [
        (Unavailable("no such file", code="engine_unavailable"), "no such file"),
        (MemoryError(), "MemoryError()"),  # no end of the owner's policy either
    ],
)
async def test_an_engine_that_cannot_load_is_not_tried_at_every_look(
    tmp_path: Path, error: Exception, told_of: str
) -> None:
    class Broken(FakeTensorEngine):
        tries = 0

        async def start(self) -> None:
            self.tries += 1
            raise error

    async with net(tmp_path, meter=Scales()) as world:
        item = world.node.node.services.hosted[1]
        engine = Broken()
        item.engine, item.closed = engine, True
        for _ in range(240):
            await world.duty.tick()
            await asyncio.sleep(0.25)
        assert 3 <= engine.tries <= 6
        told = await world.control("status")
        assert told["models"][1]["last_failure"] == told_of
        assert services(world) == ["fake-chat"]


def item(name: str, used_ms: int, running: int = 0) -> Hosted:
    found = Hosted(catalogue.load(name), FakeTextEngine(), 1, 1, 4)
    found.used_ms, found.running = used_ms, running
    return found


def test_the_idle_leaves_before_the_busy_and_the_last_of_the_list_before_the_first() -> None:
    first, second, third = item("fake-chat", 5), item("spam", 5), item("churn", 1, running=1)
    assert least_used([first, second, third]) is second
    assert least_used([first, third]) is first
    assert least_used([third]) is third
    assert least_used([]) is None


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.timeout(90)
async def test_real_engines_under_a_cap(tmp_path: Path) -> None:
    """A language model in a child and a table's model in this process; the child leaves."""
    small, table = catalogue.load("smollm2-135m-instruct"), catalogue.load("churn")
    try:
        paths = [next(iter(pull_model(Store(), manifest).values())) for manifest in (small, table)]
    except Unavailable as error:
        pytest.skip(f"no source of the weights answered: {error.message}")
    text = LlamaCppEngine(paths[0], small.name, small.quant, slots=1, context=512, threads=1)
    async with net(tmp_path) as world:
        node = world.node.node
        node.services = Services(
            [Hosted(small, text, 1, 1, 1), Hosted(table, OnnxEngine(paths[1], "churn"), 1, 0, 8)]
        )
        for hosted in node.services.hosted:
            hosted.closed = True
        meter = LoadMeter()
        residents = Residents(node, meter)
        await residents.settle(1 << 40)
        child = text.pid
        assert child is not None
        assert all(hosted.engine.ready() for hosted in node.services.hosted)
        node.services.hosted[1].used_ms = world.clock.now_ms() + 1
        cap = meter.own_memory() - 1
        assert node.services.hosted[0].memory > 100 * MB, "it was measured"
        await residents.settle(cap)
        assert [hosted.cold for hosted in node.services.hosted] == [True, False]
        assert meter.own_memory() < cap - 100 * MB
        assert gone(child)
        assert [service.model for service in node.services.offered()] == ["churn"]
        await residents.close()
        assert not any(hosted.engine.ready() for hosted in node.services.hosted)


test_real_engines_under_a_cap.real_time = True  # type: ignore[attr-defined]
