"""How one message is delivered, as its connection needs to know it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

from .addressing import Options, Priority
from .box import LaneName, Position


class Terms(NamedTuple):
    """What distinguishes a message from an ordinary one. None stands for the defaults, which nearly all messages have.

    :ivar interim_of: the session of an interim; '' for everything else
    :ivar priority: ``high`` messages overtake the others
    :ivar expires_ms: not to be sent after this time, Unix milliseconds; 0: it does not expire
    :ivar collapse_key: the message replaces older ones of its device with the same key
    :ivar id: the record's own; None: it has none
    :ivar number: of a message whose frame is made when it is taken out of the outbox: its number in its lane of the
        device's box, or 0 if it is not stored. None: it is queued as a finished frame
    """

    interim_of: str = ""
    priority: Priority = "normal"
    expires_ms: int = 0
    collapse_key: str | None = None
    id: str | None = None
    number: int | None = None

    def has_expired(self, now_ms: float) -> bool:
        return 0 < self.expires_ms < now_ms


Later: TypeAlias = Callable[[LaneName], int | None]
"""See ``hub.Client.suggest``."""


class Left(NamedTuple):
    """What a connection has not written when another one of its device takes over.

    :ivar messages: those that are in no box, in their order: body, timestamp (Unix milliseconds) and terms of each
    :ivar position: how far the socket has taken the device's box; None: it has taken nothing of it, or there is no
        mailbox
    :ivar places: with a mailbox, for each message the number of the stored one that it comes after, as far as it is
        known
    """

    messages: Sequence[tuple[bytes, int, Terms | None]] = ()
    position: Position | None = None
    places: Sequence[int | None] = ()


def terms_of(interim_of: str, options: Options | None, timestamp_ms: int, now_ms: float) -> Terms | None:
    """Return the terms of a record's messages; None: the defaults.

    :param timestamp_ms: the record's timestamp, Unix milliseconds; 0 if it has none
    :param now_ms: when it was read: its ``ttl`` counts from then if it has no timestamp, or one in the future
    """
    if options is None:
        return interim_terms(interim_of) if interim_of else None
    expires_ms = options.expires_ms(timestamp_ms, now_ms)
    return Terms(interim_of, options.priority, expires_ms, options.collapse_key, options.id)


def interim_terms(session: str) -> Terms:
    """Return the terms of an interim without options."""
    return _NEW(Terms, (session, "normal", 0, None, None, None))


_NEW: Final = tuple.__new__
"""Like Terms(...), without the Python function that a NamedTuple has for it."""
