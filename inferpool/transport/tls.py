"""TLS without a certificate authority: the key itself is pinned.

An offer names the SHA-256 of its endpoint's SubjectPublicKeyInfo (SPKI, RFC 7469 section 2.4), so
that a self-signed certificate may be renewed as long as its key stays. Names, dates and issuers
mean nothing here; the pin alone decides, and it is checked before a byte of a request is sent.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from typing import Final

PIN_BYTES: Final = 32  # SHA-256
_SEQUENCE: Final = 0x30
_EXPLICIT_VERSION: Final = 0xA0  # [0] in TBSCertificate, left out by version 1
# serialNumber, signature, issuer, validity, subject stand before subjectPublicKeyInfo (RFC 5280)
_FIELDS_BEFORE_SPKI: Final = 5


def client_context(pinned: bool) -> ssl.SSLContext:
    """A client's context: TLS 1.3 and no authority where the key is pinned, else the system's."""
    context = ssl.create_default_context()
    if pinned:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
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
