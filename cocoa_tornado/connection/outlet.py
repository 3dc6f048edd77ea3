"""A connection, as the feed from its box sees it."""

from __future__ import annotations

from typing import Protocol

from ..rules.box import Numbers
from ..rules.terms import Terms
from .making_room import OutboxLimits, Withdrawn


class Outlet(Protocol):
    """A connection, as its feed sees it."""

    def send(self, frame: bytes, timestamp_ms: int, terms: Terms | None = None) -> None:
        """Queue a frame. A connection whose outbox has no room for it is closed, unless it is an interim."""

    def offer(self, body: bytes, timestamp_ms: int, terms: Terms | None = None) -> bool:
        """Queue a message if the outbox has room for it; False if not. If it has a collapse key, call :meth:`collapse`
        before.

        :param body: its frame or, if its terms have a number, its payload
        """

    def make_room(self, body: bytes, terms: Terms, least: int) -> Withdrawn:
        """See ``Outbox.withdraw``."""

    def collapse(self, key: str, below: Numbers | None = None) -> None:
        """See ``Outbox.collapse``."""

    def has_nothing_to_write(self) -> bool:
        """True if the socket has taken all that was sent."""

    def has_no_high_to_write(self) -> bool:
        """True if no message of high priority is queued."""

    def joined(self) -> None:
        """The mailbox knows the device, or is closed."""

    def outbox_limits(self) -> OutboxLimits: ...

    def superseded(self) -> None:
        """Another connection, perhaps of another server, holds the device: this one ends."""

    def who(self) -> dict[str, object]: ...
