"""A model that left memory is asked for: only by those who can pay, and nobody pays for that."""

from __future__ import annotations

from inferpool.identity.signing import Key
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.encoding import sha256
from tests.node.parts import CHAT, EPOCH_MS, World, chat_body, world


def unload(made: World) -> None:
    hosted = made.node.node.services.hosted[0]
    hosted.engine.up, hosted.closed, hosted.cold = False, True, True


async def test_who_can_pay_is_told_to_come_back_and_pays_nothing() -> None:
    async with world() as made:
        payer = await made.payer()
        hosted = made.node.node.services.hosted[0]
        unload(made)
        answer = await payer.chat()
        assert (answer.status, answer.code) == (503, "engine_unavailable")
        assert int(answer.headers[b"retry-after"]) > 0
        assert hosted.wanted_ms >= EPOCH_MS
        assert hosted.running == 0
        channel = made.node.node.ledger.channels[payer.channel.channel_id]
        assert (channel.held, channel.total_pico_usd) == ({}, 0)
        hosted.engine.up, hosted.closed, hosted.cold = True, False, False
        assert (await payer.chat()).status == 200


async def test_who_cannot_pay_turns_nobody_out_of_memory() -> None:
    async with world() as made:
        payer = await made.payer()
        unload(made)
        answer = await made.send("POST", CHAT, [], chat_body())
        assert answer.status == 402
        job, request_id = ChatRequest.parse(chat_body()).job, payer.next_id()
        forged = payer.channel.authorise(request_id, payer.maximum(job), Key(sha256(b"stranger")))
        pairs = payer.paid(job, request_id, voucher=forged)
        assert (await made.send("POST", CHAT, pairs, chat_body())).status == 402
        assert made.node.node.services.hosted[0].wanted_ms == 0


async def test_a_tensor_model_that_never_was_loaded_is_not_blamed_on_its_caller() -> None:
    async with world() as made:
        payer = await made.payer()
        hosted = made.node.node.services.hosted[1]
        hosted.engine.up, hosted.closed = False, True
        hosted.engine.inputs = hosted.engine.outputs = ()
        answer = await payer.infer()
        assert (answer.status, answer.code) == (503, "engine_unavailable")
