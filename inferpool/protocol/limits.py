"""Every bound in one place, with its reason. Sizes in bytes, times in the unit of their name."""

from __future__ import annotations

from typing import Final

# Bodies: a 1 M token prompt is about 4 MB of text; a batch of images or rows is larger.
BODY_CHAT_MAX: Final = 8 * 1024 * 1024
BODY_TENSOR_MAX: Final = 64 * 1024 * 1024
BODY_EMBEDDING_MAX: Final = 8 * 1024 * 1024
BODY_AUDIO_MAX: Final = 26 * 1024 * 1024  # OpenAI's 25 MB file, and the form around it
BODY_IMAGE_MAX: Final = 64 * 1024  # a prompt
ANSWER_MAX: Final = 64 * 1024 * 1024
PAYMENT_HEADER_MAX: Final = 16 * 1024  # base64 of a deposit payload is 2 kB

# What a stranger's node or gateway may make us parse.
OFFER_MAX: Final = 64 * 1024
OFFER_SERVICES_MAX: Final = 128
OFFER_ENDPOINTS_MAX: Final = 8
RECEIPT_MAX: Final = 4 * 1024
RECEIPTS_PAGE_MAX: Final = 256
TEXT_MAX: Final = 256  # names, classes, URLs inside signed objects

# Chat
MESSAGES_MAX: Final = 4096
STOP_MAX: Final = 4  # OpenAI's own bound
STOP_TEXT_MAX: Final = 256
OUTPUT_UNITS_MAX: Final = 1_000_000
RESUME_MAX: Final = 1_000_000
TOP_LOGPROBS_MAX: Final = 20  # OpenAI's own bounds: of chat, and of completions
COMPLETION_LOGPROBS_MAX: Final = 5
LOGPROB_TEXT_MAX: Final = 1024  # bytes of one token in a node's answer; vocabularies stay far below
PARAMETERS_MAX: Final = 32  # names beside one service of an offer
PARAMETERS_TEXT_MAX: Final = 1088  # bytes: so many names of 32 and a comma each, rounded up
SCHEMA_BYTES_MAX: Final = 64 * 1024
SCHEMA_NODES_MAX: Final = 1024  # places in one schema, definitions included
SCHEMA_NAMES_MAX: Final = 128  # definitions
SCHEMA_DEPTH_MAX: Final = 16
SCHEMA_LITERALS_MAX: Final = 1000  # values of all enums together; OpenAI's own bound
SCHEMA_OPTIONAL_MAX: Final = 32  # properties of one object that may be missing: all may come next
SCHEMA_REPEAT_MAX: Final = 256  # a greater bound on a length makes an engine's grammar too long
SCHEMA_REPEATS_MAX: Final = 4096  # all such bounds of one schema together
TOOLS_MAX: Final = 128  # OpenAI's own bound
TOOLS_BYTES_MAX: Final = 256 * 1024  # of all tools together: each is read, and made a grammar
TOOL_CALLS_MAX: Final = 16  # in one answer
HELD_UNITS_MAX: Final = 4_000  # a longer answer that must be whole is streamed all the same
CHOICES_MAX: Final = 8  # answers to one request, each an attempt with its own hold
LOGIT_BIAS_MAX: Final = 1024  # token ids
TENSORS_MAX: Final = 64
RANK_MAX: Final = 8
ROWS_MAX: Final = 65_536

# Other work
PREFERENCES_MAX: Final = 16 * 1024  # bytes of the header that carries them
PROVIDERS_MAX: Final = 256  # in each list of a client's preferences
EMBEDDING_TEXTS_MAX: Final = 2048  # OpenAI's own bound
AUDIO_CHILDREN_MAX: Final = 8  # files that are opened at once, each in a process of its own
AUDIO_MS_MAX: Final = 30 * 60_000  # the gateway waits a minute, and a second for each of audio
FORM_PARTS_MAX: Final = 32
FORM_HEADER_MAX: Final = 4096  # bytes of one part's header lines
IMAGES_MAX: Final = 8  # an answer stays under ANSWER_MAX
PROMPT_IMAGE_MAX: Final = 4000  # characters; OpenAI's bound of dall-e-3

# Times
CLOCK_SKEW_MS: Final = 30_000  # strangers' clocks
OFFER_VALID_MS: Final = 600_000
OFFER_RENEW_MS: Final = 240_000  # a new offer well before the old one ends
LEASE_EVERY_MS: Final = 10_000
LEASE_VALID_MS: Final = 30_000
HEARTBEAT_MS: Final = 1_000
SILENCE_MS: Final = 3_000
CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 120.0
FIRST_BYTE_TIMEOUT_S: Final = 60.0
ENGINE_SILENCE_S: Final = 60.0  # in mid-call: a prefill tells of each batch of 256 tokens
READER_STALL_S: Final = 60.0  # a caller that takes nothing for so long has left
PIPELINED_MAX: Final = 64  # requests of one connection behind one that is not answered yet
STREAM_HEAD_TIMEOUT_S: Final = 5.0  # a stream begins before its engine does
LEASE_RETRY_S: Final = 0.5  # after a lost lease; doubles up to the directory's own rhythm
OFFER_FETCH_TIMEOUT_S: Final = 3.0
DISCOVERY_AT_ONCE: Final = 64
EVIDENCE_KEPT_MS: Final = 600_000
EVIDENCE_KEPT_MAX: Final = 10_000

