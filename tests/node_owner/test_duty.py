"""The policy at work on a node in a gateway's pool: what the gateway and its clients see of it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from owner_kit import NODE_URL, Net, net, until
from test_load import hog

from inferpool.node.load import LoadMeter
from inferpool.node.policy import CALM_MS, Policy, parse_hours
from inferpool.protocol.errors import Unavailable
from inferpool.protocol.lifecycle import NodeState


def services(world: Net) -> list[str]:
    """What the gateway believes is offered."""
    assert world.known is not None
    return [service.model for service in world.known.offer.services]


async def test_a_drained_node_finishes_what_runs_and_offers_nothing(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        running = asyncio.create_task(world.chat(max_tokens=200))
        await until("the chat runs", lambda: world.node.node.busy)
        state = await world.control("drain")
        assert (state["state"], state["reason"]) == ("draining", "drained by its owner")
        status, answer = await running
        assert status == 200
        assert answer["usage"]["completion_tokens"] == 200
        await until("the gateway knows", lambda: services(world) == [])
        status, answer = await world.chat()
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        assert world.node.engine.ready(), "a drained node stays warm"


async def test_resuming_brings_the_offer_back_at_once(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        await world.control("drain")
        await until("the gateway knows", lambda: services(world) == [])
        assert (await world.control("resume"))["state"] == "offering"
        await until("the gateway knows", lambda: services(world) == ["fake-chat", "fake-tensor"])
        assert (await world.chat())[0] == 200


async def test_a_request_on_its_way_to_a_drained_node_is_refused(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        await world.duty.drain(True)
        with pytest.raises(Unavailable, match="drained by its owner"):
            async with world.node.node.admit(None, None, None, b"", None):  # type: ignore[arg-type]
                pytest.fail("it was admitted")


async def test_working_hours_end_and_begin_by_the_clock(tmp_path: Path) -> None:
    now = [19 * 60 + 59]
    policy = Policy(hours=parse_hours("08:00-20:00"))
    async with net(tmp_path, policy=policy, minute=lambda: now[0]) as world:
        assert world.duty.state is NodeState.OFFERING
        chat = asyncio.create_task(world.chat(max_tokens=100))
        await until("the chat runs", lambda: world.node.node.busy)
        now[0] = 20 * 60
        await world.duty.tick()
        assert world.duty.state is NodeState.PAUSED
        assert "08:00-20:00" in world.duty.reason
        assert world.node.engine.ready(), "what runs ends first"
        assert (await chat)[0] == 200
        await world.duty.tick()
        assert not world.node.engine.ready(), "then memory is given back"
        now[0] = 8 * 60
        await world.duty.tick()
        assert world.duty.state is NodeState.OFFERING
        await until("the gateway knows", lambda: services(world) == ["fake-chat", "fake-tensor"])
        assert (await world.chat())[0] == 200


async def test_a_node_that_starts_outside_its_hours_waits(tmp_path: Path) -> None:
    policy = Policy(hours=parse_hours("08:00-20:00"))
    async with net(tmp_path, policy=policy, minute=lambda: 3) as world:
        assert world.duty.state is NodeState.PAUSED
        assert services(world) == []
        assert not world.node.engine.ready()


async def test_a_model_is_taken_out_and_put_back(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        await world.control("models", model="fake-chat", serve=False)
        await until("the gateway knows", lambda: services(world) == ["fake-tensor"])
        assert not world.node.engine.ready()
        await world.control("models", model="fake-chat", serve=True)
        await until("the gateway knows", lambda: services(world) == ["fake-chat", "fake-tensor"])
        assert (await world.chat())[0] == 200


async def test_a_new_price_is_asked_from_the_next_offer_on(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        price = {"price_in_usd_per_million": "1", "price_out_usd_per_million": 2.5}
        await world.control("prices", model="fake-chat", **price)
        known = world.known
        assert known is not None

        def asked() -> tuple[int, int]:
            service = known.offer.service("fake-chat")
            assert service is not None
            return service.price_in_pico_usd_per_unit, service.price_out_pico_usd_per_unit

        await until("the gateway knows", lambda: asked() == (1_000_000, 2_500_000))
        status, answer = await world.chat()
        assert status == 200
        usage = answer["usage"]
        exact = usage["prompt_tokens"] * 1_000_000 + usage["completion_tokens"] * 2_500_000
        assert answer["inferpool"]["cost_pico_usd"] == exact


@pytest.mark.parametrize(
    ("action", "body", "code"),
    [
        ("prices", {"model": "nothing"}, "model_not_found"),
        ("prices", {"model": "fake-chat", "price_in_usd_per_million": "-1"}, "invalid_request"),
        ("prices", {"model": "fake-chat", "price_in_usd_per_million": 1e9}, "invalid_request"),
        ("models", {"model": "fake-chat"}, "invalid_request"),
        ("nothing", {}, "not_found"),
    ],
)
async def test_nonsense_changes_nothing(
    tmp_path: Path, action: str, body: dict[str, object], code: str
) -> None:
    import orjson

    async with net(tmp_path) as world:
        before = world.node.node.offers.current()
        path = f"/inferpool/control/{action}"
        status, answer = await world.send("POST", path, orjson.dumps(body))
        assert answer["error"]["code"] == code
        assert status in (400, 404)
        assert world.node.node.offers.current() is before


async def test_only_the_owner_on_this_machine_is_let_in(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        path = "/inferpool/control/drain"
        for headers in ((), [(b"authorization", b"Bearer guess")]):
            status, answer = await world.send("POST", path, headers=headers)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        owner = [
            (b"authorization", b"Bearer control"),
            (b"x-forwarded-for", b"203.0.113.9"),
        ]
        status, _ = await world.send("POST", path, headers=owner)
        assert status == 401, "a proxy speaks for somebody elsewhere"
        assert world.duty.state is NodeState.OFFERING


async def test_the_owner_sees_what_was_earned_and_from_whom(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        _, answer = await world.chat()
        state = await world.control("status")
        (latest,) = state["latest"]
        assert latest["charge_pico_usd"] == answer["inferpool"]["cost_pico_usd"]
        assert state["earned_pico_usd"] == latest["charge_pico_usd"]
        assert (state["receipts"], state["payers"], state["running"]) == (1, 1, 0)
        assert [item["model"] for item in state["models"]] == ["fake-chat", "fake-tensor"]
        world.node.node.services.hosted[0].engine.sandbox = "landlock"
        state = await world.control("status")
        assert [item["sandbox"] for item in state["models"]] == ["landlock", ""]


async def test_a_leaving_node_is_gone_for_its_gateways_at_once(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        known = world.known
        assert known is not None
        assert known.alive(world.clock.now_ms())
        world.node.node.draining = True
        world.node.node.announce()
        begun = world.clock.now_ms()
        await until("it is gone", lambda: not known.alive(world.clock.now_ms()))
        assert world.clock.now_ms() - begun < 1000
        assert known.url == NODE_URL


async def only_the_hog(pid: int, proc: Path) -> None:
    """A /proc in which the hog is all that ever ran: other tests share this machine."""
    while True:
        text = (Path("/proc") / str(pid) / "stat").read_text()
        ticks = sum(map(int, text.rsplit(")", 1)[1].split()[11:13]))
        (proc / "stat").write_text(f"cpu {ticks} 0 0 0 0 0 0\n")
        await asyncio.sleep(0.05)


@pytest.mark.timeout(60)
async def test_the_owners_need_frees_the_machine_in_two_seconds(tmp_path: Path) -> None:
    """A real program burns a core: work in flight is cut, engines are closed, and back again."""
    meter = LoadMeter(lambda: (), proc=tmp_path)
    async with net(tmp_path, policy=Policy(idle_load_percent=10), meter=meter) as world:
        duty = asyncio.create_task(world.duty.run())
        chat = asyncio.create_task(world.chat(max_tokens=1000))
        await until("the chat runs", lambda: world.node.node.busy)
        with hog() as pid:
            view = asyncio.create_task(only_the_hog(pid, tmp_path))
            await until("it pauses", lambda: world.duty.state is NodeState.PAUSED)
            paused = time.monotonic()
            await until("memory is free", lambda: not world.node.engine.ready())
            assert time.monotonic() - paused < 2
            assert "other programs use" in world.duty.reason
            status, _ = await chat
            assert status != 200, "it was cut, and no other node could go on"
            view.cancel()
        quiet = time.monotonic()
        await until("it resumes", lambda: world.duty.state is NodeState.OFFERING)
        assert time.monotonic() - quiet >= CALM_MS / 1000 - 2
        assert world.node.engine.ready()
        duty.cancel()
        await asyncio.wait([duty, view])


test_the_owners_need_frees_the_machine_in_two_seconds.real_time = True  # type: ignore[attr-defined]
