"""The TLS identity: made once, kept private, the same pin for ever."""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from inferpool.identity.certificate import tls_identity
from inferpool.protocol.errors import Refused
from inferpool.transport.tls import server_context, spki_sha256

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")


def loaded(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@posix
def test_only_the_owner_reads_the_key(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        found = tls_identity(tmp_path / "tls" / "node")
    finally:
        os.umask(old)
    assert mode(found.key) == 0o600
    assert mode(found.key.parent) == 0o700
    assert sorted(path.name for path in found.key.parent.iterdir()) == [
        "certificate.pem",
        "key.pem",
    ]


@posix
@pytest.mark.parametrize("bits", [0o640, 0o604, 0o666])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, bits: int) -> None:
    tls_identity(tmp_path).key.chmod(bits)
    with pytest.raises(Refused, match="chmod 600") as caught:
        tls_identity(tmp_path)
    assert caught.value.code == "bad_keystore"


def test_the_pin_is_the_key_s_and_stays(tmp_path: Path) -> None:
    first = tls_identity(tmp_path, ["192.0.2.7"])
    assert tls_identity(tmp_path, ["192.0.2.7"]) == first
    text = first.certificate.read_bytes()
    assert tls_identity(tmp_path, ["192.0.2.7"]).certificate.read_bytes() == text
    again = tls_identity(tmp_path, ["node.example"])  # other names: another certificate
    assert again.spki == first.spki
    assert again.certificate.read_bytes() != text
    key = loaded(again.certificate).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert hashlib.sha256(spki).digest() == first.spki
    assert spki_sha256(ssl.PEM_cert_to_DER_cert(again.certificate.read_text())) == first.spki


def test_names_are_in_the_certificate(tmp_path: Path) -> None:
    found = loaded(tls_identity(tmp_path, ["node.example", "192.0.2.7", "2001:db8::1"]).certificate)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "node.example" in names.get_values_for_type(x509.DNSName)
    addresses = {str(name) for name in names.get_values_for_type(x509.IPAddress)}
    assert addresses == {"127.0.0.1", "::1", "192.0.2.7", "2001:db8::1"}


@pytest.mark.parametrize("rest", ["", "not a certificate", "half"])
def test_a_broken_certificate_is_made_again_on_the_same_key(tmp_path: Path, rest: str) -> None:
    first = tls_identity(tmp_path)
    text = first.certificate.read_text()
    first.certificate.write_text(text[: len(text) // 2] if rest == "half" else rest)
    again = tls_identity(tmp_path)
    assert again.spki == first.spki
    server_context(again.certificate, again.key)


def test_a_certificate_of_another_key_is_replaced(tmp_path: Path) -> None:
    mine, other = tls_identity(tmp_path / "mine"), tls_identity(tmp_path / "other")
    assert mine.spki != other.spki
    mine.certificate.write_bytes(other.certificate.read_bytes())
    again = tls_identity(tmp_path / "mine")
    assert again.spki == mine.spki
    server_context(again.certificate, again.key)  # would refuse a pair that does not match


@pytest.mark.parametrize("kind", ["nothing", "words", "another curve"])
def test_a_key_that_is_none_is_refused_and_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tls_identity(tmp_path).key
    other = ec.generate_private_key(ec.SECP384R1())
    data = {
        "nothing": b"",
        "words": b"-----BEGIN PRIVATE KEY-----\nwords\n-----END PRIVATE KEY-----\n",
        "another curve": other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }[kind]
    path.write_bytes(data)
    with pytest.raises(Refused) as caught:
        tls_identity(tmp_path)
    assert caught.value.code == "bad_keystore"
    assert path.read_bytes() == data