# Money
VOUCHER_RETRIES_MAX: Final = 3  # late vouchers under concurrency: 1.8 % at 32 in flight
ATTEMPTS_MAX: Final = 4  # one request: the first node, then three others
CHANNELS_MAX: Final = 100_000
CLAIM_BATCH_MAX: Final = 100  # rows in one claim transaction
CHAIN_RECEIPTS_MAX: Final = 64  # a payer holds so many receipts that nobody signed yet
CHAIN_MS: Final = 100  # age at which a chain of receipts is signed with the next answer
CHAINED_UNITS_MAX: Final = 1_000  # a tenth of a cent at most: dearer answers have their own
UNRESOLVED_HOLD_S: Final = 900  # then a hold waits no more for a node that is gone
CHAIN_PROOF_MS: Final = 2_000  # then a payer asks for the signature that no answer brought
RELEASE_EVERY_S: Final = 600.0  # a channel's way back takes 900 s at least
WALK_INS_MAX: Final = 4096  # requests at once of callers who pay a gateway by x402
TRANSFERS_AT_ONCE: Final = 256  # one-off payments of which the request has not ended
TRANSFER_LOOKBACK_BLOCKS: Final = 50_000  # a day of 2 s blocks; one whose payer comes later is gone
CHANNEL_READS_AT_ONCE: Final = 16  # of the chain, where all channels are looked at
WITHDRAW_DELAY_ACCEPTED_S: Final = 86_400  # a payer locks money for a day at most

# Joining and the owner's controls
CONTROL_BODY_MAX: Final = 16 * 1024
PUSHES_AT_ONCE: Final = 10  # offers from one address in a burst: several nodes behind one router
PUSH_EVERY_MS: Final = 2_000  # then one; a node pushes twice a minute
PUSHERS_MAX: Final = 10_000  # addresses that are remembered
UPLOAD_MAX: Final = 4 * 1024 * 1024  # a second of 32 Mbit/s; faster is fast enough
UPLOADS_RUNNING_MAX: Final = 4  # measured at once; bounds memory and the line
UPLOADS_AT_ONCE: Final = 8  # of one address: two measurements
UPLOAD_EVERY_MS: Final = 10_000  # then one
UPLOAD_TIMEOUT_S: Final = 20.0
UNMET_MAX: Final = 64  # names of models that were asked for and nobody offers
UNMET_MS: Final = 60_000  # told to nodes for so long
CANARY_EVERY_MS: Final = 3_600_000  # for one node
CANARIES_PER_HOUR_MAX: Final = 60  # for all: each may open a channel, which costs gas

# Routing
ROUTES_KEPT_MAX: Final = 20_000  # choices, of about 3 kB each
MEMORY_NODES_MAX: Final = 10_000  # nodes that a gateway remembers over a restart
MEMORY_LINES_MAX: Final = 16  # speeds of one node that it does, the latest learned
MEMORY_PAGE_MAX: Final = 64 * 1024 * 1024  # all of it: 10,000 nodes with 16 lines are 50 MB

# Relays: what strangers on both sides may make one bear
RELAY_LINE_MAX: Final = 256  # the longest line is a node's proof: 176 bytes
RELAY_GREETINGS_MAX: Final = 256  # connections that have not said yet what they want
RELAY_NODES_MAX: Final = 4096  # waiting nodes: a connection each
RELAY_NODES_PER_ADDRESS_MAX: Final = 32  # behind one router
RELAY_STREAMS_MAX: Final = 2048  # two connections each, at most 256 KiB of buffers
RELAY_STREAMS_PER_NODE_MAX: Final = 256  # more than the slots and queue of a service
RELAY_OPEN_TIMEOUT_S: Final = 5.0  # a second SYN goes out after 1 s, a third after 3 s
RELAY_PING_EVERY_S: Final = 10.0  # routers forget a silent connection after minutes
RELAY_SILENCE_S: Final = 30.0
RELAY_IDLE_S: Final = 60.0  # of a stream: leases come every ten seconds, heartbeats each second
RELAY_RETRY_MAX_S: Final = 15.0

# Users of a gateway
KEYS_MAX: Final = 100_000  # API keys of one gateway, and teams: all are in memory
MODELS_PER_KEY_MAX: Final = 64
ADMIN_BODY_MAX: Final = 64 * 1024
REPLAY_MS: Final = 120_000  # an SDK tries again within seconds
REPLAY_BYTES_MAX: Final = 64 * 1024 * 1024  # of answers that may be asked for again
REPLAY_ONE_BYTES_MAX: Final = 16 * 1024 * 1024
REPLAYS_MAX: Final = 20_000
RETRIES_FORGIVEN_MAX: Final = 2  # OpenAI's SDK tries twice more

# Processes of one gateway
LANE_VALID_MS: Final = 15_000  # a process that does not renew its lane has lost it
LANE_RENEW_MS: Final = 3_000
KEYS_REFRESH_MS: Final = 1_000  # a key revoked elsewhere opens nothing any more
SHARED_ASKS_MAX: Final = 256  # admissions in one transaction
WORKERS_MAX: Final = 64
LEDGER_PATIENCE_S: Final = 10.0  # a client waits so long for its bill to be on disk

# Queues
CONCURRENT_PER_CHANNEL: Final = 64  # below slots + queue of any service: others find a place
QUEUE_MAX: Final = 64  # calls waiting for a slot of one service
CONCURRENT_MAX: Final = 1024  # requests at once in one process
REQUEST_IDS_KEPT_MAX: Final = 1_000_000
