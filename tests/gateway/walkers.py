"""Callers without a key, who pay a gateway by x402 with our payer's side."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from inferpool.chain.authorization import authorize_deposit
from inferpool.identity.signing import Key, verify
from inferpool.payments import x402
from inferpool.payments.payer import PayerChannel
from inferpool.protocol import headers
from inferpool.protocol.encoding import from_base64, sha256, to_hex
from inferpool.protocol.receipt import Receipt, SignedReceipt, receipts_request_digest
from inferpool.protocol.voucher import ChannelConfig
from tests.gateway.parts import CHAT, INFER, Answer, Pairs, Pool


def chat_body(**changes: Any) -> dict[str, Any]:
    body = {"model": "fake-chat", "messages": [{"role": "user", "content": "hello"}]}
    return {**body, "max_tokens": 10, "seed": 5, **changes}


def tensor_body(rows: int = 2) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": [1.0] * (4 * rows)}
    return {"inputs": [tensor]}


def accepts(answer: Answer) -> list[dict[str, Any]]:
    found = json.loads(from_base64(answer.headers[headers.PAYMENT_REQUIRED].decode()))
    return list(found["accepts"])


def charged(answer: Answer) -> int:
    """What PAYMENT-RESPONSE, or a stream's last event, says that the request cost."""
    header = answer.headers.get(headers.PAYMENT_RESPONSE)
    value = json.loads(from_base64(header.decode())) if header else answer.proof["payment"]
    assert value["success"] is True
    return int(value["extra"]["chargedAmount"])


@dataclass
class Walker:
    """One caller; `own`: it speaks our version."""

    pool: Pool
    key: Key
    own: bool = True
    count: int = 0
    channel: PayerChannel = field(init=False)

    @property
    def terms(self) -> Any:
        walk_ins = self.pool.gateway.gateway.walk_ins
        assert walk_ins is not None
        return walk_ins.gate.terms

    async def open(self, deposit: int = 100_000) -> None:
        terms = self.terms
        config = ChannelConfig(
            self.key.address,
            self.key.address,
            terms.payee,
            terms.receiver_authorizer,
            terms.asset,
            terms.withdraw_delay_s,
            sha256(b"salt"),
        )
        self.channel = PayerChannel(config, config.channel_id(terms.chain_id), terms.chain_id, 6)
        self.pool.chain.fund(self.key.address, deposit)
        permit = authorize_deposit(
            self.key,
            config,
            deposit,
            chain_id=terms.chain_id,
            name=terms.asset_name,
            version=terms.asset_version,
            valid_before_s=2**40,
            salt=1,
        )
        await self.pool.chain.deposit(config, deposit, permit)
        self.channel.balance = deposit

    async def price(self, path: str, body: Any) -> int:
        answer = await self.pool.send("POST", path, body, [])
        assert answer.status == 402, answer.body
        return int(accepts(answer)[0]["amount"])

    def paid(self, request_id: bytes, amount: int) -> Pairs:
        voucher = self.channel.authorise(request_id, amount, self.key)
        payment = x402.payment_signature(self.channel.config, voucher, self.terms, amount)
        ours = [(headers.VERSION, b"1"), (headers.REQUEST_ID, to_hex(request_id).encode())]
        return [*(ours if self.own else []), (headers.PAYMENT_SIGNATURE, payment)]

    def next_id(self) -> bytes:
        self.count += 1
        return sha256(self.key.address + b"%d" % self.count)

    async def ask(self, path: str, body: Any, amount: int | None = None, **more: Any) -> Answer:
        """A paid request whose receipt, if one came, is checked and booked."""
        amount = amount or await self.price(path, body)
        request_id = self.next_id()
        answer = await self.pool.send("POST", path, body, self.paid(request_id, amount), **more)
        if answer.status != 200:
            self.channel.release(request_id, sent=False)
            return answer
        signed = self.receipt_of(answer)
        assert signed.charge_pico_usd <= amount * 10**6
        if self.own:
            assert signed.request_id == request_id
            self.channel.book(signed)
        else:
            self.channel.release(request_id, sent=False)
            self.channel.total_pico_usd += charged(answer) * 10**6
        return answer

    def receipt_of(self, answer: Answer) -> Receipt:
        header = answer.headers.get(headers.GATEWAY_RECEIPT)
        if header is not None:
            signed = SignedReceipt.from_header(header)
        else:
            signed = SignedReceipt.from_wire(answer.proof["gateway_receipt"])
        digest = signed.receipt.digest(self.channel.chain_id)
        verify(digest, signed.signature, self.terms.receiver_authorizer)
        assert signed.receipt.channel_id == self.channel.channel_id
        return signed.receipt

    async def chat(self, amount: int | None = None, **changes: Any) -> Answer:
        return await self.ask(CHAT, chat_body(**changes), amount)

    async def infer(self, rows: int = 2) -> Answer:
        return await self.ask(INFER, tensor_body(rows))

    async def receipts(self, key: Key | None = None) -> Answer:
        digest = receipts_request_digest(
            self.terms.receiver_authorizer, self.channel.channel_id, self.channel.chain_id
        )
        signature = to_hex((key or self.key).sign(digest)).encode()
        path = f"/inferpool/receipts?channel={to_hex(self.channel.channel_id)}&after=0"
        return await self.pool.send("GET", path, None, [(headers.SIGNATURE, signature)])


async def walker(made: Pool, *, own: bool = True, deposit: int = 100_000) -> Walker:
    """A caller with a funded channel."""
    made_key = Key(sha256(b"walker %d" % (len(made.chain._world.settlement.channels) + 1)))
    found = Walker(made, made_key, own)
    await found.open(deposit)
    return found
