"""TLS without a certificate authority: the key itself is pinned.

An offer names the SHA-256 of its endpoint's SubjectPublicKeyInfo (SPKI, RFC 7469 section 2.4), so
that a self-signed certificate may be renewed as long as its key stays. Names, dates and issuers
mean nothing here; the pin alone decides, and it is checked before a byte of a request is sent.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from functools import cache
from pathlib import Path
from typing import Final

PIN_BYTES: Final = 32  # SHA-256
HTTP2: Final = "h2"  # in ALPN (RFC 7301): what gRPC speaks
HTTP1: Final = "http/1.1"
NO_TLS: Final = bytes(PIN_BYTES)  # what stands for "plain HTTP" where a pin is expected
_SEQUENCE: Final = 0x30
_EXPLICIT_VERSION: Final = 0xA0  # [0] in TBSCertificate, left out by version 1
# serialNumber, signature, issuer, validity, subject stand before subjectPublicKeyInfo (RFC 5280)
_FIELDS_BEFORE_SPKI: Final = 5


def client_context(pinned: bool, protocol: str = "") -> ssl.SSLContext:
    """A client's context: TLS 1.3 and no authority where the key is pinned, else the system's.

    One for all pinned peers: it holds no secret, and loading the system's authorities for each
    would take 20 ms. `protocol`: what is asked for by ALPN, of a pinned peer.
    """
    return _pinned_context(protocol) if pinned else ssl.create_default_context()


@cache
def _pinned_context(protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocol:
        context.set_alpn_protocols([protocol])
    return context


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A server's context from PEM files: TLS 1.3 alone, so that no older one can be negotiated."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context


def spki_sha256(certificate: bytes) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo in a DER certificate; ValueError where it is not one."""
    start, end, _ = _element(certificate, 0, len(certificate), _SEQUENCE)
    at, end, _ = _element(certificate, start, end, _SEQUENCE)  # TBSCertificate
    if at < end and certificate[at] == _EXPLICIT_VERSION:
        _, _, at = _element(certificate, at, end)
    for _ in range(_FIELDS_BEFORE_SPKI):
        _, _, at = _element(certificate, at, end)
    _, _, after = _element(certificate, at, end, _SEQUENCE)
    return hashlib.sha256(certificate[at:after]).digest()


def pin_matches(certificate: bytes | None, pin: bytes) -> bool:
    """Whether the peer's certificate carries the pinned key."""
    if not certificate:
        return False
    try:
        return hmac.compare_digest(spki_sha256(certificate), pin)
    except ValueError:
        return False


def _element(data: bytes, at: int, end: int, tag: int | None = None) -> tuple[int, int, int]:
    """(start of the content, end of the content, start of the next element) of a DER element."""
    if at + 2 > end or (tag is not None and data[at] != tag):
        raise ValueError("not a DER certificate")
    length, start = data[at + 1], at + 2
    if length >= 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4 or start + size > end:
            raise ValueError("not a DER certificate")
        length = int.from_bytes(data[start : start + size], "big")
        start += size
    if start + length > end:
        raise ValueError("not a DER certificate")
    return start, start + length, start + length
