"""One server to be measured, as a process: our HTTP server and engine, with more and more around.

usage: python -m bench.served ROW MODEL FOLDER

ROW is `bare` (HTTP, parsing, checks and batching of the Open Inference Protocol), `features` (the
whole node, without money) or `paid` (the node, which takes vouchers and signs receipts into a book
on disk under FOLDER; its chain is in memory, where one channel of `PAYER` is funded). MODEL is an
ONNX file, or a GGUF file. Prints one line of JSON when it serves; ends with its standard input.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS, DOLLAR_NAME, DOLLAR_VERSION
from inferpool.chain.authorization import authorize_deposit
from inferpool.chain.memory import MemoryChain
from inferpool.clock import SystemClock
from inferpool.daemon.serving import listen, run, run_role, url_of
from inferpool.engines.llamacpp import LlamaCppEngine
from inferpool.engines.onnx import OnnxEngine
from inferpool.home import Home
from inferpool.identity.signing import Key
from inferpool.models.manifest import File, Limits, Manifest
from inferpool.node.app import NodeApp
from inferpool.node.node import Node
from inferpool.node.offers import OfferBook
from inferpool.node.services import Hosted, Services
from inferpool.node.tensors import check_outputs, read_inputs, write_answer
from inferpool.node.work import Work
from inferpool.payments.gate import PaymentGate
from inferpool.payments.journal import SqlJournal
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.protocol import headers, limits
from inferpool.protocol.offer import Terms
from inferpool.protocol.oip import InferRequest
from inferpool.protocol.receipt import Outcome
from inferpool.protocol.voucher import ChannelConfig
from inferpool.transport.asgi import HttpRequest

MODEL = "m"
PAYER = Key(b"\1" * 32)
OWNER, NODE = Key(b"\2" * 32), Key(b"\3" * 32)
DEPOSIT = 10**12  # base units
WINDOW = 64  # the configuration's default
CHAIN_ID = 31337
TERMS = Terms(
    CHAIN_ID,
    DEV_DOLLAR_ADDRESS,
    DOLLAR_NAME,
    DOLLAR_VERSION,
    6,
    OWNER.address,
    NODE.address,
    1,
    900,
    WINDOW,
)
CHANNEL = ChannelConfig(
    PAYER.address,
    PAYER.address,
    TERMS.payee,
    TERMS.receiver_authorizer,
    TERMS.asset,
    TERMS.withdraw_delay_s,
    b"\4" * 32,
)


def manifest_of(path: Path) -> Manifest:
    """A manifest as an owner's own model has one; a row or a thousand tokens cost a base unit."""
    file = File(path.name, path.stat().st_size, hashlib.sha256(b"").hexdigest(), "weights")
    if path.suffix == ".onnx":
        return Manifest(
            MODEL, "tensor", "onnx", "none", "", "row", "f32", Limits(max_rows=1024), files=(file,)
        )
    sizes = Limits(context=2048, max_output=1024, default_max_output=256)
    return Manifest(MODEL, "chat", "llamacpp", "none", "", "token", "q4_1", sizes, files=(file,))


class Bare:
    """The protocol in front of the engine, and nothing else."""

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One inference."""
        request = HttpRequest(scope, receive, send)
        body = await request.body(limits.BODY_TENSOR_MAX)
        length = request.headers.get(headers.INFERENCE_HEADER_LENGTH)
        parsed = InferRequest.parse(MODEL, body, length)
        inputs = read_inputs(parsed, self._engine.inputs)
        check_outputs(parsed, self._engine.outputs)
        outputs = await self._engine.infer(inputs, parsed.rows)
        answer, extra = write_answer(parsed, outputs)
        await request.answer(200, answer, extra)


class Unpaid(Node):
    """The node as it is, but for the voucher before and the receipt after."""

    async def _pay(
        self, request: HttpRequest, request_id: bytes, units: int, *, own: bool
    ) -> PayeeChannel:
        channel = self.gate.free  # type: ignore[attr-defined]
        channel.held[request_id] = units
        channel.held_total += units
        return channel

    async def finish(self, work: Work, outcome: Outcome, chain: Any = None) -> None:
        """No receipt: the hold is released."""

    def answer_headers(self, work: Work) -> list[tuple[bytes, bytes]]:
        """Nothing was charged."""
        return []


async def node_of(engine: Any, path: Path, folder: Path, row: str) -> Node:
    """A node with one service and one funded channel."""
    clock = SystemClock()
    chain = MemoryChain(lambda: clock.now_ms() // 1000, chain_id=CHAIN_ID)
    chain.fund(PAYER.address, DEPOSIT)
    deposit = authorize_deposit(
        PAYER,
        CHANNEL,
        DEPOSIT,
        chain_id=CHAIN_ID,
        name=DOLLAR_NAME,
        version=DOLLAR_VERSION,
        valid_before_s=2**40,
        salt=1,
    )
    await chain.deposit(CHANNEL, DEPOSIT, deposit)
    price = 10**6 if path.suffix == ".onnx" else 10**3
    services = Services([Hosted(manifest_of(path), engine, price, price, 64)])
    epoch = clock.now_ms()
    offers = OfferBook(
        NODE, OWNER.address, b"", 0, (), TERMS, lambda: node.offered(), clock, epoch=epoch
    )
    ledger = PayeeLedger(SqlJournal(folder / "node.db"), CHAIN_ID, 6)
    gate = PaymentGate(TERMS, chain.with_sender(NODE, NODE), ledger)
    kind = Node if row == "paid" else Unpaid
    node = kind(NODE, services, offers, gate, ledger, clock)
    if row != "paid":
        gate.free = PayeeChannel(CHANNEL, CHANNEL.channel_id(CHAIN_ID), CHAIN_ID, 6)  # type: ignore[attr-defined]
    return node


async def serve(row: str, path: Path, folder: Path) -> None:
    """Serve until told to stop."""
    facts: dict[str, object] = {}
    engine: Any
    if path.suffix == ".onnx":
        engine = OnnxEngine(path, MODEL, threads=1)
    else:
        engine = LlamaCppEngine(path, MODEL, "q4_1", slots=4)
    await engine.start()
    if path.suffix != ".onnx":  # so that the engine's own HTTP can be called beside
        child = engine._child
        facts["engine"] = {
            "url": child.answer["url"],
            "key": dict(engine._headers)[b"authorization"].decode(),
        }
    if row == "bare":
        app: Any = Bare(engine)
    else:
        node = await node_of(engine, path, folder, row)

        async def claim() -> dict[str, object]:
            return {}

        app = NodeApp(node, claim, "control")
        facts["offer"] = node.offers.current().encode().hex()
    listening = listen("127.0.0.1", 0, "")
    facts["url"] = url_of(listening)
    await run_role(Home(folder), "bench", app, listening, facts, engine.close)


def main() -> None:
    """Parse the command line and serve."""
    row, path, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    assert row in ("bare", "features", "paid"), row
    run(lambda: serve(row, path, folder))


if __name__ == "__main__":
    main()
