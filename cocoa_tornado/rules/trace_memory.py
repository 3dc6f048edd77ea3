"""Remembers the last batches and what happened to their messages, for traces by operators. Pure.

A message that is simply delivered costs nothing: a batch is remembered by reference to its records, with a single note.
Only deviations have notes of their own. A search is linear, and pauses regularly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from ..routing.address import bytes_of_names
from .box import Lane
from .handoff import RECORD_BYTES, size_of
from .read_again import Runs
from .record_names import is_named, origin_of
from .records import Record
from .retracted import count_between

Outcome: TypeAlias = Literal[
    "written",
    "acknowledged",
    "waiting",
    "not_connected",
    "expired",
    "overflow",
    "collapsed",
    "superseded",
    "slow_consumer",
    "quarantined",
    "fault",
]

BATCH_BYTES: Final = 512
OFFSET_BYTES: Final = 40
"""The bytes per record of a batch, besides the record itself: its offset."""
NOTE_BYTES: Final = 200
RECIPIENT_BYTES: Final = 16
PART_BYTES: Final = 100
"""The bytes of a message that is stored or forwarded."""
MESSAGES_PER_DEVICE: Final = 20
"""How many of a device's last messages to show."""
SLICE: Final = 2_000
"""How many records or notes to search between two pauses: about half a millisecond."""


class Note(NamedTuple):
    """A deviation of one message from plain delivery, or the recipients of a record.

    :ivar latest: the number of the latest batch at that time: it concerns this one or an earlier one
    :ivar body: the payload of the record, or a frame that ends with it
    :ivar device_id: None: it is about the record as a whole
    :ivar recipients: of a record that is not for a single device; the outcome is of all of these
    :ivar numbers: in the boxes of its recipients, if they are stored
    :ivar server: it was forwarded to this one, for the recipients; at_s: when, Unix seconds
    """

    latest: int
    body: bytes
    timestamp_ms: int
    device_id: str | None = None
    outcome: Outcome | None = None
    recipients: Sequence[str] = ()
    numbers: Mapping[str, int] | None = None
    server: str | None = None
    at_s: float = 0.0

    def about(self, device_id: str) -> Sequence[Note]:
        """The note about a device, if there is one."""
        if self.device_id is not None:
            return [self] if self.device_id == device_id else []
        if not self.recipients:
            return [self]
        if device_id not in self.recipients:
            return []
        number = None if self.numbers is None else self.numbers.get(device_id)
        return [self._replace(recipients=(device_id,), numbers=None if number is None else {device_id: number})]

    @property
    def size(self) -> int:
        numbers = PART_BYTES * len(self.numbers) if self.numbers else 0
        return NOTE_BYTES + len(self.body) + RECIPIENT_BYTES * len(self.recipients) + numbers


@dataclass(slots=True, eq=False)
class BatchTrace:
    """One batch.

    :ivar number: counted from 1
    :ivar at_s: when this server got it, Unix seconds
    :ivar sender: the server that has forwarded it; '' if this server has read it
    :ivar size: the bytes that it counts as
    :ivar has_options: whether any of its records has options, such as an id; None: not known yet
    :ivar routed_at_s: when it was sent to the devices that are here; 0: it waits
    :ivar stored_at_s: when it was stored; 0: it was not
    :ivar to_append: the messages that are stored: index of the record and device
    :ivar numbers: of these, in their boxes; None: it was stored earlier
    :ivar forwarded: when, to which server ('': the relay looks up the device's holder) and which messages
    """

    number: int
    at_s: float
    records: Sequence[Any]
    offsets: Sequence[int]
    sources: Sequence[tuple[str, int]]
    sender: str = ""
    size: int = 0
    has_options: bool | None = None
    routed_at_s: float = 0.0
    stored_at_s: float = 0.0
    to_append: Sequence[tuple[int, str | None]] = ()
    numbers: Sequence[int | None] = ()
    forwarded: list[tuple[float, str, Sequence[tuple[int, str | None]]]] = field(default_factory=list)


