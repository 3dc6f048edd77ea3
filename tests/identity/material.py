"""Keys of every type for the tests, and tokens assembled by hand, so that they can be invalid."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
from collections.abc import Coroutine, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import get_default_algorithms

SECRET = "a secret of at least thirty-two bytes"
NOW = 1_700_000_000.0
DEADLINE_S = 5.0
CLAIMS = json.dumps({"device_id": "d", "user_id": 1, "device_version": "1", "exp": NOW + 60}).encode()
ENCRYPTED = BestAvailableEncryption(b"password")


@functools.cache
def private_key(kind: str) -> Any:
    """A private key: ``RSA``, ``RSA-1024``, ``EC``, ``EC-384``, ``Ed25519``, ``Ed448``, ``X25519``; ``RSA'`` is another
    one."""
    match kind.rstrip("'"):
        case "RSA":
            return rsa.generate_private_key(65537, 2048)
        case "RSA-1024":
            return rsa.generate_private_key(65537, 1024)
        case "EC":
            return ec.generate_private_key(ec.SECP256R1())
        case "EC-384":
            return ec.generate_private_key(ec.SECP384R1())
        case "Ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case "X25519":
            return x25519.X25519PrivateKey.generate()
        case _:
            return ed448.Ed448PrivateKey.generate()


def private_pem(kind: str, encryption: Any = None) -> bytes:
    """The private key in PKCS #8."""
    pem: bytes = private_key(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return pem


def public_pem(kind: str) -> bytes:
    """The public key."""
    pem: bytes = private_key(kind).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


ALGORITHM_OF = {
    "RSA": "RS256",
    "RSA-1024": "RS256",
    "EC": "ES256",
    "EC-384": "ES384",
    "Ed25519": "EdDSA",
    "Ed448": "EdDSA",
}


def jwk(kind: str, **members: object) -> dict[str, object]:
    """The public JWK of a key."""
    algorithm: Any = get_default_algorithms()[ALGORITHM_OF[kind.rstrip("'")]]
    public = algorithm.to_jwk(private_key(kind).public_key(), as_dict=True)
    public.pop("key_ops", None)
    return {**public, **members}


def jwks(*keys: Mapping[str, object]) -> bytes:
    """A JWKS document."""
    return json.dumps({"keys": keys}).encode()


def part(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(
    key: Any,
    algorithm: str,
    payload: bytes = b'{"device_id":"d"}',
    header: bytes | None = None,
    **members: object,
) -> str:
    """A token with any header, any payload and a valid signature."""
    if header is None:
        header = json.dumps({"alg": algorithm, "typ": "JWT", **members}).encode()
    message = f"{part(header)}.{part(payload)}"
    name = "EdDSA" if algorithm in ("Ed25519", "Ed448") else algorithm
    signature = get_default_algorithms()[name].sign(message.encode(), key)
    return f"{message}.{part(signature)}"


def device_token(kind: str, algorithm: str, **header: Any) -> str:
    """A token of the device ``d`` that is valid at :data:`NOW`, signed with the secret or with a key of this type."""
    return token(SECRET.encode() if kind == "secret" else private_key(kind), algorithm, CLAIMS, **header)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test on an event loop of its own, for at most :data:`DEADLINE_S`."""
    asyncio.run(asyncio.wait_for(test, DEADLINE_S))


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "cocoa.identity"]
