"""Routes batches: the only consumer of a broker's batches, with and without a mailbox. IOLoop thread only."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from ..brokers.port import Batch
from ..counters import Counters
from ..errors import MailboxClosed
from ..hub import Hub
from ..mailboxes.port import Doorbell, FanOutStep, Mailbox
from ..presence.port import Presence
from ..relay.port import Fate, Relay
from ..rules.records import Record
from ..rules.taken import TakenOffsets
from ..rules.trace_memory import BatchTrace, TraceMemory
from .fan_outs import FanOutDelivery
from .forwarding import Forwarding
from .in_flight import Holders, InFlight, entries_of
from .local import LocalDelivery
from .looking import LookingAgain
from .neighbors import Neighbors
from .plan import (
    Message,
    away_of,
    deadlines,
    messages_of,
    plan,
    recipients_of,
    shared_by,
    to_append,
    without_recipient,
)
from .portions import is_for_single_devices, portions
from .round_trips import RoundTrips
from .stored import StoredDelivery

MOST_MESSAGES: Final = 100_000
"""In flight: 7 MB. Behind the portion that reaches it, batches wait as they were read, within the broker's bounds.
Also of the devices whose numbers are kept for batches in flight that wait: 20 MB."""


class Router:
    """Routes each batch to the devices, in the order of the batches and of the records in them.

    A message for a device that is not connected goes to no other device; without a mailbox it is dropped. With a
    mailbox, each batch is stored first and then sent to the connected devices. A transient message (an interim, or one
    whose ``ttl`` is 0) is not stored, because it is worthless later; it waits for its batch, so it never changes order
    with other messages. With a ``collapse_key`` or an ``id`` it is nevertheless appended to the mailbox, which drops it
    or returns which message it comes after. A record that was stored earlier may not have been sent, so its devices
    look into their boxes.

    A record's recipients are those of this moment, once: a record without any is counted like a message for a device
    that is not connected. With a mailbox, a record for a user, a group or everyone is stored as a fan-out. The mailbox
    finds its recipients and reports each step, which is then sent like a batch, perhaps long after the batch is done,
    and after a restart without one. Without a mailbox, a message whose ``ttl`` has passed before it is sent is dropped.

    A message for a device that another server holds goes there through the relay: the message itself or, with a
    mailbox, a notification. This server's own table is asked first, and presence only about the other devices; but
    about all of them where a device may have several connections, which may be to several servers.

    Without a mailbox, what may be for other servers waits until presence knows them all. It would be lost if it were
    sent while Redis is unavailable, or before other servers have claimed their devices again in a new term. While this
    server has no valid lease, everything waits: its own devices may be connected to other servers, and it would not
    know.

    A batch is done, so that its offsets may be committed, when its last leg has ended (``receipt.py``): it is stored,
    it is routed here, and the relay has reported the fate of each other server's part. A fan-out is stored once it is
    recorded; its steps are not waited for. While too many are under way, the mailbox holds back the next one and all
    that comes after it, so batches are not done and the broker stops reading.

    :param mailbox: None: messages that can't be sent now are dropped
    :param round_trips: receives the records of each batch once they are routed
    :param memory: remembers what happened to each message; None: nothing does
    :param has_neighbors: True if other servers may have read the same records, so that some are read twice: each time
        that a partition moves to another server. A mailbox knows them; without one, each device gets them once
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
        has_neighbors: bool = False,
        memory: TraceMemory | None = None,
    ) -> None:
        self._memory = memory
        self._hub, self._counters, self._presence = hub, counters, presence
        self._mailbox, self._round_trips = mailbox, round_trips
        self._expands_batches = mailbox is not None or has_neighbors  # otherwise, its records one by one
        self._wall_clock = wall_clock
        self._connected = hub.connected
        taken = TakenOffsets() if has_neighbors and mailbox is None else None
        self._local = LocalDelivery(hub, counters, clock, mailbox, wall_clock, taken, memory)
        self._looking = None if mailbox is None else LookingAgain(hub.devices, self._local.wake)
        self._forwarding = Forwarding(relay, presence, self._local, counters, self._looking, memory)
        self._neighbors = Neighbors(
            hub, presence, lambda: relay.server, exist=has_neighbors, has_mailbox=mailbox is not None
        )
        self._in_flight: deque[InFlight] = deque()
        self._fan_outs = FanOutDelivery(self._local, self._forwarding, self._neighbors, counters, memory)
        self._stored = StoredDelivery(
            hub, self._local, self._forwarding, self._neighbors, self._fan_outs, counters, self._in_flight, memory
        )
        self._messages = 0  # of those in flight
        self._held: deque[Batch] = deque()  # they wait for the lease or for room; behind those that are in flight
        self._is_routing_held = False
        self._is_waiting = False  # for the lease
        self._to_send: deque[InFlight] = deque()  # of those in flight, what the relay gets once it is in order
        if mailbox is not None:
            mailbox.watch_fan_outs(self.on_step)

    def __repr__(self) -> str:
        return f"<Router {len(self._in_flight) + len(self._held)} batches in flight>"

    def __call__(self, batch: Batch) -> None:
        if self._held or self._has_to_hold():
            self._held.append(batch)
        elif self._expands_batches and not is_for_single_devices(batch):
            self._held.append(batch)
            self._route_held()
        else:
            self._begin(batch)

    def _has_to_hold(self) -> bool:
        """Whether the next batch waits without being expanded: it may have a thousand times as many messages as
        records."""
        return self._messages >= MOST_MESSAGES or self._waits_for_lease()

    def _begin(self, batch: Batch) -> None:
        if self._mailbox is None:
            self._route(batch)
        else:
            self._store(batch, self._mailbox)

    def _waits_for_lease(self) -> bool:
        """Whether nothing may be routed now. Waiting batches are routed once the lease is valid, or the server has
        joined again."""
        if not self._neighbors.needs_overview:
            return False
        until_lease = self._presence.until_lease()
        if until_lease is not None and not self._is_waiting:
            self._is_waiting = True
            until_lease.add_done_callback(self._on_lease)
        return until_lease is not None

    def _on_lease(self, _: object) -> None:
        self._is_waiting = False
        try:
            for flight in list(self._in_flight):  # devices that were here may be at other servers now
                if flight.is_stored:
                    self._find_holders(flight)
                else:
                    flight.stamp = ""
            self._go_on()
        finally:
            self._route_held()

    def _route_held(self) -> None:
        if self._is_routing_held:
            return  # the loop below continues
        self._is_routing_held = True
        try:
            while self._held and not self._has_to_hold():
                batch = self._held.popleft()
                if self._expands_batches:  # as late as possible: by now, more devices may have connected
                    batch, *rest = portions(batch, self._hub, has_mailbox=self._mailbox is not None)
                    self._held.extendleft(reversed(rest))
                try:
                    self._begin(batch)
                except Exception:
                    self._local.failed_elsewhere(len(batch.records))
                    # As in _carry_out(); records that are not stored are read again after a restart.
                    if self._mailbox is None and not any(flight.batch is batch for flight in self._in_flight):
                        batch.done()
        finally:
            self._is_routing_held = False

    def _store(self, batch: Batch, mailbox: Mailbox) -> None:
        flight = self._take_off(batch)
        flight.append(to_append(batch.records, flight.messages))
        flight.deadlines = deadlines(batch.records, self._wall_clock() * 1000)
        self._add(flight)
        try:
            flight.stored = self._append(mailbox, flight)
        except Exception as error:  # a batch that is not done is redelivered, after a restart at the latest
            self._in_flight.remove(flight)
            self._messages -= flight.size
            if isinstance(error, MailboxClosed):
                return  # the gateway is stopping
            raise
        storing = flight.receipt.leg()
        flight.stored.add_done_callback(lambda stored: self._on_stored(flight, stored, storing))

    def _append(self, mailbox: Mailbox, flight: InFlight) -> asyncio.Future[list[int | None]]:
        entries, connected, records = entries_of(flight), self._connected, flight.batch.records
        if mailbox.rings:
            stored = [device_id for at, device_id in flight.messages if not records[at].is_transient]
            away = set(
                stored if flight.is_spread else [device_id for device_id in stored if device_id not in connected]
            )
            if away:
                flight.doorbell = Doorbell(away, self._forwarding.me)
                return mailbox.append(entries, flight.doorbell)
        return mailbox.append(entries)

    def deliver(self, batch: Batch) -> None:
        """Route records for devices that are connected here, which another worker of this machine has read; without a
        mailbox. Batches that wait for other servers do not delay them."""
        trace = self._remember(batch)
        self._local.send_each(batch)
        self._note_routed(trace)
        self.note_round_trips(batch.records)

    def close(self) -> None:
        """The gateway stops: cancel scheduled calls."""
        if self._looking is not None:
            self._looking.stop()

    def on_step(self, step: FanOutStep) -> None:
        """The mailbox has stored some messages of a fan-out."""
        room = MOST_MESSAGES - sum(flight.kept for flight in self._in_flight)
        for flight in self._in_flight:
            if flight.take(step, room):
                if step.is_transient and len(step.numbers or ()) > room:
                    self._fan_outs.drop_step(step)
                return
        self._fan_outs.send_step(step)

    def _route(self, batch: Batch) -> None:
        """Route without a mailbox: at once, unless presence must be asked about other servers."""
        holders = None
        if not self._in_flight and not self._neighbors.is_shared(batch):
            away = away_of(batch.records, () if self._neighbors.is_spread() else self._connected)
            if away and not self._forwarding.finds_holders:
                holders = self._neighbors.ask(away)
            if not away or (holders is not None and holders.done() and not holders.result()):
                trace = self._remember(batch)
                self._local.send_each(batch)
                self._note_routed(trace)
                batch.done()
                self.note_round_trips(batch.records)
                return
        flight = self._take_off(batch)
        self._add(flight)
        if holders is None and self._may_send_to_holders(flight):
            self._to_send.append(flight)
        else:
            self._find_holders(flight, holders)
        self._go_on()

    def _may_send_to_holders(self, flight: InFlight) -> bool:
        """Whether the relay can find the holders of this batch's devices, once the batch is in order."""
        return (
            self._forwarding.finds_holders
            and bool(self._presence.stamp)
            and not self._hub.has_stand_bys
            and all(type(record[0]) is str for record in flight.batch.records)
        )

    def _begin_in_order(self) -> None:
        """Begin the batches that had to wait for earlier ones."""
        while self._to_send and not self._waits_for_lease() and self._is_in_order(self._to_send[0]):
            flight = self._to_send.popleft()
            try:
                is_sent = self._send_to_holders(flight)
            except Exception:
                self._local.failed_elsewhere(0)
                is_sent = False
            if not is_sent:
                self._find_holders(flight)

    def _is_in_order(self, flight: InFlight) -> bool:
        """The relay keeps the order of what it is given. So no earlier batch may be waiting for a lookup, or for
        another term: what is sent for this one would overtake it."""
        stamp = self._presence.stamp
        for earlier in self._in_flight:
            if earlier is flight:
                break
            if earlier.stamp != stamp:
                return False
        return True

    def _send_to_holders(self, flight: InFlight) -> bool:
        """Have the relay find the holders of a batch's devices and send them their messages at once, without waiting
        for earlier batches, if nothing of those can be overtaken. False: this batch needs a lookup."""
        stamp = self._presence.stamp
        if not stamp:
            return False
        flight.stamp, flight.lease = stamp, self._presence.lease
        flight.messages = list(self._local.drop_expired(flight.batch.records, flight.messages))
        if flight.is_spread:
            asked: Sequence[Message] = flight.messages
        else:
            asked = [message for message in flight.messages if message[1] not in self._connected]
        if not asked:
            flight.is_stored = True
            return True
        ended = flight.receipt.leg()

        def then(fates: Sequence[Fate] | None) -> None:
            try:
                self._on_sent(flight, asked, [None] * len(asked) if fates is None else fates)
            finally:
                ended()

        self._forwarding.send_to_holders(flight.batch, stamp, asked, then)
        return True

    def _on_sent(self, flight: InFlight, asked: Sequence[Message], fates: Sequence[Fate | None]) -> None:
        """Cases of a message: it was sent, or it is lost, and counted; no server holds its device, or this one does,
        which is decided when the batch is carried out; it may not have been sent, so its holder is looked up."""
        fate_of = dict(zip(asked, fates, strict=True))
        accepted = [message for message, fate in fate_of.items() if fate is Fate.ACCEPTED]
        flight.note_forwarded(self._memory, "", accepted)
        if None in fates:
            self._local.note_faults([flight.batch.records[at] for (at, _), fate in fate_of.items() if fate is None])
        settled = {message for message, fate in fate_of.items() if fate in (None, Fate.ACCEPTED, Fate.OVERFLOW)}
        if flight.is_spread:  # those that were sent may be for devices that are here, too
            flight.sent = frozenset(settled)
        else:
            flight.messages = [message for message in flight.messages if message not in settled]
        flight.is_stored = True
        if not flight.stamp or any(fate in (Fate.LOST, Fate.CLOSED, Fate.TERM_OVER) for fate in fates):
            self._find_holders(flight)
        self._go_on()

    def _add(self, flight: InFlight) -> None:
        self._in_flight.append(flight)
        self._messages += flight.size

    def _take_off(self, batch: Batch) -> InFlight:
        has_mailbox = self._mailbox is not None
        messages = messages_of(batch.records, self._hub, has_mailbox=has_mailbox)
        if not self._neighbors.is_shared(batch):  # otherwise it is not known
            self._local.no_recipient(without_recipient(batch.records, messages, has_mailbox=has_mailbox))
        flight = InFlight(batch, messages, is_spread=self._neighbors.is_spread())
        flight.trace = self._remember(batch)
        if self._memory is not None:
            for at, device_ids in recipients_of(batch.records, messages).items():
                self._memory.note_recipients(batch.records[at].payload, batch.records[at].timestamp_ms, device_ids)
        return flight

    def _remember(self, batch: Batch) -> BatchTrace | None:
        return (
            None
            if self._memory is None
            else self._memory.remember(batch.records, batch.offsets, batch.sources, batch.size)
        )

    def _note_routed(self, trace: BatchTrace | None) -> None:
        if trace is not None:
            trace.routed_at_s = self._wall_clock()

    def _on_stored(
        self, flight: InFlight, stored: asyncio.Future[list[int | None]], storing: Callable[[], None]
    ) -> None:
        is_given_up = stored.cancelled() or stored.exception() is not None
        try:
            if self._memory is not None and flight.trace is not None and not is_given_up:
                self._memory.stored(flight.trace, flight.to_append, stored.result())
        finally:
            if is_given_up:
                flight.is_stored = flight.is_given_up = True
            else:
                storing()
                self._find_holders(flight)  # now, even if earlier batches are still waiting
            self._go_on()

    def _find_holders(self, flight: InFlight, asked: Holders | None = None) -> None:
        """The batch is stored, or need not be: look up the holders of the devices that are not here.

        :param asked: the lookup, if it was already started for all of them
        """
        flight.is_stored, flight.lease = True, self._presence.lease
        flight.stamp = ""  # later batches wait for it
        if asked is None:
            unknown = self._unknown_of(flight)
            asked = self._neighbors.ask(unknown)
            if (
                asked is None
                and self._neighbors.until_overview() is not None
                and self._neighbors.is_shared(flight.batch)
            ):
                asked = self._neighbors.ask_later(unknown)
        flight.holders = asked
        if asked is not None and not asked.done():
            asked.add_done_callback(lambda _: self._go_on())

    def _unknown_of(self, flight: InFlight) -> list[str]:
        """The devices that may be elsewhere, apart from those whose servers the mailbox has woken, if it could find
        them. A transient message is for no mailbox, so its device is looked up in any case."""
        connected, records = self._connected, flight.batch.records
        if flight.is_spread:
            away = flight.for_both(flight.messages)
        else:
            away = [message for message in flight.messages if message[1] not in connected]
        woken = () if flight.doorbell is None else flight.doorbell.device_ids
        return [device_id for at, device_id in away if device_id not in woken or records[at].is_transient]

    def _go_on(self) -> None:
        """Route the ready batches, up to the first that is not ready: batches never overtake each other."""
        if self._to_send:
            self._begin_in_order()
        while self._in_flight and self._in_flight[0].is_ready and not self._waits_for_lease():
            flight = self._in_flight[0]
            is_outdated = self._neighbors.needs_overview and flight.lease is not self._presence.lease
            needs_others = flight.holders is not None or self._neighbors.is_shared(flight.batch)
            if is_outdated or (self._neighbors.until_overview() is not None and needs_others):
                self._find_holders(flight)  # holders that were found before may not be valid any more
                continue
            self._in_flight.popleft()
            self._messages -= flight.size
            if not flight.is_given_up:
                self._carry_out(flight)
            if self._to_send:
                self._begin_in_order()
        if self._held:
            self._route_held()

    def _carry_out(self, flight: InFlight) -> None:
        try:
            self._send_out(flight)
        except Exception:  # parts that were not sent are lost, but the batch must not hold back its partitions
            self._local.failed_elsewhere(len(flight.batch.records))
            self._local.note_faults(flight.batch.records)
        finally:
            self._note_routed(flight.trace)
            flight.routing()
        self.note_round_trips(flight.batch.records)

    def _send_out(self, flight: InFlight) -> None:
        records, elsewhere, others = (
            flight.batch.records,
            self._neighbors.elsewhere(flight.holders),
            self._presence.others(),
        )
        shared = shared_by(records, has_mailbox=flight.stored is not None) if others else ()
        if flight.stored is None:
            messages = self._local.drop_expired(records, flight.messages)
            if flight.sent:
                messages = [each for each in messages if each not in flight.sent or each[1] in self._connected]
            routes = plan(messages, self._connected, elsewhere, others, shared, flight.for_both(messages))
            self._local.send(flight.batch, routes.local)
            self._drop_unheld(flight, routes.unheld)
            again = partial(self._route_again, flight)
            for server, part in routes.forward.items():
                flight.note_forwarded(self._memory, server, part)
                self._forwarding.forward(flight.batch, server, part, flight.receipt, again)
        else:
            routes = plan(flight.messages, self._connected, elsewhere, others, shared, flight.for_both(flight.messages))
            self._stored.send_out(flight, routes, dict(zip(flight.to_append, flight.stored.result(), strict=True)))

    def _drop_unheld(self, flight: InFlight, messages: Iterable[Message]) -> None:
        for at, device_id in messages:
            record = flight.batch.records[at]
            self._local.not_connected(device_id, record.payload, record.timestamp_ms)

    def _route_again(self, flight: InFlight, messages: Sequence[Message]) -> None:
        """A server does not have these messages: ask once more who holds their devices."""
        holders, ended = self._neighbors.ask([device_id for _, device_id in messages]), flight.receipt.leg()

        def then(holders: Holders) -> None:
            both = messages if flight.is_spread else ()
            routes = plan(messages, self._connected, self._neighbors.elsewhere(holders), both=both)
            self._local.send(flight.batch, routes.local)
            self._drop_unheld(flight, routes.unheld)
            for server, part in routes.forward.items():
                flight.note_forwarded(self._memory, server, part)
                self._forwarding.forward(flight.batch, server, part, flight.receipt)
            ended()

        if holders is None:
            ended()
        elif holders.done():
            then(holders)
        else:
            holders.add_done_callback(then)

    def note_round_trips(self, records: Sequence[Record]) -> None:
        """These records have come back from the broker."""
        if self._round_trips is not None:
            self._round_trips.routed(records)
