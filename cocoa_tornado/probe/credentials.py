"""Tokens: given ones, newly minted ones, and forged ones that a gateway must refuse.

The only module of the probe that uses the identity package.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import IdentityError, KeyMaterialError
from ..identity.devkey import development_secret
from ..identity.keys import KeyRing, Signer, secret_key
from ..identity.minting import TokenRequest, token_claims
from ..rules.identity import TokenPolicy, is_device_id
from .judge import compact_json
from .verdicts import ProbeError
from .wire import json_value

LIFETIME_S = 3600
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Device:
    """A device identity for the probe.

    :ivar given: the user named it by token or id, so a real device may have it
    """

    device_id: str
    user_id: int | str
    token: str = field(repr=False)
    given: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """A secret that the gateway probably shares.

    :ivar origin: its source, for messages: ``--secret``
    """

    origin: str
    secret: str = field(repr=False)

    def signs(self, token: str) -> bool:
        """Whether the token was signed with this secret."""
        try:
            KeyRing([secret_key(self.secret, self.origin)], max_token_bytes=1 << 20).verify(token)
        except IdentityError:
            return False
        return True

    def sign(self, claims: Mapping[str, object]) -> str:
        """Return a token with ``claims``, unchecked.

        :raises ProbeError: the secret is unusable
        """
        try:
            return Signer.from_secret(self.secret, origin=self.origin).sign(claims)
        except KeyMaterialError as error:
            raise ProbeError(str(error)) from error


def development_key(data_dir: Path | None) -> Key:
    """The development key of this machine, which ``cocoa serve`` uses too. Created on first use.

    :param data_dir: the folder of the key; None for the user's data directory
    :raises ProbeError: the key cannot be read
    """
    try:
        return Key("this machine's development key", development_secret(data_dir).secret)
    except KeyMaterialError as error:
        raise ProbeError(str(error)) from error


def random_device_id() -> str:
    """An id that no real device has."""
    return f"probe-{secrets.token_hex(6)}"


def random_group() -> str:
    """A group that no real device is in."""
    return f"probe-{secrets.token_hex(6)}"


def claims_for(
    device_id: str, now: float, lifetime_s: float = LIFETIME_S, groups: tuple[str, ...] = ()
) -> dict[str, object]:
    """The claims of a device, valid from ``now`` (Unix seconds) for ``lifetime_s``."""
    request = TokenRequest(device_id, 0, device_version="probe", groups=groups, lifetime_s=lifetime_s)
    return token_claims(request, TokenPolicy(), now)


def minted(key: Key, device_id: str, now: float, *, given: bool = False, groups: tuple[str, ...] = ()) -> Device:
    """A device with a fresh token."""
    return Device(device_id, 0, key.sign(claims_for(device_id, now, groups=groups)), given)


def from_token(token: str) -> Device:
    """The device that a token names. The signature is not verified.

    :raises ProbeError: it is not a token of the contract
    """
    claims = _claims(token) if _JWT.fullmatch(token) else None
    if claims is None:
        raise ProbeError("a given token is not a JWT")
    device_id, user_id = claims.get("device_id"), claims.get("user_id")
    if not is_device_id(device_id):
        raise ProbeError("a given token names no device_id")
    return Device(device_id, user_id if isinstance(user_id, int | str) else 0, token, given=True)


def expired(key: Key, device: Device, now: float) -> str:
    """A token of the device that expired a day ago."""
    return key.sign(claims_for(device.device_id, now - 2 * 86400, 86400))


def without_device_id(key: Key, now: float) -> str:
    """A validly signed token without ``device_id``."""
    claims = claims_for("", now)
    del claims["device_id"]
    return key.sign(claims)


def tampered(token: str) -> str:
    """The same token with another signature."""
    message, _, signature = token.rpartition(".")
    raw = bytearray(_decoded(signature) or b"\0" * 32)
    raw[0] ^= 0x01
    return f"{message}.{_encoded(bytes(raw))}"


def relabelled(token: str, device_id: str) -> str:
    """The same signature with the claims of another device."""
    header, _, signature = token.split(".")
    return f"{header}.{_encoded(compact_json({**(_claims(token) or {}), 'device_id': device_id}).encode())}.{signature}"


def unsigned(token: str) -> str:
    """The same claims with ``alg: none`` and no signature."""
    payload = token.split(".")[1]
    return f"{_encoded(compact_json({'alg': 'none', 'typ': 'JWT'}).encode())}.{payload}."


def _claims(token: str) -> dict[str, object] | None:
    value = json_value(_decoded(token.split(".")[1]))
    return value if isinstance(value, dict) else None


def _decoded(part: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        return b""


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
