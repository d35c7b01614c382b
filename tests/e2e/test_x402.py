"""The unmodified x402 SDK pays a node, and a gateway, directly, on the real development chain."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from eth_account import Account
from poolkit import CHAT, LONG_STORY, SPAM, Running
from x402 import x402Client
from x402.http.clients.httpx import x402AsyncTransport
from x402.mechanisms.evm.batch_settlement.client import (
    BatchSettlementEvmScheme,
    BatchSettlementEvmSchemeOptions,
)
from x402.mechanisms.evm.batch_settlement.client.storage import InMemoryClientChannelStorage
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner

from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS
from inferpool.chain.client import EvmChain
from inferpool.cli.owner import ask_gateway
from inferpool.identity.keys import Role
from inferpool.identity.signing import verify
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.receipt import Receipt, SignedReceipt

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.parametrize("seller", ["node", "gateway"]),
]

FUNDS = 5_000_000  # base units: five test dollars
SALTS = itertools.count(1)


def decoded(header: str | None) -> Any:
    return json.loads(base64.b64decode(header)) if header else None


@dataclass
class Payer:
    """A stranger with an SDK and money of its own; every round trip on the wire is seen.

    `seller`: whom it pays, node or gateway.
    """

    pool: Running
    seller: str
    chain: EvmChain
    address: bytes
    http: httpx.AsyncClient
    trips: list[tuple[httpx.Request, httpx.Response]] = field(default_factory=list)
    scheme: Any = None

    async def post(self, path: str, **options: Any) -> httpx.Response:
        self.trips.clear()
        answer = await self.http.post(f"{self.pool.url(self.seller)}{path}", **options)
        assert answer.status_code == 200, answer.text
        return answer

    async def chat(self, **options: Any) -> httpx.Response:
        body = {"model": CHAT, "messages": LONG_STORY, "max_tokens": 16, **options}
        return await self.post("/v1/chat/completions", json=body)

    async def infer(self) -> httpx.Response:
        tensor = triton.InferInput("text", [20, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[b"win a prize now"]] * 20, dtype=np.object_))
        body, length = triton.InferenceServerClient.generate_request_body([tensor])
        headers = {"Inference-Header-Content-Length": str(length)}
        return await self.post(f"/v2/models/{SPAM}/infer", content=body, headers=headers)

    @property
    def payloads(self) -> list[str]:
        """What each round trip paid with: nothing, a deposit, a voucher."""
        found = [decoded(request.headers.get("payment-signature")) for request, _ in self.trips]
        return [item["payload"]["type"] if item else "nothing" for item in found]

    @property
    def asked(self) -> int:
        """The maximum that the last 402 asked for, in base units."""
        required = [
            decoded(answer.headers["payment-required"])
            for _, answer in self.trips
            if "payment-required" in answer.headers
        ]
        return int(required[-1]["accepts"][0]["amount"])


def charged(answer: httpx.Response) -> int:
    """What the answer's PAYMENT-RESPONSE says this request cost, in base units."""
    response = decoded(answer.headers["payment-response"])
    assert response["success"] is True
    return int(response["extra"]["chargedAmount"])


def receipt_of(payer: Payer, answer: httpx.Response) -> Receipt:
    """The seller's receipt for what this payer paid."""
    pool, node = payer.pool, payer.seller == "node"
    header = answer.headers["inferpool-receipt" if node else "inferpool-gateway-receipt"]
    signed = SignedReceipt.from_header(header.encode())
    key = pool.node_address if node else gateway_key(pool)
    verify(signed.receipt.digest(pool.chain_id), signed.signature, key)
    return signed.receipt


def gateway_key(pool: Running) -> bytes:
    """The address that signs what the gateway sells."""
    return pool.home.keys("gateway").key(Role.NODE).address


def owner_of(payer: Payer) -> bytes:
    """To whom the seller's claims are paid."""
    facts = payer.pool.pool.running[payer.seller].facts
    return from_hex(facts["owner" if payer.seller == "node" else "payer"], 20)


def claim(payer: Payer) -> Any:
    if payer.seller == "node":
        return payer.pool.claim()
    return ask_gateway(payer.pool.home, "POST", "claim", timeout_s=60)


def refund(payer: Payer, scheme: BatchSettlementEvmScheme) -> Any:
    """The SDK asks for all that it has not used."""
    return scheme.refund(f"{payer.pool.url(payer.seller)}/inferpool/refund")


