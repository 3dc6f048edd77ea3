"""From the broker's batches through the mailbox to the devices: what is stored first, and told the devices then.

Takes the place of the bridge where a mailbox is configured. IOLoop thread only.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from .brokers.port import Batch
from .errors import MailboxClosed
from .hub import Hub
from .mailboxes.port import Entry, Mailbox
from .metrics import Counters, count
from .rules.cursors import make_cursor, with_cursor
from .rules.frames import text_frame
from .rules.rate import LineBudget, RateLimit
from .rules.records import Delivery

FAULT_LOG = RateLimit(per_s=1, burst=10)

log = logging.getLogger("cocoa.mailroom")


class Mailroom:
    """Stores each batch, then tells the devices that are connected, in the order of the batches.

    A batch is done, so that its offsets may be committed, when all of its messages are stored. A hypothesis is worth
    nothing later and is not stored; it waits its turn with its batch, so that it neither overtakes a message nor is
    overtaken. Of a record that had been stored before it is not known whether it was told: a device that is connected
    looks into its box.

    :param on_routed: is given the deliveries of each batch once they are routed
    """

    def __init__(
        self,
        hub: Hub,
        mailbox: Mailbox,
        counters: Counters,
        clock: Callable[[], float],
        on_routed: Callable[[Sequence[Delivery]], None] | None = None,
    ) -> None:
        self._hub, self._mailbox, self._counters, self._clock = hub, mailbox, counters, clock
        self._on_routed = on_routed
        self._under_way: deque[tuple[Batch, asyncio.Future[list[int | None]]]] = deque()
        self._lines = LineBudget(FAULT_LOG)

    def __repr__(self) -> str:
        return f"<Mailroom {len(self._under_way)} batches under way>"

    def __call__(self, batch: Batch) -> None:
        try:
            stored = self._mailbox.append(list(_entries(batch)))
        except MailboxClosed:
            return  # the gateway is stopping: the broker keeps what is not done
        self._under_way.append((batch, stored))
        stored.add_done_callback(self._on_stored)

    def _on_stored(self, _: asyncio.Future[list[int | None]]) -> None:
        while self._under_way and self._under_way[0][1].done():
            batch, stored = self._under_way.popleft()
            if stored.cancelled() or stored.exception() is not None:
                continue  # closed meanwhile, and so is everything behind it
            self._route(batch.deliveries, stored.result())
            batch.done()
            if self._on_routed is not None:
                self._on_routed(batch.deliveries)

    def _route(self, deliveries: Sequence[Delivery], stored: Sequence[int | None]) -> None:
        known: set[str] = set()
        numbers = iter(stored)
        stale = _stale_hypotheses(deliveries, stored) if None in stored else frozenset()
        for at, delivery in enumerate(deliveries):
            try:
                number = None if delivery.interim_of else next(numbers, None)
                if delivery.interim_of:
                    if at not in stale:
                        self._suggest(delivery)
                elif number is not None:
                    self._tell(delivery, number)
                elif delivery.device_id not in known:
                    # Whoever stored it may not have come to telling it: each device looks for itself, once.
                    known.add(delivery.device_id)
                    for client in self._hub.clients_of(delivery.device_id):
                        client.look_again()
            except Exception:
                # A fault of ours must cost this message its haste and nothing else: it is in the box.
                count(self._counters.dropped, "fault")
                if self._lines.take(self._clock()) is not None:
                    log.exception("message could not be routed, it stays in the box", extra=_who(delivery))

    def _tell(self, delivery: Delivery, number: int) -> None:
        clients = self._hub.clients_of(delivery.device_id)
        key = self._mailbox.key
        if not clients or key is None:
            self._counters.kept += 1
            return
        cursor = make_cursor(key, delivery.device_id, number, self._mailbox.era)
        frame = text_frame(with_cursor(delivery.payload, cursor))
        for client in clients:
            client.stored(number, frame, delivery.timestamp_ms)
        self._counters.routed += 1

    def _suggest(self, delivery: Delivery) -> None:
        clients = self._hub.clients_of(delivery.device_id)
        if not clients:
            self._counters.unknown_device += 1
        for client in clients:
            client.suggest(delivery.payload, delivery.timestamp_ms, delivery.interim_of)


def _entries(batch: Batch) -> Iterator[Entry]:
    """What of a batch is to be stored."""
    origins = iter(batch.offsets)
    deliveries = iter(batch.deliveries)
    for source, records in batch.sources:
        for _ in range(records):
            delivery, offset = next(deliveries), next(origins)
            if not delivery.interim_of:
                yield Entry(delivery.device_id, delivery.payload, delivery.timestamp_ms, source, offset)


def _stale_hypotheses(deliveries: Sequence[Delivery], stored: Sequence[int | None]) -> frozenset[int]:
    """The places of hypotheses that a message of the same device comes after which had been stored before: they are
    read a second time, and their device knows better by now.

    :param stored: the number of each delivery that is not a hypothesis; None: stored before
    """
    stale, known_later = set(), set()
    numbers = iter(reversed(stored))
    for at in range(len(deliveries) - 1, -1, -1):
        delivery = deliveries[at]
        if delivery.interim_of:
            if delivery.device_id in known_later:
                stale.add(at)
        elif next(numbers) is None:
            known_later.add(delivery.device_id)
    return frozenset(stale)


def _who(delivery: Delivery) -> dict[str, object]:
    return {"device_id": delivery.device_id}
