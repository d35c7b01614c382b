"""Sending transactions of one key: nonces, fees, broadcasting, waiting.

The rule that keeps money safe: an intent has one nonce. When nobody knows whether a transaction
arrived, the same bytes are sent again; one that stays out of the blocks is replaced by one of the
same nonce and higher fees. Of one nonce one transaction is mined, so nothing happens twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from inferpool.chain.abi import Json
from inferpool.chain.base import TransactionReceipt
from inferpool.chain.rpc import Rpc, RpcRefused, unavailable
from inferpool.chain.transaction import Transaction, sign_transaction
from inferpool.identity.signing import Key
from inferpool.protocol.eip712 import keccak256
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.errors import Refused, Unavailable

_LOG = logging.getLogger("inferpool.chain")
GAS_MARGIN_PERCENT: Final = 120  # of the estimate: state may move between estimate and block
TIP_MIN_WEI: Final = 1
RECEIPT_TIMEOUT_S: Final = 180.0
BUMP_AFTER_S: Final = 30.0  # a few blocks: fees above the base fee are mined in the next ones
BUMP_PERCENT: Final = 125  # pools take a replacement from 110 % on
BUMPS_MAX: Final = 5  # 3 times the first fee at most
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
        self,
        rpc: Rpc,
        key: Key,
        chain_id: int,
        receipt_timeout_s: float = RECEIPT_TIMEOUT_S,
        *,
        bump_after_s: float = BUMP_AFTER_S,
        confirmations: int = 0,
    ) -> None:
        self.key = key
        self._rpc = rpc
        self._chain_id = chain_id
        self._receipt_timeout_s, self._bump_after_s = receipt_timeout_s, bump_after_s
        self._confirmations = confirmations  # blocks on top of a transaction's before it counts
        self._lock = asyncio.Lock()
        self._next_nonce = 0  # at least; the chain knows more

    async def send(
        self, to: bytes | None, data: bytes, value: int = 0
    ) -> tuple[TransactionReceipt, Json]:
        """Send a transaction and wait until it is mined, and as many blocks more as it takes to
        count; our receipt and the chain's own.

        Raises Refused(chain_reverted) with the contract's reason, Unavailable(chain_unavailable)
        where the chain is silent: then the transaction may still be mined later.
        """
        async with self._lock:
            sent = await self._broadcast(to, data, value)
        receipt = await self._wait(sent)
        if int(receipt["status"], 16) != 1:
            raise Refused(await self._reason(to, data, receipt), code="chain_reverted")
        return receipt_of(receipt), receipt

    async def _broadcast(self, to: bytes | None, data: bytes, value: int) -> Transaction:
        """Sign and hand over. Holds the lock, so nonces have no gaps."""
        for _ in range(_ATTEMPTS):
            transaction = await self._fill(to, data, value)
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
            return transaction
        raise unavailable("another sender keeps taking this key's nonces")

    async def _fill(self, to: bytes | None, data: bytes, value: int) -> Transaction:
        query: Json = {"from": to_hex(self.key.address), "data": to_hex(data), "value": hex(value)}
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
            value=value,
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

    async def _wait(self, sent: Transaction) -> Json:
        """The receipt of a transaction, or of the one that replaced it, once it counts.

        A receipt that a reorganisation takes back is waited for anew. Raises Unavailable after
        the time-out.
        """
        now_s = asyncio.get_running_loop().time
        pause_s, deadline_s = _POLL_FIRST_S, now_s() + self._receipt_timeout_s
        hashes, bump_at_s = [_hash(sent, self.key)], now_s() + self._bump_after_s
        while True:
            receipt = await self._mined(hashes)
            if receipt is not None and await self._counts(receipt):
                return receipt
            if now_s() >= deadline_s:
                raise unavailable(f"no receipt of {hashes[0]} after {self._receipt_timeout_s:g} s")
            if receipt is None and now_s() >= bump_at_s and len(hashes) <= BUMPS_MAX:
                sent = await self._bump(sent)
                hashes.append(_hash(sent, self.key))
                bump_at_s = now_s() + self._bump_after_s
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_LAST_S)

    async def _mined(self, hashes: Sequence[str]) -> Json | None:
        """The receipt of whichever was mined. A silent chain has none, and is asked again."""
        try:
            found = await self._rpc.batch([("eth_getTransactionReceipt", [h]) for h in hashes])
        except Unavailable:
            return None
        return next((receipt for receipt in found if receipt is not None), None)

    async def _counts(self, receipt: Json) -> bool:
        """Whether enough blocks lie on top of a receipt's."""
        if not self._confirmations:
            return True
        try:
            head = int(await self._rpc.call("eth_blockNumber"), 16)
        except Unavailable:
            return False
        return head >= int(receipt["blockNumber"], 16) + self._confirmations

    async def _bump(self, stuck: Transaction) -> Transaction:
        """Replace a transaction by one of the same nonce that pays more."""
        try:
            market = fees_from_history(
                await self._rpc.call("eth_feeHistory", "0x4", "latest", [50])
            )
            dearer = replace(
                stuck,
                max_fee_wei=max(market.max_fee, _more(stuck.max_fee_wei)),
                max_priority_fee_wei=max(
                    market.max_priority_fee, _more(stuck.max_priority_fee_wei)
                ),
            )
            _LOG.warning("nonce %d waits: now at %d wei", dearer.nonce, dearer.max_fee_wei)
            await self._rpc.call(
                "eth_sendRawTransaction", to_hex(sign_transaction(dearer, self.key))
            )
        except Unavailable:
            return stuck
        except RpcRefused as refusal:
            # "Nonce too low": one of ours was mined in between. Whatever it is, the receipts tell.
            _LOG.info("no replacement: %s", refusal.message)
        return dearer

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


def receipt_of(receipt: Json) -> TransactionReceipt:
    """Our form of a chain's receipt."""
    gas_used = int(receipt["gasUsed"], 16)
    return TransactionReceipt(
        transaction_hash=from_hex(receipt["transactionHash"], 32),
        block_number=int(receipt["blockNumber"], 16),
        gas_used=gas_used,
        fee_wei=gas_used * int(receipt["effectiveGasPrice"], 16),
    )


def _says(refusal: RpcRefused, words: tuple[str, ...]) -> bool:
    return any(each in refusal.message.lower() for each in words)


def _hash(transaction: Transaction, key: Key) -> str:
    """A transaction's hash: signatures are deterministic."""
    return to_hex(keccak256(sign_transaction(transaction, key)))


def _more(fee_wei: int) -> int:
    return -(-fee_wei * BUMP_PERCENT // 100)


def fees_from_history(history: Json) -> Fees:
    """Fees that outlast a few full blocks: twice the next base fee, and the median tip."""
    base = int(history["baseFeePerGas"][-1], 16)
    rewards = sorted(int(row[0], 16) for row in history.get("reward") or [] if row)
    tip = max(rewards[len(rewards) // 2] if rewards else 0, TIP_MIN_WEI)
    return Fees(max_fee=2 * base + tip, max_priority_fee=tip)
