"""What the owner changes while the node runs is so from then on, and nonsense changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from owner_kit import EPOCH_MS, SEED, Net, net, until
from test_duty import services

from inferpool.config import NodeConfig, load
from inferpool.engines.fake import FakeTextEngine
from inferpool.protocol.encoding import to_checksum
from inferpool.protocol.errors import Refused
from inferpool.protocol.lifecycle import NodeState
from inferpool.sim.parts import key_of


async def refused(world: Net, **values: Any) -> str:
    """The code of the refusal; nothing changed."""
    before = await world.control("status")
    body = orjson.dumps(values)
    status, answer = await world.send("POST", "/inferpool/control/settings", body)
    assert status >= 400, answer
    after = await world.control("status")
    assert (after["settings"], after["state"]) == (before["settings"], before["state"])
    return str(answer["error"]["code"])


async def test_working_hours_and_the_memory_cap(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        assert (await world.control("settings", hours="22:00-06:00"))["state"] == "paused"
        assert world.duty.reason == "outside working hours (22:00-06:00)"
        assert (await world.control("settings", hours=""))["state"] == "offering"
        state = await world.control("settings", memory_max_mb=7, only_when_idle=True)
        assert world.duty.policy.memory_max == 7 << 20
        assert world.duty.policy.idle_load_percent == 50
        assert state["settings"]["memory_max_mb"] == 7


async def test_a_payer_is_denied_and_let_in_again(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        assert (await world.chat())[0] == 200
        payer = to_checksum(key_of(SEED, "gateway/payer").address)
        await world.control("settings", deny=[payer])
        assert (await world.chat())[0] != 200
        await world.control("settings", deny=[], allow=[payer])
        await asyncio.sleep(120)  # the gateway keeps away from who refused
        assert (await world.chat())[0] == 200


async def test_terms_are_those_of_the_next_offer(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        await world.control(
            "settings", min_deposit_base_units=5000, withdraw_delay_s=1200, window=8
        )
        known = world.known
        assert known is not None
        await until("the gateway knows", lambda: known.offer.terms.window == 8)
        terms = known.offer.terms
        assert (terms.min_deposit, terms.withdraw_delay_s) == (5000, 1200)
        assert world.node.node.gate.terms == terms
        assert (await world.chat())[0] == 200, "a channel on these terms is opened"


async def test_more_places_come_when_the_calls_have_ended(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        running = asyncio.create_task(world.chat(max_tokens=200))
        await until("the chat runs", lambda: world.node.node.busy)
        before = world.node.node.services.hosted[0].engine
        await world.control("settings", slots=2, concurrent_per_channel=3)
        assert world.node.node.gate.concurrent == 3
        assert world.node.node.services.hosted[0].engine is before
        assert (await running)[0] == 200
        await world.duty.tick()
        await world.duty.tick()
        item = world.node.node.services.hosted[0]
        assert item.engine is not before
        assert (item.slots, item.engine.slots, item.engine.ready()) == (2, 2, True)
        assert not before.ready()
        await until("it is offered", lambda: "fake-chat" in services(world))
        assert (await world.chat())[0] == 200


async def test_of_two_wishes_for_places_the_last_holds(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        item = world.node.node.services.hosted[0]
        was = item.slots
        running = asyncio.create_task(world.chat(max_tokens=200))
        await until("the chat runs", lambda: world.node.node.busy)
        await world.control("settings", slots=was + 1)
        await world.control("settings", slots=was)
        assert (await running)[0] == 200
        for _ in range(3):
            await world.duty.tick()
        assert (item.slots, item.engine.slots, item.engine.ready()) == (was, was, True)


async def test_a_wish_for_places_while_the_model_is_loaded_is_carried_out_after(
    tmp_path: Path,
) -> None:
    class Slow(FakeTextEngine):
        async def start(self) -> None:
            await asyncio.sleep(5)
            await super().start()

    async with net(tmp_path) as world:
        item = world.node.node.services.hosted[0]
        await item.engine.close()
        item.engine, item.closed, was = Slow(), True, item.slots
        loading = asyncio.create_task(world.duty.tick())
        await asyncio.sleep(1)
        await world.control("settings", slots=item.slots + 1)
        await loading
        for _ in range(3):
            await world.duty.tick()
        assert not isinstance(item.engine, Slow)
        assert (item.slots, item.engine.slots, item.engine.ready()) == (was + 1, was + 1, True)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"hours": "25:00"}, "bad_config"),
        ({"hours": 7}, "bad_config"),
        ({"allow": ["0x12"]}, "bad_config"),
        ({"slots": 0}, "invalid_request"),
        ({"memory_max_mb": -1}, "invalid_request"),
        ({"window": 0, "hours": "08:00-09:00"}, "bad_config"),
        ({"port": 7}, "invalid_request"),
        ({"hours": "08:00-09:00", "nothing": 1}, "invalid_request"),
    ],
)
async def test_nonsense_changes_nothing(tmp_path: Path, values: dict[str, Any], code: str) -> None:
    async with net(tmp_path) as world:
        assert await refused(world, **values) == code
        assert world.duty.state is NodeState.OFFERING


async def test_a_drain_for_a_time_ends_by_itself(tmp_path: Path) -> None:
    async with net(tmp_path) as world:
        state = await world.control("drain", minutes=30, why="a new disk")
        assert state["reason"] == "drained by its owner, for 30 minutes: a new disk"
        await asyncio.sleep(29 * 60)
        await world.duty.tick()
        assert world.duty.state is NodeState.DRAINING
        await asyncio.sleep(60)
        await world.duty.tick()
        assert world.duty.state is NodeState.OFFERING
        assert world.clock.now_ms() - EPOCH_MS < 31 * 60_000
        for body in ({"minutes": -1}, {"minutes": "5"}, {"why": "x" * 201}):
            status, _ = await world.send("POST", "/inferpool/control/drain", orjson.dumps(body))
            assert status == 400
        assert world.duty.state is NodeState.OFFERING


def test_every_wish_is_a_key_of_the_configuration_and_a_flag() -> None:
    from inferpool.cli.node_set import flags_of
    from inferpool.daemon.wishes import KEYS

    assert set(KEYS) <= set(NodeConfig.__dataclass_fields__)
    flags = flags_of(["hours=20:00-08:00", "node.allow=0xab,0xcd", "only_when_idle=true"])
    found = load(None, {}, flags).node
    assert found.hours == "20:00-08:00"
    assert found.allow == ("0xab", "0xcd")
    assert found.only_when_idle
    for wrong in ("hours", "hour=1", "slots=many"):
        with pytest.raises(Refused):
            flags_of([wrong])
