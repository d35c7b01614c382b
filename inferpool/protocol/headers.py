"""Names of the headers that a hop adds, in lower case as ASGI carries them."""

from __future__ import annotations

from typing import Final

VERSION: Final = b"inferpool-version"
VERSION_SPOKEN: Final = b"1"
REQUEST_ID: Final = b"inferpool-request-id"
OFFER: Final = b"inferpool-offer"
RECEIPT: Final = b"inferpool-receipt"
BOOKED: Final = b"inferpool-booked"  # the payer's last receipt number and total
RECEIPTS: Final = b"inferpool-receipts"  # which kind the caller takes
CHAINED: Final = b"chained"
SIGNED: Final = b"signed"
CHAINED_RECEIPT: Final = b"inferpool-chained-receipt"
GATEWAY_RECEIPT: Final = b"inferpool-gateway-receipt"  # for a caller who pays it by x402
NODE: Final = b"inferpool-node"
SIGNATURE: Final = b"inferpool-signature"  # of whoever asks for evidence
HEDGE: Final = b"inferpool-hedge"  # 1: a small call may be asked of two nodes, and both be paid
PROVIDER: Final = b"inferpool-provider"  # a client's preferences, where its body has no place
FEE: Final = b"inferpool-fee-pico-usd"  # the gateway's own, beside the cost
COST: Final = b"inferpool-cost-pico-usd"

PAYMENT_SIGNATURE: Final = b"payment-signature"
PAYMENT_REQUIRED: Final = b"payment-required"
PAYMENT_RESPONSE: Final = b"payment-response"

INFERENCE_HEADER_LENGTH: Final = b"inference-header-content-length"

IDEMPOTENCY_KEY: Final = b"idempotency-key"
SDK_RETRY_COUNT: Final = b"x-stainless-retry-count"  # of OpenAI's SDKs; 0 on a first try
REPLAYED: Final = b"inferpool-replayed"  # 1: this answer was paid for before

# Between the processes of one gateway, on their own machine.
NEIGHBOUR: Final = b"inferpool-neighbour"  # the secret of whom is asked, and who asks
NO_TWIN: Final = b"inferpool-no-twin"  # 1: this process does not know the request
