"""What a gateway knows of its nodes outlives it: a bad node stays bad, a fast one fast."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from inferpool.daemon.memory_file import MemoryFile
from inferpool.daemon.workers import Worker
from inferpool.gateway.memory import NodeMemory
from inferpool.gateway.nodes import KnownNode
from inferpool.gateway.preferences import trust
from inferpool.gateway.remembered import SAVE_EVERY_S
from inferpool.home import Home
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.limits import MEMORY_PAGE_MAX
from tests.gateway.parts import CHAT, Pool, node_key, pool

HOUR_S = 3600


def known(made: Pool, number: int) -> KnownNode:
    return made.gateway.gateway.directory.nodes[node_key(number).address]


def asked(made: Pool, number: int) -> int:
    """Chats that were sent to a node."""
    return made.liars[made.nodes[number].url].asked.count(CHAT)


async def learned(made: Pool) -> None:
    """The first node is tried first, and fails every call until it is ejected."""
    made.nodes[0].engine.fail_after = 0
    while not known(made, 0).ejected_until_ms:
        for node in made.known:
            node.blocked_until_ms = 0 if node is known(made, 0) else 2**60
        assert (await made.chat()).status == 200
    for node in made.known:
        node.blocked_until_ms = 0
    await asyncio.sleep(SAVE_EVERY_S)


async def test_a_restarted_gateway_does_not_go_back_to_a_bad_node() -> None:
    async with pool(3) as made:
        await learned(made)
        shares, served = [], [known(made, number).memory.served for number in range(3)]
        for remembers in (True, False):
            await made.gateway.crash()
            if not remembers:
                made.gateway.page.data = b""
            await made.gateway.start()
            if remembers:
                assert [known(made, number).memory.served for number in range(3)] == served
                assert known(made, 0).held_back(made.gateway.clock.now_ms())
            before = asked(made, 0)
            for _ in range(20):
                assert (await made.chat()).status == 200
            shares.append(asked(made, 0) - before)
        assert shares[0] == 0, "it was in its pause, and is left alone"
        assert shares[1] > 0, "a gateway without a memory tries it again: the test can fail"


async def test_speeds_and_trust_come_back_aged() -> None:
    async with pool() as made:
        for _ in range(20):
            await made.chat()
        service = known(made, 0).offer.services[0].call_class
        before = known(made, 0).memory
        line, now = before.latency(service), made.gateway.clock.now_ms()
        fresh_ms = NodeMemory().latency(service).first_ms(10, None, now)
        assert line.first_ms(10, None, now) < fresh_ms / 4, "else this could not fail"
        await asyncio.sleep(SAVE_EVERY_S)
        await made.gateway.crash()
        await asyncio.sleep(HOUR_S)
        await made.gateway.start()
        after = known(made, 0).memory.latency(service)
        assert after.weight == pytest.approx(line.weight / 2, rel=0.02)
        now = made.gateway.clock.now_ms()
        assert line.first_ms(10, None, now) < after.first_ms(10, None, now) < fresh_ms / 3
        assert 0 < known(made, 0).memory.served < before.served
        assert trust(known(made, 0), now) == 1.0
        await made.gateway.crash()
        await asyncio.sleep(8 * 24 * HOUR_S)
        await made.gateway.start()
        assert known(made, 0).memory == NodeMemory(), "a week later it is a stranger"


async def test_a_node_that_was_away_is_known_when_it_comes_back() -> None:
    async with pool(2) as made:
        await learned(made)
        directory = made.gateway.gateway.directory
        failures = known(made, 0).memory.failures
        directory.nodes.pop(node_key(0).address)
        directory._leases.pop(node_key(0).address).cancel()
        await directory.refresh()
        assert known(made, 0).memory.failures == failures


def broken(page: bytes) -> dict[str, bytes]:
    value: dict[str, Any] = json.loads(page)
    (address, entry), *_ = value["nodes"].items()

    def with_entry(**changes: Any) -> bytes:
        return json.dumps({"version": 1, "nodes": {address: entry | changes}}).encode()

    return {
        "cut": page[: len(page) // 2],
        "not json": b"\x00\xff",
        "a list": b"[]",
        "another version": page.replace(b'"version":1', b'"version":2'),
        "no address": json.dumps({"version": 1, "nodes": {"0x12": entry}}).encode(),
        "no time": with_entry(at_ms=None),
        "too long": b" " * (MEMORY_PAGE_MAX + 1),
        "a word for a number": with_entry(served="many"),
        "not a number": with_entry(failures=[float("nan"), 0.0, 0]),
        "no lines": with_entry(lines=None),
        "a short line": with_entry(lines=[["0x00", "chat", 1.0]]),
        "lines of junk": with_entry(lines=[[to_hex(bytes(32)), {}, *[1.0] * 10]]),
    }


async def test_what_cannot_be_read_is_left_aside_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with pool() as made:
        for _ in range(3):
            await made.chat()
        await asyncio.sleep(SAVE_EVERY_S)
        for how, page in broken(made.gateway.page.data).items():
            await made.gateway.crash()
            made.gateway.page.data = page
            caplog.clear()
            with caplog.at_level(logging.WARNING, "inferpool.gateway"):
                await made.gateway.start()
            assert "remembered" in caplog.text, how
            assert known(made, 0).memory == NodeMemory(), how
            assert (await made.chat()).status == 200, how


async def test_numbers_out_of_their_bounds_are_brought_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A clock that was set back, or a hand in the file, keeps no node out for ever."""
    async with pool() as made:
        await made.chat()
        await asyncio.sleep(SAVE_EVERY_S)
        value = json.loads(made.gateway.page.data)
        (entry,) = value["nodes"].values()
        far = 2**62
        entry |= {"at_ms": far, "failures": [9.0, -1.0, far], "cap": 0, "served": 1e300}
        entry |= {"blocked": [far, far], "ejected": [far, far]}
        await made.gateway.crash()
        made.gateway.page.data = json.dumps(value).encode()
        await made.gateway.start()
        node = known(made, 0)
        now = made.gateway.clock.now_ms()
        assert (node.memory.failures.fast, node.memory.failures.slow) == (1.0, 0.0)
        assert node.memory.cap == 1.0
        await asyncio.sleep(700)
        now = made.gateway.clock.now_ms()
        assert not node.held_back(now)
        assert node.memory.failures.now(now) < 0.01
        assert (await made.chat()).status == 200


def test_a_file_is_replaced_whole_and_read_within_its_bound(tmp_path: Any) -> None:
    file = MemoryFile.of(Home(tmp_path), Worker(number=2, of=3))
    assert file.load(10) == b""
    for page in (b"first", b"2nd"):
        file.save(page)
        assert file.load(10) == page
    assert [path.name for path in file.path.parent.iterdir()] == ["gateway-2-nodes.json"]
    assert file.path.stat().st_mode & 0o077 == 0
    with pytest.raises(ValueError, match="more than 2"):
        file.load(2)
