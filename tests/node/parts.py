"""A real node on in-memory seams, and payers that talk to it as any payer would: by headers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from inferpool.chain.authorization import authorize_deposit, sign_transfer
from inferpool.chain.base import Transfer
from inferpool.chain.memory import MemoryChain
from inferpool.clock import LoopClock
from inferpool.identity.signing import Key
from inferpool.payments import x402
from inferpool.payments.payer import PayerChannel
from inferpool.protocol import headers
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.encoding import from_base64, sha256, to_base64, to_hex
from inferpool.protocol.evidence import evidence_request_digest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.offer import Offer, SignedOffer
from inferpool.protocol.price import maximum
from inferpool.protocol.receipt import SignedReceipt, receipts_request_digest
from inferpool.protocol.voucher import ChannelConfig, Voucher
from inferpool.sim.parts import SimNode
from inferpool.transport.base import Response
from inferpool.transport.memory import MemoryTransport
from inferpool.transport.sse import Comment, Event, events

EPOCH_MS = 1_800_000_000_000
URL = "http://node.test"
CHAT = "/v1/chat/completions"
INFER = "/v2/models/fake-tensor/infer"
Pairs = list[tuple[bytes, bytes]]


def chat_body(**changes: Any) -> bytes:
    body: dict[str, Any] = {
        "model": "fake-chat",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 10,
    }
    return json.dumps({k: v for k, v in (body | changes).items() if v is not ...}).encode()


def tensor(rows: int = 2, **changes: Any) -> dict[str, Any]:
    made = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": [1.0] * (4 * rows)}
    return made | changes


def tensor_body(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors or [tensor()]), **more}).encode()


@dataclass
class Answer:
    """A whole answer as its caller sees it."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The stable code, from the error shape of either API; fails on any other shape."""
        error = self.json["error"]
        if isinstance(error, dict):
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"]
            return str(error["code"])
        assert error
        return str(self.json["code"])

    @property
    def receipt(self) -> SignedReceipt:
        return SignedReceipt.from_header(self.headers[headers.RECEIPT])

    @property
    def events(self) -> list[bytes]:
        return [line[6:] for line in self.body.split(b"\n\n") if line.startswith(b"data: ")]

    @property
    def stream_receipt(self) -> SignedReceipt:
        last = [item for item in self.events if item != b"[DONE]"][-1]
        return SignedReceipt.from_wire(json.loads(last)["inferpool"])

    @property
    def charged(self) -> int:
        """`chargedAmount` of PAYMENT-RESPONSE."""
        value = json.loads(from_base64(self.headers[headers.PAYMENT_RESPONSE]))
        return int(value["extra"]["chargedAmount"])

    @property
    def view(self) -> x402.ChannelView | None:
        """The state in a corrective 402."""
        return x402.parse_payment_required(self.headers[headers.PAYMENT_REQUIRED])[1]

    @property
    def reason(self) -> str:
        return x402.parse_payment_required(self.headers[headers.PAYMENT_REQUIRED])[0]


