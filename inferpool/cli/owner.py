"""Speaking to the running node as its owner: the control API on this machine."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import orjson

from inferpool.home import Home
from inferpool.protocol.errors import CODES, BadRequest, Unavailable

_ANSWER_MAX = 1 << 24


def ask_node(
    home: Home, method: str, action: str, body: object = None, *, timeout_s: float = 10
) -> dict[str, Any]:
    """One call; raises Unavailable where no node runs, and the node's own error."""
    running = home.running("node")
    if running is None:
        raise Unavailable("No node runs on this machine; start one with `inferpool node join`.")
    request = urllib.request.Request(  # noqa: S310 - the node's own loopback URL
        f"{running['url']}/inferpool/control/{action}",
        data=None if method == "GET" else orjson.dumps(body),
        method=method,
        headers={"Authorization": f"Bearer {home.secret('control-token')}"},
    )
    try:
        with opened(running, request, timeout_s) as response:
            value: dict[str, Any] = orjson.loads(response.read(_ANSWER_MAX))
    except urllib.error.HTTPError as error:
        raise _told(error) from None
    except (urllib.error.URLError, OSError) as error:
        raise Unavailable(f"The node does not answer: {error}") from None
    return value


def opened(running: dict[str, object], request: urllib.request.Request, timeout_s: float) -> Any:
    """Open a URL of a role on this machine; its own certificate is the only one trusted."""
    import ssl

    certificate = running.get("tls_certificate")
    context = None
    if certificate:
        context = ssl.create_default_context(cafile=str(certificate))
        context.check_hostname = False  # the file is the pin
    return urllib.request.urlopen(request, timeout=timeout_s, context=context)  # noqa: S310


def _told(error: urllib.error.HTTPError) -> BadRequest:
    try:
        told = orjson.loads(error.read(1 << 16))["error"]
        code = told["code"] if told["code"] in CODES else "invalid_request"
        return BadRequest(str(told["message"]), code=code)
    except (ValueError, KeyError, TypeError):
        return BadRequest(f"The node answered {error.code}.")
