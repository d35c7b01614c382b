"""Answers and receipts: exactly one, true to what was sent, whoever pays, however it ends."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Sequence

import pytest

from inferpool.engines.base import Progress, TextCall, TextChunk
from inferpool.engines.fake import FakeTextEngine, token_id
from inferpool.identity.signing import Key, verify
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.encoding import from_hex, sha256, to_hex
from inferpool.protocol.evidence import NO_EVIDENCE, Evidence
from inferpool.protocol.limits import RECEIPTS_PAGE_MAX
from inferpool.protocol.price import exact_pico_usd
from inferpool.protocol.receipt import Outcome, SignedReceipt
from inferpool.transport.base import TransportError
from inferpool.transport.sse import Comment, Event
from tests.node.parts import (
    CHAT,
    Answer,
    Payer,
    World,
    chat_body,
    items,
    world,
)


async def receipts(payer: Payer, after: int = 0) -> list[SignedReceipt]:
    answer = await payer.receipts(after)
    assert answer.status == 200
    return [SignedReceipt.from_wire(item) for item in answer.json["receipts"]]


async def only_receipt(payer: Payer) -> SignedReceipt:
    (signed,) = await receipts(payer)
    return signed


# -- receipts say what was sent -------------------------------------------------------------------


async def test_a_whole_answer_and_its_receipt() -> None:
    async with world() as made:
        payer = await made.payer()
        request_id = payer.next_id()
        answer = await payer.chat(request_id, seed=3, max_tokens=12)
        receipt, offer = answer.receipt.receipt, payer.offer
        service = offer.services[receipt.service]
        assert service.model == "fake-chat"
        verify(receipt.digest(offer.terms.chain_id), answer.receipt.signature, offer.node)
        body = chat_body(seed=3, max_tokens=12)
        assert receipt.request_id == request_id
        assert receipt.request_hash == sha256(body)
        assert receipt.response_hash == sha256(answer.body)
        assert receipt.offer_hash == offer.digest()
        assert (receipt.manifest, receipt.engine_class) == (service.manifest, service.engine_class)
        assert receipt.channel_id == payer.channel.channel_id
        assert (receipt.seq, receipt.seed, receipt.outcome) == (1, 3, Outcome.COMPLETE)
        usage = answer.json["usage"]
        assert receipt.prompt_units == usage["prompt_tokens"]
        assert receipt.output_units == usage["completion_tokens"] == 12
        assert receipt.charge_pico_usd == exact_pico_usd(receipt.usage, service)
        assert receipt.charged_total_pico_usd == receipt.charge_pico_usd
        assert answer.charged == receipt.charge_pico_usd // 10**6
        assert await only_receipt(payer) == answer.receipt


async def test_a_stream_and_its_receipt() -> None:
    async with world() as made:
        payer = await made.payer()
        answer = await payer.chat(seed=3, max_tokens=5, stream=True)
        *chunks, usage, done = answer.events
        assert done == b"[DONE]"
        receipt = answer.stream_receipt.receipt
        hashed = hashlib.sha256(b"".join(item + b"\n" for item in chunks))
        assert receipt.response_hash == hashed.digest()
        ids = [i for c in chunks for i in json.loads(c).get("inferpool", {}).get("ids", [])]
        assert len(ids) == receipt.output_units == 5
        text = "".join(json.loads(c)["choices"][0]["delta"].get("content", "") for c in chunks)
        assert text == "".join(f" w{i}" for i in ids)
        prompt = json.dumps([["user", "hello"]], separators=(",", ":"))
        assert ids == [token_id(prompt, 3, at) for at in range(5)]
        assert json.loads(usage)["usage"]["completion_tokens"] == 5


async def test_without_a_seed_the_nodes_own_is_in_the_receipt() -> None:
    async with world() as made:
        payer = await made.payer()
        first = (await payer.chat()).receipt.receipt.seed
        second = (await payer.chat()).receipt.receipt.seed
        assert first != second
        again = await payer.chat(seed=first)
        assert again.receipt.receipt.seed == first


async def test_small_charges_are_carried_to_the_unit() -> None:
    """Two rows cost a fifth of a base unit: the fifth answer reports it."""
    async with world() as made:
        payer = await made.payer()
        charged = [(await payer.infer()).charged for _ in range(10)]
        assert charged == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
        assert payer.channel.total_pico_usd == 10 * 2 * 100_000


class Verbose(FakeTextEngine):
    """Counts more prompt tokens than the prompt has bytes, as a tokenizer that normalises may."""

    async def generate(self, call: TextCall, progress: Progress) -> AsyncGenerator[TextChunk, None]:
        async for chunk in super().generate(call, progress):
            units = None if chunk.prompt_units is None else 10_000
            yield TextChunk(chunk.text, chunk.ids, chunk.logprobs, chunk.finish_reason, units)


async def test_a_charge_never_passes_the_maximum_that_both_sides_computed() -> None:
    async with world() as made:
        payer = await made.payer()
        await use(made, Verbose())
        answer = await payer.chat()
        receipt = answer.receipt.receipt
        most = payer.maximum(ChatRequest.parse(chat_body()).job)
        assert receipt.prompt_units == len("user") + len("hello") + 8
        assert answer.charged <= most


async def use(made: World, engine: FakeTextEngine) -> None:
    """Put another engine behind fake-chat."""
    await engine.start()
    made.node.engine = engine
    made.node.node.services.hosted[0].engine = engine


# -- ends without an end --------------------------------------------------------------------------


async def test_a_client_that_leaves_frees_the_slot_and_owes_what_was_sent() -> None:
    async with world() as made:
        payer = await made.payer()
        request_id = payer.next_id()
        response = await payer.open_chat(request_id, max_tokens=500)
        seen = 0
        async for item in items(response):
            assert made.node.engine.free == 3 or not seen
            seen += isinstance(item, Event) and b'"ids"' in item.data
            if seen == 4:
                break
        await response.close()
        await asyncio.sleep(0.1)
        assert made.node.engine.free == 4, "its slot is free"
        assert made.node.node.services.hosted[0].running == 0
        receipt = (await only_receipt(payer)).receipt
        assert (receipt.request_id, receipt.outcome) == (request_id, Outcome.CANCELLED)
        assert 4 <= receipt.output_units <= 6, "what was sent, and what was on its way"
        assert receipt.charge_pico_usd < 20 * 600_000
        payer.channel.book(receipt)
        assert (await payer.chat()).status == 200


async def test_a_client_that_leaves_while_others_wait_lets_the_next_one_in() -> None:
    async with world() as made:
        payer = await made.payer()
        opened = [await payer.open_chat(payer.next_id(), max_tokens=1000) for _ in range(5)]
        await asyncio.sleep(0.5)
        stream = items(opened[4])
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(1)
        assert made.node.engine.free == 0
        await opened[0].close()
        await first
        while b'"ids"' not in (item := await anext(stream))[0]:
            pass
        assert isinstance(item, Event)
        for response in opened[1:]:
            await response.close()
        await stream.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("own", [True, False], ids=["own payer", "foreign payer"])
async def test_an_engine_that_fails_in_mid_stream(own: bool) -> None:
    async with world() as made:
        payer = await made.payer()
        made.node.engine.fail_after = 3
        body = chat_body(stream=True)
        pairs = payer.paid(ChatRequest.parse(body).job, payer.next_id(), own=own)
        answer = await made.send("POST", CHAT, pairs, body)
        receipt = (await only_receipt(payer)).receipt
        assert (receipt.outcome, receipt.output_units) == (Outcome.FAILED, 3)
        assert b"[DONE]" not in answer.body
        if own:
            assert answer.stream_receipt.receipt == receipt
        else:
            assert json.loads(answer.events[-1])["error"]["code"] == "engine_failed"
        made.node.engine.fail_after = None
        assert not any(c.held for c in made.node.node.ledger.channels.values())


async def test_an_engine_that_fails_before_a_whole_answer_costs_nothing() -> None:
    async with world() as made:
        payer = await made.payer()
        made.node.engine.fail_after = 3
        answer = await payer.chat()
        assert (answer.status, answer.code) == (502, "engine_failed")
        assert await receipts(payer) == []
        made.node.engine.fail_after = None
        assert (await payer.chat()).status == 200


class Buggy(FakeTextEngine):
    """An adapter with a fault of ours in it."""

    async def generate(self, call: TextCall, progress: Progress) -> AsyncGenerator[TextChunk, None]:
        async for chunk in super().generate(call, progress):
            yield chunk
            if len(chunk.ids) and self.answer_tokens == 0:
                raise KeyError("a fault in the adapter")


async def test_a_fault_in_an_adapter_is_a_failure_that_the_log_tells(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with world() as made:
        payer = await made.payer()
        await use(made, Buggy(answer_tokens=0))
        body = chat_body(stream=True)
        pairs = payer.paid(ChatRequest.parse(body).job, payer.next_id())
        response = await made.open("POST", CHAT, pairs, body)
        data = b""
        try:
            async for chunk in response.chunks():
                data += chunk
        except TransportError:
            pass
        assert b"[DONE]" not in data
        receipt = (await only_receipt(payer)).receipt
        assert (receipt.outcome, receipt.output_units) == (Outcome.FAILED, 1)
        assert "a fault in the adapter" in caplog.text
        assert made.node.node.services.hosted[0].running == 0


async def test_a_receipt_is_told_of_from_the_charge_on_even_before_it_is_on_disk() -> None:
    """A payer that asks between charge and commit must not hear that nothing is owed."""
    async with world() as made:
        payer = await made.payer()
        await payer.infer()
        request_id = payer.next_id()
        response = await payer.open_chat(request_id)
        stream = items(response)
        for _ in range(4):
            await anext(stream)
        made.node.journal._delay_s = 5.0  # a slow disk
        await response.close()
        for _ in range(20):
            await asyncio.sleep(0.5)
            answer = await payer.receipts()
            known = {item["receipt"]["requestId"] for item in answer.json["receipts"]}
            known |= set(answer.json["inFlight"])
            assert to_hex(request_id) in known
        assert answer.json["inFlight"] == []
        await stream.aclose()  # type: ignore[attr-defined]


# -- heartbeats -----------------------------------------------------------------------------------


async def test_an_idle_stream_tells_where_the_engine_is() -> None:
    async with world() as made:
        payer = await made.payer()
        made.node.engine.prefill_delay_s = 2.5
        made.node.engine.hang_after = 2
        busy = [await payer.open_chat(payer.next_id()) for _ in range(4)]
        response = await payer.open_chat(payer.next_id())
        loop = asyncio.get_running_loop()
        begun, comments = loop.time(), []
        async for item in items(response):
            if isinstance(item, Comment):
                comments.append((round(loop.time() - begun, 1), item.text))
            if len(comments) == 2:
                break
        assert [text.split()[0] for _, text in comments] == [b"queued", b"queued"]
        assert comments[1][0] - comments[0][0] == pytest.approx(1.0, abs=0.1)
        comments.clear()
        made.node.engine.hang_after = 2
        async for item in items(busy[0]):
            if isinstance(item, Comment):
                comments.append((loop.time(), item.text))
            if len(comments) >= 2 and comments[-1][1] == comments[-2][1] == b"tokens 2":
                break
        assert comments[0][1].startswith(b"prefill")
        for opened in (*busy, response):
            await opened.close()


async def test_a_stream_that_flows_carries_no_heartbeat() -> None:
    async with world() as made:
        payer = await made.payer()
        made.node.engine.token_delay_s = 0.9
        response = await payer.open_chat(payer.next_id(), max_tokens=4)
        found = [item async for item in items(response)]
        assert all(isinstance(item, Event) for item in found)


# -- foreign payers -------------------------------------------------------------------------------


async def foreign(payer: Payer, **changes: object) -> Answer:
    """A request of a payer that knows x402 and nothing of ours."""
    body = chat_body(**changes)
    request_id = payer.next_id()
    voucher_for = payer.paid(ChatRequest.parse(body).job, request_id, own=False)
    answer = await payer.world.send("POST", CHAT, voucher_for, body)
    payer.channel.release(request_id, sent=False)
    payer.channel.total_pico_usd += answer.charged * 10**6  # it believes the header
    return answer


async def test_a_foreign_payer_pays_a_whole_answer_to_the_unit() -> None:
    async with world() as made:
        payer = await made.payer()
        exact = 0
        for count in (1, 2, 3):
            answer = await foreign(payer)
            assert answer.status == 200
            assert b"inferpool" not in answer.body, "nothing of ours inside the answer"
            receipt = (await receipts(payer))[-1].receipt
            exact += receipt.charge_pico_usd
            assert payer.channel.charged == exact // 10**6
            assert receipt.seq == count


async def test_a_foreign_stream_is_charged_its_maximum_and_credited_later() -> None:
    async with world() as made:
        payer = await made.payer()
        most = payer.maximum(ChatRequest.parse(chat_body(max_tokens=100)).job)
        answer = await foreign(payer, stream=True, max_tokens=100, stop=[" w"])
        assert answer.charged == most
        assert all(b'"ids"' not in item for item in answer.events)
        assert answer.events[-1] == b"[DONE]"
        used = (await only_receipt(payer)).receipt.charge_pico_usd
        assert used < most * 10**6 // 2, "it stopped at once"
        told = most
        while True:
            answer = await foreign(payer)
            told += answer.charged
            exact = sum(item.receipt.charge_pico_usd for item in await receipts(payer))
            assert told >= exact // 10**6
            if answer.charged:
                break
        assert told == exact // 10**6, "the credit was used up before more was charged"


async def test_two_foreign_streams_at_once_are_each_covered() -> None:
    """The second one must not be paid with what the first one has not used yet."""
    async with world() as made:
        payer = await made.payer()
        body = chat_body(stream=True, max_tokens=20)
        job = ChatRequest.parse(body).job
        most = payer.maximum(job)
        opened = []
        for number in (1, 2):
            request_id = payer.next_id()
            pairs = payer.paid(job, request_id, own=False)
            payer.channel.release(request_id, sent=False)
            payer.channel.total_pico_usd = number * most * 10**6
            opened.append(await made.open("POST", CHAT, pairs, body))
        assert [response.status for response in opened] == [200, 200]
        (channel,) = made.node.node.ledger.channels.values()
        assert channel.reported == 2 * most
        payer.channel.total_pico_usd = most * 10**6  # a third under the second one's voucher
        pairs = payer.paid(job, payer.next_id(), own=False)
        assert (await made.send("POST", CHAT, pairs, body)).code == "voucher_amount"
        for response in opened:
            await response.read(1 << 20)
        assert channel.earned <= channel.best


# -- receipts and evidence for their payer only ---------------------------------------------------


async def test_receipts_are_shown_to_their_payer_only() -> None:
    async with world() as made:
        payer, other = await made.payer(), await made.payer()
        await payer.chat()
        answer = await payer.receipts(key=other.key)
        assert (answer.status, answer.code) == (422, "bad_signature")
        assert b"receipt" not in answer.body
        answer = await made.send(
            "GET", f"/inferpool/receipts?channel={to_hex(payer.channel.channel_id)}&after=0"
        )
        assert answer.status == 400
        other.channel.channel_id = bytes(32)
        assert (await other.receipts()).code == "not_found"


async def test_receipts_come_in_pages() -> None:
    async with world() as made:
        payer = await made.payer()
        for _ in range(RECEIPTS_PAGE_MAX + 2):
            await payer.infer(rows=1)
        first = await receipts(payer)
        assert [item.receipt.seq for item in first] == list(range(1, RECEIPTS_PAGE_MAX + 1))
        rest = await receipts(payer, after=first[-1].receipt.seq)
        assert [item.receipt.seq for item in rest] == [257, 258]
        assert await receipts(payer, after=258) == []


async def test_what_is_in_flight_is_told_with_the_receipts() -> None:
    async with world() as made:
        payer = await made.payer()
        request_id = payer.next_id()
        response = await payer.open_chat(request_id)
        answer = await payer.receipts()
        assert [from_hex(item, 32) for item in answer.json["inFlight"]] == [request_id]
        await response.read(1 << 20)
        assert (await payer.receipts()).json["inFlight"] == []


async def test_evidence_is_what_was_sent_and_what_the_receipt_names() -> None:
    async with world() as made:
        payer = await made.payer()
        request_id = payer.next_id()
        answer = await payer.chat(request_id, stream=True)
        ids = [
            i
            for item in answer.events[:-2]
            for i in json.loads(item).get("inferpool", {}).get("ids", [])
        ]  # fmt: skip
        found = await payer.evidence(request_id)
        assert found.status == 200
        evidence = Evidence.decode(found.body)
        receipt = answer.stream_receipt.receipt
        assert sha256(found.body) == evidence.hash() == receipt.evidence_hash
        assert list(evidence.ids) == ids
        assert evidence.prompt_units == receipt.prompt_units
        assert len(evidence.logprobs) == len(ids)
        assert evidence.logprobs == pytest.approx([-(i % 1000) / 500 for i in ids])


async def test_evidence_is_for_its_payer_and_for_ten_minutes() -> None:
    async with world() as made:
        payer, other = await made.payer(), await made.payer()
        request_id = payer.next_id()
        await payer.chat(request_id)
        refused = await payer.evidence(request_id, key=other.key)
        assert (refused.status, refused.code) == (422, "bad_signature")
        assert (await payer.evidence(request_id, key=Key(sha256(b"liar")))).status == 422
        await asyncio.sleep(599)
        assert (await payer.evidence(request_id)).status == 200
        await asyncio.sleep(2)
        gone = await payer.evidence(request_id)
        assert (gone.status, gone.code) == (404, "not_found")


async def test_tensors_need_no_evidence() -> None:
    async with world() as made:
        payer = await made.payer()
        request_id = payer.next_id()
        answer = await payer.infer(request_id)
        assert answer.receipt.receipt.evidence_hash == NO_EVIDENCE
        assert (await payer.evidence(request_id)).code == "not_found"


# -- tensors --------------------------------------------------------------------------------------


async def test_tensors_in_binary_both_ways() -> None:
    import struct

    async with world() as made:
        payer = await made.payer()
        numbers: Sequence[float] = [1, 2, 3, 4, 5, 6, 7, 8]
        raw = struct.pack("<8f", *numbers)
        entry = {"name": "x", "shape": [2, 4], "datatype": "FP32",
                 "parameters": {"binary_data_size": len(raw)}}  # fmt: skip
        head = json.dumps(
            {"inputs": [entry], "outputs": [{"name": "sum", "parameters": {"binary_data": True}}]}
        ).encode()
        from inferpool.protocol.oip import InferRequest

        length = str(len(head)).encode()
        job = InferRequest.parse("fake-tensor", head + raw, length).job
        pairs = payer.paid(job, payer.next_id())
        pairs.append((b"inference-header-content-length", length))
        answer = await made.send("POST", "/v2/models/fake-tensor/infer", pairs, head + raw)
        assert answer.status == 200
        at = int(answer.headers[b"inference-header-content-length"])
        assert json.loads(answer.body[:at])["outputs"][0]["shape"] == [2, 1]
        assert struct.unpack("<2f", answer.body[at:]) == (10, 26)
        assert answer.receipt.receipt.response_hash == sha256(answer.body)


async def test_an_engine_that_fails_on_tensors_costs_nothing() -> None:
    async with world() as made:
        payer = await made.payer()
        engine = made.node.node.services.hosted[1].engine
        engine.fail = True
        answer = await payer.infer()
        assert (answer.status, answer.code) == (502, "engine_failed")
        engine.fail = False
        assert (await payer.infer()).json["outputs"][0]["data"] == [4.0, 4.0]
        assert len(await receipts(payer)) == 1
