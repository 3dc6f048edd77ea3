"""What takes messages out of an outbox in tests."""

from __future__ import annotations

from collections.abc import Callable

from cocoa_tornado.connection.outbox import Numbered
from cocoa_tornado.rules.terms import Terms


class FakeTaker:
    """A connection whose wall clock stands still.

    :ivar expired: what has expired
    :ivar framed: the messages whose frames were made, in order
    """

    def __init__(self, now_ms: float = 0.0, make: Callable[[bytes, Numbered], bytes | None] | None = None) -> None:
        self.now = now_ms
        self.expired: list[Terms] = []
        self.framed: list[Numbered] = []
        self._make = make or (lambda payload, numbered: payload)

    def now_ms(self) -> float:
        return self.now

    def frame_of(self, payload: bytes, numbered: Numbered) -> bytes | None:
        self.framed.append(numbered)
        return self._make(payload, numbered)

    def note_expired(self, terms: Terms) -> None:
        self.expired.append(terms)


TAKER = FakeTaker()
"""For outboxes whose messages neither expire nor have a number."""
