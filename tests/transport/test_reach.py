"""What a stranger may make us dial: public addresses alone, and what was checked."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import pytest

from inferpool.protocol.errors import Refused
from inferpool.transport.base import ConnectFailed
from inferpool.transport.http import LEARN, HttpTransport
from inferpool.transport.reach import is_public, public_addresses

PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.1.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
    "64:ff9b::a9fe:a9fe",  # NAT64 of 169.254.169.254
    "fc00::1",
    "fe80::1%eth0",
    "ff02::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_nobody_may_name(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_public_internet(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "localhost", "::1"])
async def test_another_spelling_of_loopback_is_loopback(host: str) -> None:
    with pytest.raises(Refused):
        await public_addresses(host)


def _names(*answers: list[str]) -> tuple[Any, list[str]]:
    """A resolver that answers each question with the next list, and the names it was asked for."""
    asked: list[str] = []

    async def lookup(host: str, port: int | None, **_: Any) -> Any:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port or 0)) for one in found]

    return lookup, asked


async def test_a_name_that_turns_private_between_check_and_dial_is_dialled_as_checked() -> None:
    """DNS rebinding: the second answer is loopback, where somebody listens."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loop.getaddrinfo, asked = _names(["8.8.8.8"], ["127.0.0.1"])  # type: ignore[method-assign]
    dialled: list[tuple[str, int, str]] = []

    async def connect(factory: Any, host: str, port: int, **kwargs: Any) -> Any:
        assert isinstance(kwargs["ssl"], ssl.SSLContext)
        dialled.append((host, port, kwargs["server_hostname"]))
        raise OSError("no network in a test")

    loop.create_connection = connect  # type: ignore[method-assign, assignment]
    transport = HttpTransport(f"https://rebinding.test:{port}", LEARN, public_only=True)
    try:
        with pytest.raises(ConnectFailed):
            await transport.request("GET", "/", (), timeout_s=5)
    finally:
        await transport.close()
        server.close()
        await server.wait_closed()
    assert (asked, dialled) == (["rebinding.test"], [("8.8.8.8", port, "rebinding.test")])


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], []])
async def test_a_name_with_one_private_address_is_not_dialled_at_all(answer: list[str]) -> None:
    loop = asyncio.get_running_loop()
    connections: list[Any] = []

    class Witness(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            connections.append(transport)
            transport.close()

    server = await loop.create_server(Witness, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loop.getaddrinfo, _ = _names(answer)  # type: ignore[method-assign]
    transport = HttpTransport(f"https://mixed.test:{port}", LEARN, public_only=True)
    try:
        with pytest.raises(ConnectFailed, match=r"mixed\.test"):
            await transport.request("GET", "/", (), timeout_s=5)
    finally:
        await transport.close()
        server.close()
        await server.wait_closed()
    assert not connections


async def test_a_literal_is_checked_too() -> None:
    transport = HttpTransport("http://127.0.0.1:9", public_only=True)
    with pytest.raises(ConnectFailed, match="private"):
        await transport.request("GET", "/", (), timeout_s=5)
    await transport.close()
