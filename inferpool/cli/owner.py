"""Speaking to the running roles as their owner: the control APIs on this machine."""

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
    start = "start one with `inferpool node join`"
    return _ask(home, "node", start, (method, action), body, timeout_s)


def ask_gateway(
    home: Home, method: str, action: str, body: object = None, *, timeout_s: float = 10
) -> dict[str, Any]:
    """The same for the gateway."""
    start = "start one with `inferpool gateway`"
    return _ask(home, "gateway", start, (method, action), body, timeout_s)


def _ask(
    home: Home, role: str, start: str, call: tuple[str, str], body: object, timeout_s: float
) -> dict[str, Any]:
    running = home.running(role)
    if running is None:
        raise Unavailable(f"No {role} runs on this machine; {start}.")
    method, action = call
    request = urllib.request.Request(  # noqa: S310 - the role's own loopback URL
        f"{running['url']}/inferpool/control/{action}",
        data=None if method == "GET" else orjson.dumps(body),
        method=method,
        headers={"Authorization": f"Bearer {home.secret('control-token')}"},
    )
    try:
        with opened(running, request, timeout_s) as response:
            value: dict[str, Any] = orjson.loads(response.read(_ANSWER_MAX))
    except urllib.error.HTTPError as error:
        raise _told(error, role) from None
    except (urllib.error.URLError, OSError) as error:
        raise Unavailable(f"The {role} does not answer: {error}") from None
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


def _told(error: urllib.error.HTTPError, role: str) -> BadRequest:
    try:
        told = orjson.loads(error.read(1 << 16))["error"]
        code = told["code"] if told["code"] in CODES else "invalid_request"
        return BadRequest(str(told["message"]), code=code)
    except (ValueError, KeyError, TypeError):
        return BadRequest(f"The {role} answered {error.code}.")