class Found(NamedTuple):
    """A record that a search has found, with all of its notes.

    :ivar at: its index in the batch
    """

    batch: BatchTrace
    at: int
    notes: list[Note]

    @property
    def payload(self) -> bytes:
        return payload_of(self.batch.records[self.at])

    @property
    def id(self) -> str | None:
        """The record's own; None: it has none."""
        record = self.batch.records[self.at]
        options = record.terms if self.batch.sender else record.options
        name: str | None = None if options is None else options.id
        return name

    @property
    def origin(self) -> tuple[str, int]:
        """Its partition and offset; ('', 0) if they are unknown."""
        at = self.at
        if self.batch.sender:
            record = self.batch.records[at]
            return record.source, record.offset
        offset = self.batch.offsets[at] if self.batch.offsets else 0
        for source, records in self.batch.sources:
            if at < records:
                return source, offset
            at -= records
        return "", 0

    def recipients(self) -> list[str]:
        """Its devices as far as they are known, each once."""
        address = self.batch.records[self.at].address
        if isinstance(address, str):
            return [address]
        return list(dict.fromkeys(name for note in self.notes for name in note.recipients))

    def outcomes(self) -> dict[str, Outcome]:
        """The last note of each device."""
        found: dict[str, Outcome] = {}
        for note in self.notes:
            if note.outcome is not None:
                found.update(dict.fromkeys(note.recipients, note.outcome))
                if note.device_id is not None:
                    found[note.device_id] = note.outcome
        return found

    def whole(self) -> Outcome | None:
        """The note about the record as a whole."""
        notes = (note for note in self.notes if note.device_id is None and not note.recipients)
        return next((note.outcome for note in notes if note.outcome is not None), None)

    def forwarded(self) -> list[tuple[float, str, str | None]]:
        """When, to which server, and for which device; None: for those that it finds."""
        found: list[tuple[float, str, str | None]] = [
            (at_s, server, device_id)
            for at_s, server, parts in self.batch.forwarded
            for at, device_id in parts
            if at == self.at
        ]
        for note in self.notes:
            if note.server is not None:
                found += [(note.at_s, note.server, device_id) for device_id in note.recipients]
        return found

    @property
    def is_fanned_out(self) -> bool:
        """Whether recipients of it were noted, even if there are none."""
        return any(note.device_id is None and note.outcome is None and note.server is None for note in self.notes)

    def stored(self) -> dict[str, int]:
        """Its numbers in the boxes of its devices. A message that is never stored has none: what the mailbox returns
        for it is the number that it comes after."""
        record = self.batch.records[self.at]
        if isinstance(record, Record) and record.is_transient:
            return {}
        found: dict[str, int] = {}
        for (at, device_id), number in zip(self.batch.to_append, self.batch.numbers, strict=False):
            if at == self.at and device_id is not None and number is not None:
                found[device_id] = number
        for note in self.notes:
            found.update(note.numbers or {})
        return found


