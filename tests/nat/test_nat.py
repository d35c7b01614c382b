"""Real processes in network namespaces with NAT between them: `make test-nat`, as root.

    home 192.168.77.2 -- router 198.51.100.21 (masquerade, stateful) -- public 198.51.100.10
    office 192.168.78.2 -- router 198.51.100.22 (the same) -----------'

Nobody can dial the home. Nothing leaves these namespaces.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import poolkit
import pytest
from poolkit import until

from inferpool.home import Home

WANTED = os.environ.get("INFERPOOL_TEST_NAT") == "1"
pytestmark = [
    pytest.mark.skipif(not WANTED, reason="needs root and network namespaces: make test-nat"),
    pytest.mark.timeout(180),
]
PUBLIC = "198.51.100.10"
ROUTER_HOME, ROUTER_OFFICE = "198.51.100.21", "198.51.100.22"
NAT = """
table ip n {
  chain outgoing { type nat hook postrouting priority 100; oifname "wan" masquerade; }
  chain forwarding { type filter hook forward priority 0; policy drop;
    iifname "lan" accept; ct state established,related accept; }
  chain incoming { type filter hook input priority 0; policy drop;
    iifname "lo" accept; ct state established,related accept; iifname "lan" accept; }
}
"""
# The development chain listens on loopback; in the public namespace this makes it public.
FORWARD = """
import asyncio, sys
async def serve(reader, writer):
    other = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    async def pump(one, two):
        try:
            while data := await one.read(65536):
                two.write(data)
                await two.drain()
        except OSError:
            pass
        two.close()
    await asyncio.gather(pump(reader, other[1]), pump(other[0], writer))