@asynccontextmanager
async def payer(pool: Running, seller: str, funds: int) -> AsyncIterator[Payer]:
    account = Account.create()
    chain = await EvmChain.connect(pool.url("chain"))
    address = from_hex(account.address.lower(), 20)
    await chain.faucet(address, 0, funds)
    client = x402Client()
    options = BatchSettlementEvmSchemeOptions(
        salt=to_hex(next(SALTS).to_bytes(32, "big")), storage=InMemoryClientChannelStorage()
    )
    scheme = BatchSettlementEvmScheme(EthAccountSigner(account), options)
    client.register(f"eip155:{pool.chain_id}", scheme)
    client.set_spend_controls(False)
    trips: list[tuple[httpx.Request, httpx.Response]] = []

    class Spy(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            answer = await super().handle_async_request(request)
            trips.append((request, answer))
            return answer

    async with httpx.AsyncClient(transport=x402AsyncTransport(client, Spy()), timeout=30) as http:
        yield Payer(pool, seller, chain, address, http, trips, scheme)


@asynccontextmanager
async def one_off(pool: Running, seller: str, funds: int) -> AsyncIterator[Payer]:
    """A stranger whose SDK knows one transfer a request, scheme exact, and no channel."""
    account = Account.create()
    chain = await EvmChain.connect(pool.url("chain"))
    address = from_hex(account.address.lower(), 20)
    await chain.faucet(address, 0, funds)
    client = x402Client()
    client.register(f"eip155:{pool.chain_id}", ExactEvmScheme(EthAccountSigner(account)))
    client.set_spend_controls(False)
    trips: list[tuple[httpx.Request, httpx.Response]] = []

    class Spy(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            answer = await super().handle_async_request(request)
            trips.append((request, answer))
            return answer

    async with httpx.AsyncClient(transport=x402AsyncTransport(client, Spy()), timeout=30) as http:
        yield Payer(pool, seller, chain, address, http, trips)


def with_payer(
    pool: Running, seller: str, work: Callable[[Payer], Awaitable[None]], funds: int = FUNDS
) -> None:
    async def run() -> None:
        async with payer(pool, seller, funds) as made:
            await work(made)

    asyncio.run(run())


async def settle(payer: Payer, channel_id: bytes) -> int:
    """Have the node claim; returns what the chain says was claimed from the channel."""
    chain, owner = payer.chain, owner_of(payer)
    before = await chain.token_balance(DEV_DOLLAR_ADDRESS, owner)
    report = await asyncio.to_thread(claim, payer)
    after = await chain.token_balance(DEV_DOLLAR_ADDRESS, owner)
    assert report["left_out"] == []
    assert after - before == int(report["settled_base_units"]) == int(report["claimed_base_units"])
    return (await chain.channel(channel_id)).total_claimed


def test_chat_and_tensors_are_paid_claimed_and_sum_up(pool: Running, seller: str) -> None:
    async def work(payer: Payer) -> None:
        first = await payer.chat()
        assert payer.payloads == ["nothing", "deposit"]
        assert first.json()["choices"][0]["message"]["content"]
        second = await payer.chat()
        assert payer.payloads == ["nothing", "voucher"]
        third = await payer.infer()
        assert payer.payloads == ["nothing", "voucher"]
        assert third.status_code == 200
        fourth = await payer.infer()
        assert payer.payloads == ["nothing", "voucher"]
        answers = [first, second, third, fourth]
        receipts = [receipt_of(payer, answer) for answer in answers]
        assert [receipt.seq for receipt in receipts] == [1, 2, 3, 4]
        total = sum(map(charged, answers))
        exact = sum(receipt.charge_pico_usd for receipt in receipts)
        assert total == exact // 10**6 > 0
        state = await payer.chain.channel(receipts[0].channel_id)
        assert state.balance > 0
        left = await payer.chain.token_balance(DEV_DOLLAR_ADDRESS, payer.address)
        assert left == FUNDS - state.balance, "the deposit came from the payer's own account"
        assert await settle(payer, receipts[0].channel_id) == total

    with_payer(pool, seller, work)


def test_tensor_call_may_open_the_channel(pool: Running, seller: str) -> None:
    async def work(payer: Payer) -> None:
        answers = [await payer.infer()]
        assert payer.payloads == ["nothing", "deposit"]
        answers.append(await payer.infer())
        assert payer.payloads == ["nothing", "voucher"]
        receipt = receipt_of(payer, answers[0])
        assert receipt.prompt_units == 20
        assert await settle(payer, receipt.channel_id) == sum(map(charged, answers)) == 4

    with_payer(pool, seller, work)


def test_stream_is_charged_at_its_maximum_and_credits_the_rest(pool: Running, seller: str) -> None:
    async def work(payer: Payer) -> None:
        first = await payer.chat(max_tokens=1)  # opens the channel
        body = {"model": CHAT, "messages": LONG_STORY, "max_tokens": 100, "stream": True}
        body["stop"] = [" the", "."]  # ends well before its maximum
        url = f"{pool.url(seller)}/v1/chat/completions"
        payer.trips.clear()
        async with payer.http.stream("POST", url, json=body) as answer:
            assert answer.status_code == 200
            most = charged(answer)  # before the first byte of the answer was read
            assert "inferpool-receipt" not in answer.headers, "it is not signed yet"
            data = [
                line.removeprefix("data: ")
                async for line in answer.aiter_lines()
                if line.startswith("data: ")
            ]
        assert most == payer.asked
        assert data[-1] == "[DONE]"
        chunks = [json.loads(item) for item in data[:-1]]
        assert all(len(chunk["choices"]) == 1 for chunk in chunks)
        following = await payer.chat(max_tokens=64)
        receipt = receipt_of(payer, following)
        exact = receipt.charge_pico_usd // 10**6
        assert charged(following) < exact, "the stream's credit was used"
        last = await payer.chat(max_tokens=64)
        total = charged(first) + most + charged(following) + charged(last)
        assert await settle(payer, receipt.channel_id) == total
        # The credit is used up: what was claimed is also the exact sum of all receipts.
        assert total == receipt_of(payer, last).charged_total_pico_usd // 10**6

    with_payer(pool, seller, work)


def test_without_payment_the_node_says_how_to_pay(pool: Running, seller: str) -> None:
    body = {"model": CHAT, "messages": LONG_STORY, "max_tokens": 1}
    answer = httpx.post(f"{pool.url(seller)}/v1/chat/completions", json=body)
    assert answer.status_code == 402
    assert answer.json()["error"]["code"] == "payment_required"
    terms = decoded(answer.headers["payment-required"])
    assert terms["accepts"][0]["scheme"] == "batch-settlement"
    assert terms["accepts"][0]["network"] == f"eip155:{pool.chain_id}"


def test_one_transfer_buys_one_answer_and_is_paid_before_it(pool: Running, seller: str) -> None:
    async def run() -> None:
        async with one_off(pool, seller, FUNDS) as payer:
            owner = owner_of(payer)
            before = await payer.chain.token_balance(DEV_DOLLAR_ADDRESS, owner)
            whole = await payer.chat()
            price = decoded(payer.trips[0][1].headers["payment-required"])["accepts"][1]
            assert (price["scheme"], price["amount"]) == ("exact", "10000"), "a cent at least"
            paid = decoded(whole.headers["payment-response"])
            assert paid["success"] is True
            assert paid["amount"] == "10000"
            mined = await payer.chain.rpc.call("eth_getTransactionReceipt", paid["transaction"])
            assert int(mined["status"], 16) == 1
            streamed = await payer.chat(stream=True)
            assert streamed.text.rstrip().endswith("data: [DONE]")
            await payer.infer()
            after = await payer.chain.token_balance(DEV_DOLLAR_ADDRESS, owner)
            left = await payer.chain.token_balance(DEV_DOLLAR_ADDRESS, payer.address)
            assert after - before == FUNDS - left == 30_000, "at once, without a claim"
            spent = payer.trips[-1][0]
            async with httpx.AsyncClient() as thief:
                again = await thief.send(spent)
            assert again.status_code == 402
            assert again.json()["code"] == "payment_used"

    asyncio.run(run())


def test_unused_money_comes_back_when_the_sdk_asks(pool: Running, seller: str) -> None:
    async def work(payer: Payer) -> None:
        answers = [await payer.infer(), await payer.chat()]
        spent = sum(map(charged, answers))
        told = await asyncio.to_thread(refund, payer, payer.scheme)
        assert told.success
        left = await payer.chain.token_balance(DEV_DOLLAR_ADDRESS, payer.address)
        assert left == FUNDS - spent
        state = await payer.chain.channel(receipt_of(payer, answers[0]).channel_id)
        assert state.balance == state.total_claimed == spent

    with_payer(pool, seller, work)


def test_payer_without_money_gets_no_work(pool: Running, seller: str) -> None:
    async def work(payer: Payer) -> None:
        body = {"model": CHAT, "messages": LONG_STORY, "max_tokens": 1}
        answer = await payer.http.post(f"{pool.url(seller)}/v1/chat/completions", json=body)
        assert answer.status_code == 402
        assert answer.json()["error"]["code"] == "deposit_failed"

    with_payer(pool, seller, work, funds=0)