class TraceMemory:
    """The last batches of a server. IOLoop thread only.

    The oldest ones are forgotten as soon as all together would exceed ``max_bytes``. A note is kept as long as any
    batch that it may concern.

    :param max_bytes: 0: remember nothing
    :param wall_clock: Unix seconds
    """

    def __init__(self, max_bytes: int, wall_clock: Callable[[], float]) -> None:
        self._max_bytes, self.wall_clock = max_bytes, wall_clock
        self._batches: deque[BatchTrace] = deque()
        self._notes: deque[Note] = deque()
        self._last = self._bytes = 0

    def __repr__(self) -> str:
        return f"<TraceMemory {len(self._batches)} batches, {len(self._notes)} notes, {self._bytes} bytes>"

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        return self._bytes

    def remember(
        self, records: Sequence[Record], offsets: Sequence[int], sources: Sequence[tuple[str, int]], size: int = 0
    ) -> BatchTrace:
        """Remember a batch that this server routes.

        :param size: from ``handoff.size_of``; 0: unknown
        """
        size = BATCH_BYTES + (size or size_of(records)) + OFFSET_BYTES * len(records)
        return self._add(records, offsets, sources, "", size)

    def remember_forward(self, messages: Sequence[Any], sender: str) -> BatchTrace:
        """Remember messages that another server has forwarded: ``relay.messages.ForwardedMessage``."""
        size = BATCH_BYTES + sum([RECORD_BYTES + OFFSET_BYTES + len(message.payload) for message in messages])
        size += sum([bytes_of_names(message.address) for message in messages if type(message.address) is not str])
        size += sum([PART_BYTES * len(message.places) for message in messages if message.places])
        return self._add(messages, (), (), sender, size)

    def _add(
        self,
        records: Sequence[Any],
        offsets: Sequence[int],
        sources: Sequence[tuple[str, int]],
        sender: str,
        size: int,
    ) -> BatchTrace:
        self._last += 1
        batch = BatchTrace(self._last, self.wall_clock(), records, offsets, sources, sender, size)
        self._batches.append(batch)
        self._bytes += size
        if self._bytes > self._max_bytes:
            self._make_room()
        return batch

    def stored(
        self, batch: BatchTrace, to_append: Sequence[tuple[int, str | None]], numbers: Sequence[int | None]
    ) -> None:
        """The messages of a batch were stored."""
        batch.stored_at_s, batch.to_append, batch.numbers = self.wall_clock(), to_append, numbers
        self._enlarge(batch, PART_BYTES * len(to_append))

    def forwarded(self, batch: BatchTrace, server: str, parts: Sequence[tuple[int, str | None]]) -> None:
        """Messages of a batch were given to the relay.

        :param server: '': the relay looks up the device's holder
        """
        batch.forwarded.append((self.wall_clock(), server, parts))
        self._enlarge(batch, PART_BYTES * len(parts))

    def _enlarge(self, batch: BatchTrace, size: int) -> None:
        if self._batches and batch.number >= self._batches[0].number:  # else it is forgotten
            batch.size += size
            self._bytes += size
            if self._bytes > self._max_bytes:
                self._make_room()

    def note(self, body: bytes, timestamp_ms: int, device_id: str | None, outcome: Outcome) -> None:
        """Note a message that was not simply delivered.

        :param body: of its record, or its frame
        :param device_id: None: this holds for the whole record
        """
        self._note(Note(self._last, body, timestamp_ms, device_id, outcome))

    def note_recipients(
        self, body: bytes, timestamp_ms: int, recipients: Sequence[str], numbers: Mapping[str, int] | None = None
    ) -> None:
        """Note recipients, all or some, of a record that is not for a single device."""
        self._note(Note(self._last, body, timestamp_ms, None, None, recipients, numbers))

    def note_all(self, body: bytes, timestamp_ms: int, recipients: Sequence[str], outcome: Outcome) -> None:
        """Note one outcome for the messages of several devices."""
        self._note(Note(self._last, body, timestamp_ms, None, outcome, recipients))

    def note_forwarded(self, body: bytes, timestamp_ms: int, recipients: Sequence[str], server: str) -> None:
        """Note that the messages for these devices were given to the relay, apart from their batch."""
        self._note(Note(self._last, body, timestamp_ms, None, None, recipients, None, server, self.wall_clock()))

    def _note(self, note: Note) -> None:
        if self._batches:
            self._notes.append(note)
            self._bytes += note.size
            if self._bytes > self._max_bytes:
                self._make_room()

    def _make_room(self) -> None:
        batches, notes = self._batches, self._notes
        while self._bytes > self._max_bytes and batches:
            self._bytes -= batches.popleft().size
            oldest = batches[0].number if batches else self._last + 1
            while notes and notes[0].latest < oldest:
                self._bytes -= notes.popleft().size

    # -- asking

    def search(self, message_id: str) -> Iterator[Found | None]:
        """Find the records with this id, or at ``<partition>/<offset>``, the oldest first. None: a pause is due.

        Batches that are added or forgotten meanwhile may be missing from the result.
        """
        source, offset = origin_of(message_id)
        looked = 0
        for batch in list(self._batches):
            for at in _indexes(batch, message_id, source, offset):
                notes: list[Note] = []
                yield from self._notes_of(batch, at, notes)
                yield Found(batch, at, notes)
            looked += len(batch.records) + 1
            if looked >= SLICE:
                looked = 0
                yield None

    def of_device(self, device_id: str, most: int) -> Iterator[Found | None]:
        """Find the last records for a device, at most ``most``, newest first, without interims. None: a pause is due.

        Batches that are added or forgotten meanwhile may be missing.
        """
        named = set[tuple[int, bytes]]()
        yield from self._named(device_id, named)
        found: list[Found] = []
        looked = 0
        for batch in reversed(list(self._batches)):
            found += [Found(batch, at, []) for at in reversed(_records_for(batch, device_id, named))]
            looked += len(batch.records) + 1
            if len(found) >= most:
                break
            if looked >= SLICE:
                looked = 0
                yield None
        del found[most:]
        yield from self._add_notes(found, device_id)
        yield from found

    def runs(self) -> Iterator[Runs | None]:
        """The latest run of offsets that this server has read of each partition: one value, after the pauses (None)."""
        runs = Runs()
        looked = 0
        for batch in reversed(list(self._batches)):
            if runs.is_full:
                break
            looked += 4 + len(batch.offsets) // 100
            if not batch.sender:
                looked += runs.add(batch.at_s, batch.offsets, batch.sources) // 4
            if looked >= SLICE:
                looked = 0
                yield None
        yield runs

    def _named(self, device_id: str, into: set[tuple[int, bytes]]) -> Iterator[None]:
        """The records that are not for a single device, and that this one is a recipient of."""
        looked = 0
        for note in reversed(list(self._notes)):
            if device_id in note.recipients:
                into.add((note.timestamp_ms, note.body))
            looked += 1 + len(note.recipients)
            if looked >= SLICE:
                looked = 0
                yield None

    def _add_notes(self, records: Sequence[Found], device_id: str) -> Iterator[None]:
        """Add the notes about a device to records."""
        by_timestamp: dict[int, list[Found]] = {}
        for found in records:
            by_timestamp.setdefault(found.batch.records[found.at].timestamp_ms, []).append(found)
        notes = iter(list(self._notes))
        while some := list(islice(notes, SLICE)):
            for note in some:
                for found in by_timestamp.get(note.timestamp_ms, ()):
                    if note.latest >= found.batch.number and note.body.endswith(found.payload):
                        found.notes.extend(note.about(device_id))
            yield None

    def _notes_of(self, batch: BatchTrace, at: int, into: list[Note]) -> Iterator[None]:
        payload, timestamp_ms = payload_of(batch.records[at]), batch.records[at].timestamp_ms
        notes = iter(list(self._notes))
        while some := list(islice(notes, SLICE)):
            into += [
                note
                for note in some
                if note.timestamp_ms == timestamp_ms and note.latest >= batch.number and note.body.endswith(payload)
            ]
            yield None


