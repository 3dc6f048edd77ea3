"""Who a device is: where its token is found, and what the claims must say.

``cocoa_tornado.identity`` verifies signatures and keys. Of HTTP, this module sees only three header values. Every
function is pure, and raises only :class:`~cocoa_tornado.errors.IdentityError`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeGuard

from ..errors import InvalidClaims, InvalidToken, MissingToken

MIN_SECRET_BYTES: Final = 32
"""RFC 7518, 3.2: an HMAC key has at least the size of the hash, here of SHA-256."""
MAX_NAME_BYTES: Final = 128
"""Of a device id, and of a group's name."""
MAX_GROUPS: Final = 64
MAX_TOKEN_BYTES: Final = 13 * 1024
"""Room for 64 groups of 128 bytes, everything else and base64; with it a request still has 3 KiB for other headers."""
ADMIN_AUDIENCE: Final = "cocoa-admin"
"""The audience of admin tokens, which are never a device's."""
CANARY_PREFIX: Final = "cocoa-canary-"
"""The prefix of the canaries' device ids; no token may name one."""
DEVICE_CLAIMS: Final = ("device_id", "user_id", "device_version", "groups")
"""The claims that describe a device; all others are RFC 7519's."""


@dataclass(frozen=True, slots=True)
class TokenPolicy:
    """The requirements for a token besides the device's own claims, and the lifetime of a new one.

    :ivar issuer: what ``iss`` must be where it is present; ``""`` accepts any
    :ivar subject: the same for ``sub``
    :ivar audience: what ``aud`` must contain; ``""`` means that this service has no audience of its own, and then a
        token that names one is meant for another service (RFC 7519, 4.1.3)
    :ivar leeway_s: how far the clocks may differ, in both directions
    :ivar lifetime_s: the life of a new token
    :ivar max_lifetime_s: a token that lives longer is refused; 0 accepts any lifetime. It is counted from ``iat``, or
        from now where a token has none
    :ivar max_token_bytes: a longer token is refused before any work is done on it
    """

    issuer: str = "cocoa-fruit-agentic"
    subject: str = "audio-streaming"
    audience: str = ""
    leeway_s: float = 10.0
    lifetime_s: float = 86400.0
    max_lifetime_s: float = 0.0
    max_token_bytes: int = MAX_TOKEN_BYTES


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """A device, as a verified token describes it.

    Every string can be encoded as UTF-8.

    :ivar user_id: integer or string, as it came
    :ivar expires_at: the claim ``exp``, Unix seconds, finite and without leeway: the token is good until
        ``expires_at + policy.leeway_s``
    :ivar proof: the key that verified the token; the key store can tell whether it is still trusted
    """

    device_id: str
    user_id: int | str
    device_version: str
    groups: tuple[str, ...]
    expires_at: float
    proof: Hashable = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class FoundToken:
    """A token and where it stood.

    :ivar subprotocol: what the answer selects in ``Sec-WebSocket-Protocol``, spelled as the client did; None selects
        nothing
    """

    token: str = field(repr=False)
    source: Literal["query", "authorization", "subprotocol"]
    subprotocol: str | None = None


def find_token(query_tokens: Sequence[str], authorization: str | None, subprotocol_header: str | None) -> FoundToken:
    """Return the token from the first place that holds one: query, ``Authorization``, subprotocol pair.

    An empty value counts as absent. Offering ``bearer`` selects it only where the token was taken from that pair.

    :param query_tokens: every value of the query argument ``token``
    :param authorization: the header ``Authorization``, if any
    :param subprotocol_header: the header ``Sec-WebSocket-Protocol``, several of them joined with commas
    :raises MissingToken: there is none
    :raises InvalidToken: ``ambiguous``: the query holds several that differ
    """
    in_query = {token for token in query_tokens if token}
    if len(in_query) > 1:
        raise InvalidToken("ambiguous")
    if in_query:
        return FoundToken(in_query.pop(), "query")
    scheme, _, credentials = (authorization or "").strip().partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return FoundToken(credentials.strip(), "authorization")
    # RFC 9110, 5.6.1: empty elements of a list don't count.
    offers = [offer for offer in map(str.strip, (subprotocol_header or "").split(",")) if offer]
    for offer, following in itertools.pairwise(offers):
        if offer.lower() == "bearer":
            return FoundToken(following, "subprotocol", offer)
    raise MissingToken("missing")


