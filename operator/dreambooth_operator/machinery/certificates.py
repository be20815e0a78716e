"""Certificates of one HTTPS server and of the private authority that issues them.

The clients of the server trust this authority and no other. They are given its certificate when they start, and cannot
be given another one while they run. So the authority gets a successor `_OVERLAP` before it expires, new clients are
given the certificates of both, and the successor issues certificates only in the last `SERVER_LIFETIME` of its
predecessor: a client can verify the server for at least `_OVERLAP - SERVER_LIFETIME`, 275 days.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

log = logging.getLogger(__name__)
AUTHORITY_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=90)
_OVERLAP = timedelta(days=365)
_RENEW_BEFORE = timedelta(days=30)
_MAX_SKEW = timedelta(hours=1)  # between the clocks of server and clients
_CERTIFICATE, _KEY = "ca.crt", "ca.key"
_NEXT_CERTIFICATE, _NEXT_KEY = "next-ca.crt", "next-ca.key"


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def certificate_pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self) -> bytes:
        """The private key in PEM, unencrypted."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def expires_within(self, time: timedelta, now: datetime) -> bool:
        """Whether the certificate expires within `time` after `now`, which has a time zone."""
        return self.certificate.not_valid_after_utc - now <= time


@dataclass(frozen=True, slots=True)
class Authority:
    """The authority: the pair that issues certificates, and its successor, if it has one."""

    issuer: Pair
    successor: Pair | None = None

    def trusted(self) -> str:
        """What a client must trust: one or two certificates in PEM."""
        pairs = (self.issuer, self.successor) if self.successor else (self.issuer,)
        return b"".join(pair.certificate_pem() for pair in pairs).decode()


def renew_authority(old: Authority | None, name: str, now: datetime) -> Authority:
    """The authority at `now`: `old` itself, unless a pair has to be created or replaced. `name` is its common name."""
    if old is None:
        return Authority(_new_issuer(name, now))
    issuer, successor = old.issuer, old.successor
    if issuer.expires_within(SERVER_LIFETIME, now):
        issuer, successor = successor or _new_issuer(name, now), None
    if successor is None and issuer.expires_within(_OVERLAP, now):
        successor = _new_issuer(name, now)
    renewed = Authority(issuer, successor)
    return old if renewed == old else renewed


def issue(authority: Authority, host: str, now: datetime) -> Pair:
    """A server certificate for `host`, a DNS name or an IP address."""
    issuer = authority.issuer
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(issuer.key.public_key())
    certificate = (
        _builder("", issuer.certificate.subject, key, now, SERVER_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        # Critical, because the subject is empty (RFC 5280, section 4.2.1.6).
        .add_extension(x509.SubjectAlternativeName([_general_name(host)]), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(issuer.key, hashes.SHA256())
    )  # fmt: skip
    return Pair(certificate, key)


def is_due(pair: Pair, authority: Authority, now: datetime) -> bool:
    """Whether a server certificate must be replaced: it expires soon, or another pair issues certificates now."""
    if pair.expires_within(_RENEW_BEFORE, now):
        return True
    try:
        pair.certificate.verify_directly_issued_by(authority.issuer.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return True
    return False


def encode_authority(authority: Authority) -> dict[str, str]:
    """The data of a Secret."""
    found = {_CERTIFICATE: authority.issuer.certificate_pem(), _KEY: authority.issuer.key_pem()}
    if authority.successor:
        found[_NEXT_CERTIFICATE] = authority.successor.certificate_pem()
        found[_NEXT_KEY] = authority.successor.key_pem()
    return {name: base64.b64encode(content).decode() for name, content in found.items()}


def decode_authority(data: Mapping[str, str]) -> Authority | None:
    """The authority in the data of a Secret; None if there is none. A damaged successor counts as missing.

    Raises:
        ValueError: the issuer is damaged.
    """
    if (issuer := _decode(data, _CERTIFICATE, _KEY)) is None:
        return None
    try:
        return Authority(issuer, _decode(data, _NEXT_CERTIFICATE, _NEXT_KEY))
    except ValueError as error:  # the issuer stays, because running clients trust it
        log.warning("the successor of the certificate authority is replaced when one is due: %s", error)
        return Authority(issuer)


def _decode(data: Mapping[str, str], certificate_name: str, key_name: str) -> Pair | None:
    if not data.get(certificate_name) and not data.get(key_name):
        return None
    try:
        certificate = x509.load_pem_x509_certificate(base64.b64decode(data.get(certificate_name, "")))
        public_key = certificate.public_key()
        key = load_pem_private_key(base64.b64decode(data.get(key_name, "")), password=None)
    except (TypeError, UnsupportedAlgorithm) as error:  # TypeError: the key is encrypted
        raise ValueError(f"{certificate_name} or {key_name}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != public_key:
        raise ValueError(f"{key_name} is not the key of {certificate_name}")
    return Pair(certificate, key)


def _new_issuer(name: str, now: datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(name, _name(name), key, now, AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate, key)


def _builder(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    """A certificate that is valid from now on, with the extensions that all of them have."""
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _MAX_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
