"""The transient messages of one connection: sends them, lets them wait within bounds, or drops and counts them.

``transients.py`` holds the waiting ones and decides the place of each; this module passes them to the outbox, or drops
them. IOLoop thread only.
"""

from __future__ import annotations

from typing import Final

from ..rules.box import LANES, LaneName
from ..rules.terms import Terms
from ..rules.trace_memory import Outcome
from .box_reader import BoxReader
from .mail import Mail
from .outlet import Outlet
from .transients import Transient, Transients

CATCHING_UP: Final = "catching_up"
"""Why a message is dropped: others that were stored before it are still in the box, and it cannot wait for them."""


class TransientFeed:
    """See the module.

    :param reader: of the same connection; it knows which messages have been passed on
    :ivar waiting: the waiting messages; None: there are none. Other modules only compare it with None
    """

    __slots__ = ("_device_id", "_mail", "_outlet", "_reader", "waiting")

    def __init__(self, mail: Mail, outlet: Outlet, reader: BoxReader, device_id: str) -> None:
        self._mail, self._outlet, self._reader, self._device_id = mail, outlet, reader, device_id
        self.waiting: Transients | None = None

    def __repr__(self) -> str:
        return f"<TransientFeed {self.waiting}>"

    def send(self, payload: bytes, timestamp_ms: int, terms: Terms) -> None:
        """Queue a message now."""
        if terms.interim_of:
            self._outlet.send(payload, timestamp_ms, terms)
        elif not self._outlet.offer(payload, timestamp_ms, terms):
            self.drop("overflow", payload, timestamp_ms)

    def drop(self, reason: str, body: bytes, timestamp_ms: int, outcome: Outcome = "overflow") -> None:
        """Count a message and forget it."""
        self._mail.drop(reason, self._device_id, body, timestamp_ms, outcome)

    def keep(self, message: Transient) -> None:
        """Have a message wait, if there is room for it."""
        if self.waiting is None:
            self.waiting = Transients()
        if not self.waiting.add(message):
            self.drop(CATCHING_UP, message.body, message.timestamp_ms)

    def put_back(self, body: bytes, timestamp_ms: int, terms: Terms | None, ticket: int) -> None:
        """A message was taken out of the outbox, together with the stored one before it."""
        if terms is None or terms.interim_of:
            self.drop("interim", body, timestamp_ms)
        else:
            self.keep(Transient("normal", self._reader.number(ticket), body, timestamp_ms, terms))

    def has(self, payload: bytes, timestamp_ms: int) -> bool:
        """Whether a message waits."""
        return self.waiting is not None and self.waiting.has(payload, timestamp_ms)

    def take_all(self) -> list[Transient]:
        """Remove and return the waiting messages."""
        waiting, self.waiting = self.waiting, None
        return [] if waiting is None else waiting.take_all()

    def close(self) -> None:
        """Drop the waiting messages: the connection has ended."""
        for message in self.take_all():
            self.drop(CATCHING_UP, message.body, message.timestamp_ms, "not_connected")

    # -- stored messages

    def release(self, lane: LaneName, number: int | None = None) -> None:
        """Queue the messages of a lane that come before a number; None: all of them."""
        waiting = self.waiting
        if waiting is None:
            return
        released = waiting.take_all(lane) if number is None else waiting.take_before(lane, number)
        for message in released:
            self.send(message.body, message.timestamp_ms, message.terms)
        if self.waiting is waiting and not waiting:
            self.waiting = None

    def release_caught_up(self) -> None:
        """Queue the messages of lanes whose stored messages have all been passed on."""
        for lane in LANES:
            if self._reader.is_caught_up(lane):
                self.release(lane)

    def stored(self, lane: LaneName, number: int, *, is_next: bool) -> None:
        """A message was stored behind the waiting ones.

        :param is_next: it is sent now
        """
        if self.waiting is not None:
            self.waiting.place(lane, number - 1)
            if is_next:
                self.release(lane, number)

    def collapse(self, key: str) -> None:
        """A newer message with this collapse key replaces waiting ones."""
        collapsed = [] if self.waiting is None else self.waiting.collapse(key)
        self._mail.counters.collapsed += len(collapsed)
        for message in collapsed:
            self._mail.note(self._device_id, message.body, message.timestamp_ms, "collapsed")

    # -- places

    def find_places(self) -> None:
        """An answer has arrived: earlier messages come after everything that it has shown."""
        reader, waiting = self._reader, self.waiting
        if waiting is not None and not reader.wants_look:
            for lane in LANES:
                for message in waiting.place_up_to(lane, reader.feed(lane).last):
                    self.drop(CATCHING_UP, message.body, message.timestamp_ms)

    def forget_places(self) -> None:
        """The numbers have lost their meaning."""
        if self.waiting is not None:
            self.waiting.forget_places()

    def drop_overtaken(self) -> None:
        """The beginning of the connection is known now: drop messages that precede ones sent on an earlier
        connection."""
        if self.waiting is not None:
            for lane in LANES:
                for message in self.waiting.take_before(lane, self._reader.feed(lane).position):
                    self.drop(CATCHING_UP, message.body, message.timestamp_ms)
