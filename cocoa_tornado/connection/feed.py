"""A connection's feed from its device's box, on the IOLoop: a thin shell around ``box_reader.py``.

It asks the mailbox, fills the connection's outbox, and passes on what was written and acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, TypeAlias

from ..counters import count
from ..errors import MailboxClosed, MailboxError, Superseded
from ..rules.addressing import Options
from ..rules.audiences import Audience
from ..rules.backoff import Backoff
from ..rules.box import LANES, Box, LaneName, Numbers, PageLimits, Position, StoredMessage
from ..rules.claims import FencingToken
from ..rules.cursors import acknowledged_cursor, gap_notice, read_cursor, with_cursor
from ..rules.feed import Page
from ..rules.frames import text_frame
from ..rules.terms import Later, Terms
from .box_reader import BoxReader
from .mail import Mail, retry_delays
from .making_room import OutboxLimits
from .outlet import Outlet
from .questions import LOOK, Ack, Arrived
from .queue import Queued
from .transient_feed import CATCHING_UP, TransientFeed
from .transients import Transient, place

Awaited: TypeAlias = "asyncio.Future[Box] | asyncio.Future[list[Page]]"

NORMAL: Final[LaneName] = "normal"
HIGH: Final[LaneName] = "high"
_NOT_STORED: Final = Terms(number=0)

_NEW: Final = tuple.__new__
"""Like Terms(...), without the Python function that a NamedTuple has for it."""

log = logging.getLogger("cocoa.device")


class BoxFeed:
    """Feeds one connection. IOLoop thread only.

    A page is read once the socket has taken the last one: a slow device delays no other, and a fast one waits only for
    the mailbox. While the mailbox can't be read, messages stay in it.

    :param device_id: the owner of the box
    :param after: the position of the cursor that the device named, if any
    :ivar fencing_token: the connection's grant, as the mailbox may check it
    """

    __slots__ = (
        "_asked",
        "_backoff",
        "_collapsed",
        "_device_id",
        "_is_closed",
        "_is_waiting",
        "_mail",
        "_outlet",
        "_reader",
        "_refresh_at",
        "_transients",
        "fencing_token",
    )

    def __init__(
        self, mail: Mail, outlet: Outlet, device_id: str, after: Position | None, token: FencingToken | None = None
    ) -> None:
        self.fencing_token = token
        self._mail, self._outlet, self._device_id = mail, outlet, device_id
        self._reader = BoxReader(after)
        self._asked: Awaited | None = None
        self._is_closed = False
        self._is_waiting = True  # for the device to be known, and before a question is repeated
        self._backoff: Backoff | None = None
        self._refresh_at = 0.0
        # The newest message of each collapse key that was stored since the pending question.
        self._collapsed: dict[str, tuple[LaneName, int]] | None = None
        self._transients = TransientFeed(mail, outlet, self._reader, device_id)

    def __repr__(self) -> str:
        return f"<BoxFeed {self._device_id!r} {self._reader!r}>"

    def open(self, audiences: frozenset[Audience], *, stands_by: bool = False) -> None:
        """Make the device known, and look at its box. Call it after the connection is registered, so that no message is
        stored unnoticed.

        :param stands_by: nothing is read until :meth:`go_on`
        """
        self._reader.stands_by = stands_by
        self._refresh_at = self._mail.clock() + self._mail.refresh_s
        try:
            joined = self._mail.mailbox.join(self._device_id, audiences, self.fencing_token)
        except MailboxClosed:
            self._outlet.joined()
            self._retry()
        else:
            joined.add_done_callback(self._on_joined)

    def _on_joined(self, joined: asyncio.Future[None]) -> None:
        self._outlet.joined()
        if joined.cancelled():
            return
        error = joined.exception()
        if error is not None and not isinstance(error, MailboxError):
            log.error("device cannot join", exc_info=error, extra=self._outlet.who())
        self._retry()

    @property
    def is_refresh_due(self) -> bool:
        """Whether to call :meth:`refresh`."""
        return self._mail.clock() >= self._refresh_at

    def refresh(self, audiences: frozenset[Audience]) -> None:
        """The device is still connected."""
        self._refresh_at = self._mail.clock() + self._mail.refresh_s
        self._mail.refresh(self._device_id, audiences)

    def look_again(self) -> None:
        """A message may have been stored without a call of :meth:`stored`."""
        self._reader.look_again()
        self._ask()

    def close(self, audiences: frozenset[Audience] | None = None) -> None:
        """Stop passing messages to the connection. Messages that its socket has taken still count as written.

        :param audiences: given if this was the device's last connection: it stays a member of them for some time
        """
        self._is_closed, self._asked = True, None  # an answer to come refers to this feed: there is no reference cycle
        self._transients.close()
        early, self._reader.early = self._reader.early, None
        if early is not None:
            self._mail.late_acks.add(self._device_id, early, self._outlet.who())
        if audiences is not None:
            self._mail.refresh(self._device_id, audiences)

    @property
    def stands_by(self) -> bool:
        """Another connection of the device gets its messages."""
        return self._reader.stands_by

    def stand_by(self, begun: int) -> Position | None:
        """See :meth:`BoxReader.stand_by`."""
        self._asked = None
        return self._reader.stand_by(begun)

    def leave(self, queued: Sequence[Queued]) -> tuple[list[Queued], list[int | None]]:
        """Return the queued and waiting messages that are not stored, for another connection, and the numbers of the
        stored ones that they come after.

        :param queued: the messages of the outbox, in order
        """
        reader, transients = self._reader, self._transients.take_all()
        left: list[tuple[Queued, int | None]] = []
        following = {lane: reader.feed(lane).position + 1 for lane in LANES}
        for waiting in reversed(queued):
            terms = waiting[2]
            lane = HIGH if terms is not None and terms.priority == "high" else NORMAL
            if terms is None or not terms.number:
                left.append((waiting, following[lane] - 1))
            elif terms.number >= reader.least_ticket:
                following[lane] = reader.number(terms.number)
        left.reverse()
        for _, after, body, timestamp_ms, terms, _ in transients:
            left.append(((body, timestamp_ms, terms), after))
        return [waiting for waiting, _ in left], [after for _, after in left]

    def go_on(self, after: Position | None) -> None:
        """See :meth:`BoxReader.go_on`."""
        self._asked = None
        self._reader.go_on(after)
        self._ask()

    # -- from the router

    def stored(
        self, number: int, payload: bytes, timestamp_ms: int, options: Options | None = None, expires_ms: int = 0
    ) -> None:
        """A message was stored. It is sent now, or read from the box when its turn comes."""
        if self._is_closed:
            return
        reader = self._reader
        lane, feed = NORMAL, reader.normal
        if self._mail.mailbox.epoch != reader.epoch:
            self._follow()
            feed = reader.normal
        if options is None:
            terms = _NEW(Terms, ("", "normal", expires_ms, None, None, reader.least_ticket + number))
        else:
            if options.priority == "high":
                lane, feed = HIGH, reader.high
            key = options.collapse_key
            terms = Terms("", options.priority, expires_ms, key, options.id, reader.ticket(number))
            if key is not None:
                self._replace(key, lane, number, is_queued=number <= feed.position)
        is_next = feed.stored(number)
        if self._transients.waiting is not None:
            self._transients.stored(lane, number, is_next=is_next)
        if not is_next:
            self._ask()
        elif not self._queue(lane, number, payload, timestamp_ms, terms):
            reader.no_room(lane, number)

    def _replace(self, key: str, lane: LaneName, number: int, *, is_queued: bool = False) -> None:
        """A message was routed: it replaces the older ones with its key.

        A page may have brought newer ones already. In the other lane only those that were routed are known to be older;
        the others are sent as well.

        :param is_queued: a page has brought this message, too, and it has replaced what was queued before it
        """
        if not is_queued:
            reader = self._reader
            normal, high = reader.normal.settled + 1, reader.high.settled + 1
            normal, high = (normal, number) if lane == HIGH else (number, high)
            self._outlet.collapse(key, Numbers(reader.ticket(normal), reader.ticket(high)))
        self._transients.collapse(key)
        if self._asked is not None:  # the answer may have the message that this one replaces
            self._collapsed = self._collapsed or {}
            self._collapsed[key] = (lane, number)

    def _queue(self, lane: LaneName, number: int, body: bytes, timestamp_ms: int, terms: Terms) -> bool:
        """Queue a message if there is room for it."""
        outlet, reader = self._outlet, self._reader
        is_queued = outlet.offer(body, timestamp_ms, terms)
        if not is_queued and lane == HIGH:
            lowest, transient = outlet.make_room(body, terms, reader.least_ticket)
            if lowest:
                reader.withdrawn(lowest)
                for waiting in transient:
                    self._transients.put_back(*waiting)
                is_queued = outlet.offer(body, timestamp_ms, terms)
        if is_queued:
            reader.pushed(lane, number)
        return is_queued

    def suggest(
        self,
        payload: bytes,
        timestamp_ms: int,
        terms: Terms | None,
        after: int | None = None,
        later: Later | None = None,
    ) -> None:
        """A transient message has the cursor of the last message before it. While messages that come before it are in
        the box, it waits for them, within bounds, and an interim is dropped: the next one replaces it.

        :param after: see ``hub.Client``; :param later: likewise
        """
        terms = _NOT_STORED if terms is None else _NEW(Terms, (*terms[:-1], 0))
        lane = HIGH if terms.priority == "high" else NORMAL
        reader, transients = self._reader, self._transients
        if self._is_closed:
            transients.drop("interim" if terms.interim_of else CATCHING_UP, payload, timestamp_ms, "not_connected")
            return
        if self._mail.mailbox.epoch != reader.epoch:
            self._follow()
        feed = reader.high if lane == HIGH else reader.normal
        is_settled = after is None and (later is None or feed.settled >= feed.position)
        if is_settled and feed.position >= feed.last and reader.knows_all and terms.collapse_key is None:
            transients.send(payload, timestamp_ms, terms)  # nearly always
            return
        fate, last, after = place(reader, lane, terms, after, later)
        if terms.collapse_key is not None and not terms.interim_of:
            self._replace(terms.collapse_key, lane, last + 1)
        if fate == "send":
            transients.send(payload, timestamp_ms, terms)
        elif fate == "wait":
            transients.keep(Transient(lane, after, payload, timestamp_ms, terms, later if after is None else None))
            self._ask()
        else:
            transients.drop("interim" if fate == "interim" else CATCHING_UP, payload, timestamp_ms)

    def is_waiting(self, payload: bytes, timestamp_ms: int) -> bool:
        """Whether a transient message waits here."""
        return self._transients.has(payload, timestamp_ms)

    # -- from the connection

    def begin_write(self) -> None:
        """A write is about to be taken from the outbox."""
        self._reader.begin_write()

    def frame_of(self, payload: bytes, lane: LaneName, ticket: int) -> bytes | None:
        """See ``outbox.Taker``."""
        if not ticket:
            return self._message(payload, self._reader.here, ticket)
        position, missed = self._reader.give(lane, ticket)
        frame = self._message(payload, position, ticket) if payload else None
        return text_frame(gap_notice(missed)) + (frame or b"") if missed else frame

    def _message(self, payload: bytes, position: Position | None, ticket: int) -> bytes | None:
        """:param position: None: it is unknown. The message then has no cursor"""
        key = self._reader.key or self._mail.mailbox.key
        try:
            if position is None or key is None:
                return text_frame(payload)
            return text_frame(with_cursor(payload, key, self._device_id, position))
        except Exception:
            # The gateway did not store this message. It must not block the messages behind it.
            count(self._mail.counters.dropped, "fault")
            log.exception("message in the box skipped", extra=self._outlet.who() | {"number": ticket})
            return None

    def expired(self, terms: Terms) -> Terms | None:
        """A stored message has expired in the outbox. Return the terms of an empty message to queue; None: none."""
        if not terms.number:
            count(self._mail.counters.dropped, "expired")
            return None
        lane = HIGH if terms.priority == "high" else NORMAL
        ticket = self._reader.expired(lane, terms.number)
        return Terms(priority=lane, number=ticket) if ticket else None

    def given(self, messages: int) -> None:
        """The socket has taken this many messages that have a number."""
        gaps = self._reader.given(messages)
        if gaps:
            self._mail.counters.gaps += gaps
        self.written()

    def regranted(self, token: FencingToken | None, audiences: frozenset[Audience]) -> None:
        """The connection continues under another grant. Marks under the last one may have had no effect."""
        self.fencing_token = token
        self._reader.mark_again()
        if not self._is_closed:
            self._mail.join(self._device_id, audiences, token)
            self.written()

    def written(self) -> None:
        """The socket has taken messages, or all that was queued."""
        reader, mailbox = self._reader, self._mail.mailbox
        written = reader.written()
        if written is not None:
            mailbox.written(self._device_id, written, self.fencing_token)
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
            self._ask()
        return True

    def _carry_out(self, ack: Ack) -> None:
        if ack.is_refused:
            self._mail.refuse_ack(self._outlet.who())
        elif ack.position is not None:
            if self._mail.loops:
                self._mail.loops.forget(self._device_id)
            self._mail.mailbox.acknowledge(self._device_id, ack.position)

    # -- questions and answers

    def _follow(self) -> None:
        """Drop questions of an epoch that is over."""
        mailbox = self._mail.mailbox
        if self._reader.follow(mailbox.epoch, mailbox.key):
            self._asked = None
            self._transients.forget_places()

    def _ask(self) -> None:
        reader, mailbox = self._reader, self._mail.mailbox
        if self._is_closed:
            return
        if mailbox.epoch != reader.epoch:
            self._follow()
        if self._transients.waiting is not None:
            self._transients.release_caught_up()
        if self._is_waiting or not reader.may_ask:
            return
        outlet = self._outlet
        limits = page_limits(outlet.outbox_limits())
        question = reader.ask(outlet.has_nothing_to_write(), outlet.has_no_high_to_write(), limits)
        if question is None:
            return
        asked: Awaited
        is_look = question is LOOK
        device_id = self._device_id
        asked = mailbox.look(device_id) if is_look else mailbox.read(device_id, question.reads, self.fencing_token)
        self._asked, self._collapsed = asked, None
        asked.add_done_callback(self._on_answer)

    def _on_answer(self, answer: Awaited) -> None:
        error = None if answer.cancelled() else answer.exception()
        if self._is_closed or answer.cancelled():
            return
        self._follow()
        if answer is self._asked:
            self._asked = None
            if isinstance(error, Superseded):
                self._outlet.superseded()
                return
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

    def _take(self, result: Box | list[Page]) -> None:
        if isinstance(result, list):
            arrived = self._reader.arrived(result)
            self._transients.find_places()
            self._deliver(arrived)
            self._reader.delivered()
        else:
            self._take_look(result)
            self._transients.find_places()

    def _take_look(self, result: Box) -> None:
        reader = self._reader
        was_open, epoch = reader.normal.opened, reader.epoch
        missed, ack = reader.looked(result, self._mail.mailbox.key)
        if not was_open and not reader.stands_by:
            begin = Numbers(reader.normal.position, reader.high.position)
            self._mail.note_begin(self._device_id, result, begin)
        if not was_open:
            self._transients.drop_overtaken()
        elif reader.epoch != epoch:
            self._transients.forget_places()
        if missed:
            self._mail.counters.gaps += 1
            self._outlet.send(text_frame(gap_notice(missed)), 0, Terms(priority="high"))
        if ack is not None:
            self._carry_out(ack)

    def _deliver(self, arrived: Arrived) -> None:
        """Queue the messages that fit in the outbox."""
        collapsed, self._collapsed = self._collapsed or {}, None
        self._queue_page(HIGH, arrived.high, collapsed)
        self._queue_page(NORMAL, arrived.normal, collapsed)
        if arrived.notice is not None:
            lane, number = arrived.notice
            self._queue(lane, number, b"", 0, Terms(priority=lane, number=self._reader.ticket(number)))

    def _queue_page(
        self, lane: LaneName, messages: Sequence[StoredMessage], collapsed: dict[str, tuple[LaneName, int]]
    ) -> None:
        reader, counters = self._reader, self._mail.counters
        for number, payload, timestamp_ms, expires_ms, key, is_low in messages:
            if self._transients.waiting is not None:
                self._transients.release(lane, number)
            if key is not None:
                routed = collapsed.get(key)
                if _is_older((lane, number), routed):
                    continue  # it has been replaced since the page was requested
                if routed is None or routed[0] == lane:
                    self._outlet.collapse(key)
            terms = Terms("", "low" if is_low else lane, expires_ms, key, None, reader.ticket(number))
            # A negative timestamp: how long a message was in the box says nothing about this gateway's latency.
            if not self._queue(lane, number, payload, -timestamp_ms, terms):
                reader.no_room(lane, number)
                return
            counters.caught_up += 1


def _is_older(one: tuple[LaneName, int], other: tuple[LaneName, int] | None) -> bool:
    """Numbers of two lanes can't be compared: if it is unknown whether a message was replaced, it is sent."""
    return other is not None and one[0] == other[0] and one[1] < other[1]


def page_limits(limits: OutboxLimits) -> PageLimits:
    """Half of the outbox stays free for messages that are stored while the page is written."""
    return PageLimits(max(1, min(100, limits.max_messages // 2)), max(1, min(256 * 1024, limits.max_bytes // 2)))
