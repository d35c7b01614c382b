"""The owner's look at channels, and refunds that never touch what was earned."""

from __future__ import annotations

import json

import pytest

from inferpool.chain.memory import FailingChain, Failure
from inferpool.payments.claims import Claimer
from inferpool.payments.standing import Channels
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.errors import BadRequest, Refused
from tests.node.parts import Payer, World, world


def channels_of(made: World, chain: object = None) -> Channels:
    node = made.node.node
    chain = chain or made.chain.with_sender(node.key, node.key)
    claimer = Claimer(node.gate.terms, chain, node.ledger, node.gate, node.clock)  # type: ignore[arg-type]
    return Channels(chain, node.ledger, node.gate, claimer)  # type: ignore[arg-type]


async def wallet(made: World, payer: Payer) -> int:
    return await made.chain.token_balance(payer.channel.config.token, payer.key.address)


async def test_a_refund_pays_back_all_but_what_was_earned() -> None:
    async with world() as made:
        payer = await made.payer(deposit=1000)
        await payer.infer(rows=25)  # 2.5 units
        channels = channels_of(made)
        (standing,) = await channels.look()
        assert (standing.free, standing.to_wire()["unclaimed_base_units"]) == (998, 2)
        part = await channels.refund(payer.channel.channel_id, 100)
        assert (part.state.balance, part.state.total_claimed) == (900, 2)
        assert await wallet(made, payer) == 100
        rest = await channels.refund(payer.channel.channel_id, None)
        assert (rest.free, await wallet(made, payer)) == (0, 998)
        with pytest.raises(Refused, match="0 base units are free"):
            await channels.refund(payer.channel.channel_id, None)
        # The channel is empty, not closed: topped up it goes on, with its half unit remembered.
        assert (await payer.infer()).code == "voucher_balance"
        await payer.deposit(500)
        payer.channel.balance = 502
        assert (await payer.infer(rows=5)).charged == 1


async def test_nothing_moves_while_a_request_is_in_flight() -> None:
    async with world() as made:
        payer = await made.payer(deposit=1000)
        request_id = payer.next_id()
        response = await payer.open_chat(request_id)
        channels = channels_of(made)
        with pytest.raises(Refused, match="in flight"):
            await channels.refund(payer.channel.channel_id, None)
        await response.close()
        assert not next(iter(made.node.node.ledger.channels.values())).closing


async def test_a_claim_that_fails_stops_the_refund() -> None:
    async with world() as made:
        payer = await made.payer(deposit=1000)
        await payer.infer(rows=25)
        node = made.node.node
        error = Refused("the chain reverted: no", code="chain_reverted")
        chain = FailingChain(
            made.chain.with_sender(node.key, node.key),
            lambda name: Failure(error) if name == "claim" else None,
        )
        with pytest.raises(Refused, match="could not be claimed"):
            await channels_of(made, chain).refund(payer.channel.channel_id, None)
        assert await wallet(made, payer) == 0


async def test_the_route_takes_an_id_and_an_amount() -> None:
    async with world() as made:
        payer = await made.payer(deposit=1000)
        await payer.infer()
        channels = channels_of(made)
        body = {"channel": to_hex(payer.channel.channel_id), "base_units": 7}
        (found,) = (await channels.refunded(json.dumps(body).encode()))["channels"]
        assert (found["deposited_base_units"], found["with"].lower()) == (
            993,
            to_hex(payer.key.address),
        )
        for bad in (
            b"",
            b"[]",
            b"{}",
            b'{"channel": "0x12"}',
            json.dumps(body | {"base_units": 0}),
        ):
            with pytest.raises(BadRequest):
                await channels.refunded(bad if isinstance(bad, bytes) else bad.encode())
        with pytest.raises(BadRequest, match="No channel"):
            await channels.refund(b"\7" * 32, None)
