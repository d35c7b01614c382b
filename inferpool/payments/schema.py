"""The tables of both sides, in SQLAlchemy Core: SQLite by default, PostgreSQL by URL.

Amounts are decimal digits in text: exact at any size (a voucher has 128 bits) on any database.
No prompt and no answer is ever stored: hashes, counts, times and money only.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Index, LargeBinary, MetaData, String, Table

METADATA: Final = MetaData()
_AMOUNT: Final = String(40)

PAYEE_CHANNELS: Final = Table(
    "payee_channels",
    METADATA,
    Column("channel_id", LargeBinary, primary_key=True),
    Column("config", LargeBinary, nullable=False),  # canonical JSON of channelConfig
    Column("best", _AMOUNT, nullable=False),
    Column("best_signature", LargeBinary, nullable=False),
    Column("total_pico_usd", _AMOUNT, nullable=False),
    Column("reported", _AMOUNT, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("claimed", _AMOUNT, nullable=False),
)

PAYEE_RECEIPTS: Final = Table(
    "payee_receipts",
    METADATA,
    Column("request_id", LargeBinary, primary_key=True),
    Column("channel_id", LargeBinary, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("model", String(256), nullable=False),
    Column("charge_pico_usd", _AMOUNT, nullable=False),
    Column("ended_ms", BigInteger, nullable=False),
    Column(
        "data", LargeBinary, nullable=False
    ),  # the receipt, packed; a chained one has no signature
    Index("payee_receipts_by_seq", "channel_id", "seq", unique=True),
)

PAYEE_CLAIMS: Final = Table(
    "payee_claims",
    METADATA,
    Column("claimed_ms", BigInteger, primary_key=True),
    Column("channels", BigInteger, nullable=False),
    Column("claimed", _AMOUNT, nullable=False),
    Column("settled", _AMOUNT, nullable=False),
    Column("gas_used", _AMOUNT, nullable=False),
    Column("fee_wei", _AMOUNT, nullable=False),
)

# Payments by one transfer (x402's scheme exact). Settled, whether an answer was given for it yet
# or not: a payment buys one answer, and may be shown again until it did.
PAYEE_TRANSFERS: Final = Table(
    "payee_transfers",
    METADATA,
    Column("payer", LargeBinary, primary_key=True),
    Column("nonce", LargeBinary, primary_key=True),
    Column("amount", _AMOUNT, nullable=False),  # base units
    Column("transaction", LargeBinary, nullable=False),
    Column("fee_wei", _AMOUNT, nullable=False),
    Column("paid_ms", BigInteger, nullable=False),
    Column("channel_id", LargeBinary, nullable=False),  # under which its receipt is kept
    Column("request_id", LargeBinary, nullable=False),  # that was answered for it; empty: none yet
    Index("payee_transfers_by_channel", "channel_id"),
)

# The last refund that was sent from a channel. Where the chain's nonce is not above it, it may yet
# be mined: its money is not to be worked for.
PAYEE_REFUNDS: Final = Table(
    "payee_refunds",
    METADATA,
    Column("channel_id", LargeBinary, primary_key=True),
    Column("nonce", BigInteger, nullable=False),
)

# Energy that the CPU's own counters measured while work ran; one row an hour.
PAYEE_ENERGY: Final = Table(
    "payee_energy",
    METADATA,
    Column("hour_ms", BigInteger, primary_key=True),
    Column("microjoules", _AMOUNT, nullable=False),
    Column("busy_ms", BigInteger, nullable=False),
)

ACCOUNTS: Final = Table(
    "accounts",
    METADATA,
    Column("key_hash", LargeBinary, primary_key=True),  # SHA-256 of its first API key: its id
    Column("name", String(256), nullable=False),
    Column("limit_pico_usd", _AMOUNT, nullable=True),
    Column("spent_pico_usd", _AMOUNT, nullable=False),  # before lanes were counted
    Column("created_ms", BigInteger, nullable=False),
    Index("accounts_by_name", "name", unique=True),
)

# Keys of accounts: hashes only, and a few characters by which their owner knows them.
API_KEYS: Final = Table(
    "api_keys",
    METADATA,
    Column("key_hash", LargeBinary, primary_key=True),  # SHA-256
    Column("account", LargeBinary, nullable=False),
    Column("shown", String(64), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger, nullable=False),  # 0: valid
    Column("expires_ms", BigInteger, nullable=False, server_default="0"),  # 0: never
)

# Rules of accounts and teams.
RULES: Final = Table(
    "rules",
    METADATA,
    Column("owner", LargeBinary, primary_key=True),  # an account's id, or "team:" and a name
    Column("team", String(256), nullable=False),  # that an account belongs to
    Column("data", LargeBinary, nullable=False),  # JSON
    Column("created_ms", BigInteger, nullable=False),
)

# What accounts and teams spent, by the gateway process that billed it: each writes its own rows.
SPENDING: Final = Table(
    "spending",
    METADATA,
    Column("owner", LargeBinary, primary_key=True),
    Column("lane", String(64), primary_key=True),
    Column("total", _AMOUNT, nullable=False),
    Column("month", BigInteger, nullable=False),
    Column("in_month", _AMOUNT, nullable=False),
    Column("day", BigInteger, nullable=False),
    Column("on_day", _AMOUNT, nullable=False),
)

PAYER_CHANNELS: Final = Table(
    "payer_channels",
    METADATA,
    Column("channel_id", LargeBinary, primary_key=True),
    Column("node", LargeBinary, nullable=False),
    Column("config", LargeBinary, nullable=False),
    Column("decimals", BigInteger, nullable=False),
    Column("balance", _AMOUNT, nullable=False),
    Column("total_pico_usd", _AMOUNT, nullable=False),
    Column("signed_max", _AMOUNT, nullable=False),
    Column("base_pico_usd", _AMOUNT, nullable=False),
    Column("lane", String(64), nullable=False, server_default=""),  # the process that signs in it
    # Receipts up to this one are booked, without a gap: a start reads those beyond it.
    Column("booked_seq", BigInteger, nullable=False, server_default="0"),
)

ATTEMPTS: Final = Table(
    "attempts",
    METADATA,
    Column("request_id", LargeBinary, primary_key=True),
    Column("client_request_id", String(64), nullable=False),
    Column("account", String(256), nullable=False),
    Column("node", LargeBinary, nullable=False),
    Column("channel_id", LargeBinary, nullable=False),
    Column("model", String(256), nullable=False),
    Column("task", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("maximum_pico_usd", _AMOUNT, nullable=False),
    Column("maximum_units", _AMOUNT, nullable=False),
    Column("charge_pico_usd", _AMOUNT, nullable=False),
    Column("billed_pico_usd", _AMOUNT, nullable=False),
    Column("fee_pico_usd", _AMOUNT, nullable=False, server_default="0"),
    Column("prompt_units", BigInteger, nullable=False),
    Column("output_units", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),  # of the receipt, 0 while there is none
    Column("started_ms", BigInteger, nullable=False),
    Column("first_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger, nullable=False),
    Column("error_code", String(64), nullable=False),
    Column("receipt", LargeBinary, nullable=False),
    Column("lane", String(64), nullable=False, server_default=""),
    Index("attempts_by_channel", "channel_id", "seq"),
    Index("attempts_by_state", "state", "lane"),
    Index("attempts_by_client", "client_request_id"),
)

# The router's traces: which nodes were candidates for a request, at which cost, and why not.
ROUTES: Final = Table(
    "routes",
    METADATA,
    Column("client_request_id", String(64), primary_key=True),
    Column("number", BigInteger, primary_key=True),  # 0, then one for each choice made again
    Column("at_ms", BigInteger, nullable=False),
    Column("account", String(256), nullable=False),
    Column("data", LargeBinary, nullable=False),  # JSON
    Index("routes_by_time", "at_ms"),
)

# Deposits that were sent, also where the chain's answer was lost: what the cap of a day counts.
PAYER_DEPOSITS: Final = Table(
    "payer_deposits",
    METADATA,
    Column("salt", LargeBinary, primary_key=True),
    Column("channel_id", LargeBinary, nullable=False),
    Column("amount", _AMOUNT, nullable=False),
    Column("sent_s", BigInteger, nullable=False),
)

# -- what several gateway processes share ---------------------------------------------------------

# Who writes in which lane, and until when it may unless it renews: times are the database's.
LANES: Final = Table(
    "lanes",
    METADATA,
    Column("lane", String(64), primary_key=True),
    Column("token", LargeBinary, nullable=False),  # of the process that holds it now
    Column("place", String(512), nullable=False),  # machine and home
    Column("until_ms", BigInteger, nullable=False),
    Column("url", String(512), nullable=False),  # at which the others reach it
    Column("tls_spki", LargeBinary, nullable=False),
    Column("secret", LargeBinary, nullable=False),  # with which they do
)

# What a lane may still spend or run for an account or team, beside what it spent.
RESERVED: Final = Table(
    "reserved",
    METADATA,
    Column("owner", LargeBinary, primary_key=True),
    Column("lane", String(64), primary_key=True),
    Column("held", _AMOUNT, nullable=False),
    Column("running", BigInteger, nullable=False),
)

# The rate limits' state of accounts and teams; whoever admits a request locks its rows.
BUCKETS: Final = Table(
    "buckets",
    METADATA,
    Column("owner", LargeBinary, primary_key=True),
    Column("requests_per_minute", BigInteger, nullable=True),
    Column("requests_level", BigInteger, nullable=False),
    Column("requests_ms", BigInteger, nullable=False),
    Column("tokens_per_minute", BigInteger, nullable=True),
    Column("tokens_level", BigInteger, nullable=False),
    Column("tokens_ms", BigInteger, nullable=False),
)

# Raised with each change of keys, accounts or rules, so that the others read them again.
VERSIONS: Final = Table(
    "versions",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
)
