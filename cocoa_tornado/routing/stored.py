"""Sends the messages of a batch that the mailbox has stored. IOLoop thread only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter

from ..counters import Counters
from ..hub import Hub
from ..mailboxes.port import lane_of
from ..relay.messages import UNKNOWN_PLACE
from ..rules.box import LaneName
from ..rules.trace_memory import TraceMemory
from .address import Directory, recipients
from .fan_outs import FanOutDelivery
from .forwarding import Forwarding
from .forwards import Place
from .in_flight import InFlight
from .local import LocalDelivery
from .neighbors import Neighbors
from .numbers import BatchNumbers
from .plan import Part, Plan, in_order, stale_messages


class StoredDelivery:
    """Sends stored messages under the numbers that the mailbox gave them, and transient ones in their places among
    those.

    :param in_flight: all batches that are not carried out, in order: later ones may have stored messages, too
    :param memory: remembers what happened to each message; None: nothing does
    """

    def __init__(
        self,
        hub: Hub,
        local: LocalDelivery,
        forwarding: Forwarding,
        neighbors: Neighbors,
        fan_outs: FanOutDelivery,
        counters: Counters,
        in_flight: Iterable[InFlight],
        memory: TraceMemory | None,
    ) -> None:
        self._hub, self._local, self._forwarding, self._neighbors = hub, local, forwarding, neighbors
        self._fan_outs, self._counters, self._in_flight, self._memory = fan_outs, counters, in_flight, memory

    def send_out(self, flight: InFlight, routes: Plan, numbers: Mapping[Part, int | None]) -> None:
        """Send the messages of a batch, which is not in flight any more, to the devices that are here, and wake the
        servers of the others.

        :param numbers: of what was stored of it; None: it was stored earlier
        """
        records = flight.batch.records
        unsent = self._unsent(flight, numbers) if None in numbers.values() else frozenset()
        looked: set[str] = set()
        for message in in_order(routes.local, flight.fan_outs):
            at, device_id = message
            if device_id is None:
                self._fan_outs.send_steps(flight, at, is_recorded=numbers[message] is not None)
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
                flight.note_forwarded(self._memory, server, transient)
                places = self._places(flight, transient, numbers)
                self._forwarding.forward(flight.batch, server, transient, flight.receipt, places=places)

    def _unsent(self, flight: InFlight, numbers: Mapping[Part, int | None]) -> frozenset[Part]:
        """The transient messages of a batch that must not be sent: the mailbox has dropped them, or later messages were
        stored before them."""
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
        self, flight: InFlight, transient: Sequence[Part], numbers: Mapping[Part, int | None]
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
        here = () if self._neighbors.is_spread() else self._hub.connected
        away = {name: first for name, first in firsts.items() if name not in here}
        return Place(None, {name: first - 1 if first else UNKNOWN_PLACE for name, first in away.items()})
