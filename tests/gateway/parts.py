"""A real gateway before real nodes on in-memory seams, and nodes that lie on the way to it.

A `Liar` sits on the pipe to an honest node and has its key: what it changes is signed anew, so
that only the gateway's own checks can find it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from inferpool.chain.memory import MemoryChain
from inferpool.clock import LoopClock
from inferpool.engines.fake import prompt_text, token_id, token_text
from inferpool.gateway.nodes import KnownNode
from inferpool.identity.signing import Key
from inferpool.payments.budget import Account
from inferpool.protocol import headers as names
from inferpool.protocol.offer import Offer, SignedOffer
from inferpool.protocol.receipt import SignedReceipt
from inferpool.protocol.receipt_chain import ChainedReceipt
from inferpool.sim.parts import API_KEY, SimGateway, SimNode, key_of
from inferpool.transport.base import AnswerInvalid, ConnectionCut, Headers, Response, Transport
from inferpool.transport.memory import MemoryTransport

EPOCH_MS = 1_800_000_000_000
SEED = 7
CHAT = "/v1/chat/completions"
INFER = "/v2/models/fake-tensor/infer"
OFFER = "/.well-known/inferpool/offer"
KEY_HEADER = (b"authorization", b"Bearer " + API_KEY.encode())
Pairs = list[tuple[bytes, bytes]]
AlterReceipt = Callable[[SignedReceipt], SignedReceipt | None]


def url_of(number: int) -> str:
    return f"http://node-{number}.test"


def node_key(number: int) -> Key:
    return key_of(SEED, f"node-{number}/node")


def owner_key(number: int) -> Key:
    return key_of(SEED, f"node-{number}/owner")


def sign(receipt: Any, key: Key, chain_id: int) -> SignedReceipt:
    return SignedReceipt(receipt, key.sign(receipt.digest(chain_id)))


class Fake:
    """An answer made of given chunks; ends cleanly unless `cut`, or never where `hang`."""

    def __init__(
        self,
        chunks: Any,
        *,
        status: int = 200,
        headers: Headers = (),
        cut: bool = False,
        hang: bool = False,
    ) -> None:
        self.status, self.headers, self.peer_spki = status, headers, bytes(32)
        self._chunks, self._cut, self._hang = chunks, cut, hang
        self.closed = False

    def header(self, name: bytes) -> bytes | None:
        return dict(self.headers).get(name)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        if hasattr(self._chunks, "__aiter__"):
            async for chunk in self._chunks:
                yield chunk
        else:
            for chunk in self._chunks:
                yield chunk
        if self._hang:
            await asyncio.get_running_loop().create_future()
        if self._cut:
            raise ConnectionCut("cut by the test")

    async def read(self, limit: int) -> bytes:
        data = b""
        async for chunk in self.chunks():
            data += chunk
            if len(data) > limit:
                raise AnswerInvalid("too long")
        return data

    async def close(self) -> None:
        self.closed = True


@dataclass
class Liar:
    """A transport that lies on demand; without any of its attributes set it is honest."""

    inner: Transport
    key: Key
    chain_id: int
    on_receipt: AlterReceipt | None = None  # in answers
    on_chained: Callable[[ChainedReceipt], ChainedReceipt] | None = None
    on_last: Callable[[dict[str, Any]], None] | None = None  # a stream's last event
    on_event: Callable[[bytes], list[bytes]] | None = None  # data of a stream's other events
    on_body: Callable[[bytes], bytes] | None = None  # whole answers
    on_late: Callable[[list[SignedReceipt]], list[SignedReceipt]] | None = None  # late receipts
    on_offer: Callable[[bytes], bytes] | None = None
    instead: Callable[[str, str], Fake | None] = lambda method, path: None
    lose_answer: bool = False
    lease_down: bool = False
    asked: list[str] = field(default_factory=list)
    seen: list[SignedReceipt] = field(default_factory=list)
    shorts: list[ChainedReceipt] = field(default_factory=list)
    vouchers: list[bytes] = field(default_factory=list)  # headers of paid requests

    async def request(
        self, method: str, path: str, headers: Headers, body: bytes = b"", *, timeout_s: float
    ) -> Response:
        self.asked.append(path)
        self.vouchers += [value for name, value in headers if name == names.PAYMENT_SIGNATURE]
        if path == "/inferpool/lease" and self.lease_down:
            raise ConnectionCut("no lease")
        fake = self.instead(method, path)
        if fake is not None:
            return fake  # type: ignore[return-value]
        response = await self.inner.request(method, path, headers, body, timeout_s=timeout_s)
        if response.status != 200:
            return response
        if self.lose_answer and method == "POST":
            async for _ in response.chunks():
                pass
            raise ConnectionCut("the answer was lost")
        if path == OFFER and self.on_offer:
            return Fake([self.on_offer(await response.read(1 << 20))])  # type: ignore[return-value]
        if path.startswith("/inferpool/receipts") and self.on_late:
            return await self._late(response)
        if method == "POST" and response.header(b"content-type") != b"application/json":
            return Fake(self._stream(response), headers=response.headers)  # type: ignore[return-value]
        if method == "POST":
            return await self._whole(response)
        return response

    async def close(self) -> None:
        await self.inner.close()

    def _alter(self, signed: SignedReceipt) -> SignedReceipt | None:
        self.seen.append(signed)
        return self.on_receipt(signed) if self.on_receipt else signed

    async def _late(self, response: Response) -> Any:
        page = json.loads(await response.read(1 << 24))
        assert self.on_late is not None
        receipts = [SignedReceipt.from_wire(item) for item in page["receipts"]]
        page["receipts"] = [item.to_wire() for item in self.on_late(receipts)]
        return Fake([json.dumps(page).encode()])

    async def _whole(self, response: Response) -> Any:
        body = await response.read(1 << 24)
        body = self.on_body(body) if self.on_body else body
        short = response.header(names.CHAINED_RECEIPT)
        if short is not None:
            chained = ChainedReceipt.from_header(short)
            self.shorts.append(chained)
            altered = self.on_chained(chained) if self.on_chained else chained
            kept = [(k, v) for k, v in response.headers if k != names.CHAINED_RECEIPT]
            return Fake([body], headers=[*kept, (names.CHAINED_RECEIPT, altered.header())])
        header = response.header(names.RECEIPT)
        assert header is not None
        signed = self._alter(SignedReceipt.from_header(header))
        kept = [(k, v) for k, v in response.headers if k != names.RECEIPT]
        if signed is not None:
            kept.append((names.RECEIPT, signed.header()))
        return Fake([body], headers=kept)

    async def _stream(self, response: Response) -> AsyncIterator[bytes]:
        data = b""
        try:
            async for chunk in response.chunks():
                data += chunk
                while b"\n\n" in data:
                    event, _, data = data.partition(b"\n\n")
                    for altered in self._event(event):
                        yield altered + b"\n\n"
        finally:
            await response.close()

    def _event(self, event: bytes) -> list[bytes]:
        if not event.startswith(b"data: {"):
            return [event]
        value = json.loads(event[6:])
        if "receipt" in (value.get("inferpool") or {}):
            signed = self._alter(SignedReceipt.from_wire(value["inferpool"]))
            if signed is None:
                return []
            value["inferpool"] = signed.to_wire()
            if self.on_last:
                self.on_last(value)
            return [b"data: " + json.dumps(value).encode()]
        return self.on_event(event) if self.on_event else [event]


@dataclass
class Answer:
    """What the client got. `cut`: it did not end cleanly."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    cut: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The stable code, from the error shape of either API."""
        error = self.json["error"]
        if isinstance(error, dict):
            assert set(error) == {"message", "type", "param", "code"}
            return str(error["code"])
        assert isinstance(error, str)
        return str(self.json["code"])

    @property
    def events(self) -> list[Any]:
        lines = [part[6:] for part in self.body.split(b"\n\n") if part.startswith(b"data: ")]
        return [json.loads(line) if line != b"[DONE]" else "[DONE]" for line in lines]

    @property
    def done(self) -> bool:
        return b"data: [DONE]\n\n" in self.body

    @property
    def error(self) -> str:
        """The code of a stream's error event, '' without one."""
        found = [e["error"]["code"] for e in self.events if isinstance(e, dict) and "error" in e]
        assert len(found) <= 1
        return found[0] if found else ""

    @property
    def text(self) -> str:
        chunks = [e for e in self.events if isinstance(e, dict) and e.get("choices")]
        return "".join(e["choices"][0]["delta"].get("content", "") for e in chunks)

    @property
    def proof(self) -> Any:
        """The object `inferpool` of a finished answer."""
        if self.body.startswith(b"{"):
            return self.json["inferpool"]
        return next(e["inferpool"] for e in self.events if isinstance(e, dict) and "inferpool" in e)


