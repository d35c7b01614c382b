"""A machine's TLS identity: a P-256 key and a self-signed certificate, made at the first start.

No authority signs it and nobody reads its names or dates: peers pin the SHA-256 of the key's
SubjectPublicKeyInfo, which the signed offer names. A new certificate on the same key keeps the pin.
Threats: another user of this machine reads the key (0600 in a 0700 directory, refused otherwise);
a crash between the two files (each is whole or absent, and a certificate of another key is made
anew); a lost key (a new one means a new pin, and thus a new offer, never a silent exchange).
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from inferpool.protocol.errors import Refused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import DNSName, IPAddress

# Clients that check dates at all (an exported certificate) should not meet an end for years;
# RFC 5280 section 4.1.2.5 has a value for "no well-defined end".
_NO_END: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_BACKDATED: Final = timedelta(days=1)  # a peer's clock may be behind ours
_KEY, _CERTIFICATE = "key.pem", "certificate.pem"


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """Files in PEM, and the pin: SHA-256 of the public key's SubjectPublicKeyInfo (32 bytes)."""

    key: Path
    certificate: Path
    spki: bytes


def tls_identity(directory: Path, names: Iterable[str] = ()) -> TlsIdentity:
    """The identity kept in `directory`, made where it is missing.

    `names`: hosts and addresses to put into the certificate, for clients that look at them.
    Raises Refused(bad_keystore): the key is no P-256 key, or others can read it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = _load_key(directory / _KEY)
    public = _spki(key)
    path, wanted = directory / _CERTIFICATE, ["localhost", "127.0.0.1", "::1", *names]
    if not _serves(path, public, wanted):
        _write(path, _self_signed(key, wanted), 0o644)
    return TlsIdentity(directory / _KEY, path, hashlib.sha256(public).digest())


def _load_key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        _write(path, _pem(key), 0o600)
        return key
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise Refused(f"{path} can be read by others; chmod 600 it", code="bad_keystore")
    try:
        found = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise Refused(f"{path} is not a private key: {error}", code="bad_keystore") from None
    if not isinstance(found, ec.EllipticCurvePrivateKey) or found.curve.name != "secp256r1":
        raise Refused(f"{path} is not a P-256 key", code="bad_keystore")
    return found


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def _spki(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    public = key.public_key()
    return public.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)


def _serves(path: Path, public: bytes, names: list[str]) -> bool:
    """Whether the certificate there is of this key and has these names."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization as form

    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
        alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    its = found.public_key().public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)
    return its == public and set(alternative.value) == {_general_name(name) for name in names}


def _self_signed(key: EllipticCurvePrivateKey, names: list[str]) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "inferpool")])
    alternatives = list(dict.fromkeys(_general_name(name) for name in names))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _BACKDATED)
        .not_valid_after(_NO_END)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


def _general_name(name: str) -> DNSName | IPAddress:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, and never readable by others for a moment."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
