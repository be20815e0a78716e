"""The certificates of the status server: a client verifies them with what it was given when it started."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from dreambooth_operator.machinery.certificates import (
    AUTHORITY_LIFETIME,
    SERVER_LIFETIME,
    Authority,
    Pair,
    decode_authority,
    encode_authority,
    is_due,
    issue,
    renew_authority,
)

START = datetime(2026, 11, 28, tzinfo=UTC)
HOST = "dreambooth-operator.dreambooth-system.svc"
DAY = timedelta(days=1)


def new(now: datetime = START) -> Authority:
    return renew_authority(None, "test", now)


def verify(trusted: str, server: Pair, now: datetime, host: str = HOST) -> None:
    """Raises VerificationError as a client does that trusts these certificates only."""
    store = Store(x509.load_pem_x509_certificates(trusted.encode()))
    verifier = PolicyBuilder().store(store).time(now).build_server_verifier(x509.DNSName(host))
    verifier.verify(server.certificate, [])


def test_client_verifies_the_server_for_months_whenever_it_starts() -> None:
    """The authority is replaced twice in these 25 years. Clients start and report every ten days."""
    authority, server = new(), issue(new(), HOST, START)
    clients: list[tuple[datetime, str]] = []
    issuers = set()
    for day in range(0, 25 * 365, 10):
        now = START + day * DAY
        authority = renew_authority(authority, "test", now)
        if is_due(server, authority, now):
            server = issue(authority, HOST, now)
        issuers.add(authority.issuer.certificate.serial_number)
        clients = [(started, trusted) for started, trusted in clients if now - started <= 270 * DAY]
        clients.append((now, authority.trusted()))
        for trusted in {trusted for _, trusted in clients}:
            verify(trusted, server, now)
    assert len(issuers) == 3


def test_certificate_is_replaced_before_it_expires() -> None:
    authority = new()
    server = issue(authority, HOST, START)
    assert not is_due(server, authority, START + SERVER_LIFETIME / 2)
    assert is_due(server, authority, START + SERVER_LIFETIME - 30 * DAY)


def test_authority_that_is_replicated_is_not_replaced() -> None:
    authority = new()
    assert renew_authority(authority, "test", START + AUTHORITY_LIFETIME / 2) is authority


def test_certificate_of_another_authority_is_replaced() -> None:
    assert is_due(issue(new(), HOST, START), new(), START)


def test_authority_that_has_expired_is_replaced() -> None:
    """All replicas were off for years."""
    now = START + 2 * AUTHORITY_LIFETIME
    authority = renew_authority(new(), "test", now)
    verify(authority.trusted(), issue(authority, HOST, now), now)


@pytest.mark.parametrize("host", ["evil.example", f"x{HOST}"])
def test_certificate_is_valid_for_its_host_only(host: str) -> None:
    authority = new()
    with pytest.raises(VerificationError):
        verify(authority.trusted(), issue(authority, HOST, START), START, host)


def test_server_certificate_issues_no_certificates() -> None:
    authority = new()
    server = issue(authority, HOST, START)
    forged = issue(Authority(server), HOST, START)
    store = Store([authority.issuer.certificate])
    verifier = PolicyBuilder().store(store).time(START).build_server_verifier(x509.DNSName(HOST))
    with pytest.raises(VerificationError):
        verifier.verify(forged.certificate, [server.certificate])


def test_secret_holds_the_whole_authority() -> None:
    for now in (START, START + AUTHORITY_LIFETIME - 200 * DAY):
        authority = renew_authority(new(), "test", now)
        read = decode_authority(encode_authority(authority))
        assert read is not None
        assert encode_authority(read) == encode_authority(authority)
        assert renew_authority(read, "test", now) is read


def test_empty_secret_holds_none() -> None:
    assert decode_authority({}) is None


def damaged(**changes: str) -> dict[str, str]:
    return encode_authority(new()) | {name.replace("_", "."): value for name, value in changes.items()}


def of_unknown_kind(encoded: str) -> str:
    """A certificate or a key whose algorithm is not id-ecPublicKey (RFC 5480, section 2.1.1), but an unknown one."""
    first, *lines, last = base64.b64decode(encoded).decode().splitlines()
    known, unknown = bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d020f")
    content = base64.b64decode("".join(lines)).replace(known, unknown)
    return base64.b64encode(f"{first}\n{base64.encodebytes(content).decode()}{last}\n".encode()).decode()


@pytest.mark.parametrize(
    "data",
    [
        damaged(ca_crt="%"),
        damaged(ca_crt=base64.b64encode(b"no certificate").decode()),
        damaged(ca_key=""),
        damaged(ca_key=encode_authority(new())["ca.key"]),
        damaged(ca_key=damaged()["ca.crt"]),
        damaged(ca_crt=of_unknown_kind(damaged()["ca.crt"])),
        damaged(ca_key=of_unknown_kind(damaged()["ca.key"])),
    ],
    ids=[
        "no base64", "no certificate", "no key", "the key of another", "a certificate as key",
        "a certificate of an unknown kind", "a key of an unknown kind",
    ],
)  # fmt: skip
def test_damaged_secret_is_an_error(data: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_authority(data)


@pytest.mark.parametrize("name", ["next-ca.crt", "next-ca.key"])
def test_damaged_successor_is_replaced_and_the_issuer_stays(name: str) -> None:
    now = START + AUTHORITY_LIFETIME - 200 * DAY
    authority = renew_authority(new(), "test", now)
    data = encode_authority(authority)
    for damage in ("", of_unknown_kind(data[name])):
        read = decode_authority({**data, name: damage})
        assert read is not None
        assert read.issuer.key_pem() == authority.issuer.key_pem()
        renewed = renew_authority(read, "test", now)
        assert renewed.issuer is read.issuer
        assert renewed.successor
        assert authority.successor
        assert renewed.successor.key_pem() != authority.successor.key_pem()
