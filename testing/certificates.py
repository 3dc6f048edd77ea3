"""Self-signed certificates for loopback, for tests."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)


@dataclass(frozen=True)
class Certificate:
    """The files of a certificate and its key."""

    cert: Path
    key: Path
    serial: int

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.cert)


def write_certificate(folder: Path, name: str = "server", password: bytes | None = None) -> Certificate:
    """Write ``name.pem`` and ``name.key``, replacing existing ones."""
    private = generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(private, hashes.SHA256())
    )
    encryption: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
    written = Certificate(folder / f"{name}.pem", folder / f"{name}.key", certificate.serial_number)
    written.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    written.key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return written


def read_certificate(folder: Path, name: str = "server") -> Certificate:
    """Load the files that :func:`write_certificate` wrote. Raises FileNotFoundError."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    return Certificate(cert, key, x509.load_pem_x509_certificate(cert.read_bytes()).serial_number)


def served_serial(port: int) -> int:
    """The serial number of the certificate on a new connection. Blocks."""
    return x509.load_pem_x509_certificate(
        ssl.get_server_certificate(("127.0.0.1", port), timeout=10).encode()
    ).serial_number
