"""JSON-RPC errors with the codes and words of geth, which clients look for."""

from __future__ import annotations

from typing import Any, Final

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
REJECTED: Final = -32000  # a transaction that the pool does not take
LIMIT_EXCEEDED: Final = -32005
REVERTED: Final = 3  # `data` carries what the contract returned


class RpcError(Exception):
    """An error that the caller gets: a code, a message, and data where a contract gave some."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    def to_json(self) -> dict[str, Any]:
        """The member `error` of an answer."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        return error if self.data is None else error | {"data": self.data}
