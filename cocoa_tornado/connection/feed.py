"""A connection's share of its device's box: what is in it goes out first, page by page, then what is stored meanwhile.

The rule is ``rules/feed.py``; this is its shell on the IOLoop: it asks the mailbox and fills the connection's outbox.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from ..counters import Counters, count
from ..errors import MailboxClosed, MailboxError
from ..mailboxes.port import Mailbox
from ..rules.backoff import Backoff
from ..rules.box import NO_CURSOR_YET, Box, PageLimits, Position, StoredMessage
from ..rules.cursors import acknowledged_cursor, gap_notice, make_cursor, read_cursor, with_cursor
from ..rules.feed import Delivery, Feed, Page
from ..rules.frames import text_frame
from ..rules.rate import LineBudget, RateLimit
from .outbox import OutboxLimits

BAD_ACK_LINES = RateLimit(per_s=1, burst=10)
RETRY_BASE_S, RETRY_CAP_S = 0.5, 5.0

log = logging.getLogger("cocoa.device")


@dataclass(slots=True)
class Mail:
    """What the connections of a process share of the mailbox."""

    mailbox: Mailbox
    counters: Counters
    clock: Callable[[], float]
    bad_ack_lines: LineBudget = field(default_factory=lambda: LineBudget(BAD_ACK_LINES))


class Outlet(Protocol):
    """A connection, as its feed sees it."""

    def send(self, frame: bytes, timestamp_ms: int, interim_of: str = "") -> None: ...

    def has_nothing_to_write(self) -> bool:
        """True if all that was sent has been taken by the socket."""

    def outbox_limits(self) -> OutboxLimits: ...

    def who(self) -> dict[str, object]: ...


class BoxFeed:
    """Feeds one connection. IOLoop thread only.

    A page is asked for when the socket has taken all of the last one, so a slow device holds up nobody, and a fast one
    waits for nothing but the mailbox. While the mailbox cannot be read, what is stored waits in it.

    All numbers here belong to one epoch of the mailbox. When another begins, the feed looks at the box again before it
    sends anything more.

    :param device_id: whose box it is
    :param after: the place of the cursor that the device has named, if it has
    """

    __slots__ = (
        "_acks",
        "_after",
        "_backoff",
        "_begun",
        "_device_id",
        "_dropped",
        "_early",
        "_epoch",
        "_feed",
        "_gap",
        "_is_closed",
        "_key",
        "_look_once_more",
        "_mail",
        "_marked",
        "_outlet",
        "_pushed",
        "_taken",
        "_waits",
    )

    def __init__(self, mail: Mail, outlet: Outlet, device_id: str, after: Position | None) -> None:
        self._mail, self._outlet, self._device_id, self._after = mail, outlet, device_id, after
        self._feed = Feed()
        self._epoch = 0
        self._key: bytes | None = None  # of the mailbox that the numbers are of
        self._begun: Box | None = None  # as it was when the epoch began, if that was not the mailbox's first
        self._dropped: tuple[int, Position] | None = (
            None  # position and last message of the feed that the epoch has ended
        )
        self._pushed = self._taken = self._marked = 0
        self._gap = 0  # up to here the device has been told that there is nothing any more
        self._acks = False  # it has acknowledged something, now or ever
        self._early: Position | None = None  # acknowledged before the box was looked at
        self._is_closed = self._waits = self._look_once_more = False
        self._backoff: Backoff | None = None

    def __repr__(self) -> str:
        return f"<BoxFeed {self._device_id!r} {self._feed!r}>"

    def open(self) -> None:
        """Look into the box. Called once the connection is registered, so that nothing is stored unnoticed."""
        self._mail.mailbox.look(self._device_id).add_done_callback(self._on_look)

    def look_again(self) -> None:
        """Something may have been stored that nobody has told."""
        if not self._feed.opened:
            self._look_once_more = True  # the look that is under way may have come before it
        elif not self._is_closed and not self._waits:
            self.open()

    def close(self) -> None:
        """Nothing more is handed to the connection. What its socket has taken still counts as written."""
        self._is_closed = True

    # -- what the router tells

    def stored(self, number: int, frame: bytes, timestamp_ms: int) -> None:
        if self._is_closed:
            return
        self._follow_epoch()
        if self._feed.stored(number):
            self._outlet.send(frame, timestamp_ms)
            self._pushed = number
        else:
            self._read_on()

    def suggest(self, payload: bytes, timestamp_ms: int, interim_of: str) -> None:
        """A hypothesis bears the cursor of the last message before it, and is dropped where messages still wait."""
        key = self._mail.mailbox.key
        if self._is_closed or key is None or not self._feed.is_live:
            count(self._mail.counters.dropped, "interim")
            return
        cursor = make_cursor(key, self._device_id, self._feed.position, self._epoch)
        self._outlet.send(text_frame(with_cursor(payload, cursor)), timestamp_ms, interim_of)

    # -- what the connection tells

    def taken(self) -> None:
        """All that is queued is being written."""
        self._taken = self._pushed

    def written(self) -> None:
        """The socket has taken it."""
        if self._taken > self._marked:
            self._marked = self._taken
            self._mail.mailbox.written(self._device_id, Position(self._taken, self._epoch))
        if 0 < self._gap <= self._taken:
            if self._acks:
                # There is no cursor that the device could acknowledge it with, and once is enough.
                self._mail.mailbox.acknowledge(self._device_id, Position(self._gap, self._epoch))
            self._gap = 0
        self._read_on()

    def take_ack(self, text: str) -> bool:
        """Whether a text message is an acknowledgement; False: an ordinary message."""
        cursor = acknowledged_cursor(text)
        if cursor is None:
            return False
        self._follow_epoch()
        key = self._mail.mailbox.key
        position = None if key is None else read_cursor(key, self._device_id, cursor)
        if position is None:
            self._refuse_ack()
        elif self._feed.opened:
            self._acknowledge(position)
        elif self._early is None or self._early.epoch != position.epoch or self._early.number < position.number:
            # The box says whether there is such a place. Of two epochs, the latest acknowledgement counts.
            self._early = position
        return True

    def _acknowledge(self, position: Position) -> None:
        number: int | None = position.number
        if position.epoch != self._epoch:
            number = None if self._begun is None else self._begun.find(position)
        if number is None or not 0 <= number <= self._feed.last:
            self._refuse_ack()
            return
        self._acks = True
        self._mail.mailbox.acknowledge(self._device_id, Position(number, self._epoch))
        self._feed.acknowledged(number)

    def _acknowledge_after_close(self, looked: asyncio.Future[Box]) -> None:
        """Apply an acknowledgement that arrived before the box was looked at, although the device has left."""
        if isinstance(looked.exception(), MailboxClosed) or self._early is None:
            return
        if not self._is_answer(looked, self.open):
            return
        box, early, self._early = looked.result(), self._early, None
        number = box.find(early)
        if number is None or number < 0:
            self._refuse_ack()
        else:
            self._mail.mailbox.acknowledge(self._device_id, Position(number, box.epoch))

    def _refuse_ack(self) -> None:
        self._mail.counters.bad_acks += 1
        suppressed = self._mail.bad_ack_lines.take(self._mail.clock())
        if suppressed is not None:
            extra: dict[str, object] = {"suppressed": suppressed} if suppressed else {}
            log.warning("acknowledgement of an unknown cursor ignored", extra=self._outlet.who() | extra)

    # -- what the mailbox answers

    def _on_look(self, looked: asyncio.Future[Box]) -> None:
        if looked.cancelled():
            return
        if self._is_closed:
            self._acknowledge_after_close(looked)
            return
        if not self._is_answer(looked, self.open):
            return
        box = looked.result()
        if box.epoch != self._epoch and self._feed.opened:
            self._drop_feed()
        if not self._feed.opened:
            self._begin(box)
            self._tell_lost(box)
        self._feed.open(box.start(None if self._after is None else box.settled(self._after)), box.last)
        self._marked = max(self._marked, box.written)
        self._acks = self._acks or box.acked is not None
        early, self._early = self._early, None
        if early is not None:
            self._acknowledge(early)
        if self._look_once_more:
            self._look_once_more = False
            self.open()
        self._read_on()

    def _begin(self, box: Box) -> None:
        """The box has been looked at for the first time, or for the first time in its epoch."""
        key = self._mail.mailbox.key
        is_same = key == self._key
        self._pushed, self._taken, self._marked, self._gap = (
            max(0, box.settled(Position(number, self._epoch))) if is_same else 0
            for number in (self._pushed, self._taken, self._marked, self._gap)
        )
        self._epoch, self._key = box.epoch, key
        self._begun = box if box.epoch else None

    def _drop_feed(self) -> None:
        """Its numbers mean nothing any more; the connection will go on from the place where it was."""
        if self._mail.mailbox.key == self._key:
            self._after = Position(self._feed.position, self._epoch)
            self._dropped = (self._feed.position, Position(self._feed.last, self._epoch))
        else:  # and neither does the place: it is another mailbox
            self._after, self._dropped = NO_CURSOR_YET, None
        self._feed = Feed()

    def _tell_lost(self, box: Box) -> None:
        """Count as missed what was stored for the device and did not survive the epoch. What a device missed that was
        offline when everything was lost is unknown, and counts as one message."""
        dropped, self._dropped = self._dropped, None
        if dropped is not None:
            missed = box.lost(*dropped)
        else:
            missed = self._after is not None and box.may_have_lost(self._after)
        if missed:
            self._mail.counters.gaps += 1
            self._outlet.send(text_frame(gap_notice(missed)), 0)

    def _follow_epoch(self) -> None:
        if self._feed.opened and self._mail.mailbox.epoch != self._epoch:
            self._drop_feed()
            self.open()

    def _read_on(self) -> None:
        if self._is_closed:
            return
        self._follow_epoch()
        if not self._feed.is_behind or self._waits or not self._outlet.has_nothing_to_write():
            return
        limits = page_limits(self._outlet.outbox_limits())
        asked = self._mail.mailbox.read(self._device_id, self._feed.read(), limits)
        asked.add_done_callback(partial(self._on_page, self._feed))

    def _on_page(self, feed: Feed, page: asyncio.Future[Page]) -> None:
        if self._is_closed or feed is not self._feed or page.cancelled():
            _ = page.cancelled() or page.exception()
            feed.failed()
            return
        if page.exception() is not None:
            feed.failed()
        if not self._is_answer(page, self._read_on):
            return
        if self._mail.mailbox.epoch == self._epoch:
            self._hand_over(feed.page(page.result()))
        else:
            feed.failed()
        self._read_on()

    def _hand_over(self, delivery: Delivery) -> None:
        if delivery.missed:
            self._mail.counters.gaps += 1
            self._outlet.send(text_frame(gap_notice(delivery.missed)), 0)
            self._pushed = delivery.messages[0].number - 1 if delivery.messages else self._feed.position
            self._gap = 0 if delivery.messages else self._pushed
        for message in delivery.messages:
            frame = self._frame(message)
            if frame is not None:
                # No timestamp: how long a message lay in the box says nothing about this gateway's haste.
                self._outlet.send(frame, 0)
            self._pushed = message.number
        self._mail.counters.caught_up += len(delivery.messages)

    def _frame(self, message: StoredMessage) -> bytes | None:
        key = self._mail.mailbox.key
        assert key is not None  # a page has been read
        try:
            return text_frame(
                with_cursor(message.payload, make_cursor(key, self._device_id, message.number, self._epoch))
            )
        except Exception:
            # Whoever has written that into the mailbox, the messages behind it are not to suffer.
            count(self._mail.counters.dropped, "fault")
            log.exception("message in the box left out", extra=self._outlet.who() | {"number": message.number})
            return None

    def _is_answer(self, asked: asyncio.Future[Box] | asyncio.Future[Page], again: Callable[[], None]) -> bool:
        """False where the mailbox could not answer: it is asked again later."""
        error = asked.exception()
        if error is None:
            self._backoff = None
            return True
        if not isinstance(error, MailboxError):
            log.error("box cannot be read", exc_info=error, extra=self._outlet.who())
        self._backoff = self._backoff or Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
        self._waits = True
        asyncio.get_running_loop().call_later(self._backoff.next_s(), self._retry, again)
        return False

    def _retry(self, again: Callable[[], None]) -> None:
        self._waits = False
        if not self._is_closed or self._early is not None:
            again()


def page_limits(limits: OutboxLimits) -> PageLimits:
    """So much that half of the outbox stays free for what is stored while the page is written."""
    return PageLimits(max(1, min(100, limits.max_messages // 2)), max(1, min(256 * 1024, limits.max_bytes // 2)))