def expected_text(content: str, seed: int, count: int) -> str:
    """What the fake engine says."""
    from inferpool.engines.base import Sampling, TextCall

    call = TextCall(({"role": "user", "content": content},), None, count, Sampling(seed))
    return "".join(token_text(token_id(prompt_text(call), seed, at)) for at in range(count))


@dataclass
class Pool:
    """One gateway and its nodes."""

    chain: MemoryChain
    nodes: list[SimNode]
    gateway: SimGateway
    liars: dict[str, Liar] = field(default_factory=dict)

    @property
    def liar(self) -> Liar:
        """The pipe to the first node."""
        return self.liars[url_of(0)]

    @property
    def account(self) -> Account:
        found = self.gateway.gateway.ledger.account(API_KEY, 0)
        assert found is not None
        return found[1]

    @property
    def known(self) -> list[KnownNode]:
        return list(self.gateway.gateway.directory.nodes.values())

    def pipe(self, url: str, spki: Any = None) -> Transport:
        """What the gateway dials."""
        if url not in self.liars:
            number = next(i for i, node in enumerate(self.nodes) if node.url == url)
            self.liars[url] = Liar(
                self.nodes[number].transport(), node_key(number), self.chain.chain_id
            )
        return self.liars[url]  # type: ignore[return-value]

    async def register(self, number: int, url: str | None = None) -> None:
        owner = self.chain.with_sender(owner_key(number))
        await owner.register(node_key(number), url or self.nodes[number].url)

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        pairs: Pairs | None = None,
        *,
        client: str = "127.0.0.1",
        app: Any = None,
    ) -> Answer:
        pipe = MemoryTransport(app or self.gateway.app, client=(client, 1))
        data = (
            b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        try:
            response = await pipe.request(
                method, path, [KEY_HEADER] if pairs is None else pairs, data, timeout_s=900.0
            )
            got, cut = bytearray(), False
            try:
                async for chunk in response.chunks():
                    got += chunk
            except ConnectionCut:
                cut = True
            return Answer(response.status, dict(response.headers), bytes(got), cut)
        finally:
            await pipe.close()

    async def chat(self, *, stream: bool = False, **changes: Any) -> Answer:
        body: dict[str, Any] = {
            "model": "fake-chat",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 10,
            "seed": 5,
            "stream": stream,
        }
        return await self.send("POST", CHAT, body | changes)

    async def infer(self, rows: int = 2, sent: Pairs | None = None) -> Answer:
        tensor = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": [1.0] * (4 * rows)}
        return await self.send("POST", INFER, {"inputs": [tensor]}, sent)

    def booked(self) -> int:
        """Pico-USD that the gateway has booked on all its channels."""
        channels = self.gateway.gateway.ledger.channels.values()
        return sum(channel.total_pico_usd for _, channel in channels)

    def earned(self) -> int:
        """Pico-USD that the nodes have charged."""
        return sum(
            channel.total_pico_usd
            for node in self.nodes
            for channel in node.node.ledger.channels.values()
        )

    async def restart_gateway(self) -> None:
        await self.gateway.crash()
        await self.gateway.start()


@asynccontextmanager
async def pool(
    nodes: int = 1,
    *,
    limit_pico_usd: int | None = None,
    register: bool = True,
    start: bool = True,
    window: int = 1,
    sells: bool = False,
    plain: bool = False,
    epoch_ms: int = EPOCH_MS,
) -> AsyncIterator[Pool]:
    clock = LoopClock(epoch_ms)
    chain = MemoryChain(lambda: clock.now_ms() // 1000, plain=plain)
    machines = [
        SimNode(f"node-{i}", SEED, url_of(i), clock, chain, Random(i), window) for i in range(nodes)
    ]
    made: Pool
    gateway = SimGateway(
        "gateway-0", SEED, clock, chain, Random(99), lambda url, spki: made.pipe(url, spki),
        limit_pico_usd, window, sells,
    )  # fmt: skip
    made = Pool(chain, machines, gateway)
    chain.fund(key_of(SEED, "gateway-0/payer").address, 10**9)
    for number, machine in enumerate(machines):
        await machine.start()
        if register:
            await made.register(number)
    if start:
        await gateway.start()
    try:
        yield made
    finally:
        if start:
            await gateway.machine.cut()
            await gateway.gateway.close()
        for machine in machines:
            await machine.machine.cut()


def signed_offer(offer: Offer, key: Key, **more: Any) -> SignedOffer:
    """An offer with all that its node signs."""
    signed = SignedOffer(offer, key.sign(offer.digest()), **more)
    digest = signed.parameters_digest()
    return signed if digest is None else replace(signed, parameters_signature=key.sign(digest))


def offer_of(node: SimNode) -> SignedOffer:
    return node.node.offers.current()
