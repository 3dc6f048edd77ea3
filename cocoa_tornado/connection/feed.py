"""A connection's feed from its device's box, on the IOLoop: a thin shell around ``box_reader.py``.

It asks the mailbox, fills the connection's outbox, and passes on what was written and acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol, TypeAlias

from ..counters import count
from ..errors import MailboxError
from ..rules.backoff import Backoff
from ..rules.box import Box, PageLimits, Position, StoredMessage
from ..rules.cursors import acknowledged_cursor, gap_notice, make_cursor, read_cursor, with_cursor
from ..rules.feed import Delivery, Page
from ..rules.frames import text_frame
from ..rules.terms import Terms
from .box_reader import Ack, BoxReader
from .mail import Mail, retry_delays
from .outbox import Numbered, OutboxLimits

Answer: TypeAlias = "asyncio.Future[Box] | asyncio.Future[Page]"

log = logging.getLogger("cocoa.device")


class Outlet(Protocol):
    """A connection, as its feed sees it."""

    def send(self, frame: bytes, timestamp_ms: int, terms: Terms | None = None) -> None:
        """Queue a frame. A connection whose outbox has no room for it is closed, unless it is an interim."""

    def offer(self, body: bytes, timestamp_ms: int, terms: Terms | None = None) -> bool:
        """Queue a message if the outbox has room for it; False if not.

        :param body: its frame or, if its terms have a number, its payload
        """

    def has_nothing_to_write(self) -> bool:
        """True if the socket has taken all that was sent."""

    def outbox_limits(self) -> OutboxLimits: ...

    def who(self) -> dict[str, object]: ...


class BoxFeed:
    """Feeds one connection. IOLoop thread only.

    A page is read once the socket has taken the last one: a slow device delays no other, and a fast one waits for the
    mailbox only. While the mailbox can't be read, messages stay in it.

    :param device_id: whose box it is
    :param after: the position of the cursor that the device named, if any
    """

    __slots__ = ("_asked", "_backoff", "_device_id", "_is_closed", "_is_waiting", "_mail", "_outlet", "_reader")

    def __init__(self, mail: Mail, outlet: Outlet, device_id: str, after: Position | None) -> None:
        self._mail, self._outlet, self._device_id = mail, outlet, device_id
        self._reader = BoxReader(after)
        self._asked: Answer | None = None
        self._is_closed = self._is_waiting = False  # waiting: before a question is repeated
        self._backoff: Backoff | None = None

    def __repr__(self) -> str:
        return f"<BoxFeed {self._device_id!r} {self._reader!r}>"

    def open(self) -> None:
        """Look at the box. Call it after the connection is registered, so that nothing is stored unnoticed."""
        self._ask()

    def look_again(self) -> None:
        """Something may have been stored without a call of :meth:`stored`."""
        self._reader.look_again()
        self._ask()

    def close(self) -> None:
        """Nothing more is passed to the connection. What its socket has taken still counts as written."""
        self._is_closed, self._asked = True, None  # an answer to come refers to this feed: there is no reference cycle
        early, self._reader.early = self._reader.early, None
        if early is not None:
            self._mail.late_acks.add(self._device_id, early, self._outlet.who())

    # -- from the router

    def stored(self, number: int, frame: bytes, timestamp_ms: int) -> None:
        """A message was stored. It is sent now, or read from the box when its turn comes."""
        if self._is_closed:
            return
        reader = self._reader
        if self._mail.mailbox.epoch != reader.epoch:
            self._follow()
        if not reader.feed.stored(number):
            self._ask()
        elif self._outlet.offer(frame, timestamp_ms):
            reader.pushed = number
        else:
            reader.feed.fall_behind(number - 1)

    def suggest(self, payload: bytes, timestamp_ms: int, terms: Terms | None) -> None:
        """A transient message has the cursor of the last message before it, and is dropped while messages wait in the
        box. If it is no interim, it is also dropped if the outbox has no room."""
        key, reader = self._mail.mailbox.key, self._reader
        interim_of = "" if terms is None else terms.interim_of
        if self._is_closed or key is None or not reader.feed.is_live:
            count(self._mail.counters.dropped, "interim" if interim_of else "catching_up")
            return
        cursor = make_cursor(key, self._device_id, reader.feed.position, reader.epoch)
        frame = text_frame(with_cursor(payload, cursor))
        if interim_of:
            self._outlet.send(frame, timestamp_ms, Terms(interim_of))
        elif not self._outlet.offer(frame, timestamp_ms):
            count(self._mail.counters.dropped, "overflow")

    # -- from the connection

    def frame_of(self, payload: bytes, numbered: Numbered) -> bytes | None:
        """See ``outbox.Taker``."""
        return self._frame(StoredMessage(numbered.number, payload, 0))

    def given(self, numbered: Sequence[Numbered]) -> None:
        """The socket has taken these messages. Call :meth:`written` then."""
        self._reader.taken = max(self._reader.taken, numbered[-1].number)

    def taken(self) -> None:
        """The socket has taken all that was queued."""
        reader = self._reader
        reader.taken = reader.pushed

    def written(self) -> None:
        """See :meth:`taken`."""
        reader, mailbox = self._reader, self._mail.mailbox
        written = reader.written()
        if written is not None:
            mailbox.written(self._device_id, written)
        if reader.gap:
            gap = reader.take_gap()
            if gap is not None:
                mailbox.acknowledge(self._device_id, gap)
        self._ask()

    def take_ack(self, text: str) -> bool:
        """Whether a text message is an acknowledgement; False: an ordinary message."""
        cursor = acknowledged_cursor(text)
        if cursor is None:
            return False
        self._ask()  # the mailbox may have begun another epoch
        key = self._mail.mailbox.key
        position = None if key is None else read_cursor(key, self._device_id, cursor)
        if position is None:
            self._mail.refuse_ack(self._outlet.who())
        else:
            self._carry_out(self._reader.acknowledge(position))
        return True

    def _carry_out(self, ack: Ack) -> None:
        if ack.is_refused:
            self._mail.refuse_ack(self._outlet.who())
        elif ack.position is not None:
            self._mail.mailbox.acknowledge(self._device_id, ack.position)

    # -- questions and answers

    def _follow(self) -> None:
        """What was asked in an epoch that is over gets no answer."""
        mailbox = self._mail.mailbox
        if self._reader.follow(mailbox.epoch, mailbox.key):
            self._asked = None

    def _ask(self) -> None:
        reader, mailbox = self._reader, self._mail.mailbox
        if self._is_closed:
            return
        if mailbox.epoch != reader.epoch:
            self._follow()
        if self._is_waiting or not reader.may_ask:
            return
        question = reader.ask(self._outlet.has_nothing_to_write())
        if question is None:
            return
        asked: Answer
        if question.after is None:
            asked = mailbox.look(self._device_id)
        else:
            asked = mailbox.read(self._device_id, question.after, page_limits(self._outlet.outbox_limits()))
        self._asked = asked
        asked.add_done_callback(self._on_answer)

    def _on_answer(self, answer: Answer) -> None:
        error = None if answer.cancelled() else answer.exception()
        if self._is_closed or answer.cancelled():
            return
        self._follow()
        if answer is self._asked:
            self._asked = None
            if error is None:
                self._backoff = None
                self._take(answer.result())
            else:
                self._retry_later(error)
        self._ask()

    def _retry_later(self, error: BaseException) -> None:
        if not isinstance(error, MailboxError):
            log.error("box cannot be read", exc_info=error, extra=self._outlet.who())
        self._reader.failed()
        self._backoff = self._backoff or retry_delays()
        self._is_waiting = True
        asyncio.get_running_loop().call_later(self._backoff.next_s(), self._retry)

    def _retry(self) -> None:
        self._is_waiting = False
        self._ask()

    def _take(self, result: Box | Page) -> None:
        if isinstance(result, Page):
            before = self._reader.feed.position
            self._reader.delivered(self._deliver(self._reader.arrived(result), before))
            return
        missed, ack = self._reader.looked(result, self._mail.mailbox.key)
        if missed:
            self._mail.counters.gaps += 1
            self._outlet.send(text_frame(gap_notice(missed)), 0)
        if ack is not None:
            self._carry_out(ack)

    def _deliver(self, delivery: Delivery, before: int) -> int | None:
        """Queue what fits in the outbox; return the number of the last message that does, None if all do.

        :param before: the number before the delivery
        """
        reader, outlet, counters = self._reader, self._outlet, self._mail.counters
        if delivery.missed:
            if not outlet.offer(text_frame(gap_notice(delivery.missed)), 0):
                return before
            counters.gaps += 1
            reader.push_gap(delivery)
        for message in delivery.messages:
            frame = self._frame(message)
            # No timestamp: how long a message was in the box says nothing about this gateway's latency.
            if frame is not None and not outlet.offer(frame, 0):
                return message.number - 1
            reader.pushed = message.number
            counters.caught_up += 1
        return None

    def _frame(self, message: StoredMessage) -> bytes | None:
        key = self._mail.mailbox.key
        assert key is not None  # a page has been read
        try:
            cursor = make_cursor(key, self._device_id, message.number, self._reader.epoch)
            return text_frame(with_cursor(message.payload, cursor))
        except Exception:
            # The gateway has not stored this. It must not hold up the messages behind it.
            count(self._mail.counters.dropped, "fault")
            log.exception("message in the box skipped", extra=self._outlet.who() | {"number": message.number})
            return None


def page_limits(limits: OutboxLimits) -> PageLimits:
    """Half of the outbox stays free for what is stored while the page is written."""
    return PageLimits(max(1, min(100, limits.max_messages // 2)), max(1, min(256 * 1024, limits.max_bytes // 2)))
