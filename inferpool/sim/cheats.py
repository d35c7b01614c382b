"""Those who cheat in the simulator: a payer that takes what it has not paid for, where it can, and
a payee that claims all that was ever signed for it, and payers that withdraw in the middle."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import Random

import orjson

from inferpool.chain.authorization import authorize_deposit
from inferpool.chain.base import Claim
from inferpool.chain.memory import MemoryChain
from inferpool.gateway.capital import Capital
from inferpool.identity.signing import Key
from inferpool.payments import x402
from inferpool.protocol import headers
from inferpool.protocol.errors import InferpoolError
from inferpool.protocol.job import Job, Task
from inferpool.protocol.price import maximum
from inferpool.protocol.voucher import ChannelConfig, Voucher, voucher_digest
from inferpool.sim.parts import SimGateway, SimNode
from inferpool.transport.base import TransportError

_INFER = "/v2/models/fake-tensor/infer"
_ROWS = 8
_BODY = orjson.dumps(
    {"inputs": [{"name": "x", "shape": [_ROWS, 4], "datatype": "FP32", "data": [1.0] * 4 * _ROWS}]}
)


@dataclass(slots=True)
class Leech:
    """A foreign payer at one node, who pays once and then tries everything else."""

    node: SimNode
    chain: MemoryChain
    key: Key
    random: Random
    deposit: int = 500
    signed: int = 0
    sent: list[bytes] = field(default_factory=list)  # headers that were shown before
    answers: int = 0
    refused: int = 0
    paid_in: bool = False

    @property
    def _config(self) -> ChannelConfig:
        terms = self.node.node.gate.terms
        return ChannelConfig(
            self.key.address,
            self.key.address,
            terms.payee,
            terms.receiver_authorizer,
            terms.asset,
            terms.withdraw_delay_s,
            bytes(32),
        )

    async def run(self, until_s: float) -> None:
        """Cheat until virtual time `until_s`."""
        config, terms = self._config, self.node.node.gate.terms
        self.chain.fund(self.key.address, self.deposit)
        self.paid_in = True
        permit = authorize_deposit(
            self.key,
            config,
            self.deposit,
            chain_id=terms.chain_id,
            name=terms.asset_name,
            version=terms.asset_version,
            valid_before_s=2**40,
            salt=1,
        )
        await self.chain.deposit(config, self.deposit, permit)
        withdraws_at_s = until_s * self.random.uniform(0.5, 0.9)
        while (now_s := asyncio.get_running_loop().time()) < until_s:
            await asyncio.sleep(self.random.expovariate(3.0))
            try:
                if now_s > withdraws_at_s:
                    await self._withdraw(config)
                await self._ask(self._header(config))
            except (TransportError, InferpoolError):
                continue

    async def _withdraw(self, config: ChannelConfig) -> None:
        """Its money out, while it goes on asking."""
        state = await self.chain.channel(config.channel_id(self.chain.chain_id))
        free = state.balance - state.total_claimed
        if free and not state.withdraw_started_s:
            await self.chain.with_sender(self.key).initiate_withdraw(config, free)

    def _header(self, config: ChannelConfig) -> bytes:
        """Mostly an honest step on; else a replay, a voucher without money, or a forged one."""
        offer = self.node.node.offers.current().offer
        service = offer.service("fake-tensor")
        assert service is not None, "it is offered"
        most = maximum(Job(Task.TENSOR, "fake-tensor", rows=_ROWS), service, 6)
        trick = self.random.random()
        if self.sent and trick < 0.3:
            return self.random.choice(self.sent)
        amount, key = self.signed + most, self.key
        if trick < 0.4:
            amount += self.deposit
        elif trick < 0.5:
            key = Key(self.random.randbytes(32))
        else:
            self.signed = amount
        channel_id = config.channel_id(self.chain.chain_id)
        signature = key.sign(voucher_digest(channel_id, amount, self.chain.chain_id))
        voucher = Voucher(channel_id, amount, signature)
        header = x402.payment_signature(config, voucher, offer.terms, most)
        self.sent.append(header)
        return header

    async def _ask(self, header: bytes) -> None:
        pipe = self.node.transport()
        paid = [(headers.PAYMENT_SIGNATURE, header)]
        response = await pipe.request("POST", _INFER, paid, _BODY, timeout_s=30.0)
        try:
            await response.read(1 << 20)
        finally:
            await response.close()
        if response.status == 200:
            self.answers += 1
        else:
            self.refused += 1


async def steal(node: SimNode, key: Key, chain: MemoryChain) -> None:
    """Claim the best voucher of every channel in full, whatever was earned."""
    rows = [
        Claim(item.config, Voucher(item.channel_id, item.best, item.best_signature), item.best)
        for item in node.node.ledger.channels.values()
        if item.best > item.claimed
    ]
    if rows:
        await chain.with_sender(key).claim(rows)


async def withdraw(gateway: SimGateway, random: Random) -> bool:
    """A gateway takes its money out of one channel, in the middle of its work with that node."""
    treasury, made = gateway.gateway.treasury, gateway.gateway
    capital = Capital(treasury, treasury.chain, made.clock, 0, _no_fuel)
    channels = [
        channel
        for _, channel in treasury.ledger.channels.values()
        if channel.balance > channel.charged and channel.channel_id not in treasury.leaving
    ]
    if not channels:
        return False
    try:
        await capital.withdraw(random.choice(channels).channel_id)
    except InferpoolError:
        return False  # claims took what was free meanwhile
    return True


async def ask_back(gateway: SimGateway, random: Random) -> bool:
    """A gateway has one of its nodes pay back what is free, by x402's refund payload."""
    treasury, made = gateway.gateway.treasury, gateway.gateway
    capital = Capital(treasury, treasury.chain, made.clock, 0, _no_fuel)
    capital.nodes = made.directory.nodes.get
    channels = list(treasury.ledger.channels)
    if not channels:
        return False
    try:
        await capital.ask_back(random.choice(channels))
    except InferpoolError:
        return False  # something is in flight, or nothing is free, or its node is down
    return True


async def finalize(gateway: SimGateway) -> int:
    """End every way out that is ready; how many there were."""
    treasury, made = gateway.gateway.treasury, gateway.gateway
    capital = Capital(treasury, treasury.chain, made.clock, 0, _no_fuel)
    ready = [item for item in await capital.look() if item.way_back == "ready"]
    for item in ready:
        await capital.finalize(item.channel.channel_id)
    return len(ready)


async def _no_fuel() -> None:
    """Gas is no matter here."""
