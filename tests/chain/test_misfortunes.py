"""A chain that stalls, forgets and changes its mind: what is sent happens once, and counts late."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS
from inferpool.chain.client import EvmChain
from inferpool.chain.rpc import Rpc
from inferpool.chain.sender import BUMP_PERCENT, Sender
from inferpool.protocol.errors import Unavailable

FIRST, SECOND = "http://first.example", "http://second.example"


class Servers:
    """Two servers before one chain, and which of them answer; counts what each was asked."""

    def __init__(self, inner) -> None:
        self.inner, self.down, self.deaf = inner, set(), set()
        self.asked = {FIRST: 0, SECOND: 0}
        self.raw: list[str] = []
        self.mined = asyncio.Event()
        self.swallow = 0  # transactions that are taken and forgotten
        self.other_chain = ""  # the URL that is of another chain

    async def __call__(self, url: str, body: bytes) -> bytes:
        self.asked[url] += 1
        if url in self.down:
            raise OSError("connection refused")
        if url == self.other_chain and b"eth_chainId" in body:
            return orjson.dumps({"jsonrpc": "2.0", "id": orjson.loads(body)["id"], "result": "0x1"})
        if b"eth_sendRawTransaction" in body:
            request = orjson.loads(body)
            self.raw.append(request["params"][0])
            if self.swallow:
                self.swallow -= 1
                return orjson.dumps({"jsonrpc": "2.0", "id": request["id"], "result": "0x"})
        answer = await self.inner(url, body)
        if url in self.deaf and b"eth_sendRawTransaction" in body:
            self.down.add(url)
            raise OSError("connection reset")  # it took the transaction, and was not heard again
        if b"eth_sendRawTransaction" in body:
            self.mined.set()
        return answer


@pytest.fixture
def servers(dev_world) -> Servers:
    return Servers(dev_world.post)


def test_reads_go_to_the_next_server_and_stay_there(run, servers) -> None:
    async def main() -> None:
        chain = await EvmChain.connect((FIRST, SECOND), post=servers)
        servers.down.add(FIRST)
        await asyncio.gather(*(chain.now_s() for _ in range(5)))
        before = servers.asked[FIRST]
        assert await chain.now_s() > 0
        assert servers.asked[FIRST] == before, "it is not asked while the other answers"
        servers.down = {SECOND}
        assert await chain.now_s() > 0, "and back again"
        servers.down = {FIRST, SECOND}
        with pytest.raises(Unavailable, match="does not answer"):
            await chain.now_s()

    run(main())


def test_a_server_of_another_chain_is_not_believed(run, servers) -> None:
    async def main() -> None:
        chain = await EvmChain.connect((FIRST, SECOND), post=servers)
        servers.other_chain, servers.down = SECOND, {FIRST}
        with pytest.raises(Unavailable):
            await chain.now_s()
        servers.down = set()
        assert await chain.now_s() > 0

    run(main())


def test_a_transaction_that_the_lost_server_took_is_not_sent_anew(dev_world, run, servers) -> None:
    """The second server calls the same bytes known: that is our own success, not another's."""
    to = dev_world.roles.court.address
    before = dev_world.balance(to)
    servers.deaf.add(FIRST)
    rpc = Rpc((FIRST, SECOND), servers)
    chain = EvmChain(rpc, dev_world.chain_id, sender=dev_world.roles.payer)
    run(chain.transfer(DEV_DOLLAR_ADDRESS, to, 5))
    assert dev_world.balance(to) == before + 5
    assert len(servers.raw) == 2
    assert len(set(servers.raw)) == 1


def test_a_busy_server_hands_over(run, servers) -> None:
    async def post(url: str, body: bytes) -> bytes:
        if url == FIRST and b"eth_chainId" not in body:
            error = {"code": -32005, "message": "slow down"}
            return orjson.dumps({"id": orjson.loads(body)["id"], "error": error})
        return await servers(url, body)

    assert run(Rpc((FIRST, SECOND), post).call("eth_blockNumber"))
    with pytest.raises(Unavailable, match="slow down"):
        run(Rpc(FIRST, post).call("eth_blockNumber"))


def sender_of(world, post, **options) -> Sender:
    return Sender(Rpc(FIRST, post), world.roles.payer, world.chain_id, 30.0, **options)


def test_a_transaction_that_sticks_is_replaced_by_a_dearer_one(dev_world, run, servers) -> None:
    to = dev_world.roles.court.address
    before, servers.swallow = dev_world.balance(to), 2
    chain = dev_world.chain(dev_world.roles.payer)
    chain._sender = sender_of(dev_world, servers, bump_after_s=0.05)
    receipt = run(chain.transfer(DEV_DOLLAR_ADDRESS, to, 5))
    assert len(set(servers.raw)) == 3
    assert dev_world.balance(to) == before + 5
    block = dev_world.rpc("eth_getBlockByNumber", hex(receipt.block_number), True)
    (mined,) = block["transactions"]
    assert mined["nonce"] == "0x0"
    assert int(mined["maxPriorityFeePerGas"], 16) > 1
    with pytest.raises(Exception, match="nonce"):  # the ones that stuck are void for ever
        dev_world.rpc("eth_sendRawTransaction", servers.raw[0])
    assert BUMP_PERCENT >= 110, "what pools ask of a replacement"


def test_a_transaction_that_a_reorganisation_drops_is_sent_again(dev_world, run, servers) -> None:
    """It counts two blocks deep; the chain forgets its block before that."""
    to = dev_world.roles.court.address
    dev_world.rpc("evm_mine")
    before = dev_world.balance(to)
    chain = dev_world.chain(dev_world.roles.payer)
    chain._sender = sender_of(dev_world, servers, bump_after_s=0.1, confirmations=2)

    async def main() -> None:
        rpc = Rpc(FIRST, servers.inner)
        sending = asyncio.create_task(chain.transfer(DEV_DOLLAR_ADDRESS, to, 5))
        await servers.mined.wait()
        assert not sending.done(), "it is not deep enough"
        await rpc.call("anvil_reorg", 1)
        assert await chain.token_balance(DEV_DOLLAR_ADDRESS, to) == before
        while not sending.done():
            await rpc.call("evm_mine")
            await asyncio.sleep(0.02)
        await sending

    run(main())
    assert dev_world.balance(to) == before + 5


def test_a_deposit_counts_once_it_is_deep_and_a_withdrawal_at_once(dev_world, run) -> None:
    config = dev_world.config()
    channel_id = config.channel_id(dev_world.chain_id)
    careful = dev_world.chain(dev_world.roles.stranger, finality_blocks=3)
    careless = dev_world.chain(dev_world.roles.stranger)
    dev_world.deposit(config, 1_000)
    assert run(careless.channel(channel_id)).balance == 1_000
    for _ in range(3):
        assert run(careful.channel(channel_id)).balance == 0
        dev_world.rpc("evm_mine")
    assert run(careful.channel(channel_id)).balance == 1_000
    dev_world.deposit(config, 500)
    assert run(careful.channel(channel_id)).balance == 1_000, "what is on top is not"
    run(dev_world.chain(dev_world.roles.payer).initiate_withdraw(config, 400))
    assert run(careful.channel(channel_id)).withdraw_amount == 400
    run(dev_world.chain(dev_world.roles.operator).refund(config, 700))
    assert run(careful.channel(channel_id)).balance == 800