def check_claims(
    claims: Mapping[str, object], policy: TokenPolicy, now: float, proof: Hashable = None
) -> DeviceIdentity:
    """Return the identity that the claims of a verified token stand for.

    :param now: Unix seconds
    :param proof: kept in the identity
    :raises InvalidToken: ``expired`` or ``not_yet``
    :raises InvalidClaims: a claim is missing, mistyped, or names another issuer, subject or audience; the reason is the
        claim, or ``issuer``, ``subject``, ``audience``, ``lifetime``
    """
    expires_at = check_times(claims, policy.leeway_s, now)
    _check_lifetime(claims, policy, expires_at, now)
    _check_name(claims, "iss", policy.issuer, "issuer")
    _check_name(claims, "sub", policy.subject, "subject")
    _check_audience(claims, policy.audience)
    if "jti" in claims and not isinstance(claims["jti"], str):
        raise InvalidClaims("jti")
    device_id, version, user_id = claims.get("device_id"), claims.get("device_version"), claims.get("user_id")
    if not is_device_id(device_id) or device_id.startswith(CANARY_PREFIX):
        raise InvalidClaims("device_id")
    if not _is_text(version):
        raise InvalidClaims("device_version")
    if not is_user_id(user_id):
        raise InvalidClaims("user_id")
    return DeviceIdentity(device_id, user_id, version, _groups(claims), expires_at, proof)


def is_device_id(value: object) -> TypeGuard[str]:
    """Say whether ``value`` may name a device: 1 to 128 bytes of UTF-8 without control characters."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_BYTES:
        return False
    if value.isascii():
        return value.isprintable()
    if any(character < " " or "\x7f" <= character <= "\x9f" for character in value):
        return False
    try:
        return len(value.encode("utf-8")) <= MAX_NAME_BYTES
    except UnicodeEncodeError:  # a lone surrogate
        return False


def is_group(value: object) -> TypeGuard[str]:
    """Say whether ``value`` may name a group: a name like a device's."""
    return is_device_id(value)


def is_user_id(value: object) -> TypeGuard[int | str]:
    """Say whether ``value`` may name a user: an integer, or a string that can be sent as UTF-8."""
    return _is_text(value) or (isinstance(value, int) and not isinstance(value, bool))


def check_times(claims: Mapping[str, object], leeway_s: float, now: float) -> float:
    """Return the claim ``exp``, which is required.

    :raises InvalidToken: ``expired`` or ``not_yet``
    :raises InvalidClaims: a time is missing or mistyped; the reason is the claim
    """
    expires_at = _numeric_date(claims, "exp")
    if now >= expires_at + leeway_s:
        raise InvalidToken("expired")
    for name in ("nbf", "iat"):
        if name in claims and _numeric_date(claims, name) > now + leeway_s:
            raise InvalidToken("not_yet")
    return expires_at


def audiences(claims: Mapping[str, object]) -> Sequence[str]:
    """Return what the claim ``aud`` names; nothing if it is absent.

    :raises InvalidClaims: ``audience``: it is neither a string nor an array of strings
    """
    audience = claims.get("aud", [])
    named = [audience] if isinstance(audience, str) else audience
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise InvalidClaims("audience")
    return named


def _check_lifetime(claims: Mapping[str, object], policy: TokenPolicy, expires_at: float, now: float) -> None:
    if policy.max_lifetime_s:
        # Where a token has no iat, the leeway is for the clock of its issuer, who counted from then.
        made_at = _numeric_date(claims, "iat") if "iat" in claims else now + policy.leeway_s
        # To the millisecond: two floats of today's size are no closer to what was meant than a microsecond.
        if round(expires_at - made_at, 3) > policy.max_lifetime_s:
            raise InvalidClaims("lifetime")


def _numeric_date(claims: Mapping[str, object], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidClaims(name)
    try:
        seconds = float(value)
    except OverflowError as error:
        raise InvalidClaims(name) from error
    if not math.isfinite(seconds):
        raise InvalidClaims(name)
    return seconds


def _check_name(claims: Mapping[str, object], name: str, expected: str, reason: str) -> None:
    if name not in claims:
        return
    value = claims[name]
    if not isinstance(value, str) or (expected and value != expected):
        raise InvalidClaims(reason)


def _check_audience(claims: Mapping[str, object], expected: str) -> None:
    if "aud" not in claims:
        if expected:
            raise InvalidClaims("audience")
        return
    named = audiences(claims)
    if not expected or expected not in named or ADMIN_AUDIENCE in named:
        raise InvalidClaims("audience")


def _groups(claims: Mapping[str, object]) -> tuple[str, ...]:
    groups = claims.get("groups", [])
    if not isinstance(groups, list) or len(groups) > MAX_GROUPS or not all(map(is_group, groups)):
        raise InvalidClaims("groups")
    return tuple(groups)


def _is_text(value: object) -> TypeGuard[str]:
    """A string that can be sent as UTF-8: JSON may also spell lone surrogates, which can't."""
    if not isinstance(value, str):
        return False
    if value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
