"""Admin tokens: what their claims must be, and what they permit. Pure.

An admin token names the audience ``cocoa-admin``, which no device token may name (``identity.py``), so that neither is
accepted as the other, even if one key signs both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ..errors import InvalidClaims
from ..plain_text import is_encodable
from .identity import ADMIN_AUDIENCE, audiences, check_times

READ: Final = "admin:read"
WRITE: Final = "admin:write"
TEXT: Final = "admin:text"
SCOPES: Final = (READ, WRITE, TEXT)
"""To see; to change; and to see the text of messages, of which others see the length."""


@dataclass(frozen=True, slots=True)
class Operator:
    """The operator that a verified admin token names.

    :ivar subject: the claim ``sub``, for the log
    :ivar scopes: of :data:`SCOPES`; others are ignored
    :ivar expires_at: the claim ``exp``, Unix seconds, without leeway
    """

    subject: str
    scopes: frozenset[str]
    expires_at: float


def operator_of(claims: Mapping[str, object], leeway_s: float, now: float) -> Operator:
    """Return the operator for the claims of a verified token.

    :param now: Unix seconds
    :raises InvalidToken: ``expired`` or ``not_yet``
    :raises InvalidClaims: the reason is the claim
    """
    if ADMIN_AUDIENCE not in audiences(claims):
        raise InvalidClaims("audience")
    expires_at = check_times(claims, leeway_s, now)
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject or not is_encodable(subject):
        raise InvalidClaims("subject")
    return Operator(subject, frozenset(_words(claims.get("scope", []))).intersection(SCOPES), expires_at)


def _words(scope: object) -> list[str]:
    """An array of strings, or the string of RFC 8693, 4.2, with one space between two words."""
    words = scope.split(" ") if isinstance(scope, str) else scope
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InvalidClaims("scope")
    return words
