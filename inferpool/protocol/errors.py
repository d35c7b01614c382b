"""One exception tree; each class has one stable code and one HTTP status.

InferpoolError
  BadRequest            the caller's fault: 400, 404, 405, 413, 422
  Unauthorized          401, 403
  PaymentRequired       402, with the x402 reason
  RateLimited           429
  Unavailable           502, 503, 504: the other side's fault, may be retried
  Refused               not an HTTP answer: a signature, hash or file that was refused

The codes are the contract; every one is listed in `docs/reference/errors.md` and in `CODES`.
"""

from __future__ import annotations

from typing import ClassVar, Final

# code -> (HTTP status, OpenAI error type, what it means)
CODES: Final[dict[str, tuple[int, str, str]]] = {
    "invalid_json": (400, "invalid_request_error", "The body is not valid JSON."),
    "invalid_request": (400, "invalid_request_error", "A field is missing or has a wrong value."),
    "unsupported_parameter": (400, "invalid_request_error", "A parameter that is not served."),
    "preferences_unmet": (
        400,
        "invalid_request_error",
        "The caller's preferences, or its key's rules, leave no node.",
    ),
    "no_maximum": (400, "invalid_request_error", "The request has no finite maximum price."),
    "context_length_exceeded": (
        400,
        "invalid_request_error",
        "Prompt + output exceed the context.",
    ),
    "invalid_tensor": (
        400,
        "invalid_request_error",
        "A tensor's name, shape, type or data is wrong.",
    ),
    "unsupported_version": (
        400,
        "invalid_request_error",
        "An Inferpool-Version that is not spoken.",
    ),
    "model_not_found": (404, "invalid_request_error", "No node offers this model now."),
    "not_found": (404, "invalid_request_error", "No such path or object."),
    "method_not_allowed": (405, "invalid_request_error", "The path exists, the method does not."),
    "duplicate_request": (409, "invalid_request_error", "This request id was already used."),
    "body_too_large": (413, "invalid_request_error", "The body is over the limit."),
    "unsupported_encoding": (415, "invalid_request_error", "A compressed body is not read."),
    "invalid_api_key": (401, "authentication_error", "The API key is missing or unknown."),
    "key_expired": (401, "authentication_error", "The API key's time is over."),
    "not_loopback": (403, "permission_error", "Without a key only loopback callers are served."),
    "model_refused": (403, "permission_error", "The API key may not use this model."),
    "payer_refused": (403, "permission_error", "The node's owner does not serve this payer."),
    "payment_required": (402, "payment_error", "The request carries no payment."),
    "payment_invalid": (402, "payment_error", "The payment header cannot be read."),
    "payment_terms": (402, "payment_error", "The payment names other terms than offered."),
    "voucher_signature": (402, "payment_error", "The voucher is not signed by the channel's key."),
    "voucher_amount": (402, "payment_error", "The voucher does not cover the work in flight."),
    "voucher_balance": (402, "payment_error", "The voucher is above the channel's balance."),
    "channel_not_found": (402, "payment_error", "The channel holds no money on the chain."),
    "channel_closing": (402, "payment_error", "The payer asked to withdraw this channel."),
    "deposit_failed": (402, "payment_error", "The deposit did not go through on the chain."),
    "transfer_failed": (402, "payment_error", "The one-off payment did not go through."),
    "payment_used": (402, "payment_error", "A one-off payment that bought an answer before."),
    "refund_amount": (402, "payment_error", "A refund of more than is free, or of too little."),
    "refund_empty": (402, "payment_error", "Nothing is free on the channel."),
    "budget_exceeded": (402, "insufficient_quota", "The key's budget does not cover the maximum."),
    "capital_exceeded": (
        402,
        "insufficient_quota",
        "The gateway may lock no more money with nodes.",
    ),
    "rate_limited": (429, "rate_limit_error", "Too many requests or tokens from this caller."),
    "overloaded": (503, "server_error", "Every slot and queue place is taken; try again."),
    "no_node": (503, "server_error", "No node can take this request now."),
    "engine_unavailable": (503, "server_error", "The model's engine is loading or restarting."),
    "shutting_down": (503, "server_error", "The server is going down."),
    "engine_failed": (502, "server_error", "The engine failed during the request."),
    "node_failed": (502, "server_error", "The node failed during the request."),
    "receipt_invalid": (502, "server_error", "The node's receipt does not match its answer."),
    "ledger_unavailable": (503, "server_error", "The gateway's database does not answer."),
    "chain_unavailable": (503, "server_error", "The chain does not answer."),
    "timeout": (504, "server_error", "The answer did not come in time."),
    "internal": (500, "server_error", "A fault in Inferpool itself; please report it."),
    "bad_signature": (422, "invalid_request_error", "A signature does not verify."),
    "bad_encoding": (422, "invalid_request_error", "Not the canonical form of this object."),
    "expired": (422, "invalid_request_error", "An offer or lease past its end."),
    "bad_hash": (422, "invalid_request_error", "A file's SHA-256 is not the expected one."),
    "bad_manifest": (422, "invalid_request_error", "A model manifest that cannot be used."),
    "source_failed": (502, "server_error", "No source delivered the model's file."),
    "bad_config": (422, "invalid_request_error", "A configuration key or value is wrong."),
    "bad_keystore": (422, "invalid_request_error", "A keystore cannot be opened."),
    "bad_backup": (422, "invalid_request_error", "A backup cannot be made, opened or restored."),
    "chain_reverted": (502, "server_error", "The chain refused the transaction."),
}


class InferpoolError(Exception):
    """An error with a stable `code`, a sentence that says what to do, and the parameter at fault.

    `retry_after_s` is sent as `Retry-After` where it is set.
    """

    default: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code or self.default
        assert self.code in CODES, f"unlisted error code {self.code}"
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.request_id = ""  # the client's request, where it had got one

    @property
    def status(self) -> int:
        """HTTP status of this code."""
        return CODES[self.code][0]

    @property
    def type(self) -> str:
        """The `type` that OpenAI's clients read."""
        return CODES[self.code][1]

    def openai(self) -> dict[str, object]:
        """The error body of OpenAI's API."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def oip(self) -> dict[str, object]:
        """The error body of the Open Inference Protocol, V2; `code` is our addition."""
        return {"error": self.message, "code": self.code}


class BadRequest(InferpoolError):
    """The caller sent something wrong; the same request will fail again."""

    default = "invalid_request"


class Unauthorized(InferpoolError):
    """No key, or a key that this gateway does not know."""

    default = "invalid_api_key"


class PaymentRequired(InferpoolError):
    """No payment, or one that does not cover the work."""

    default = "payment_required"


class RateLimited(InferpoolError):
    """The caller has too much in flight."""

    default = "rate_limited"


class Unavailable(InferpoolError):
    """The server's or the other side's fault; another try or another node may succeed."""

    default = "overloaded"


class Refused(InferpoolError):
    """A signature, hash, encoding or file that was refused; never an answer to a client."""

    default = "bad_signature"
