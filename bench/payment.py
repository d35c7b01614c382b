"""What paying costs by itself: voucher, receipt and both books on disk, without HTTP or engine.

usage: python -m bench.payment [--calls N] [--at-once N]

Each call is authorised, encoded, parsed, admitted, charged, receipted, made durable by the node,
parsed, checked, booked, and made durable by the gateway, with the production code of both sides in
one process and a SQLite journal on disk for each. CPU is of the whole process, the two journals'
threads included: kernel time of the disk's synchronisation too. Calls per second is what one core
that does both sides makes of it. Both are the best of eight rounds: other work on the machine only
ever adds.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path

from inferpool.clock import SystemClock
from inferpool.identity.signing import Key
from inferpool.node.work import Work, sign_receipt
from inferpool.payments import x402
from inferpool.payments.budget import Account
from inferpool.payments.chains import ChainSigner, ReceiptChain
from inferpool.payments.checks import check_chained, check_receipt
from inferpool.payments.journal import SqlJournal
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.payments.payer import PayerChannel
from inferpool.payments.payer_ledger import AttemptRecord, PayerLedger
from inferpool.payments.window import Window
from inferpool.protocol.attempt import Attempt
from inferpool.protocol.encoding import sha256
from inferpool.protocol.job import Job, Task
from inferpool.protocol.lifecycle import AttemptState
from inferpool.protocol.offer import Offer, Service, Terms
from inferpool.protocol.price import maximum, maximum_pico_usd, maximum_usage
from inferpool.protocol.receipt import Outcome, SignedReceipt
from inferpool.protocol.receipt_chain import ChainedReceipt
from inferpool.protocol.voucher import ChannelConfig

_HASH = bytes(32)
ROUNDS = 8


class Pair:
    """A payer and a payee of one channel, each with its book on disk."""

    def __init__(self, folder: Path, window: int) -> None:
        self.payer, self.node = Key(b"\1" * 32), Key(b"\2" * 32)
        payer, node = self.payer.address, self.node.address
        config = ChannelConfig(payer, payer, node, node, b"\3" * 20, 900, b"\4" * 32)
        terms = Terms(1, b"\3" * 20, "Dollar", "1", 6, node, node, 1, 900, window)
        self.service = Service(
            b"\5" * 32, "rows", Task.TENSOR, "fake@1", 10**6, 0, 64, 0, 0, 0, False, False
        )
        self.offer = Offer(node, node, 1, 1, 2**62, (), (self.service,), terms)
        self.offer_hash = self.offer.digest()
        channel_id = config.channel_id(1)
        self.window = Window(window, 1000)
        self.ours = PayerChannel(config, channel_id, 1, 6, balance=10**15)
        self.theirs = PayeeChannel(config, channel_id, 1, 6, balance=10**15)
        self.journals = [SqlJournal(folder / "gateway.db"), SqlJournal(folder / "node.db")]
        self.payer_ledger = PayerLedger(self.journals[0], 1)
        self.payee_ledger = PayeeLedger(self.journals[1], 1, 6)
        self.chain = ReceiptChain()
        self.clock = SystemClock()
        self.signer = ChainSigner(node, channel_id, 1)

    async def start(self) -> None:
        """The channel and one account on disk."""
        await self.payer_ledger.add_account("key", Account("bench", None), 0)
        await self.payer_ledger.save_channel(self.node.address, self.ours)

    async def call(self) -> None:
        """One call, from its authorisation to both books."""
        job = Job(Task.TENSOR, "rows", rows=1)
        attempt = Attempt(
            secrets.token_bytes(32),
            self.offer,
            self.offer_hash,
            self.service,
            job,
            maximum_pico_usd(job, self.service),
            maximum(job, self.service, 6),
            self.ours.channel_id,
            0,
            self.clock.now_ms(),
        )
        units = attempt.maximum_units
        voucher = self.ours.authorise(attempt.request_id, units, self.payer, self.window)
        terms = self.offer.terms
        sent = x402.payment_signature(self.ours.config, voucher, terms, units)
        chained = self.ours.takes_chained(self.window)
        header = await self._node(attempt, sent, chained=chained)
        record = AttemptRecord.of(attempt, "req_bench", "bench")
        record.move(AttemptState.SENT)
        if chained:
            short = ChainedReceipt.from_header(header)
            made = check_chained(
                short, attempt, request_hash=_HASH, response_hash=sha256(b""), output_units=0
            )
            self.ours.unproved.add(short, made.digest(1), self.signer, self.clock.now_ms())
            signed = SignedReceipt(made, b"")
        else:
            signed = SignedReceipt.from_header(header)
            check_receipt(
                signed, attempt, request_hash=_HASH, response_hash=sha256(b""), output_units=0
            )
        self.ours.book(signed.receipt)
        self.ours.trust(signed.receipt.charge_pico_usd)
        record.settle(signed)
        await self.payer_ledger.save_attempt(record, self.ours, sha256(b"key"))

    async def _node(self, attempt: Attempt, sent: bytes, *, chained: bool) -> bytes:
        payment = x402.parse_payment(sent)
        payment.config.channel_id(1)
        self.theirs.admit(attempt.request_id, payment.voucher, attempt.maximum_units)
        work = Work(
            attempt.request_id,
            _HASH,
            self.offer,
            self.offer_hash,
            self.service,
            maximum_usage(attempt.job, self.service),
            self.theirs,
            0,
            own=True,
            started_ms=attempt.started_ms,
        )
        work.prompt_units = 1
        chain = self.chain if chained else None
        signed = await sign_receipt(
            work, self.node, self.payee_ledger, self.clock, Outcome.COMPLETE, chain
        )
        return signed.header() if work.short is None else work.short.header()

    def close(self) -> None:
        """Close both books."""
        for journal in self.journals:
            journal.close()


async def measure(calls: int, at_once: int, window: int) -> dict[str, float]:
    """CPU of both sides together in us a call, and calls a second."""
    with tempfile.TemporaryDirectory(prefix="inferpool-bench-") as folder:
        pair = Pair(Path(folder), window)
        try:
            await pair.start()
            for _ in range(100):
                await pair.call()

            each = max(1, calls // at_once // ROUNDS)
            done = each * at_once

            async def worker() -> None:
                for _ in range(each):
                    await pair.call()

            rounds = []
            for _ in range(ROUNDS):
                cpu, begun = time.process_time(), time.perf_counter()
                await asyncio.gather(*[worker() for _ in range(at_once)])
                spent = time.perf_counter() - begun
                rounds.append(((time.process_time() - cpu) / done * 1e6, done / spent))
            return {"us": min(us for us, _ in rounds), "per_s": max(rate for _, rate in rounds)}
        finally:
            pair.close()


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--at-once", type=int, default=0, help="instead of 1, 16 and 128")
    options = parser.parse_args()
    sys.stdout.write(f"{'window':>8}{'at once':>9}{'CPU us, both':>14}{'calls/s':>10}\n")
    for window in (1, 32):
        for at_once in [options.at_once] if options.at_once else [1, 16, 128]:
            calls = options.calls if at_once > 1 else options.calls // 4
            found = asyncio.run(measure(calls, at_once, window))
            sys.stdout.write(f"{window:8}{at_once:9}{found['us']:14.0f}{found['per_s']:10.0f}\n")


if __name__ == "__main__":
    main()
