"""A node that answers at once: what a gateway costs is measured in front of it.

usage: python -m bench.mock_node

It serves the same routes twice. A request with `PAYMENT-SIGNATURE` gets what a node gives: an
answer with a receipt, signed or chained, whose totals are right; it checks no voucher and keeps no
book, so that it costs little. A request without gets the bare answer: the upstream that ratios are
taken against. Text tokens are `t<CLOCK_MONOTONIC in ns> `, so that a client on this machine knows
how old each one is; an unpaid chat that is no stream gets one token. `GET /left` tells when callers
left in mid-answer. The models say what they do: `rows` answers tensors, `paced-N` gives a token
each N ms, `bulk` 1,000 bytes a token.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from base64 import b64decode
from dataclasses import dataclass, field
from typing import cast

import httptools
import orjson

from inferpool.chain.addresses import DEV_CHAIN_ID, DEV_DOLLAR_ADDRESS
from inferpool.clock import SystemClock
from inferpool.identity.signing import Key
from inferpool.node.offers import OfferBook
from inferpool.payments.chains import ReceiptChain
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.evidence import NO_EVIDENCE
from inferpool.protocol.job import Task
from inferpool.protocol.lease import Lease
from inferpool.protocol.offer import Endpoint, Service, SignedOffer, Terms, binding_digest
from inferpool.protocol.price import exact_pico_usd
from inferpool.protocol.receipt import Outcome, Receipt, SignedReceipt
from inferpool.protocol.usage import Usage

ROWS = "rows"
BULK = "bulk"
PACES_MS = (0, 5, 20, 100)
BULK_TEXT = "x" * 1000
PROMPT_UNITS = 8
_LEASE_EVERY_S = 10.0
_ROWS_ANSWER = orjson.dumps(
    {
        "model_name": ROWS,
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}],
    }
)
_CHAT_ANSWER = orjson.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "t0 "},
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": PROMPT_UNITS, "completion_tokens": 1, "total_tokens": 9},
    }
)
_CHUNK = (
    b'{"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"system_fingerprint":"fp_0","choices":[{"index":0,"delta":'
)


def paced(gap_ms: int) -> str:
    """The model that gives a token each so many ms."""
    return f"paced-{gap_ms}"


_MODELS = orjson.dumps(
    {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": 1, "owned_by": "mock"}
            for name in (*map(paced, PACES_MS), BULK)
        ],
    }
)


def _service(number: int, model: str, task: Task, price: int) -> Service:
    text = task is Task.CHAT
    return Service(
        manifest=bytes(31) + bytes((number,)),
        model=model,
        task=task,
        engine_class="mock@1",
        price_in_pico_usd_per_unit=price,
        price_out_pico_usd_per_unit=1 if text else 0,
        context=1_000_000,
        default_max_output=256 if text else 0,
        template_overhead=PROMPT_UNITS,
        message_overhead=PROMPT_UNITS,
        resume=text,
        audited=text,
    )


@dataclass(slots=True)
class Channel:
    """What the node has charged on one channel."""

    seq: int = 0
    total_pico_usd: int = 0
    chain: ReceiptChain = field(default_factory=ReceiptChain)


class Node:
    """The offer, the channels, and who left."""

    def __init__(self, port: int) -> None:
        self.key, owner = Key(b"\7" * 32), Key(b"\10" * 32)
        models = [*map(paced, PACES_MS), BULK]
        texts = [_service(i + 2, name, Task.CHAT, 1) for i, name in enumerate(models)]
        self.services = (_service(1, ROWS, Task.TENSOR, 10**6), *texts)
        self.by_name = {item.model: item for item in self.services}
        self.clock = SystemClock()
        until_ms = self.clock.now_ms() + 86_400_000
        word = owner.sign(binding_digest(owner.address, self.key.address, until_ms, DEV_CHAIN_ID))
        node = self.key.address
        terms = Terms(
            DEV_CHAIN_ID, DEV_DOLLAR_ADDRESS, "Dev Dollar", "1", 6, node, node, 1, 900, 64
        )
        self.book = OfferBook(
            self.key,
            owner.address,
            word,
            until_ms,
            [Endpoint(f"http://127.0.0.1:{port}", bytes(32))],
            terms,
            lambda: self.services,
            self.clock,
            self.clock.now_ms(),
        )
        self.channels: dict[bytes, Channel] = {}
        self.left: list[dict[str, int]] = []

    def offer(self) -> SignedOffer:
        """The offer that holds now."""
        return self.book.current()

    def lease(self) -> bytes:
        """A line with room for everybody."""
        return Lease(self.book.epoch, self.book.sequence, 10_000, 0, 1, 1).encode() + b"\n"

    def receipt(
        self, call: Call, service: Service, usage: Usage, answer_hash: bytes
    ) -> tuple[Receipt, Channel]:
        """Charge, and say so."""
        offer_hash = from_hex(call.headers[b"inferpool-offer"].decode(), 32)
        payment = orjson.loads(b64decode(call.headers[b"payment-signature"]))
        channel_id = from_hex(payment["payload"]["voucher"]["channelId"], 32)
        channel = self.channels.setdefault(channel_id, Channel())
        charge = exact_pico_usd(usage, service)
        channel.seq += 1
        channel.total_pico_usd += charge
        now_ms = self.clock.now_ms()
        receipt = Receipt(
            from_hex(call.headers[b"inferpool-request-id"].decode(), 32),
            hashlib.sha256(call.body).digest(), answer_hash, NO_EVIDENCE, service.manifest,
            service.engine_class, offer_hash, self.services.index(service), channel_id,
            channel.seq, usage.prompt_units, usage.output_units, charge, channel.total_pico_usd,
            int(str(call.value.get("seed") or 0)), now_ms, now_ms, Outcome.COMPLETE,
        )  # fmt: skip
        return receipt, channel


@dataclass(slots=True)
class Call:
    """One request."""

    path: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    value: dict[str, object] = field(default_factory=dict)

    @property
    def paid(self) -> bool:
        """Whether a gateway sends it, that wants a receipt."""
        return b"payment-signature" in self.headers


class Door(asyncio.Protocol):
    """HTTP/1.1 over httptools, one request at a time."""

    def __init__(self, node: Node) -> None:
        self._node, self._call = node, Call()
        self._flow = asyncio.Event()
        self._flow.set()
        self._task: asyncio.Task[None] | None = None
        self._sent: list[int] = []  # when each of the last tokens left

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def pause_writing(self) -> None:
        self._flow.clear()

    def resume_writing(self) -> None:
        self._flow.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            self._node.left.append({"at_ns": time.monotonic_ns(), "tokens": len(self._sent)})

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._call = Call(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._call.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._call.body += body

    def on_message_complete(self) -> None:
        call, node = self._call, self._node
        if call.path == b"/.well-known/inferpool/offer":
            self._whole(node.offer().encode())
        elif call.path == b"/inferpool/lease":
            self._task = asyncio.get_running_loop().create_task(self._leases())
        elif call.path == b"/left":
            self._whole(orjson.dumps(node.left))
        elif call.path.startswith(b"/v2/models/"):
            self._rows(call)
        elif call.path == b"/v1/chat/completions":
            call.value = orjson.loads(call.body)
            if not call.paid and not call.value.get("stream"):
                self._whole(_CHAT_ANSWER)
                return
            self._task = asyncio.get_running_loop().create_task(self._stream(call))
        elif call.path in (b"/health", b"/v1/models"):
            self._whole(_MODELS)
        else:
            self._whole(b'{"receipts":[],"running":[]}', status=404)

    def _whole(self, body: bytes, extra: bytes = b"", status: int = 200) -> None:
        head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n" % status
        self._transport.write(head + extra + b"content-length: %d\r\n\r\n" % len(body) + body)

    def _rows(self, call: Call) -> None:
        if not call.paid:
            self._whole(_ROWS_ANSWER)
            return
        node, service = self._node, self._node.by_name[ROWS]
        hashed = hashlib.sha256(_ROWS_ANSWER).digest()
        receipt, channel = node.receipt(call, service, Usage(1, 0), hashed)
        if call.headers.get(b"inferpool-receipts") == b"chained":
            short = channel.chain.append(receipt, node.key, DEV_CHAIN_ID, receipt.ended_ms)
            extra = b"inferpool-chained-receipt: " + short.header()
        else:
            signed = SignedReceipt(receipt, node.key.sign(receipt.digest(DEV_CHAIN_ID)))
            extra = b"inferpool-receipt: " + signed.header()
        self._whole(_ROWS_ANSWER, extra + b"\r\n")

    async def _leases(self) -> None:
        self._head(b"application/x-ndjson")
        while True:
            self._chunk(self._node.lease())
            await asyncio.sleep(_LEASE_EVERY_S)

    def _head(self, kind: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind
        )

    def _chunk(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def _stream(self, call: Call) -> None:
        """Tokens at their pace, then the finish reason, the usage with the receipt, the end."""
        model = str(call.value["model"])
        most = call.value.get("max_tokens", call.value.get("max_completion_tokens"))
        assert isinstance(most, int)
        gap_s = 0.0 if model == BULK else int(model.removeprefix("paced-")) / 1000
        running, paid, self._sent = hashlib.sha256(), call.paid, []
        loop = asyncio.get_running_loop()

        def send(delta: bytes, tail: bytes) -> None:
            data = _CHUNK + delta + tail
            running.update(data + b"\n")
            self._chunk(b"data: %b\n\n" % data)

        self._head(b"text/event-stream")
        send(b'{"role":"assistant","content":""}', b',"finish_reason":null}]}')
        due_s = loop.time()
        for i in range(most):
            now_ns = time.monotonic_ns()
            text = BULK_TEXT if model == BULK else f"t{now_ns} "
            ids = b',"finish_reason":null}],"inferpool":{"ids":[%d]}}' % (i % 1000)
            send(b'{"content":"%b"}' % text.encode(), ids if paid else b',"finish_reason":null}]}')
            self._sent.append(now_ns)
            due_s += gap_s
            if not self._flow.is_set():
                await self._flow.wait()
            elif gap_s or i % 64 == 0:
                await asyncio.sleep(max(0.0, due_s - loop.time()))
        send(b"{}", b',"finish_reason":"length"}]}')
        if paid:
            self._last(call, self._node.by_name[model], Usage(PROMPT_UNITS, most), running.digest())
        self._chunk(b"data: [DONE]\n\n")
        self._transport.write(b"0\r\n\r\n")

    def _last(self, call: Call, service: Service, usage: Usage, hashed: bytes) -> None:
        receipt, _ = self._node.receipt(call, service, usage, hashed)
        signed = SignedReceipt(receipt, self._node.key.sign(receipt.digest(DEV_CHAIN_ID)))
        told = {"prompt_tokens": usage.prompt_units, "completion_tokens": usage.output_units}
        value = {"choices": [], "usage": told, "inferpool": signed.to_wire()}
        self._chunk(b"data: " + orjson.dumps(value) + b"\n\n")


async def serve() -> None:
    """Serve until standard input ends; the first line of output is the URL."""
    loop = asyncio.get_running_loop()
    nodes: list[Node] = []
    server = await loop.create_server(lambda: Door(nodes[0]), "127.0.0.1", 0, backlog=2048)
    port = server.sockets[0].getsockname()[1]
    nodes.append(Node(port))
    sys.stdout.write(f"http://127.0.0.1:{port} {to_hex(nodes[0].key.address)}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    """On uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve())
    else:
        uvloop.run(serve())


if __name__ == "__main__":
    main()
