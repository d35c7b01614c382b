"""Offers: renewed in time, honoured to their end, refused after it; epochs grow; leases go on."""

from __future__ import annotations

import asyncio
import json

from inferpool.identity.signing import verify
from inferpool.protocol import headers
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.job import Job, Task
from inferpool.protocol.lease import Lease
from inferpool.protocol.limits import LEASE_EVERY_MS, OFFER_RENEW_MS, OFFER_VALID_MS
from inferpool.transport.base import Response
from tests.node.parts import EPOCH_MS, INFER, tensor_body, world


async def test_an_offer_is_signed_and_valid_for_ten_minutes() -> None:
    async with world() as made:
        signed = await made.offer()
        offer = signed.offer
        verify(offer.digest(), signed.signature, offer.node)
        assert offer.valid_until_ms == EPOCH_MS + OFFER_VALID_MS
        assert [s.model for s in offer.services] == ["fake-chat", "fake-tensor"]
        assert await made.offer() == signed, "one offer until it is due"


async def test_an_offer_is_renewed_well_before_its_end_and_the_old_one_still_taken() -> None:
    async with world() as made:
        payer = await made.payer()
        old = payer.offer
        await asyncio.sleep(OFFER_RENEW_MS / 1000)
        new = (await made.offer()).offer
        assert (new.epoch, new.sequence) == (old.epoch, old.sequence + 1)
        assert new.valid_until_ms == old.valid_until_ms + OFFER_RENEW_MS
        answer = await payer.infer()
        assert answer.status == 200
        assert answer.receipt.receipt.offer_hash == old.digest()
        await asyncio.sleep((OFFER_VALID_MS - OFFER_RENEW_MS) / 1000 - 1)
        assert (await payer.infer()).status == 200, "to its end"
        await asyncio.sleep(32)  # past the end and what clocks may differ by
        answer = await payer.infer()
        assert (answer.status, answer.code) == (402, "payment_terms")
        assert "/.well-known/inferpool/offer" in answer.json["error"]
        payer.offer = (await made.offer()).offer
        assert (await payer.infer()).status == 200


async def test_a_price_is_the_one_of_the_offer_that_was_taken() -> None:
    async with world() as made:
        payer = await made.payer()
        hosted = made.node.node.services.hosted[1]
        hosted.price_in_pico_usd_per_unit *= 3
        hosted._service = None
        new = (await made.offer()).offer
        assert new.services[1].price_in_pico_usd_per_unit == 300_000
        assert (await payer.infer()).receipt.receipt.charge_pico_usd == 2 * 100_000
        payer.offer = new
        assert (await payer.infer()).receipt.receipt.charge_pico_usd == 2 * 300_000


async def test_a_restart_makes_a_greater_epoch_and_old_offers_end() -> None:
    async with world() as made:
        payer = await made.payer()
        await made.restart()
        new = (await made.offer()).offer
        assert new.epoch > payer.offer.epoch
        answer = await payer.infer()
        assert (answer.status, answer.code) == (402, "payment_terms")
        payer.offer = new
        assert (await payer.infer()).status == 200


async def test_an_offer_names_what_is_ready_only() -> None:
    async with world() as made:
        first = (await made.offer()).offer
        await made.node.engine.close()
        second = (await made.offer()).offer
        assert [s.model for s in second.services] == ["fake-tensor"]
        assert second.sequence == first.sequence + 1
        await made.node.engine.start()
        assert len((await made.offer()).offer.services) == 2


async def test_a_model_that_the_taken_offer_does_not_sell() -> None:
    """It is served again by now, but what it costs was never agreed on."""
    async with world() as made:
        tensors = made.node.node.services.hosted[1].engine
        await tensors.close()
        payer = await made.payer()  # takes the offer without fake-tensor
        await tensors.start()
        full = (await made.offer()).offer
        partial, payer.offer = payer.offer, full
        request_id = payer.next_id()
        pairs = [
            (key, to_hex(partial.digest()).encode() if key == headers.OFFER else value)
            for key, value in payer.paid(Job(Task.TENSOR, "fake-tensor", rows=2), request_id)
        ]
        answer = await made.send("POST", INFER, pairs, tensor_body())
        assert (answer.status, answer.code) == (402, "payment_terms")
        assert (await payer.receipts()).code == "not_found", "no work, no channel"


# -- leases ---------------------------------------------------------------------------------------


async def lines(response: Response, count: int) -> list[tuple[float, Lease]]:
    loop, found, data = asyncio.get_running_loop(), [], b""
    async for chunk in response.chunks():
        data += chunk
        while b"\n" in data:
            line, _, data = data.partition(b"\n")
            found.append((loop.time(), Lease.decode(line)))
        if len(found) >= count:
            break
    return found


async def test_leases_come_every_ten_seconds_and_tell_free_slots() -> None:
    async with world() as made:
        payer = await made.payer()
        response = await made.open("GET", "/inferpool/lease")
        (first,) = await lines(response, 1)
        opened = await payer.open_chat(payer.next_id(), max_tokens=1000)
        (second,) = await lines(response, 1)
        assert second[0] - first[0] <= LEASE_EVERY_MS / 1000
        assert (first[1].free_slots, second[1].free_slots) == (12, 11)
        assert second[1].epoch == payer.offer.epoch
        await opened.close()
        await response.close()


async def test_leases_tell_measured_speed() -> None:
    async with world() as made:
        payer = await made.payer()
        for _ in range(3):
            await payer.chat(stream=True, max_tokens=20)
        lease = json.loads(made.node.node.lease().encode())
        assert 50 <= lease["firstUnitMs"] <= 120
        assert lease["unitUs"] in range(15_000, 25_000)


async def test_a_reader_of_leases_that_leaves_is_forgotten() -> None:
    async with world() as made:
        response = await made.open("GET", "/inferpool/lease")
        await lines(response, 1)
        await response.close()
        await asyncio.sleep(0.1)
        assert not made.pipe._tasks, "its request ended"
