"""Carries a plan out: the only consumer of a broker's batches, with and without a mailbox. IOLoop thread only."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ..brokers.port import Batch
from ..counters import Counters, count
from ..errors import MailboxClosed
from ..hub import Hub
from ..mailboxes.port import Entry, Mailbox
from ..rules.cursors import make_cursor, with_cursor
from ..rules.frames import text_frame
from ..rules.rate import LineBudget, RateLimit
from ..rules.records import Record
from .arrivals import Arrivals
from .plan import Message, Plan, direct, messages_of, plan, stale_hypotheses, to_store
from .receipt import Receipt

NOT_CONNECTED_LOG = RateLimit(per_s=10, burst=50)
STORED_FAULT_LOG = RateLimit(per_s=1, burst=10)

# Operators filter by these names, which are older than this module.
log = logging.getLogger("cocoa.bridge")
log_of_stored = logging.getLogger("cocoa.mailroom")


class _Way:
    """A batch on its way.

    :ivar messages: settled when the batch came, whoever joins a group meanwhile
    :ivar routing: ends the leg that is held until all others have begun
    :ivar stored: the numbers of what the mailbox keeps of it; None without a mailbox
    """

    __slots__ = ("batch", "messages", "receipt", "routing", "stored")

    def __init__(self, batch: Batch, messages: list[Message]) -> None:
        self.batch, self.messages = batch, messages
        self.receipt = Receipt(batch.done)
        self.routing = self.receipt.leg()
        self.stored: asyncio.Future[list[int | None]] | None = None

    @property
    def is_stored(self) -> bool:
        return self.stored is None or self.stored.done()

    @property
    def is_given_up(self) -> bool:
        """The mailbox was closed before it was stored: the broker keeps it."""
        return self.stored is not None and (self.stored.cancelled() or self.stored.exception() is not None)


class Router:
    """Routes each batch to the devices, in the order of the batches and of the records in them.

    A message for a device that is not connected goes to no other device. Without a mailbox it is dropped, counted and
    logged, at most ten lines a second, the next of which says how many were left out. With a mailbox, each batch is
    stored first, and then the devices that are connected are sent it. A hypothesis is worth nothing later and is not
    stored; it waits for its batch, so that it neither overtakes a message nor is overtaken. Of a record that had been
    stored before it is not known whether it was sent: its devices look into their boxes.

    A batch is done, so that its offsets may be committed, when the last leg of its way has ended (``receipt.py``). A
    fault of the gateway costs one message: a batch that is never done would stop the stream.

    :param mailbox: None: what can't be sent now is dropped
    :param arrivals: is shown the records of each batch once they are routed
    """

    def __init__(
        self,
        hub: Hub,
        counters: Counters,
        clock: Callable[[], float],
        *,
        mailbox: Mailbox | None = None,
        arrivals: Arrivals | None = None,
    ) -> None:
        self._hub, self._counters, self._clock = hub, counters, clock
        self._connected = hub.connected
        self._mailbox, self._arrivals = mailbox, arrivals
        self._under_way: deque[_Way] = deque()
        self._lines = LineBudget(NOT_CONNECTED_LOG if mailbox is None else STORED_FAULT_LOG)

    def __repr__(self) -> str:
        return f"<Router {len(self._under_way)} batches under way>"

    def __call__(self, batch: Batch) -> None:
        if self._mailbox is None and not self._under_way:
            recipients = direct(batch.records, self._connected)
            if recipients is not None:
                self._send(batch.records, recipients)
                batch.done()
                if self._arrivals is not None:
                    self._arrivals.routed(batch.records)
                return
        way = _Way(batch, messages_of(batch.records, self._hub))
        if self._mailbox is None:
            self._under_way.append(way)
            self._go_on()
            return
        try:
            way.stored = self._mailbox.append(list(_entries(way)))
        except MailboxClosed:
            return  # the gateway is stopping: the broker keeps what is not done
        self._under_way.append(way)
        storing = way.receipt.leg()
        way.stored.add_done_callback(lambda stored: self._on_stored(stored, storing))

    def _on_stored(self, stored: asyncio.Future[list[int | None]], storing: Callable[[], None]) -> None:
        if not stored.cancelled() and stored.exception() is None:
            storing()
        self._go_on()

    def _go_on(self) -> None:
        """Route what is ready, up to the first batch that is not: batches never overtake each other."""
        while self._under_way and self._under_way[0].is_stored:
            way = self._under_way.popleft()
            if way.is_given_up:
                continue
            batch = way.batch
            where = plan(batch.records, way.messages, self._connected, {}, has_mailbox=way.stored is not None)
            if way.stored is None:
                self._send([batch.records[at] for at, _ in where.local], [device_id for _, device_id in where.local])
                for _, device_id in where.nobody:
                    self._not_connected(device_id)
            else:
                self._send_stored(way, where, way.stored.result())
            way.routing()
            if self._arrivals is not None:
                self._arrivals.routed(batch.records)

    # -- without a mailbox

    def _send(self, records: Sequence[Record], device_ids: Sequence[str]) -> None:
        """Send each record to the device in the same place."""
        connected, routed, frame = self._connected, 0, b""
        framed: Record | None = None
        for record, device_id in zip(records, device_ids):  # noqa: B905  # strict costs as much as two messages
            try:
                _, payload, timestamp_ms, _, interim_of = record
                if record is not framed:  # a record for many devices is framed once
                    frame, framed = text_frame(payload), record
                clients = connected.get(device_id)
                if clients is None:  # an earlier message of this very batch was too much for it
                    self._not_connected(device_id)
                    continue
                for client in clients:
                    client.send(frame, timestamp_ms, interim_of)
                routed += 1
            except Exception:
                self._failed(device_id, log, "message could not be routed, dropped")
        self._counters.routed += routed

    def _not_connected(self, device_id: str) -> None:
        self._counters.unknown_device += 1
        left_out = self._lines.take(self._clock())
        if left_out is None:
            return
        extra: dict[str, object] = {"device_id": device_id}
        if left_out:
            extra["left_out"] = left_out
        log.info("device not connected, message dropped", extra=extra)

    def _failed(self, device_id: str, logger: logging.Logger, event: str) -> None:
        count(self._counters.dropped, "fault")
        if self._lines.take(self._clock()) is not None:
            logger.exception(event, extra={"device_id": device_id})

    # -- with a mailbox

    def _send_stored(self, way: _Way, where: Plan, stored: Sequence[int | None]) -> None:
        records, numbers = way.batch.records, dict(zip(where.store, stored, strict=True))
        stale = stale_hypotheses(records, way.messages, numbers) if None in stored else frozenset()
        looked: set[str] = set()
        for message in where.local:
            at, device_id = message
            record = records[at]
            try:
                if record.interim_of:
                    if message not in stale:
                        self._suggest(device_id, record)
                    continue
                number = numbers[message]
                if number is not None:
                    self._send_numbered(device_id, record, number)
                elif device_id not in looked:
                    # Whoever stored it may not have come to sending it: each device looks for itself, once.
                    looked.add(device_id)
                    for client in self._hub.clients_of(device_id):
                        client.look_again()
            except Exception:
                self._failed(device_id, log_of_stored, "message could not be routed, it stays in the box")
        for message in where.nobody:
            if message not in numbers:
                self._counters.unknown_device += message not in stale
            elif numbers[message] is not None:
                self._counters.kept += 1

    def _send_numbered(self, device_id: str, record: Record, number: int) -> None:
        assert self._mailbox is not None  # it has given the number
        clients, key = self._hub.clients_of(device_id), self._mailbox.key
        if not clients or key is None:
            self._counters.kept += 1
            return
        cursor = make_cursor(key, device_id, number, self._mailbox.era)
        frame = text_frame(with_cursor(record.payload, cursor))
        for client in clients:
            client.stored(number, frame, record.timestamp_ms)
        self._counters.routed += 1

    def _suggest(self, device_id: str, record: Record) -> None:
        clients = self._hub.clients_of(device_id)
        if not clients:
            self._counters.unknown_device += 1
        for client in clients:
            client.suggest(record.payload, record.timestamp_ms, record.interim_of)


def _entries(way: _Way) -> Iterator[Entry]:
    """What of a batch is to be stored: the messages of a record one after the other, as the mailbox wants them."""
    records, origins = way.batch.records, way.batch.origins()
    for at, device_id in to_store(records, way.messages):
        yield Entry(device_id, records[at].payload, records[at].timestamp_ms, *origins[at])