def payload_of(record: Any) -> bytes:
    payload: bytes = record.payload
    return payload


def _records_for(batch: BatchTrace, device_id: str, named: Container[tuple[int, bytes]]) -> list[int]:
    """Which records of a batch are for a device, without interims.

    :param named: timestamps and payloads of those that are not for a single device, but for this one as well
    """
    found = [
        at
        for at, record in enumerate(batch.records)
        if record.address == device_id
        or (named and type(record.address) is not str and (record.timestamp_ms, record.payload) in named)
    ]
    return [at for at in found if not _is_interim(batch, at)]


def _is_interim(batch: BatchTrace, at: int) -> bool:
    record = batch.records[at]
    return bool(record.terms is not None and record.terms.interim_of) if batch.sender else bool(record.interim_of)


def _indexes(batch: BatchTrace, message_id: str, source: str, offset: int) -> list[int]:
    """The indexes of the records of a batch that an id names."""
    if batch.sender:
        return [
            at
            for at, message in enumerate(batch.records)
            if (message.offset == offset and is_named(message.source, source))
            or (message.terms is not None and message.terms.id == message_id)
        ]
    if batch.has_options is None:  # most searches don't look at every record
        batch.has_options = any(record[5] is not None for record in batch.records)
    found = set[int]()
    if batch.has_options:
        records = enumerate(batch.records)
        found.update(at for at, record in records if record[5] is not None and record[5].id == message_id)
    first = 0
    for name, length in batch.sources:
        offsets = batch.offsets[first : first + length] if is_named(name, source) else ()
        if offset in offsets:
            found.add(first + offsets.index(offset))
        first += length
    return sorted(found)


# -- in a box


def outcome_in_box(lane: Lane, number: int, *, is_in_box: bool, has_expired: bool, may_collapse: bool) -> Outcome:
    """The outcome of a stored message.

    :param lane: as it is now; :param number: of the message
    :param is_in_box: whether the box still has it
    :param has_expired: whether its time is over
    :param may_collapse: whether it has a collapse key. If not, a retracted one was for an audience that the device left
    """
    # The order matters: a message that the device never got leaves no trace but its number.
    if lane.acked is not None and number <= lane.acked:
        return "acknowledged"
    if count_between(lane.retracted, number - 1, number):
        return "collapsed" if may_collapse else "not_connected"
    if number <= lane.written:
        return "written"
    if is_in_box:
        return "waiting"
    return "expired" if has_expired else "overflow"