async def main():
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]))
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@dataclass
class Net:
    """The namespaces, and what runs in them."""

    root: Path
    prefix: str
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def run(self, space: str, *command: str, given: str | None = None) -> str:
        inside = ["ip", "netns", "exec", self.prefix + space] if space else []
        done = subprocess.run(
            [*inside, *command], input=given, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def build(self) -> None:
        for space in ("inet", "public", "router1", "router2", "home", "office"):
            self.run("", "ip", "netns", "add", self.prefix + space)
            self.run(space, "ip", "link", "set", "lo", "up")
        self.run("inet", "ip", "link", "add", "name", "br0", "type", "bridge")
        self.run("inet", "ip", "link", "set", "dev", "br0", "up")
        for space, address in (
            ("public", PUBLIC),
            ("router1", ROUTER_HOME),
            ("router2", ROUTER_OFFICE),
        ):
            peer = f"type veth peer name wan netns {self.prefix}{space}".split()
            self.run("inet", "ip", "link", "add", "name", f"v{space}", *peer)
            self.run("inet", "ip", "link", "set", "dev", f"v{space}", "master", "br0", "up")
            self.run(space, "ip", "addr", "add", f"{address}/24", "dev", "wan")
            self.run(space, "ip", "link", "set", "dev", "wan", "up")
        for router, inner, net in (
            ("router1", "home", "192.168.77"),
            ("router2", "office", "192.168.78"),
        ):
            peer = f"type veth peer name eth0 netns {self.prefix}{inner}".split()
            self.run(router, "ip", "link", "add", "name", "lan", *peer)
            self.run(router, "ip", "addr", "add", f"{net}.1/24", "dev", "lan")
            self.run(router, "ip", "link", "set", "dev", "lan", "up")
            self.run(inner, "ip", "addr", "add", f"{net}.2/24", "dev", "eth0")
            self.run(inner, "ip", "link", "set", "dev", "eth0", "up")
            self.run(inner, "ip", "route", "add", "default", "via", f"{net}.1")
            self.run(router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            self.run(router, "nft", "-f", "-", given=NAT)

    def home(self, space: str) -> Home:
        return Home(self.root / space)

    def start(self, space: str, name: str, command: list[str], **env: str) -> str:
        """Start in a namespace; returns the first line that it prints."""
        log = self.root / f"{space}-{name}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.prefix + space, sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=poolkit.environment(self.home(space), INFERPOOL_FOLLOW="1", **env),
            )
        self.running[f"{space} {name}"] = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        return line

    def role(self, space: str, role: str, flags: dict[str, object]) -> dict[str, Any]:
        command = ["-m", "inferpool.daemon", role, json.dumps(flags)]
        found: dict[str, Any] = json.loads(self.start(space, role, command))
        return found

    def stop(self, name: str) -> None:
        process = self.running.pop(name)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(15)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def chat(self, space: str, url: str, trust: str) -> tuple[int, dict[str, Any]]:
        """One chat by curl, asked from within a namespace."""
        body = {"model": poolkit.CHAT, "messages": [{"role": "user", "content": "Hello"}]}
        done = subprocess.run(
            [
                *["ip", "netns", "exec", self.prefix + space, "curl", "-sS", "--noproxy", "*"],
                *["-m", "60", "-w", "\n%{http_code}", "--cacert", trust, "-d"],
                *[json.dumps({**body, "max_tokens": 8}), "-H", "content-type: application/json"],
                *["-H", f"authorization: Bearer {self.home(space).secret('api-key')}"],
                f"{url}/v1/chat/completions",
            ],
            capture_output=True,
            text=True,
            timeout=90,
        )
        text, _, code = done.stdout.rpartition("\n")
        return int(code or 0), json.loads(text) if text.startswith("{") else {"said": done.stderr}

    def answered(self, space: str, facts: dict[str, Any]) -> dict[str, Any]:
        last: list[object] = []

        def look() -> dict[str, Any] | None:
            code, answer = self.chat(space, facts["url"], facts.get("tls_certificate", "/dev/null"))
            last[:] = [code, answer]
            return answer if code == 200 else None

        try:
            return until("a paid answer from the node at home", look, within_s=60)
        finally:
            print(*last)

    def close(self) -> None:
        for name in reversed(list(self.running)):
            with suppress(subprocess.TimeoutExpired):
                self.stop(name)
        for space in ("inet", "public", "router1", "router2", "home", "office"):
            subprocess.run(["ip", "netns", "del", self.prefix + space], check=False)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    missing = [name for name in ("ip", "nft", "curl") if shutil.which(name) is None]
    assert not missing, f"install {missing} (Debian: iproute2, nftables, curl)"
    assert os.geteuid() == 0, "network namespaces need root"
    poolkit.pull_weights([poolkit.CHAT])
    made = Net(tmp_path_factory.mktemp("nat"), f"ip{os.getpid()}")
    try:
        made.build()
        chain = made.role("public", "chain", {"chain.port": 0})
        port = chain["url"].rpartition(":")[2]
        made.start("public", "forward", ["-c", FORWARD, PUBLIC, port])
        for space in ("home", "office"):  # as if it ran there: with its faucet
            facts = {"url": f"http://{PUBLIC}:{port}", "pid": os.getpid()}
            made.home(space).announce("chain", facts)
        yield made
    finally:
        made.close()


def node_flags(relay: str) -> dict[str, object]:
    return {
        "node.port": 0,
        "node.models": [poolkit.CHAT],
        "node.relays": [relay],
    }


def gateway_flags(**more: object) -> dict[str, object]:
    flags: dict[str, object] = {"gateway.port": 0, "gateway.allow_private": True}
    return flags | {f"gateway.{key}": value for key, value in more.items()}


def test_a_gateway_with_a_relay_of_its_own_is_dialled(net: Net) -> None:
    gateway = net.role("public", "gateway", gateway_flags(host=PUBLIC, relay_port=8424))
    try:
        node = net.role("home", "node", node_flags(f"{PUBLIC}:{gateway['relay_port']}"))
        # Nobody reaches the home by its router's address.
        port = int(node["url"].rpartition(":")[2])
        probe = f"import socket; socket.create_connection(('{ROUTER_HOME}', {port}), 2)"
        with pytest.raises(AssertionError, match=r"timed out|refused"):
            net.run("public", sys.executable, "-c", probe)
        answer = net.answered("public", gateway)
        assert answer["inferpool"]["node"] == node["node"]
        assert int(answer["inferpool"]["receipt"]["chargePico"]) > 0
    finally:
        for name in ("home node", "public gateway"):
            if name in net.running:
                net.stop(name)


def test_two_homes_meet_at_a_relay(net: Net) -> None:
    """Node and gateway are each behind NAT; a stranger's relay is all that both can dial."""
    relay = net.role("public", "relay", {"relay.host": PUBLIC, "relay.port": 0})
    address = f"{PUBLIC}:{relay['port']} {relay['pin']}"
    node = net.role("home", "node", node_flags(address))
    gateway = net.role("office", "gateway", gateway_flags())
    for _ in range(2):
        answer = net.answered("office", gateway)
        assert answer["inferpool"]["node"] == node["node"]
    # The router forgets every connection, as after a restart: they are made anew.
    for router in ("router1", "router2"):
        net.run(router, "nft", "flush", "table", "ip", "n")
        net.run(router, "nft", "delete", "table", "ip", "n")
        net.run(router, "nft", "-f", "-", given=NAT)
    net.answered("office", gateway)
    begun = time.monotonic()
    net.stop("home node")
    assert time.monotonic() - begun < 15
    with socket.socket():
        code, _ = net.chat("office", gateway["url"], "/dev/null")
    assert code == 503
