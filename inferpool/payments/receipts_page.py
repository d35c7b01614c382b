"""`GET /inferpool/receipts`: a channel's receipts for its payer, at a node or a gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import parse_qs

from inferpool.identity.signing import Key, verify
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.payee_ledger import PayeeLedger
from inferpool.protocol import headers
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.receipt import SignedReceipt, receipts_request_digest

Sign = Callable[[list[SignedReceipt]], list[SignedReceipt]]


def receipts_page(
    ledger: PayeeLedger, key: Key, query: bytes, sent: Mapping[bytes, bytes], sign: Sign = list
) -> dict[str, object]:
    """A page of a channel's receipts, the request ids in flight, and the best voucher.

    `key`: the payee's, that signs receipts; `sign` gives those a signature that have none of their
    own. Raises BadRequest, and Refused(bad_signature) where its payer does not ask.
    """
    channel_id, after, signature = _asked(query, sent)
    channel = ledger.channels.get(channel_id)
    if channel is None:
        raise BadRequest("No such channel is here.", code="not_found")
    digest = receipts_request_digest(key.address, channel_id, channel.chain_id)
    verify(digest, signature, channel.config.payer_authorizer)
    return {
        "receipts": [item.to_wire() for item in sign(ledger.receipts(channel_id, after))],
        "inFlight": [to_hex(item) for item in _running(ledger, channel)],
        "voucher": {
            "maxClaimableAmount": str(channel.best),
            "signature": to_hex(channel.best_signature),
        },
    }


def _running(ledger: PayeeLedger, channel: PayeeChannel) -> list[bytes]:
    return [*channel.held, *ledger.saving(channel.channel_id)]


def _asked(query: bytes, sent: Mapping[bytes, bytes]) -> tuple[bytes, int, bytes]:
    try:
        values = parse_qs(query.decode(), strict_parsing=True, max_num_fields=4)
        channel_id = from_hex(values["channel"][0], 32)
        after = int(values.get("after", ["0"])[0])
        if not 0 <= after < 2**63:
            raise ValueError("after is out of range")
        return channel_id, after, from_hex(sent.get(headers.SIGNATURE, b"").decode(), 65)
    except (KeyError, ValueError) as error:
        raise BadRequest(
            f"Ask with ?channel=0x...&after=N and Inferpool-Signature: {error}"
        ) from None
