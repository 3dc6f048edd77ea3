"""What takes messages out of an outbox in tests."""

from __future__ import annotations

from collections.abc import Callable

from cocoa_tornado.rules.box import LaneName
from cocoa_tornado.rules.terms import Terms


class FakeTaker:
    """A connection whose wall clock stands still.

    :ivar expired: what has expired
    :ivar framed: the messages whose frames were made, in order
    """

    def __init__(self, now_ms: float = 0.0, make: Callable[[bytes, LaneName, int], bytes | None] | None = None) -> None:
        self.now = now_ms
        self.expired: list[Terms] = []
        self.framed: list[tuple[LaneName, int]] = []
        self._make = make or (lambda payload, lane, number: payload)

    def now_ms(self) -> float:
        return self.now

    def frame_of(self, payload: bytes, lane: LaneName, number: int) -> bytes | None:
        self.framed.append((lane, number))
        return self._make(payload, lane, number)

    def note_expired(self, terms: Terms, body: bytes = b"", timestamp_ms: int = 0) -> None:
        self.expired.append(terms)


TAKER = FakeTaker()
"""For outboxes whose messages neither expire nor have a number."""
