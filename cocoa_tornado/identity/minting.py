"""New tokens: for devices in development, for tests of a live gateway, and for the token endpoint."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ..rules.admin_tokens import SCOPES
from ..rules.identity import ADMIN_AUDIENCE, TokenPolicy
from .keys import Signer

ADMIN_LIFETIME_S: Final = 12 * 3600.0


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """The contents of a new token.

    Nothing is validated: testers need tokens that a gateway rejects.

    :ivar lifetime_s: seconds until the token expires; negative for an expired token; None for the policy's lifetime
    :ivar extra_claims: added last; they override claims of the same name
    """

    device_id: str
    user_id: int | str
    device_version: str = "1.0.0"
    groups: tuple[str, ...] = ()
    lifetime_s: float | None = None
    extra_claims: Mapping[str, object] = field(default_factory=dict)


def token_claims(request: TokenRequest, policy: TokenPolicy, now: float) -> dict[str, object]:
    """Return the claims of a new token, in the order of signing.

    Times are whole seconds if the lifetime is whole, else they have millisecond precision. ``jti`` is random. ``exp``
    is ``iat`` plus the lifetime, rounded down, so no token outlives its lifetime.

    :param now: Unix seconds
    """
    lifetime_s = policy.lifetime_s if request.lifetime_s is None else request.lifetime_s
    claims: dict[str, object] = {
        "device_id": request.device_id,
        "user_id": request.user_id,
        "device_version": request.device_version,
    }
    if request.groups:
        claims["groups"] = list(request.groups)
    named = (("iss", policy.issuer), ("sub", policy.subject), ("aud", policy.audience))
    claims.update((name, value) for name, value in named if value)
    claims.update(_times(lifetime_s, now))
    claims["jti"] = secrets.token_hex(16)
    claims.update(request.extra_claims)
    return claims


@dataclass(frozen=True, slots=True)
class AdminTokenRequest:
    """The contents of a new admin token. Nothing is validated.

    :ivar subject: the operator's name in the log
    :ivar lifetime_s: seconds until the token expires; negative for an expired token
    :ivar extra_claims: added last; they override claims of the same name
    """

    subject: str
    scopes: tuple[str, ...] = SCOPES
    lifetime_s: float = ADMIN_LIFETIME_S
    extra_claims: Mapping[str, object] = field(default_factory=dict)


def admin_claims(request: AdminTokenRequest, now: float) -> dict[str, object]:
    """Return the claims of a new admin token, in the order of signing. The times are as in :func:`token_claims`.

    :param now: Unix seconds
    """
    claims: dict[str, object] = {"sub": request.subject, "aud": ADMIN_AUDIENCE, "scope": list(request.scopes)}
    return claims | _times(request.lifetime_s, now) | {"jti": secrets.token_hex(16)} | dict(request.extra_claims)


def mint(request: TokenRequest, signer: Signer, policy: TokenPolicy, now: float) -> str:
    """Return a new signed token.

    :param now: Unix seconds
    """
    return signer.sign(token_claims(request, policy, now))


def _times(lifetime_s: float, now: float) -> dict[str, object]:
    whole = float(lifetime_s).is_integer()
    issued_at = math.floor(now) if whole else _whole_ms(now)
    return {"iat": issued_at, "exp": issued_at + int(lifetime_s) if whole else _whole_ms(issued_at + lifetime_s)}


def _whole_ms(seconds: float) -> float:
    return math.floor(seconds * 1000) / 1000
