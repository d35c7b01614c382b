"""The client where chain and network misbehave: no double sends, no invented answers."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import orjson
import pytest

from inferpool.chain.abi import contract
from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS, DEV_REGISTRY_ADDRESS
from inferpool.chain.client import EvmChain
from inferpool.chain.events import EventReader
from inferpool.chain.rpc import Rpc, RpcRefused
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import Refused, Unavailable


def fixed(answer: bytes):
    """A pipe that always answers the same."""

    async def post(url: str, body: bytes) -> bytes:
        return answer

    return post


class Pipe:
    """A pipe that loses requests or answers of one method, as told, and counts what it carried."""

    def __init__(self, inner, method: str, *, losses: int, after: bool) -> None:
        self.inner, self.method, self.losses, self.after = inner, method, losses, after
        self.carried: list[bytes] = []

    async def __call__(self, url: str, body: bytes) -> bytes:
        is_hit = self.method.encode() in body and self.losses > 0
        self.losses -= is_hit
        if is_hit and not self.after:
            raise OSError("connection refused")
        if self.method.encode() in body:
            self.carried.append(body)
        answer = await self.inner(url, body)
        if is_hit:
            raise OSError("connection reset")
        return answer


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>",
        b"null",
        b"7",
        b'[{"id": 99, "result": 1}]',
        b'{"id": 99, "result": "0x1"}',
        b'{"id": 1, "error": "text"}',
        b'{"id": 1, "error": {"code": -32005, "message": "slow down"}}',
    ],
)
def test_what_makes_no_sense_is_unavailable(run, answer) -> None:
    with pytest.raises(Unavailable) as caught:
        run(Rpc("http://chain.example", fixed(answer)).call("eth_chainId"))
    assert caught.value.code == "chain_unavailable"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"code": -32000, "message": "nonce too low"}, "the chain refused: nonce too low"),
        ({"code": 3, "message": "execution reverted"}, "the chain reverted: execution reverted"),
        (
            {"code": 3, "message": "execution reverted", "data": "0x1e9c5ccd"},
            "the chain reverted: 0x1e9c5ccd",
        ),
        (
            {"code": -32000, "message": "?", "data": "0x4e487b71" + "11".rjust(64, "0")},
            "the chain reverted: panic 0x11",
        ),
    ],
)
def test_a_refusal_keeps_its_reason(run, error, words) -> None:
    answer = orjson.dumps({"jsonrpc": "2.0", "id": 1, "error": error})
    with pytest.raises(RpcRefused) as caught:
        run(Rpc("http://chain.example", fixed(answer)).call("eth_call"))
    assert caught.value.message == words
    assert caught.value.code == "chain_reverted"


def test_only_http_is_spoken() -> None:
    for url in ("file:///etc/passwd", "ftp://chain.example", "chain.example"):
        with pytest.raises(ValueError, match="http"):
            Rpc(url)


def test_a_closed_port_is_unavailable(run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable, match="does not answer"):
        run(EvmChain.connect(f"http://127.0.0.1:{port}"))


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that answers every POST the same."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_default_pipe_over_real_http(run) -> None:
    good = orjson.dumps({"jsonrpc": "2.0", "id": 1, "result": "0x7a69"})
    with answering(200, good) as url:
        assert run(EvmChain.connect(url)).chain_id == 31337
    with answering(503, good) as url, pytest.raises(Unavailable, match="HTTP 503"):
        run(EvmChain.connect(url))


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
def test_a_send_over_a_broken_pipe_happens_once(dev_world, run, after) -> None:
    """Where nobody knows whether a transaction arrived, the same bytes are sent again."""
    world = dev_world
    world.post = Pipe(world.post, "eth_sendRawTransaction", losses=2, after=after)
    to = world.roles.court.address
    before = world.balance(to)
    run(world.chain(world.roles.payer).transfer(DEV_DOLLAR_ADDRESS, to, 5))
    assert world.balance(to) == before + 5
    assert len({orjson.loads(body)["params"][0] for body in world.post.carried}) == 1


def test_the_echo_of_a_mined_transaction_is_no_failure(dev_world, run) -> None:
    """geth calls a transaction that it has mined already "nonce too low"."""
    world = dev_world
    lossy = Pipe(world.post, "eth_sendRawTransaction", losses=1, after=True)

    async def as_geth(url: str, body: bytes) -> bytes:
        return (await lossy(url, body)).replace(b"already known", b"nonce too low")

    world.post = as_geth
    to = world.roles.court.address
    before = world.balance(to)
    run(world.chain(world.roles.payer).transfer(DEV_DOLLAR_ADDRESS, to, 5))
    assert world.balance(to) == before + 5
    assert len(lossy.carried) == 2


def test_equal_intents_of_two_senders_are_two_transactions(dev_world, run) -> None:
    """A nonce that lags makes the second's bytes equal to the first's: known, but not ours."""
    world = dev_world
    to = world.roles.court.address
    before = world.balance(to)
    inner, kept = world.post, {}

    async def lagging(url: str, body: bytes) -> bytes:
        """The first sender's view of fees and nonce, shown to the second once more."""
        if b"eth_feeHistory" not in body:
            return await inner(url, body)
        if len(kept) == 1:
            kept["shown"] = True
            answers = orjson.loads(kept["first"])
            for answer, request in zip(answers, orjson.loads(body), strict=True):
                answer["id"] = request["id"]
            return orjson.dumps(answers)
        kept.setdefault("first", await inner(url, body))
        return await inner(url, body)

    world.post = lagging
    for _ in range(2):
        run(world.chain(world.roles.payer).transfer(DEV_DOLLAR_ADDRESS, to, 5))
    assert kept["shown"]
    assert world.balance(to) == before + 10


