"""Sending transactions of one key: nonces, fees, broadcasting, waiting.

The rule that keeps money safe: a transaction is signed once for its nonce, and when nobody knows
whether it arrived, the same bytes are sent again. Two different transactions with one intent could
both be mined; the same bytes cannot.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from inferpool.chain.abi import Json
from inferpool.chain.base import TransactionReceipt
from inferpool.chain.rpc import Rpc, RpcRefused, unavailable
from inferpool.chain.transaction import Transaction, sign_transaction
from inferpool.identity.signing import Key
from inferpool.protocol.eip712 import keccak256
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.errors import Refused, Unavailable

GAS_MARGIN_PERCENT: Final = 120  # of the estimate: state may move between estimate and block
TIP_MIN_WEI: Final = 1
RECEIPT_TIMEOUT_S: Final = 60.0
_POLL_FIRST_S: Final = 0.02
_POLL_LAST_S: Final = 1.0
_ATTEMPTS: Final = 3
_STALE_NONCE: Final = ("nonce too low", "nonce too high", "replacement transaction underpriced")
_KNOWN: Final = ("already known", "already imported", "known transaction")


@dataclass(frozen=True, slots=True)
class Fees:
    """Wei for one gas."""

    max_fee: int
    max_priority_fee: int


class Sender:
    """One key on one chain. Sends are serialised; waiting for receipts is not."""

    def __init__(
        self, rpc: Rpc, key: Key, chain_id: int, receipt_timeout_s: float = RECEIPT_TIMEOUT_S
    ) -> None:
        self.key = key
        self._rpc = rpc
        self._chain_id = chain_id
        self._receipt_timeout_s = receipt_timeout_s
        self._lock = asyncio.Lock()
        self._next_nonce = 0  # at least; the chain knows more

    async def send(self, to: bytes | None, data: bytes) -> tuple[TransactionReceipt, Json]:
        """Send a transaction and wait until it is mined; our receipt and the chain's own.

        Raises Refused(chain_reverted) with the contract's reason, Unavailable(chain_unavailable)
        where the chain is silent: then the transaction may still be mined later.
        """
        async with self._lock:
            raw = await self._broadcast(to, data)
        receipt = await self._wait(raw)
        if int(receipt["status"], 16) != 1:
            raise Refused(await self._reason(to, data, receipt), code="chain_reverted")
        gas_used = int(receipt["gasUsed"], 16)
        mined = TransactionReceipt(
            transaction_hash=from_hex(receipt["transactionHash"], 32),
            block_number=int(receipt["blockNumber"], 16),
            gas_used=gas_used,
            fee_wei=gas_used * int(receipt["effectiveGasPrice"], 16),
        )
        return mined, receipt

    async def _broadcast(self, to: bytes | None, data: bytes) -> bytes:
        """Sign and hand over; the signed bytes. Holds the lock, so nonces have no gaps."""
        for _ in range(_ATTEMPTS):
            transaction = await self._fill(to, data)
            raw = sign_transaction(transaction, self.key)
            try:
                await self._hand_over(raw)
            except (RpcRefused, Unavailable) as error:
                self._next_nonce = 0
                # The nonce is taken by another sender with this key: ours was not accepted, and
                # is signed anew for the next one.
                if isinstance(error, RpcRefused) and _says(error, (*_STALE_NONCE, *_KNOWN)):
                    continue
                raise
            self._next_nonce = transaction.nonce + 1
            return raw
        raise unavailable("another sender keeps taking this key's nonces")

    async def _fill(self, to: bytes | None, data: bytes) -> Transaction:
        query: Json = {"from": to_hex(self.key.address), "data": to_hex(data)}
        if to is not None:
            query["to"] = to_hex(to)
        estimate, history, nonce = await self._rpc.batch(
            [
                ("eth_estimateGas", [query]),
                ("eth_feeHistory", ["0x4", "latest", [50]]),
                ("eth_getTransactionCount", [to_hex(self.key.address), "pending"]),
            ]
        )
        fees = fees_from_history(history)
        return Transaction(
            chain_id=self._chain_id,
            # The chain's own count may lag behind ours (several servers behind one URL), and ours
            # behind the chain's (another process with this key).
            nonce=max(self._next_nonce, int(nonce, 16)),
            to=to,
            data=data,
            gas=int(estimate, 16) * GAS_MARGIN_PERCENT // 100,
            max_fee_wei=fees.max_fee,
            max_priority_fee_wei=fees.max_priority_fee,
        )

    async def _hand_over(self, raw: bytes) -> None:
        """Send signed bytes, the same ones again while the chain is silent.

        After a silence a refusal may be the echo of our own success. Without one it is not: equal
        bytes that are known already are another sender's, with the same key and intent.
        """
        was_silent = False
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._rpc.call("eth_sendRawTransaction", to_hex(raw))
                return
            except RpcRefused as refusal:
                if was_silent and await self._is_ours(refusal, raw):
                    return
                raise
            except Unavailable:
                was_silent = True
                if attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(_POLL_FIRST_S * 2**attempt)

    async def _wait(self, raw: bytes) -> Json:
        """The receipt of signed bytes. Raises Unavailable after the time-out."""
        hash_ = to_hex(keccak256(raw))
        pause_s = _POLL_FIRST_S
        deadline_s = asyncio.get_running_loop().time() + self._receipt_timeout_s
        while True:
            try:
                receipt: Json | None = await self._rpc.call("eth_getTransactionReceipt", hash_)
            except Unavailable:
                receipt = None  # a silent chain is asked again until the deadline
            if receipt is not None:
                return receipt
            if asyncio.get_running_loop().time() >= deadline_s:
                raise unavailable(f"no receipt of {hash_} after {self._receipt_timeout_s:g} s")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_LAST_S)

    async def _is_ours(self, refusal: RpcRefused, raw: bytes) -> bool:
        """Whether a refusal says that these bytes have arrived before."""
        if _says(refusal, _KNOWN):
            return True
        hash_ = to_hex(keccak256(raw))
        return (
            _says(refusal, _STALE_NONCE)
            and await self._rpc.call("eth_getTransactionReceipt", hash_) is not None
        )

    async def _reason(self, to: bytes | None, data: bytes, receipt: Json) -> str:
        """Why a mined transaction reverted: the same call in its block says it."""
        query: dict[str, Any] = {"from": to_hex(self.key.address), "data": to_hex(data)}
        if to is not None:
            query["to"] = to_hex(to)
        try:
            await self._rpc.call("eth_call", query, receipt["blockNumber"])
        except RpcRefused as refusal:
            return refusal.message
        return "the chain reverted the transaction: out of gas, or its state had changed"


def _says(refusal: RpcRefused, words: tuple[str, ...]) -> bool:
    return any(each in refusal.message.lower() for each in words)


def fees_from_history(history: Json) -> Fees:
    """Fees that outlast a few full blocks: twice the next base fee, and the median tip."""
    base = int(history["baseFeePerGas"][-1], 16)
    rewards = sorted(int(row[0], 16) for row in history.get("reward") or [] if row)
    tip = max(rewards[len(rewards) // 2] if rewards else 0, TIP_MIN_WEI)
    return Fees(max_fee=2 * base + tip, max_priority_fee=tip)
