"""Answering JSON-RPC requests: the method is looked up, its parameters are counted, and whatever
goes wrong becomes an error object."""

from __future__ import annotations

import inspect
from typing import Any

# Imported for what they enter into the table.
from inferpool.chain.devchain import reading, writing  # noqa: F401
from inferpool.chain.devchain.blocks import Json
from inferpool.chain.devchain.errors import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    RpcError,
)
from inferpool.chain.devchain.node import Node
from inferpool.chain.devchain.table import METHODS


def answer(node: Node, request: object) -> Json:
    """Answer one request object; never raises."""
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        error = RpcError(INVALID_REQUEST, "expected an object with a method")
        return {"jsonrpc": "2.0", "id": None, "error": error.to_json()}
    reply: Json = {"jsonrpc": "2.0", "id": request.get("id")}
    try:
        return reply | {"result": _dispatch(node, request["method"], request.get("params") or [])}
    except RpcError as error:
        return reply | {"error": error.to_json()}
    except Exception as error:  # a fault of the chain's own must not end the chain
        text = f"{type(error).__name__}: {error}"
        return reply | {"error": RpcError(INTERNAL_ERROR, text).to_json()}


def _dispatch(node: Node, name: str, parameters: object) -> Any:
    function = METHODS.get(name)
    if function is None:
        raise RpcError(METHOD_NOT_FOUND, f"the method {name:.80} does not exist/is not available")
    if not isinstance(parameters, list):
        raise RpcError(INVALID_PARAMS, "expected an array of parameters")
    try:
        inspect.signature(function).bind(node, *parameters)
    except TypeError as error:
        raise RpcError(INVALID_PARAMS, str(error)) from None
    return function(node, *parameters)
