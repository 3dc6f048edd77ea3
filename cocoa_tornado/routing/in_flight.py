"""A batch on its way through the router. IOLoop thread only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

from ..brokers.port import Batch
from ..mailboxes.port import Doorbell, Entry, FanOut, FanOutStep
from ..presence.port import Holder
from ..rules.audiences import address_of, audience_of
from ..rules.trace_memory import BatchTrace, TraceMemory
from .address import Everyone, Group, User
from .numbers import BatchNumbers
from .plan import Message, Part
from .receipt import Receipt

Holders: TypeAlias = "asyncio.Future[Mapping[str, Sequence[Holder]]]"
_NO_DEADLINES: Final[Mapping[int, int]] = MappingProxyType({})


class InFlight:
    """A batch that is not done.

    :ivar messages: determined when the batch arrived; devices that join a group later are not in it
    :ivar size: how many they were then
    :ivar routing: ends the leg that is held until all others have begun
    :ivar to_append: what the mailbox takes of it, in the order of the numbers that :attr:`stored` has
    :ivar fan_outs: the indexes of the records that the mailbox fans out
    :ivar deadlines: when the ``ttl`` of its records ends, Unix milliseconds, by index: only of those that have one
    :ivar steps: those of its fan-outs that were stored before it is carried out, by the index of the record
    :ivar kept: how many devices these have numbers of
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
    :ivar trace: the batch in the trace memory; None: it is not remembered
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
        "kept",
        "lease",
        "messages",
        "receipt",
        "routing",
        "sent",
        "size",
        "stamp",
        "steps",
        "stored",
        "to_append",
        "trace",
    )

    def __init__(self, batch: Batch, messages: list[Message], *, is_spread: bool) -> None:
        self.batch, self.messages, self.is_spread = batch, messages, is_spread
        self.size = len(messages)
        self.sent: frozenset[Message] = frozenset()
        self.receipt = Receipt(batch.done)
        self.routing = self.receipt.leg()
        self.to_append: Sequence[Part] = ()
        self.fan_outs: Sequence[int] = ()
        self._fan_outs_by_content: dict[tuple[int, bytes], list[int]] = {}  # each step looks for its record
        self._numbers: BatchNumbers | None = None  # until they are asked for: each device's are looked up then
        self.deadlines: Mapping[int, int] = _NO_DEADLINES
        self.steps: dict[int, list[FanOutStep]] = {}
        self.kept = 0
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

    def note_forwarded(self, memory: TraceMemory | None, server: str, parts: Sequence[Part]) -> None:
        if memory is not None and self.trace is not None and parts:
            memory.forwarded(self.trace, server, parts)

    def append(self, parts: Sequence[Part]) -> None:
        """Set what the mailbox takes of the batch."""
        self.to_append = parts
        self.fan_outs = [at for at, device_id in parts if device_id is None]
        for at in self.fan_outs:
            record = self.batch.records[at]
            self._fan_outs_by_content.setdefault((record.timestamp_ms, record.payload), []).append(at)

    @property
    def numbers(self) -> BatchNumbers | None:
        """The numbers of its stored messages; None: none is stored."""
        if self._numbers is None and self.stored is not None:
            self._numbers = BatchNumbers(self.batch.records, self.to_append, self.stored, self.steps)
        return self._numbers

    def take(self, step: FanOutStep, room: int) -> bool:
        """Keep a step until the batch is carried out, so that it keeps its place among the batch's messages. False: it
        belongs to no fan-out that was recorded with this batch. If the batch reads a record again whose fan-out is
        under way, its steps don't wait for the batch, which may itself wait for fan-outs.

        :param room: for so many devices. If there is less, the numbers of the fan-out are forgotten: its audience
            will look into their boxes instead. Transient messages, which are in no box, are dropped
        """
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
            self._keep(at, step, room)
        return bool(found)

    def _keep(self, at: int, step: FanOutStep, room: int) -> None:
        steps, fits = self.steps.setdefault(at, []), len(step.numbers or ()) <= room
        if step.is_transient:
            steps.append(step if fits else step._replace(numbers=None))
        elif fits and all(earlier.numbers is not None for earlier in steps):
            steps.append(step)
        else:
            self.kept -= sum(len(earlier.numbers or ()) for earlier in steps)
            steps[:] = [step._replace(numbers=None)]
            if self._numbers is not None:
                self._numbers.forget(at)
        self.kept += len(steps[-1].numbers or ())
        if self._numbers is not None:
            self._numbers.add(at, steps[-1])


def entries_of(flight: InFlight) -> list[Entry | FanOut]:
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
