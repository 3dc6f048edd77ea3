"""Routes batches: the only consumer of a broker's batches, with and without a mailbox. IOLoop thread only."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from types import MappingProxyType
from typing import Final, TypeAlias

from ..brokers.port import Batch
from ..counters import Counters
from ..errors import MailboxClosed
from ..hub import Hub
from ..mailboxes.port import Doorbell, Entry, FanOut, FanOutStep, Mailbox, lane_of
from ..presence.port import Holder, Presence
from ..relay.messages import UNKNOWN_PLACE
from ..relay.port import Fate, Relay
from ..rules.audiences import address_of, audience_of
from ..rules.box import LaneName
from ..rules.records import Record
from ..rules.taken import TakenOffsets
from ..rules.trace_memory import BatchTrace, TraceMemory
from .address import Address, Directory, Everyone, Group, User, recipients
from .forwarding import Forwarding
from .forwards import Place
from .local import LocalDelivery
from .looking import LookingAgain
from .numbers import BatchNumbers
from .plan import (
    Message,
    Part,
    Plan,
    away_of,
    deadlines,
    in_order,
    messages_of,
    plan,
    recipients_of,
    shared_by,
    stale_messages,
    to_append,
    without_recipient,
)
from .portions import portions
from .receipt import Receipt
from .round_trips import RoundTrips

Holders: TypeAlias = "asyncio.Future[Mapping[str, Sequence[Holder]]]"
_NO_DEADLINES: Final[Mapping[int, int]] = MappingProxyType({})


class _InFlight:
    """A batch that is not done.

    :ivar messages: determined when the batch arrived; devices that join a group later are not in it
    :ivar routing: ends the leg that is held until all others have begun
    :ivar to_append: what the mailbox takes of it, in the order of the numbers that :attr:`stored` has
    :ivar fan_outs: the indexes of the records that the mailbox fans out
    :ivar deadlines: when the ``ttl`` of its records ends, Unix milliseconds, by index: only of those that have one
    :ivar steps: those of its fan-outs that were stored before it is carried out, by the index of the record
    :ivar stored: the numbers of the messages that the mailbox takes; None without a mailbox
    :ivar doorbell: wakes the servers that hold devices as their messages are stored; None if the router has to
    :ivar is_stored: those numbers are known, or storing was given up
    :ivar is_given_up: the mailbox was closed before the batch was stored: the broker redelivers it
    :ivar lease: of this server when that was determined
    :ivar holders: of the devices that were not here once it was stored; None if all were
    :ivar is_spread: its devices may be connected to several servers at once
    :ivar sent: of these messages, those that are settled but for connections to this server
    :ivar stamp: of presence, if the relay finds the holders of its messages; '' otherwise, or if it could not, or this
        server had no valid lease meanwhile
    :ivar trace: what is remembered of it, if anything is
    """

    __slots__ = (
        "_fan_outs_by_content",
        "_numbers",
        "batch",
        "deadlines",
        "doorbell",
        "fan_outs",
        "holders",
        "is_given_up",
        "is_spread",
        "is_stored",
        "lease",
        "messages",
        "receipt",
        "routing",
        "sent",
        "stamp",
        "steps",
        "stored",
        "to_append",
        "trace",
    )

    def __init__(self, batch: Batch, messages: list[Message], *, is_spread: bool) -> None:
        self.batch, self.messages, self.is_spread = batch, messages, is_spread
        self.sent: frozenset[Message] = frozenset()
        self.receipt = Receipt(batch.done)
        self.routing = self.receipt.leg()
        self.to_append: Sequence[Part] = ()
        self.fan_outs: Sequence[int] = ()
        self._fan_outs_by_content: dict[tuple[int, bytes], list[int]] = {}  # each step looks for its record
        self._numbers: BatchNumbers | None = None  # until they are asked for: each device's are looked up then
        self.deadlines: Mapping[int, int] = _NO_DEADLINES
        self.steps: dict[int, list[FanOutStep]] = {}
        self.stored: asyncio.Future[list[int | None]] | None = None
        self.is_stored = self.is_given_up = False
        self.doorbell: Doorbell | None = None
        self.holders: Holders | None = None
        self.stamp = ""
        self.lease: object = None
        self.trace: BatchTrace | None = None

    @property
    def is_ready(self) -> bool:
        """True if everything that its plan needs is known."""
        return self.is_stored and (self.holders is None or self.holders.done())

    def for_both(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Those of these messages that other servers get as well if their devices are here."""
        return [message for message in messages if message not in self.sent] if self.is_spread else ()

    def append(self, parts: Sequence[Part]) -> None:
        """This is what the mailbox takes of it."""
        self.to_append = parts
        self.fan_outs = [at for at, device_id in parts if device_id is None]
        for at in self.fan_outs:
            record = self.batch.records[at]
            self._fan_outs_by_content.setdefault((record.timestamp_ms, record.payload), []).append(at)

    @property
    def numbers(self) -> BatchNumbers | None:
        """Of what is stored of it; None: nothing is."""
        if self._numbers is None and self.stored is not None:
            self._numbers = BatchNumbers(self.batch.records, self.to_append, self.stored, self.steps)
        return self._numbers

    def take(self, step: FanOutStep) -> bool:
        """Keep a step until the batch is carried out, so that it keeps its place among the batch's messages. False: it
        belongs to no fan-out that was recorded with this batch. If the batch reads a record again whose fan-out is
        under way, its steps don't wait for the batch, which may itself wait for fan-outs."""
        candidates, stored = self._fan_outs_by_content.get((step.timestamp_ms, step.payload)), self.stored
        if candidates is None or stored is None or not stored.done() or stored.cancelled() or stored.exception():
            return False
        numbers = dict(zip(self.to_append, stored.result(), strict=True))
        candidates = [at for at in candidates if numbers[at, None] is not None]
        # It is certain which one is meant unless the same record was produced twice.
        address, records = address_of(step.audience, step.excluded), self.batch.records
        found = [at for at in candidates if records[at].address == address]
        if found:
            at = next((at for at in found if at not in self.steps), found[0])
            self.steps.setdefault(at, []).append(step)
            if self._numbers is not None:
                self._numbers.add(at, step)
        return bool(found)