def test_a_silent_chain_is_said_to_be_silent(dev_world, run) -> None:
    world = dev_world
    world.post = Pipe(world.post, "eth_sendRawTransaction", losses=10**6, after=False)
    with pytest.raises(Unavailable) as caught:
        run(world.chain(world.roles.payer).settle(world.roles.receiver.address, DEV_DOLLAR_ADDRESS))
    assert caught.value.code == "chain_unavailable"


def test_a_receipt_that_never_comes_is_unavailable(dev_world, run) -> None:
    world = dev_world
    world.post = Pipe(world.post, "eth_getTransactionReceipt", losses=10**6, after=False)
    impatient = world.chain(world.roles.payer, receipt_timeout_s=0.05)
    with pytest.raises(Unavailable, match="no receipt"):
        run(impatient.settle(world.roles.receiver.address, DEV_DOLLAR_ADDRESS))


def test_a_transaction_that_reverts_in_its_block_says_why(dev_world, run) -> None:
    """The estimate went through, the block did not: another transaction came in between."""
    world = dev_world
    config = world.config()
    permit = world.authorization(config, 1_000)
    inner = world.post

    async def post(url: str, body: bytes) -> bytes:
        if b"eth_sendRawTransaction" in body:
            world.post = inner
            rival = world.chain(world.roles.liar)
            await rival.deposit(config, 1_000, permit)
        return await inner(url, body)

    world.post = post
    stranger = world.chain(world.roles.stranger)
    with pytest.raises(Refused, match="dollar: authorization is used") as caught:
        run(stranger.deposit(config, 1_000, permit))
    assert caught.value.code == "chain_reverted"


def test_a_reorg_takes_a_registration_back(dev_world, run, new_key) -> None:
    world = dev_world
    reader = world.chain(world.roles.stranger)
    world.rpc("evm_mine")
    assert run(reader.registrations()) == []
    run(world.chain(world.roles.owner).register(new_key("node"), "https://node.example"))
    assert len(run(reader.registrations())) == 1
    world.rpc("anvil_reorg", 1)
    assert run(reader.registrations()) == []


def test_a_withdrawal_that_a_reorg_moves_is_seen_again(dev_world, run) -> None:
    """The next `since_block` lies behind the head, so that no reorg hides a withdrawal."""
    world = dev_world
    config = world.config()
    world.deposit(config, 1_000)
    payer, watcher = world.chain(world.roles.payer), world.chain(world.roles.stranger)
    world.rpc("evm_mine")
    _, following = run(watcher.withdrawing(config.receiver, 0))
    world.rpc("anvil_reorg", 1)
    run(payer.initiate_withdraw(config, 100))
    found, _ = run(watcher.withdrawing(config.receiver, following))
    assert found == [config.channel_id(world.chain_id)]
    world.rpc("anvil_reorg", 1)
    assert run(watcher.withdrawing(config.receiver, following))[0] == []
    run(payer.initiate_withdraw(config, 100))
    found, _ = run(watcher.withdrawing(config.receiver, following))
    assert found == [config.channel_id(world.chain_id)]


def test_a_registration_that_nobody_can_read_hides_no_other(dev_world, run, new_key) -> None:
    """An endpoint is bytes to a contract: one that is no UTF-8 must not stop the directory."""
    world = dev_world
    liar = world.chain(world.roles.liar)
    signature = run(liar._binding(new_key("node of the liar")))
    good = contract("Registry").call(
        "register", new_key("node of the liar").address, "https://evil.example", 0, signature
    )
    run(liar._send(DEV_REGISTRY_ADDRESS, good.replace(b"evil", b"\xff\xfe\xff\xff")))
    run(world.chain(world.roles.owner).register(new_key("node"), "https://node.example"))
    listed = run(world.chain(world.roles.stranger).registrations())
    assert [each.node for each in listed] == [new_key("node").address]


def test_ranges_that_a_provider_refuses_are_halved(dev_world, run) -> None:
    world = dev_world
    for units in range(1, 9):
        world.rpc("inferpool_faucet", to_hex(world.roles.court.address), "0x0", hex(units))
    inner, asked = world.post, []

    async def post(url: str, body: bytes) -> bytes:
        request = orjson.loads(body)
        if request["method"] == "eth_getLogs":
            query = request["params"][0]
            span = int(query["toBlock"], 16) - int(query["fromBlock"], 16) + 1
            asked.append(span)
            if span > 3:
                error = {"code": -32005, "message": "block range is too large"}
                return orjson.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error})
        return await inner(url, body)

    reader = EventReader(Rpc(world.url, post), DEV_REGISTRY_ADDRESS)
    head = int(world.rpc("eth_blockNumber"), 16)
    logs = run(reader._logs(DEV_DOLLAR_ADDRESS, [], 0, head))
    whole = world.rpc("eth_getLogs", {"address": to_hex(DEV_DOLLAR_ADDRESS), "fromBlock": "0x0"})
    assert logs == whole
    assert max(asked) == head + 1


def test_calls_at_once_do_not_mix_their_answers(dev_world) -> None:
    chain = dev_world.chain(dev_world.roles.payer)

    async def ask() -> list[int]:
        owners = [dev_world.roles.payer.address, b"\1" * 20] * 10
        return await asyncio.gather(*[chain.token_balance(DEV_DOLLAR_ADDRESS, o) for o in owners])

    assert asyncio.run(ask()) == [10**9, 0] * 10
