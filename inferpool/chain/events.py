"""Reading events safely: reorgs are noticed, and ranges that a provider refuses are halved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from inferpool.chain.abi import Json, contract
from inferpool.chain.base import Registration
from inferpool.chain.directory import Directory, events_by_topic, read_log
from inferpool.chain.rpc import Rpc, RpcRefused, unavailable
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.errors import Unavailable
from inferpool.protocol.limits import TRANSFER_LOOKBACK_BLOCKS
from inferpool.protocol.voucher import CHANNELS_ADDRESS

REORG_DEPTH: Final = 12  # blocks that are read again at least, whatever is held to be final
_RANGE_WORDS: Final = ("more than", "range", "limit", "too many", "exceed")
_CREATED: Final = contract("BatchSettlement").events["ChannelCreated"]
_INITIATED: Final = contract("BatchSettlement").events["WithdrawInitiated"]
_IDS_MAX: Final = 500  # alternatives of one topic in one query
_USED: Final = contract("TestDollar").events["AuthorizationUsed"]
_RECEIVER: Final = 2  # position in ChannelConfig


@dataclass(slots=True)
class _Cursor:
    """How far a directory was read: the block's number and hash, and what came of it."""

    number: int = -1
    hash: str = ""
    directory: Directory = field(default_factory=Directory)


class EventReader:
    """Events of the settlement contract and of one registry."""

    def __init__(self, rpc: Rpc, registry: bytes, depth: int = REORG_DEPTH) -> None:
        self._rpc = rpc
        self._depth = depth  # blocks that are read again
        self._registry = registry
        self._registry_events = events_by_topic("Registry")
        self._cursor = _Cursor()
        self._receivers: dict[bytes, bytes] = {}  # channel id -> receiver; an id fixes it for ever

    async def withdrawing(self, receiver: bytes, since_block: int) -> tuple[list[bytes], int]:
        """See `EvmChain.withdrawing`."""
        head = int(await self._rpc.call("eth_blockNumber"), 16)
        topics: list[Any] = [to_hex(_INITIATED.topic)]
        logs = await self._logs(CHANNELS_ADDRESS, topics, since_block, head)
        channel_ids = list(dict.fromkeys(from_hex(log["topics"][1], 32) for log in logs))
        await self._learn_receivers(channel_ids, head)
        found = [each for each in channel_ids if self._receivers.get(each) == receiver]
        return found, max(since_block, head + 1 - self._depth)

    async def registrations(self) -> list[Registration]:
        """See `EvmChain.registrations`. A cursor whose block has another hash was reorganised
        away: then everything is read again."""
        head = await self._rpc.call("eth_getBlockByNumber", "latest", False)
        number = int(head["number"], 16)
        if not await self._is_current(self._cursor):
            self._cursor = _Cursor()
        if number > self._cursor.number:
            logs = await self._logs(self._registry, [], self._cursor.number + 1, number)
            block = await self._rpc.call("eth_getBlockByNumber", hex(number), False)
            if block is None or block["hash"] != head["hash"]:
                raise unavailable("the chain was reorganised while it was read; try again")
            self._apply(logs)
            self._cursor.number, self._cursor.hash = number, head["hash"]
        return self._cursor.directory.listed()

    async def authorization_used(self, token: bytes, holder: bytes, nonce: bytes) -> str | None:
        """Hash of the transaction that used an EIP-3009 authorisation, of the last blocks."""
        head = int(await self._rpc.call("eth_blockNumber"), 16)
        topics: list[Any] = [to_hex(_USED.topic), to_hex(holder.rjust(32, b"\0")), to_hex(nonce)]
        low = max(0, head - TRANSFER_LOOKBACK_BLOCKS)
        logs = await self._logs(token, topics, low, head)
        return str(logs[-1]["transactionHash"]) if logs else None

    async def _is_current(self, cursor: _Cursor) -> bool:
        if cursor.number < 0:
            return True
        block = await self._rpc.call("eth_getBlockByNumber", hex(cursor.number), False)
        return block is not None and block["hash"] == cursor.hash

    def _apply(self, logs: Sequence[Json]) -> None:
        for log in logs:
            try:
                event = read_log(log, self._registry_events)
            except ValueError:
                continue  # an endpoint that is no UTF-8: that node is its owner's loss, not ours
            if event is not None:
                self._cursor.directory.apply(*event)

    async def _learn_receivers(self, channel_ids: Sequence[bytes], head: int) -> None:
        unknown = [each for each in channel_ids if each not in self._receivers]
        for start in range(0, len(unknown), _IDS_MAX):
            ids = [to_hex(each) for each in unknown[start : start + _IDS_MAX]]
            topics: list[Any] = [to_hex(_CREATED.topic), ids]
            for log in await self._logs(CHANNELS_ADDRESS, topics, 0, head):
                channel_id = from_hex(log["topics"][1], 32)
                words = bytes.fromhex(log["data"][2:])
                self._receivers[channel_id] = words[32 * _RECEIVER + 12 : 32 * _RECEIVER + 32]

    async def _logs(self, address: bytes, topics: Sequence[Any], low: int, high: int) -> list[Json]:
        """Logs of blocks `low` to `high`, in order, however small the provider's pieces."""
        pending, found = [(low, high)], []
        while pending:
            first, last = pending.pop()
            if first > last:
                continue
            query = {
                "address": to_hex(address),
                "topics": topics,
                "fromBlock": hex(first),
                "toBlock": hex(last),
            }
            try:
                found += await self._rpc.call("eth_getLogs", query)
            except (RpcRefused, Unavailable) as error:
                if first == last or not any(word in error.message for word in _RANGE_WORDS):
                    raise
                middle = (first + last) // 2
                pending += [(middle + 1, last), (first, middle)]  # the lower half is popped first
        return found