@dataclass
class World:
    """One node, its chain and its clock."""

    chain: MemoryChain
    node: SimNode
    pipe: MemoryTransport
    payers: int = 0

    async def send(
        self, method: str, path: str, pairs: Pairs | None = None, body: bytes = b""
    ) -> Answer:
        response = await self.open(method, path, pairs, body)
        try:
            data = await response.read(1 << 24)
        finally:
            await response.close()
        return Answer(response.status, dict(reversed(list(response.headers))), data)

    async def open(
        self, method: str, path: str, pairs: Pairs | None = None, body: bytes = b""
    ) -> Response:
        return await self.pipe.request(method, path, pairs or [], body, timeout_s=90.0)

    async def offer(self) -> SignedOffer:
        found = await self.send("GET", "/.well-known/inferpool/offer")
        return SignedOffer.decode(found.body)

    async def payer(self, deposit: int = 100_000, **terms: Any) -> Payer:
        """A payer with a funded channel on the node's terms, or on others."""
        self.payers += 1
        offer = (await self.offer()).offer
        payer = Payer(self, offer, Key(sha256(b"payer %d" % self.payers)))
        await payer.open_channel(deposit, **terms)
        return payer

    async def restart(self) -> None:
        await self.node.crash()
        await self.node.start()
        self.pipe = MemoryTransport(self.node.app)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    clock = LoopClock(EPOCH_MS)
    chain = MemoryChain(lambda: clock.now_ms() // 1000)
    node = SimNode("node", 7, URL, clock, chain, Random(7))
    await node.start()
    made = World(chain, node, MemoryTransport(node.app))
    try:
        yield made
    finally:
        await made.pipe.close()


def held_up(made: World, call: str) -> tuple[asyncio.Event, asyncio.Event]:
    """Let the node's next transactions of a kind wait: tells that one began, waits for the word."""
    chain, begun, go = made.node.node.gate._chain, asyncio.Event(), asyncio.Event()
    send = getattr(chain, call)

    async def late(*arguments: Any) -> Any:
        begun.set()
        await go.wait()
        return await send(*arguments)

    setattr(chain, call, late)
    return begun, go


@dataclass
class Payer:
    """A payer of its own keys: authoriser and owner of the money are one here, unless changed."""

    world: World
    offer: Offer
    key: Key
    channel: PayerChannel = field(init=False)
    count: int = 0

    async def open_channel(self, deposit: int, **changes: Any) -> None:
        terms = self.offer.terms
        values: dict[str, Any] = {
            "payer": self.key.address,
            "payer_authorizer": self.key.address,
            "receiver": terms.payee,
            "receiver_authorizer": terms.receiver_authorizer,
            "token": terms.asset,
            "withdraw_delay_s": terms.withdraw_delay_s,
            "salt": sha256(b"salt"),
        }
        config = ChannelConfig(**(values | changes))
        self.channel = PayerChannel(
            config, config.channel_id(terms.chain_id), terms.chain_id, terms.asset_decimals
        )
        if deposit:
            await self.deposit(deposit)

    async def deposit(self, amount: int) -> None:
        self.world.chain.fund(self.key.address, amount)
        await self.world.chain.deposit(self.channel.config, amount, self.authorization(amount))
        self.channel.balance += amount

    def authorization(self, amount: int, salt: int = 0) -> Any:
        terms = self.offer.terms
        self.count += 1
        return authorize_deposit(
            self.key,
            self.channel.config,
            amount,
            chain_id=terms.chain_id,
            name=terms.asset_name,
            version=terms.asset_version,
            valid_before_s=2**40,
            salt=salt or self.count,
        )

    def next_id(self) -> bytes:
        self.count += 1
        return sha256(self.key.address + b"%d" % self.count)

    def maximum(self, job: Job) -> int:
        service = self.offer.service(job.model)
        assert service is not None
        return maximum(job, service, 6)

    def paid(
        self,
        job: Job,
        request_id: bytes,
        *,
        own: bool = True,
        voucher: Voucher | None = None,
        amount: int | None = None,
    ) -> Pairs:
        """Headers of a paid request, whose voucher covers it unless another is given."""
        most = self.maximum(job)
        if voucher is None:
            voucher = self.channel.authorise(request_id, most, self.key)
        accepted = most if amount is None else amount
        payment = x402.payment_signature(self.channel.config, voucher, self.offer.terms, accepted)
        ours = [
            (headers.VERSION, b"1"),
            (headers.REQUEST_ID, to_hex(request_id).encode()),
            (headers.OFFER, to_hex(self.offer.digest()).encode()),
        ]
        return [*(ours if own else []), (headers.PAYMENT_SIGNATURE, payment)]

    async def chat(self, request_id: bytes | None = None, **changes: Any) -> Answer:
        """A paid chat; the receipt, if one came, is booked."""
        body = chat_body(**changes)
        request_id = request_id or self.next_id()
        answer = await self.world.send(
            "POST", CHAT, self.paid(ChatRequest.parse(body).job, request_id), body
        )
        self._book(answer, request_id)
        return answer

    async def infer(self, request_id: bytes | None = None, rows: int = 2) -> Answer:
        """A paid row sum."""
        request_id = request_id or self.next_id()
        job = Job(Task.TENSOR, "fake-tensor", rows=rows)
        pairs = self.paid(job, request_id)
        answer = await self.world.send("POST", INFER, pairs, tensor_body(tensor(rows)))
        self._book(answer, request_id)
        return answer

    def transfer(self, amount: int, nonce: bytes = b"", **changes: Any) -> Transfer:
        """A signed one-off payment."""
        terms = self.offer.terms
        values = {"holder": self.key.address, "to": terms.payee, "amount": amount}
        values |= {"valid_after_s": 0, "valid_before_s": 2**40, "nonce": nonce or self.next_id()}
        domain = {"name": terms.asset_name, "version": terms.asset_version}
        draft = Transfer(**(values | changes))
        return sign_transfer(self.key, draft, terms.asset, chain_id=terms.chain_id, **domain)

    def paid_once(self, transfer: Transfer, amount: int | None = None) -> Pairs:
        """Headers of a request that is paid by one transfer."""
        terms = self.offer.terms
        accepted = x402.exact_requirements(terms, transfer.amount if amount is None else amount)
        value = {
            "x402Version": 2,
            "accepted": accepted,
            "payload": {
                "authorization": {
                    "from": to_hex(transfer.holder),
                    "to": to_hex(transfer.to),
                    "value": str(transfer.amount),
                    "validAfter": str(transfer.valid_after_s),
                    "validBefore": str(transfer.valid_before_s),
                    "nonce": to_hex(transfer.nonce),
                },
                "signature": to_hex(transfer.signature),
            },
        }
        header = to_base64(json.dumps(value).encode()).encode()
        return [(headers.PAYMENT_SIGNATURE, header)]

    def _book(self, answer: Answer, request_id: bytes) -> None:
        if answer.status != 200:
            self.channel.release(request_id, sent=False)
        elif headers.RECEIPT in answer.headers:
            self.channel.book(answer.receipt.receipt)
        else:
            self.channel.book(answer.stream_receipt.receipt)

    async def open_chat(self, request_id: bytes, **changes: Any) -> Response:
        """A paid stream that the test reads itself."""
        body = chat_body(stream=True, **changes)
        pairs = self.paid(ChatRequest.parse(body).job, request_id)
        return await self.world.open("POST", CHAT, pairs, body)

    async def receipts(self, after: int = 0, key: Key | None = None) -> Answer:
        digest = receipts_request_digest(
            self.offer.node, self.channel.channel_id, self.channel.chain_id
        )
        signature = to_hex((key or self.key).sign(digest)).encode()
        path = f"/inferpool/receipts?channel={to_hex(self.channel.channel_id)}&after={after}"
        return await self.world.send("GET", path, [(headers.SIGNATURE, signature)])

    async def evidence(self, request_id: bytes, key: Key | None = None) -> Answer:
        digest = evidence_request_digest(self.offer.node, request_id, self.channel.chain_id)
        signature = to_hex((key or self.key).sign(digest)).encode()
        path = f"/inferpool/evidence/{to_hex(request_id)}"
        return await self.world.send("GET", path, [(headers.SIGNATURE, signature)])


async def items(response: Response) -> AsyncIterator[Event | Comment]:
    """Events and comments of a stream."""
    async for item in events(response):
        yield item