class Router:
    """Routes each batch to the devices, in the order of the batches and of the records in them.

    A message for a device that is not connected goes to no other device; without a mailbox it is dropped. With a
    mailbox, each batch is stored first and then sent to the connected devices. A transient message (an interim, or one
    whose ``ttl`` is 0) is not stored, because it is worthless later; it waits for its batch, so it never changes order
    with other messages. With a ``collapse_key`` or an ``id`` it is appended to the mailbox all the same, which drops it
    or says which message it comes after. A record that was stored earlier may not have been sent, so its devices look
    into their boxes.

    A record's recipients are those of this moment, once: a record without any is counted like a message for a device
    that is not connected. With a mailbox, a record for a user, a group or everyone is stored as a fan-out. The mailbox
    finds its recipients and reports each step, which is then sent like a batch, perhaps long after the batch is done,
    and after a restart without one. Without a mailbox, a message whose ``ttl`` has passed before it is sent is dropped.

    A message for a device that another server holds goes there through the relay: the message itself or, with a
    mailbox, a notification. This server's own table is asked first, and presence only about the other devices; but
    about all of them where a device may have several connections, which may be to several servers.

    Without a mailbox, what may be for other servers waits until presence knows them all. It would be lost if it were
    sent while Redis is away, or before other servers have claimed their devices again in a new term. While this server
    has no valid lease, everything waits: its own devices may be connected to other servers, and it would not know.

    A batch is done, so that its offsets may be committed, when its last leg has ended (``receipt.py``): it is stored,
    it is routed here, and the relay has reported the fate of each other server's part. A fan-out is stored once it is
    recorded; its steps are not waited for. While too many are under way, the mailbox holds back the next one and all
    that comes after it, so batches are not done and the broker stops reading.

    :param mailbox: None: messages that can't be sent now are dropped
    :param round_trips: receives the records of each batch once they are routed
    :param memory: remembers what became of each message; None: nothing does
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
        self._wall_clock = wall_clock
        self._connected = hub.connected
        self._has_neighbors, self._needs_overview = has_neighbors, has_neighbors and mailbox is None
        taken = TakenOffsets() if self._needs_overview else None
        self._local = LocalDelivery(hub, counters, clock, mailbox, wall_clock, taken, memory)
        self._looking = None if mailbox is None else LookingAgain(hub.devices, self._local.wake)
        self._forwarding = Forwarding(relay, presence, self._local, counters, self._looking, memory)
        self._in_flight: deque[_InFlight] = deque()
        self._held: deque[Batch] = deque()  # they wait for the lease; behind those that are in flight
        self._is_waiting = False  # for the lease
        self._to_send: deque[_InFlight] = deque()  # of those in flight, what the relay gets once it is in order
        if mailbox is not None:
            mailbox.watch_fan_outs(self.on_step)

    def __repr__(self) -> str:
        return f"<Router {len(self._in_flight) + len(self._held)} batches in flight>"

    def __call__(self, batch: Batch) -> None:
        if self._mailbox is None:
            if self._held or self._waits_for_lease():
                self._held.append(batch)
            else:
                self._route(batch)
            return
        for portion in portions(batch):
            self._store(portion, self._mailbox)

    def _waits_for_lease(self) -> bool:
        """Whether nothing may be routed now. What waits is routed once the lease is valid, or the server has joined
        anew."""
        if not self._needs_overview:
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
        while self._held and not self._waits_for_lease():
            batch = self._held.popleft()
            try:
                self._route(batch)
            except Exception:  # as in _carry_out()
                self._local.failed_elsewhere(len(batch.records))
                batch.done()

    def _store(self, batch: Batch, mailbox: Mailbox) -> None:
        flight = self._take_off(batch)
        flight.append(to_append(batch.records, flight.messages))
        flight.deadlines = deadlines(batch.records, self._wall_clock() * 1000)
        self._in_flight.append(flight)
        try:
            flight.stored = self._append(mailbox, flight)
        except MailboxClosed:
            self._in_flight.remove(flight)
            return  # the gateway is stopping: the broker redelivers what is not done
        storing = flight.receipt.leg()
        flight.stored.add_done_callback(lambda stored: self._on_stored(flight, stored, storing))

    def _append(self, mailbox: Mailbox, flight: _InFlight) -> asyncio.Future[list[int | None]]:
        entries, connected, records = _entries(flight), self._connected, flight.batch.records
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
        """Route records of devices that are connected here, which another worker of this machine has read; without a
        mailbox. What waits for other servers does not delay them."""
        trace = self._remember(batch)
        self._local.send_each(batch)
        self._note_routed(trace)
        self.note_round_trips(batch.records)

    def close(self) -> None:
        """The gateway stops: cancel what is only due later."""
        if self._looking is not None:
            self._looking.stop()

    def on_step(self, step: FanOutStep) -> None:
        """The mailbox has stored some messages of a fan-out."""
        for flight in self._in_flight:
            if flight.take(step):
                return
        self._send_step(step)

    def _route(self, batch: Batch) -> None:
        """Route without a mailbox: at once, unless presence must be asked about other servers."""
        holders = None
        if not self._in_flight and not self._is_shared(batch):
            away = away_of(batch.records, () if self._is_spread() else self._connected)
            if away and not self._forwarding.finds_holders:
                holders = self._ask(away)
            if not away or (holders is not None and holders.done() and not holders.result()):
                trace = self._remember(batch)
                self._local.send_each(batch)
                self._note_routed(trace)
                batch.done()
                self.note_round_trips(batch.records)
                return
        flight = self._take_off(batch)
        self._in_flight.append(flight)
        if holders is None and self._may_send_to_holders(flight):
            self._to_send.append(flight)
        else:
            self._find_holders(flight, holders)
        self._go_on()

    def _may_send_to_holders(self, flight: _InFlight) -> bool:
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
            if not self._send_to_holders(flight):
                self._find_holders(flight)

    def _is_in_order(self, flight: _InFlight) -> bool:
        """The relay keeps the order of what it is given. So no earlier batch may be waiting for a lookup, or for
        another term: what is sent for this one would overtake it."""
        stamp = self._presence.stamp
        for earlier in self._in_flight:
            if earlier is flight:
                break
            if earlier.stamp != stamp:
                return False
        return True

    def _send_to_holders(self, flight: _InFlight) -> bool:
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

    def _on_sent(self, flight: _InFlight, asked: Sequence[Message], fates: Sequence[Fate | None]) -> None:
        """Cases of a message: it was sent, or it is lost, and counted; nobody holds its device, or this server does,
        which is decided when the batch is carried out; it may not have been sent, so its holder is looked up."""
        fate_of = dict(zip(asked, fates, strict=True))
        accepted = [message for message, fate in fate_of.items() if fate is Fate.ACCEPTED]
        self._note_forwarded(flight, "", accepted)
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

    def _take_off(self, batch: Batch) -> _InFlight:
        has_mailbox = self._mailbox is not None
        messages = messages_of(batch.records, self._hub, has_mailbox=has_mailbox)
        if not self._is_shared(batch):  # otherwise it is not known
            self._local.no_recipient(without_recipient(batch.records, messages, has_mailbox=has_mailbox))
        flight = _InFlight(batch, messages, is_spread=self._is_spread())
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

    def _is_spread(self) -> bool:
        """Whether devices that are connected here may have connections to other servers, which get their messages
        too. With stand-bys, one of those that are here gets them."""
        return self._has_neighbors and not self._hub.has_stand_bys and self._presence.limits().per_device > 1

    def _is_shared(self, batch: Batch) -> bool:
        """True if other servers find recipients of their own for a record of this batch."""
        has_others = bool(self._presence.others()) or self._until_overview() is not None
        return has_others and bool(shared_by(batch.records, has_mailbox=self._mailbox is not None))

    def _until_overview(self) -> asyncio.Future[None] | None:
        return self._presence.until_overview() if self._needs_overview else None

    def _on_stored(
        self, flight: _InFlight, stored: asyncio.Future[list[int | None]], storing: Callable[[], None]
    ) -> None:
        if stored.cancelled() or stored.exception() is not None:
            flight.is_stored = flight.is_given_up = True
        else:
            storing()
            if self._memory is not None and flight.trace is not None:
                self._memory.stored(flight.trace, flight.to_append, stored.result())
            self._find_holders(flight)  # now, even if earlier batches are still waiting
        self._go_on()

    def _note_forwarded(self, flight: _InFlight, server: str, parts: Sequence[Part]) -> None:
        if self._memory is not None and flight.trace is not None and parts:
            self._memory.forwarded(flight.trace, server, parts)

    def _find_holders(self, flight: _InFlight, asked: Holders | None = None) -> None:
        """The batch is stored, or need not be: look up the holders of the devices that are not here.

        :param asked: the lookup, if it was already started for all of them
        """
        flight.is_stored, flight.lease = True, self._presence.lease
        flight.stamp = ""  # later batches wait for it
        if asked is None:
            unknown = self._unknown_of(flight)
            asked = self._ask(unknown)
            if asked is None and self._until_overview() is not None and self._is_shared(flight.batch):
                asked = self._ask_later(unknown)
        flight.holders = asked
        if asked is not None and not asked.done():
            asked.add_done_callback(lambda _: self._go_on())

    def _unknown_of(self, flight: _InFlight) -> list[str]:
        """The devices that may be elsewhere, apart from those whose servers the mailbox has woken, if it could find
        them. A transient message is for no mailbox, so its device is looked up in any case."""
        connected, records = self._connected, flight.batch.records
        if flight.is_spread:
            away = flight.for_both(flight.messages)
        else:
            away = [message for message in flight.messages if message[1] not in connected]
        woken = () if flight.doorbell is None else flight.doorbell.device_ids
        return [device_id for at, device_id in away if device_id not in woken or records[at].is_transient]

    def _ask(self, away: Sequence[str]) -> Holders | None:
        """Look up the holders of these devices; None if there are no devices."""
        if not away:
            return None
        device_ids = list(dict.fromkeys(away))
        if self._until_overview() is not None:
            return self._ask_later(device_ids)
        holders = self._presence.holders(device_ids)
        if not self._needs_overview or holders.done():
            return holders
        return self._ask_later(device_ids, holders)

    def _ask_later(self, device_ids: Sequence[str], asked: Holders | None = None) -> Holders:
        """Look up holders as soon as presence knows all servers.

        :param asked: a lookup under way. It is repeated if presence does not know all servers once it is answered
        """
        found: Holders = asyncio.get_running_loop().create_future()

        def go_on(_: object) -> None:
            nonlocal asked
            until_overview = self._until_overview()
            if until_overview is not None:
                asked = None
                until_overview.add_done_callback(go_on)
            elif asked is not None and asked.done():
                found.set_result(asked.result())
            else:
                asked = self._presence.holders(device_ids)
                asked.add_done_callback(go_on)

        if asked is None:
            go_on(None)
        else:
            asked.add_done_callback(go_on)
        return found

    def _go_on(self) -> None:
        """Route the ready batches, up to the first that is not ready: batches never overtake each other."""
        if self._to_send:
            self._begin_in_order()
        while self._in_flight and self._in_flight[0].is_ready and not self._waits_for_lease():
            flight = self._in_flight[0]
            is_outdated = self._needs_overview and flight.lease is not self._presence.lease
            needs_others = flight.holders is not None or self._is_shared(flight.batch)
            if is_outdated or (self._until_overview() is not None and needs_others):
                self._find_holders(flight)  # what was found before may not be valid any more
                continue
            self._in_flight.popleft()
            if not flight.is_given_up:
                self._carry_out(flight)
            if self._to_send:
                self._begin_in_order()

    def _carry_out(self, flight: _InFlight) -> None:
        try:
            self._send_out(flight)
        except Exception:  # parts that were not sent are lost, but the batch must not hold back its partitions
            self._local.failed_elsewhere(len(flight.batch.records))
            self._local.note_faults(flight.batch.records)
        finally:
            self._note_routed(flight.trace)
            flight.routing()
        self.note_round_trips(flight.batch.records)

    def _send_out(self, flight: _InFlight) -> None:
        records, elsewhere, others = flight.batch.records, self._elsewhere(flight.holders), self._presence.others()
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
                self._note_forwarded(flight, server, part)
                self._forwarding.forward(flight.batch, server, part, flight.receipt, again)
        else:
            routes = plan(flight.messages, self._connected, elsewhere, others, shared, flight.for_both(flight.messages))
            self._carry_out_stored(flight, routes, dict(zip(flight.to_append, flight.stored.result(), strict=True)))

    def _drop_unheld(self, flight: _InFlight, messages: Iterable[Message]) -> None:
        for at, device_id in messages:
            record = flight.batch.records[at]
            self._local.not_connected(device_id, record.payload, record.timestamp_ms)

    def _route_again(self, flight: _InFlight, messages: Sequence[Message]) -> None:
        """A server does not have these messages: ask once more who holds their devices."""
        holders, ended = self._ask([device_id for _, device_id in messages]), flight.receipt.leg()

        def then(holders: Holders) -> None:
            both = messages if flight.is_spread else ()
            routes = plan(messages, self._connected, self._elsewhere(holders), both=both)
            self._local.send(flight.batch, routes.local)
            self._drop_unheld(flight, routes.unheld)
            for server, part in routes.forward.items():
                self._note_forwarded(flight, server, part)
                self._forwarding.forward(flight.batch, server, part, flight.receipt)
            ended()

        if holders is None:
            ended()
        elif holders.done():
            then(holders)
        else:
            holders.add_done_callback(then)

    def _elsewhere(self, holders: Holders | None) -> dict[str, list[str]]:
        """The other servers that hold devices, by device."""
        if holders is None:
            return {}
        me = self._forwarding.me
        elsewhere = {
            device_id: [holder.server for holder in found if holder.server != me]
            for device_id, found in holders.result().items()
        }
        if self._mailbox is None and self._hub.has_stand_bys:
            # One of a device's connections gets the message: one of those that are here, else the oldest.
            return {device_id: servers[:1] for device_id, servers in elsewhere.items()}
        return elsewhere

    def _carry_out_stored(self, flight: _InFlight, routes: Plan, numbers: Mapping[Part, int | None]) -> None:
        records = flight.batch.records
        unsent = self._unsent(flight, numbers) if None in numbers.values() else frozenset()
        looked: set[str] = set()
        for message in in_order(routes.local, flight.fan_outs):
            at, device_id = message
            if device_id is None:
                self._send_fan_out(flight, at, is_recorded=numbers[message] is not None)
                continue
            if message in unsent:
                continue
            number, later = numbers.get(message), None
            if number is None:
                if message not in numbers:
                    later = partial(self._first_later, flight.numbers, at, device_id, directory=self._hub)
                elif device_id in looked:
                    continue
                else:
                    looked.add(device_id)
            self._local.send_stored(device_id, records[at], number, flight.deadlines.get(at, 0), later)
        for message in routes.unheld:
            record = records[message[0]]
            if record.is_transient:
                if message not in unsent:
                    self._local.not_connected(message[1], record.payload, record.timestamp_ms)
            elif numbers[message] is not None and not (flight.doorbell and message[1] in flight.doorbell.held):
                self._counters.kept += 1
        woken = () if flight.doorbell is None else flight.doorbell.device_ids
        for server, part in routes.forward.items():
            waking = [
                device_id
                for at, device_id in part
                if device_id is not None and device_id not in woken and not records[at].is_transient
            ]
            transient = [message for message in part if records[message[0]].is_transient and message not in unsent]
            if waking:
                self._forwarding.wake_up(server, waking, flight.receipt)
            if transient:
                self._note_forwarded(flight, server, transient)
                places = self._places(flight, transient, numbers)
                self._forwarding.forward(flight.batch, server, transient, flight.receipt, places=places)

    def _unsent(self, flight: _InFlight, numbers: Mapping[Part, int | None]) -> frozenset[Part]:
        """The transient messages of a batch that must not be sent: the mailbox has dropped them or, if they are for no
        mailbox, later ones were stored earlier."""
        records = flight.batch.records
        read_again = [at for at in flight.fan_outs if numbers[at, None] is None]
        members = [(at, device_id) for at in read_again for device_id in recipients(records[at].address, self._hub)]
        earlier = {message for message in flight.messages if message in numbers and numbers[message] is None}
        if not (earlier or members):
            return frozenset()
        messages = sorted([*flight.messages, *members], key=itemgetter(0)) if members else flight.messages
        stale = stale_messages(records, messages, earlier.union(members)).difference(numbers)
        return stale.union(message for message in earlier if records[message[0]].is_transient)

    def _first_later(
        self, numbers: BatchNumbers | None, at: int, device_id: str, lane: LaneName, directory: Directory | None
    ) -> int | None:
        """The lowest number of a lane that a later message of a device has than this one of a batch; 0: it is not
        known; None: there is no later one.

        :param directory: None: the device is at another server
        """
        found = None if numbers is None else numbers.first(at, device_id, lane, directory)
        for other in self._in_flight:
            if found is not None:
                break
            if (of_other := other.numbers) is not None:
                found = of_other.first(-1, device_id, lane, directory)
        return found

    def _places(
        self, flight: _InFlight, transient: Sequence[Part], numbers: Mapping[Part, int | None]
    ) -> Mapping[Part, Place]:
        """Where transient messages belong among the stored ones, which other servers may have sent already."""
        found = {}
        for part in transient:
            at, device_id = part
            lane = lane_of(flight.batch.records[at].options)
            if part in numbers:
                found[part] = Place(numbers[part])
            elif device_id is None:
                found[part] = self._shared_place(flight.numbers, at, lane)
            else:
                found[part] = Place(self._place(flight.numbers, at, device_id, lane))
        return found

    def _place(self, numbers: BatchNumbers | None, at: int, device_id: str, lane: LaneName) -> int | None:
        """Cases, in order: a later message is known; an earlier one is; a later one is being stored; none of them."""
        first = self._first_later(numbers, at, device_id, lane, None)
        if first:
            return first - 1
        last = None if numbers is None else numbers.last(at, device_id, lane)
        if last is not None:
            return last
        return None if first is None else UNKNOWN_PLACE

    def _shared_place(self, numbers: BatchNumbers | None, at: int, lane: LaneName) -> Place:
        """Of a record whose recipients the other servers find."""
        firsts: dict[str, int] = {}
        if numbers is not None:
            numbers.add_firsts(at, lane, firsts)
        for other in self._in_flight:
            if other.numbers is not None:
                other.numbers.add_firsts(-1, lane, firsts)
        here = () if self._is_spread() else self._connected
        away = {name: first for name, first in firsts.items() if name not in here}
        return Place(None, {name: first - 1 if first else UNKNOWN_PLACE for name, first in away.items()})

    # -- fan-outs

    def _send_fan_out(self, flight: _InFlight, at: int, *, is_recorded: bool) -> None:
        """Send the steps that were stored with the batch.

        :param is_recorded: with the batch: all further steps will be reported. False: it was recorded earlier
        """
        steps, record = flight.steps.get(at), flight.batch.records[at]
        if steps is None:
            if not (record.is_transient or is_recorded):
                self._wake_members(record.address)
        else:
            for step in steps:
                self._send_step(step)

    def _send_step(self, step: FanOutStep) -> None:
        """Send the messages of a step to the devices that are here, and wake the others where they are. A transient
        message is sent there."""
        if self._memory is not None and step.numbers is not None:
            numbers = None if step.is_transient else step.numbers
            self._memory.note_recipients(step.payload, step.timestamp_ms, tuple(step.numbers), numbers)
        if step.is_last and not step.recipients:
            self._local.no_recipient(1)
        if step.numbers is None:
            if not step.is_transient:
                self._wake_members(address_of(step.audience, step.excluded))
            return
        away = self._local.send_step(step, step.numbers)
        asked = list(step.numbers) if self._is_spread() else away
        holders = self._ask(asked)
        if holders is None:
            return
        if holders.done():
            self._send_elsewhere(step, asked, away, holders)
        else:
            holders.add_done_callback(lambda holders: self._send_elsewhere(step, asked, away, holders))

    def _send_elsewhere(self, step: FanOutStep, asked: Sequence[str], away: Sequence[str], holders: Holders) -> None:
        """
        :param asked: the devices whose holders are known; :param away: those that were not here
        """
        routes = plan([(0, device_id) for device_id in asked], (), self._elsewhere(holders))
        if not step.is_transient:
            unheld = routes.unheld
            self._counters.kept += len(unheld if asked is away else {each for _, each in unheld}.intersection(away))
        for server, part in routes.forward.items():
            device_ids = [device_id for _, device_id in part if device_id is not None]
            if step.is_transient:
                self._forwarding.forward_step(server, step, device_ids)
            else:
                self._forwarding.wake_up(server, device_ids)

    def _wake_members(self, address: Address) -> None:
        """Messages may have been stored for these devices without a number that is known here."""
        self._local.wake_members(address)
        self._forwarding.wake_up_members(address)

    def note_round_trips(self, records: Sequence[Record]) -> None:
        """These records have come back from the broker."""
        if self._round_trips is not None:
            self._round_trips.routed(records)


def _entries(flight: _InFlight) -> list[Entry | FanOut]:
    """What the mailbox takes of a batch, a record's messages together, as it requires."""
    records, origins, expires_ms = flight.batch.records, flight.batch.origins(), flight.deadlines.get
    found: list[Entry | FanOut] = []
    for at, device_id in flight.to_append:
        address, payload, timestamp_ms, _, _, options = records[at]
        message = (payload, timestamp_ms, *origins[at], options, expires_ms(at, 0))
        if device_id is not None:
            found.append(Entry(device_id, *message))
        elif isinstance(address, (User, Group, Everyone)):
            found.append(FanOut(audience_of(address), address.excluded, *message))
    return found
