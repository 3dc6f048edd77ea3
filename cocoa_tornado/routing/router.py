"""Routes batches: the only consumer of a broker's batches, with and without a mailbox. IOLoop thread only."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from ..brokers.port import Batch
from ..counters import Counters
from ..errors import MailboxClosed
from ..hub import Hub
from ..mailboxes.port import Entry, Mailbox
from ..presence.port import Holder, Presence
from ..relay.port import Relay
from .forwarding import Forwarding
from .local import LocalDelivery
from .plan import Message, Plan, away_of, messages_of, plan, stale_messages, to_store, without_recipient
from .receipt import Receipt
from .round_trips import RoundTrips

Holders: TypeAlias = "asyncio.Future[Mapping[str, Sequence[Holder]]]"


class _InFlight:
    """A batch that is not done.

    :ivar messages: determined when the batch arrived; devices that join a group later are not in it
    :ivar routing: ends the leg that is held until all others have begun
    :ivar stored: the numbers of the messages that the mailbox stores; None without a mailbox
    :ivar is_stored: those numbers are known, or storing was given up
    :ivar is_given_up: the mailbox was closed before the batch was stored: the broker redelivers it
    :ivar holders: of the devices that were not here once it was stored; None if all were
    """

    __slots__ = ("batch", "holders", "is_given_up", "is_stored", "messages", "receipt", "routing", "stored")

    def __init__(self, batch: Batch, messages: list[Message]) -> None:
        self.batch, self.messages = batch, messages
        self.receipt = Receipt(batch.done)
        self.routing = self.receipt.leg()
        self.stored: asyncio.Future[list[int | None]] | None = None
        self.is_stored = self.is_given_up = False
        self.holders: Holders | None = None

    @property
    def is_ready(self) -> bool:
        """True if everything that its plan needs is known."""
        return self.is_stored and (self.holders is None or self.holders.done())


class Router:
    """Routes each batch to the devices, in the order of the batches and of the records in them.

    A message for a device that is not connected goes to no other device; without a mailbox it is dropped. With a
    mailbox, each batch is stored first and then sent to the connected devices. A transient message (an interim, or one
    whose ``ttl`` is 0) is not stored, because it is worthless later; it waits for its batch, so it never changes order
    with other messages. A record that was stored earlier may not have been sent, so its devices look into their boxes.

    A record's recipients are those of this moment, once: a record without any is counted like a message for a device
    that is not connected. Without a mailbox, a message whose ``ttl`` has passed before it is sent is dropped.

    A message for a device that another server holds goes there through the relay: the message itself or, with a
    mailbox, a notification. This server's own table is asked first, and presence only about the other devices.

    A batch is done, so that its offsets may be committed, when its last leg has ended (``receipt.py``): it is stored,
    it is routed here, and the relay has reported the fate of each other server's part.

    :param mailbox: None: messages that can't be sent now are dropped
    :param round_trips: receives the records of each batch once they are routed
    """

    def __init__(
        self,
        hub: Hub,
        counters: Counters,
        clock: Callable[[], float],
        presence: Presence,
        relay: Relay,
        *,
        mailbox: Mailbox | None = None,
        wall_clock: Callable[[], float] = time.time,
        round_trips: RoundTrips | None = None,
    ) -> None:
        self._hub, self._counters, self._presence = hub, counters, presence
        self._mailbox, self._round_trips = mailbox, round_trips
        self._connected = hub.connected
        self._local = LocalDelivery(hub, counters, clock, mailbox, wall_clock)
        self._forwarding = Forwarding(relay, self._local, counters)
        self._in_flight: deque[_InFlight] = deque()

    def __repr__(self) -> str:
        return f"<Router {len(self._in_flight)} batches in flight>"

    def __call__(self, batch: Batch) -> None:
        if self._mailbox is None:
            self._route(batch)
            return
        flight = self._take_off(batch)
        try:
            flight.stored = self._mailbox.append(_entries(flight))
        except MailboxClosed:
            return  # the gateway is stopping: the broker redelivers what is not done
        self._in_flight.append(flight)
        storing = flight.receipt.leg()
        flight.stored.add_done_callback(lambda stored: self._on_stored(flight, stored, storing))

    def _route(self, batch: Batch) -> None:
        """Route without a mailbox: at once, unless presence must be asked about other servers."""
        holders = None
        if not self._in_flight:
            away = away_of(batch.records, self._connected)
            if away:
                holders = self._ask(away)
            if away is not None and (holders is None or (holders.done() and not holders.result())):
                self._local.send_each(batch.records)
                batch.done()
                self._note_round_trips(batch)
                return
        flight = self._take_off(batch)
        self._in_flight.append(flight)
        self._find_holders(flight, holders)
        self._go_on()

    def _take_off(self, batch: Batch) -> _InFlight:
        messages = messages_of(batch.records, self._hub)
        self._local.no_recipient(without_recipient(batch.records, messages))
        return _InFlight(batch, messages)

    def _on_stored(
        self, flight: _InFlight, stored: asyncio.Future[list[int | None]], storing: Callable[[], None]
    ) -> None:
        if stored.cancelled() or stored.exception() is not None:
            flight.is_stored = flight.is_given_up = True
        else:
            storing()
            self._find_holders(flight)  # now, even if earlier batches are still waiting
        self._go_on()

    def _find_holders(self, flight: _InFlight, asked: Holders | None = None) -> None:
        """The batch is stored, or need not be: look up the holders of the devices that are not here.

        :param asked: the lookup, if it was already started for all of them
        """
        flight.is_stored, connected = True, self._connected
        if asked is None:
            asked = self._ask([device_id for _, device_id in flight.messages if device_id not in connected])
        flight.holders = asked
        if asked is not None and not asked.done():
            asked.add_done_callback(lambda _: self._go_on())

    def _ask(self, away: Sequence[str]) -> Holders | None:
        """Look up the holders of these devices; None if there are no devices."""
        return self._presence.holders(list(dict.fromkeys(away))) if away else None

    def _go_on(self) -> None:
        """Route the ready batches, up to the first that is not ready: batches never overtake each other."""
        while self._in_flight and self._in_flight[0].is_ready:
            flight = self._in_flight.popleft()
            if not flight.is_given_up:
                self._carry_out(flight)

    def _carry_out(self, flight: _InFlight) -> None:
        records, elsewhere = flight.batch.records, self._elsewhere(flight)
        messages: Sequence[Message] = flight.messages
        if flight.stored is None:
            messages = self._local.drop_expired(records, messages)
        routes = plan(records, messages, self._connected, elsewhere, has_mailbox=flight.stored is not None)
        if flight.stored is None:
            self._local.send(records, routes.local)
            for _, device_id in routes.unheld:
                self._local.not_connected(device_id)
            for server, part in routes.forward.items():
                self._forwarding.forward(flight.batch, server, part, flight.receipt)
        else:
            self._carry_out_stored(flight, routes, dict(zip(routes.store, flight.stored.result(), strict=True)))
        flight.routing()
        self._note_round_trips(flight.batch)

    def _elsewhere(self, flight: _InFlight) -> dict[str, list[str]]:
        """The other servers that hold devices of the batch, by device."""
        if flight.holders is None:
            return {}
        me = self._forwarding.me
        return {
            device_id: [holder.server for holder in holders if holder.server != me]
            for device_id, holders in flight.holders.result().items()
        }

    def _carry_out_stored(self, flight: _InFlight, routes: Plan, numbers: Mapping[Message, int | None]) -> None:
        records = flight.batch.records
        stale = stale_messages(records, flight.messages, numbers) if None in numbers.values() else frozenset()
        looked: set[str] = set()
        for message in routes.local:
            at, device_id = message
            number = numbers.get(message)
            if number is None and message in numbers:
                if device_id in looked:
                    continue
                looked.add(device_id)
            if message not in stale:
                self._local.send_stored(device_id, records[at], number)
        for message in routes.unheld:
            if message not in numbers:
                self._counters.unknown_device += message not in stale
            elif numbers[message] is not None:
                self._counters.kept += 1
        for server, part in routes.forward.items():
            waking = [message for message in part if message in numbers]
            transient = [message for message in part if message not in numbers and message not in stale]
            if waking:
                self._forwarding.wake_up(server, waking, flight.receipt)
            if transient:
                self._forwarding.forward(flight.batch, server, transient, flight.receipt)

    def _note_round_trips(self, batch: Batch) -> None:
        if self._round_trips is not None:
            self._round_trips.routed(batch.records)


def _entries(flight: _InFlight) -> list[Entry]:
    """The entries of a batch to store, a record's messages together, as the mailbox requires."""
    records, origins = flight.batch.records, flight.batch.origins()
    return [
        Entry(device_id, records[at].payload, records[at].timestamp_ms, *origins[at])
        for at, device_id in to_store(records, flight.messages)
    ]
