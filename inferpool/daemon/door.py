"""Where a role listens, how others reach it, and by which key: plain HTTP on loopback, else TLS.

One rule on every side: the literal hosts 127.0.0.1 and ::1 are plain HTTP, anything else is TLS 1.3
under a key that the signed offer names. There is no switch to turn TLS off.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from inferpool.daemon.serving import listen
from inferpool.home import Home
from inferpool.identity.certificate import TlsIdentity, tls_identity
from inferpool.protocol.errors import Refused
from inferpool.protocol.limits import TEXT_MAX
from inferpool.transport.http import LOOPBACK
from inferpool.transport.tls import NO_TLS

_HERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what to dial from this machine


@dataclass(frozen=True, slots=True)
class Door:
    """An open listening socket. `url`: for others; `local_url`: from this machine."""

    listening: socket.socket
    url: str
    local_url: str
    tls: TlsIdentity | None

    @property
    def spki(self) -> bytes:
        """What an offer names as the endpoint's key: 32 bytes, zeros without TLS."""
        return self.tls.spki if self.tls is not None else NO_TLS

    def facts(self) -> dict[str, object]:
        """What a role announces to this machine: `tls_certificate` is to be trusted for `url`."""
        found: dict[str, object] = {"url": self.local_url}
        if self.url != self.local_url:
            found["endpoint"] = self.url
        if self.tls is not None:
            found["tls_certificate"] = str(self.tls.certificate)
            found["tls_spki"] = self.tls.spki.hex()
        return found


def open_door(
    home: Home,
    role: str,
    host: str,
    port: int,
    endpoint: str = "",
    listening: socket.socket | None = None,
) -> Door:
    """Listen; make the TLS key where one is needed. Raises Refused(bad_config, bad_keystore).

    `endpoint`: the URL by which others reach this role, where it is not the address listened on
    (behind a forwarded port, or on every address). `listening`: what another process opened.
    """
    _check_endpoint(role, endpoint)
    # An https endpoint on a loopback listener is a tunnel's or a forwarder's end: TLS up to here,
    # since the pin that the offer names is this machine's key and no front's.
    secure = host not in LOOPBACK or endpoint.startswith("https:")
    tls = tls_identity(home.root / "tls" / role, _names(host, endpoint)) if secure else None
    listening = listening or listen(host, port, "--port")
    bound = listening.getsockname()[1]
    return Door(
        listening=listening,
        url=endpoint or _url(host, bound, secure),
        local_url=_url(_HERE.get(host, host), bound, secure),
        tls=tls,
    )


def require_endpoint(role: str, host: str, endpoint: str) -> None:
    """A node on every address must say by which one it is reached. Raises Refused(bad_config)."""
    if host in _HERE and not endpoint:
        raise Refused(
            f"{host} is every address of this machine and none that others can dial; set"
            f" {role}.endpoint, such as https://203.0.113.7:8421",
            code="bad_config",
            param=f"{role}.endpoint",
        )


def refuse_open(role: str, host: str, endpoint: str = "") -> None:
    """Callers without a key are let in on this machine only. Raises Refused(bad_config)."""
    if host not in LOOPBACK or endpoint:
        raise Refused(
            f"--open lets anyone in who can connect, and {role}.host is {host}: open only on"
            " 127.0.0.1 or ::1, without an endpoint; elsewhere give out API keys",
            code="bad_config",
            param=f"{role}.open",
        )


def _check_endpoint(role: str, endpoint: str) -> None:
    if not endpoint:
        return
    try:
        parts = urlsplit(endpoint)
        valid = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    plain = valid and parts.scheme == "http" and parts.hostname in LOOPBACK
    if not valid or not (plain or parts.scheme == "https"):
        problem = "it must be https://HOST:PORT"
    elif parts.username or parts.query or parts.fragment or endpoint.endswith("/"):
        problem = "it must be no more than scheme, host, port and path, without a / at the end"
    elif len(endpoint) > TEXT_MAX:
        problem = f"it is over {TEXT_MAX} characters"
    else:
        return
    raise Refused(
        f"{role}.endpoint {endpoint!r}: {problem}", code="bad_config", param=f"{role}.endpoint"
    )


def _names(host: str, endpoint: str) -> list[str]:
    """What the certificate names, beside loopback: for clients that look at names."""
    found = [] if host in _HERE or host in LOOPBACK else [host]
    if endpoint:
        found.append(urlsplit(endpoint).hostname or "")
    return found


def _url(host: str, port: int, secure: bool) -> str:
    try:
        bracketed = ipaddress.ip_address(host).version == 6
    except ValueError:
        bracketed = False
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if bracketed else f"{scheme}://{host}:{port}"
