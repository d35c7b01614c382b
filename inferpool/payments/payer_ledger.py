"""The gateway's book: channels and every attempt with its receipt; `keys` has the accounts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.engine import Row

from inferpool.payments.budget import Account
from inferpool.payments.journal import Journal, Write, upsert
from inferpool.payments.key_book import KeyBook
from inferpool.payments.payer import PayerChannel
from inferpool.payments.schema import ATTEMPTS, PAYER_CHANNELS, PAYER_DEPOSITS
from inferpool.protocol.attempt import Attempt
from inferpool.protocol.encoding import parse
from inferpool.protocol.lifecycle import ATTEMPT_MOVES, AttemptState, move
from inferpool.protocol.receipt import SignedReceipt
from inferpool.protocol.units import base_units_down
from inferpool.protocol.voucher import ChannelConfig, canonical_config

_ENDED = (AttemptState.SETTLED, AttemptState.REFUSED, AttemptState.FAILED)


@dataclass(slots=True)
class AttemptRecord:
    """One attempt as it is booked: amounts in pico-USD and base units, times in UNIX ms."""

    request_id: bytes
    client_request_id: str
    account: str
    node: bytes
    channel_id: bytes
    model: str
    task: str
    maximum_pico_usd: int
    maximum_units: int
    started_ms: int
    state: AttemptState = AttemptState.AUTHORISED
    charge_pico_usd: int = 0  # what the node charged
    billed_pico_usd: int = 0  # what the client is billed for it; the difference is the gateway's
    fee_pico_usd: int = 0  # that the client pays the gateway beside it
    prompt_units: int = 0
    output_units: int = 0
    seq: int = 0  # of the receipt, 0 while there is none
    first_ms: int = 0
    ended_ms: int = 0
    error_code: str = ""
    receipt: bytes = b""  # the receipt, packed

    @classmethod
    def of(cls, attempt: Attempt, client_request_id: str, account: str) -> AttemptRecord:
        """The record of an attempt that is about to be sent."""
        return cls(
            request_id=attempt.request_id,
            client_request_id=client_request_id,
            account=account,
            node=attempt.offer.node,
            channel_id=attempt.channel_id,
            model=attempt.service.model,
            task=attempt.service.task.value,
            maximum_pico_usd=attempt.maximum_pico_usd,
            maximum_units=attempt.maximum_units,
            started_ms=attempt.started_ms,
        )

    def move(self, following: AttemptState) -> None:
        """Move to another state; a move that the table lacks is a fault of ours."""
        self.state = move(ATTEMPT_MOVES, self.state, following)

    def settle(self, signed: SignedReceipt) -> None:
        """Book a checked receipt."""
        self.move(AttemptState.SETTLED)
        receipt = signed.receipt
        self.charge_pico_usd = receipt.charge_pico_usd
        self.prompt_units, self.output_units = receipt.prompt_units, receipt.output_units
        self.seq, self.receipt = receipt.seq, signed.pack()


# Columns that hold text where the record holds another type.
_AMOUNTS = (
    "maximum_pico_usd",
    "maximum_units",
    "charge_pico_usd",
    "billed_pico_usd",
    "fee_pico_usd",
)
_NAMES = tuple(item.name for item in fields(AttemptRecord))


def _row(record: AttemptRecord, lane: str) -> tuple[object, ...]:
    """Its columns in the order of the table: a dictionary of them costs three times as much."""
    return (
        record.request_id,
        record.client_request_id,
        record.account,
        record.node,
        record.channel_id,
        record.model,
        record.task,
        record.state.value,
        str(record.maximum_pico_usd),
        str(record.maximum_units),
        str(record.charge_pico_usd),
        str(record.billed_pico_usd),
        str(record.fee_pico_usd),
        record.prompt_units,
        record.output_units,
        record.seq,
        record.started_ms,
        record.first_ms,
        record.ended_ms,
        record.error_code,
        record.receipt,
        lane,
    )


_ROW = (
    *("request_id", "client_request_id", "account", "node", "channel_id", "model", "task"),
    *("state", *_AMOUNTS, "prompt_units", "output_units", "seq"),
    *("started_ms", "first_ms", "ended_ms", "error_code", "receipt", "lane"),
)
_CHANNEL_ROW = (
    *("channel_id", "node", "config", "decimals"),
    *("balance", "total_pico_usd", "signed_max", "base_pico_usd", "lane", "booked_seq"),
)


class PayerLedger:
    """Loads what an earlier run stored; writes through the journal.

    `open_attempts` are those that an earlier run left without an end: each may have a receipt at
    its node, and costs at most its maximum.
    """

    def __init__(self, journal: Journal, chain_id: int, lane: str = "") -> None:
        self.journal = journal
        self.lane = lane
        self._chain_id = chain_id
        self._save_channel = upsert(journal, PAYER_CHANNELS, "channel_id")
        self._save_attempt = upsert(journal, ATTEMPTS, "request_id")
        assert self._save_attempt.names == _ROW, "rows are written by position"
        assert self._save_channel.names == _CHANNEL_ROW, "rows are written by position"
        self._save_deposit = upsert(journal, PAYER_DEPOSITS, "salt")
        self.keys = KeyBook(journal, lane)
        self.accounts = self.keys.accounts  # by id
        self.channels: dict[bytes, tuple[bytes, PayerChannel]] = {}  # id -> node, channel
        for row in journal.read(select(PAYER_CHANNELS).where(PAYER_CHANNELS.c.lane == lane)):
            self.channels[row.channel_id] = (row.node, self._load_channel(row))
        open_ = [state.value for state in AttemptState if state not in _ENDED]
        mine = select(ATTEMPTS).where(ATTEMPTS.c.state.in_(open_), ATTEMPTS.c.lane == lane)
        self.open_attempts = self._records(mine)

    def _load_channel(self, row: Row[Any]) -> PayerChannel:
        query = select(ATTEMPTS.c.seq).where(
            ATTEMPTS.c.channel_id == row.channel_id, ATTEMPTS.c.seq > row.booked_seq
        )
        booked = {found.seq for found in self.journal.read(query)}
        following = row.booked_seq + 1
        while following in booked:
            booked.remove(following)
            following += 1
        return PayerChannel(
            config=ChannelConfig.from_wire(parse(row.config, 4096)),
            channel_id=row.channel_id,
            chain_id=self._chain_id,
            decimals=row.decimals,
            balance=int(row.balance),
            total_pico_usd=int(row.total_pico_usd),
            signed_max=int(row.signed_max),
            base_pico_usd=int(row.base_pico_usd),
            next_seq=following,
            booked_ahead=booked,
        )

    def _records(self, query: Select[Any]) -> list[AttemptRecord]:
        found = []
        for row in self.journal.read(query):
            values = {name: getattr(row, name) for name in _NAMES}
            values |= {name: int(values[name]) for name in _AMOUNTS}
            values["state"] = AttemptState(values["state"])
            found.append(AttemptRecord(**values))
        return found

    def add_account(self, key: str, account: Account, created_ms: int) -> asyncio.Future[None]:
        """Store an account; of its key only the hash is kept."""
        return self.keys.add_account(key, account, created_ms)

    def channels_of(self, node: bytes) -> list[PayerChannel]:
        """All channels with a node, also those that are on their way out."""
        return [channel for owner, channel in self.channels.values() if owner == node]

    def account(self, key: str, now_ms: int) -> tuple[bytes, Account] | None:
        """The account of an API key that is valid now, with its id."""
        return self.keys.account(key, now_ms)

    def save_channel(self, node: bytes, channel: PayerChannel) -> asyncio.Future[None]:
        """Make a channel durable."""
        self.channels[channel.channel_id] = (node, channel)
        return self.journal.write([self._channel_write(channel)])

    def save_deposit(
        self, node: bytes, channel: PayerChannel, amount: int, salt: int, sent_s: int
    ) -> asyncio.Future[None]:
        """Make a deposit durable with its channel, before it is sent: base units, chain time."""
        self.channels[channel.channel_id] = (node, channel)
        values: dict[str, object] = {
            "salt": salt.to_bytes(32, "big"),
            "channel_id": channel.channel_id,
            "amount": str(amount),
            "sent_s": sent_s,
        }
        return self.journal.write([self._channel_write(channel), Write(self._save_deposit, values)])

    def deposited_since(self, since_s: int) -> int:
        """Base units of all deposits that were sent since a second of the chain's time."""
        query = select(PAYER_DEPOSITS.c.amount).where(PAYER_DEPOSITS.c.sent_s > since_s)
        return sum(int(row.amount) for row in self.journal.read(query))

    def locked_elsewhere(self) -> list[tuple[bytes, int]]:
        """What lies in channels of other lanes, by node, in base units: not charged as they last
        wrote it."""
        found = self.journal.read(select(PAYER_CHANNELS).where(PAYER_CHANNELS.c.lane != self.lane))
        return [
            (row.node, int(row.balance) - base_units_down(int(row.total_pico_usd), row.decimals))
            for row in found
        ]

    def last_used_ms(self) -> dict[bytes, int]:
        """When the last attempt of each channel began."""
        last = func.max(ATTEMPTS.c.started_ms).label("last")
        query = select(ATTEMPTS.c.channel_id, last).where(ATTEMPTS.c.lane == self.lane)
        query = query.group_by(ATTEMPTS.c.channel_id)
        return {row.channel_id: row.last for row in self.journal.read(query)}

    def save_attempt(
        self,
        record: AttemptRecord,
        channel: PayerChannel | None = None,
        account_id: bytes | None = None,
    ) -> asyncio.Future[None]:
        """Make an attempt durable, in one unit with the totals that it changed."""
        writes = [self._attempt_write(record)]
        if channel is not None:
            writes.append(self._channel_write(channel))
        if account_id is None:
            return self.journal.write(writes)
        saved = self.journal.write(writes + self.keys.spending(account_id))
        self.keys.spent(account_id, saved)
        return saved

    def _channel_write(self, channel: PayerChannel) -> Write:
        channel_id = channel.channel_id
        values = (
            channel_id,
            self.channels[channel_id][0],
            canonical_config(channel.config),
            channel.decimals,
            str(channel.balance),
            str(channel.total_pico_usd),
            str(channel.signed_max),
            str(channel.base_pico_usd),
            self.lane,
            channel.next_seq - 1,
        )
        return Write(self._save_channel, values, channel_id)

    def _attempt_write(self, record: AttemptRecord) -> Write:
        return Write(self._save_attempt, _row(record, self.lane))

    async def settled(self) -> None:
        """Wait until everything that was written so far is on disk."""
        await self.journal.write([])

    def attempt(self, request_id: bytes) -> AttemptRecord | None:
        """One attempt as it is on disk."""
        found = self._records(select(ATTEMPTS).where(ATTEMPTS.c.request_id == request_id))
        return found[0] if found else None

    def attempts_of(self, client_request_id: str) -> list[AttemptRecord]:
        """The attempts of one client request that are on disk, oldest first."""
        mine = select(ATTEMPTS).where(ATTEMPTS.c.client_request_id == client_request_id)
        return self._records(mine.order_by(ATTEMPTS.c.started_ms))

    def attempts(self, limit: int) -> list[AttemptRecord]:
        """The latest attempts, newest first."""
        return self._records(select(ATTEMPTS).order_by(ATTEMPTS.c.started_ms.desc()).limit(limit))
