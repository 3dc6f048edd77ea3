"""Searches for a message that no server remembers: on the results topic, in the boxes, and in the quarantine.

IOLoop thread only.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..brokers.port import Broker, RecordAt
from ..errors import BrokerError, MailboxError
from ..mailboxes.port import NOT_STORED, NamedMessage
from ..routing.address import Devices
from ..rules.audiences import audience_of
from ..rules.identity import is_device_id
from ..rules.quarantined import Quarantined, Row
from ..rules.record_names import is_named, origin_of
from ..rules.records import Record, Rejected, decode
from ..rules.strict_json import read_json
from ..web.publish_handler import PROBLEMS
from .trace_answers import MAX_DEVICES, TraceAnswer, TraceDevice, TraceStep
from .trace_boxes import BoxSearch, Sought
from .traces import AT_ONCE, WRONG_KEY, audience_text

PATIENCE_S: Final = 10.0
"""For each of the three places."""
BOXES_S: Final = 3.0
"""For finding an ``id`` in all boxes."""
QUARANTINED: Final = 1_000
"""How many of the newest copies in the quarantine to search."""
VALUE_BYTES: Final = 16 * 1024
"""Of each of their values."""


IN_BOX: Final = ("waiting", "written")
UNCOMMITTED: Final = "read or about to be read; not committed yet"
NO_COPY: Final = f"none of the newest {QUARANTINED} records of the quarantine is its copy"
NO_QUARANTINE: Final = "the quarantine could not be searched for its copy"


@dataclass(slots=True)
class Searched:
    """The result of a search.

    :ivar answer: the trace that was found
    :ivar looked: the places that do not have the message, for people
    :ivar unavailable: the places that could not be searched: ``Broker``, ``Mailbox``, ``Quarantine``
    :ivar rejected: the record, with the reason, if it is invalid
    """

    answer: TraceAnswer | None = None
    rejected: tuple[Row, str] | None = None
    looked: list[str] = field(default_factory=list)
    unavailable: list[str] = field(default_factory=list)


class TraceSearch:
    """:param boxes: None without a mailbox
    :param wall_clock: Unix seconds
    """

    def __init__(
        self, broker: Broker, results_topic: str, boxes: BoxSearch | None, wall_clock: Callable[[], float]
    ) -> None:
        self._broker, self._topic, self._boxes, self._wall_clock = broker, results_topic, boxes, wall_clock

    def __repr__(self) -> str:
        return f"<TraceSearch {self._broker!r} {self._boxes!r}>"

    async def search(self, message_id: str, *, with_text: bool) -> Searched:
        """Search one place after another until one has the message."""
        searched = Searched()
        source, offset = origin_of(message_id)
        partition = self._partition(source)
        if partition is not None:
            await self._try(searched, "Broker", self._on_topic(searched, partition, offset, with_text))
            if searched.rejected is not None:
                await self._try(searched, "Quarantine", self._add_copy(searched, partition, offset, with_text))
        if searched.answer is None and self._boxes is not None:
            await self._try(searched, "Mailbox", self._in_boxes(searched, self._boxes, message_id, with_text))
        if searched.answer is None:
            await self._try(searched, "Quarantine", self._in_quarantine(searched, message_id, with_text))
        topic = source.rpartition("/")[0]
        elsewhere = f", not {topic}" if topic and partition is None else ""
        searched.looked.append(f"only the topic {self._topic} is read{elsewhere}")
        return searched

    @staticmethod
    async def _try(searched: Searched, place: str, look: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await look
        except (BrokerError, MailboxError, TimeoutError) as error:
            place = "Mailbox" if isinstance(error, MailboxError) else place  # a record is searched for in boxes, too
            if place not in searched.unavailable:
                searched.unavailable.append(place)

    def _partition(self, source: str) -> int | None:
        """The partition of the results topic that an id names."""
        number = source.rpartition("/")[2].partition("#")[0]
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            return None
        return int(number) if is_named(source, f"{self._topic}/{int(number)}") else None

    # -- the results topic

    async def _on_topic(self, searched: Searched, partition: int, offset: int, with_text: bool) -> None:
        found = await self._broker.record_at(partition, offset)
        if found.row is None:
            searched.looked.append(_why_absent(f"{self._topic}/{partition}", offset, found))
            return
        decoded = decode(found.row.key, found.row.value, found.row.timestamp_ms, found.row.headers)
        if isinstance(decoded, Rejected):
            searched.rejected = found.row, decoded.reason
            searched.answer = self._rejected(found.row, decoded.reason, None, with_text, NO_QUARANTINE)
        else:
            searched.answer = await self._judged(found, decoded, with_text)

    async def _judged(self, found: RecordAt, record: Record, with_text: bool) -> TraceAnswer:
        """Apply the router's rules to the record, and look for its messages in the boxes."""
        assert found.row is not None
        steps = [TraceStep(record.timestamp_ms / 1000, None, "produced")] if record.timestamp_ms else []
        notes = [] if record.key_agrees else [WRONG_KEY]
        is_committed = found.committed is None or found.row.offset < found.committed
        devices = await self._recipients(record)
        if not is_committed:
            devices = _certain(devices)
            notes.append(f"{UNCOMMITTED} (the consumer group is at offset {found.committed})")
        if is_committed or devices:
            steps += [TraceStep(None, None, step) for step in ("read", "addressed")]
            notes += self._limits(record, devices)
            known = {device.outcome for device in devices}
            steps += [TraceStep(None, None, "stored")] if known - {None, "not_connected"} else []
            steps += [TraceStep(None, None, "written")] if known & {"written", "acknowledged"} else []
            steps += [TraceStep(None, None, "acknowledged")] if "acknowledged" in known else []
        return TraceAnswer(
            records=1,
            steps=tuple(steps),
            devices=tuple(devices[:MAX_DEVICES]),
            others=max(0, len(devices) - MAX_DEVICES),
            length=len(record.payload),
            text=record.payload.decode() if with_text else None,
            notes=tuple(notes),
            is_partial=True,
        )

    def _limits(self, record: Record, devices: Sequence[TraceDevice]) -> Iterable[str]:
        if self._boxes is None:
            yield "no server remembers what happened to it, and there is no mailbox"
        elif record.is_transient:
            yield "no server remembers what happened to it, and it is never stored"
        elif not devices and not isinstance(record.address, str | Devices):
            yield f"no device is {audience_text(record.address)}"

    async def _recipients(self, record: Record) -> Sequence[TraceDevice]:
        boxes, address = self._boxes, record.address
        if isinstance(address, str):
            names: Sequence[str] = [address]
        elif isinstance(address, Devices):
            names = address.device_ids
        elif boxes is None:
            return ()
        else:
            most = MAX_DEVICES + len(address.excluded) + 1
            members = await boxes.mailbox.members(audience_of(address), "", most)
            names = [name for name in members if name not in address.excluded]
        if boxes is None or record.is_transient:
            return [TraceDevice(name, None) for name in names]
        sought = Sought(record.payload, record.timestamp_ms, record.timestamp_ms, record.options)
        devices: list[TraceDevice] = []
        for first in range(0, len(names), AT_ONCE):
            some = names[first : first + AT_ONCE]
            found = await asyncio.gather(*(boxes.look(name, sought) for name in some))
            devices += [TraceDevice(name, each.outcome, each.note) for name, each in zip(some, found, strict=True)]
        return devices

    # -- the boxes

    async def _in_boxes(self, searched: Searched, boxes: BoxSearch, message_id: str, with_text: bool) -> None:
        named, is_all = await self._named(boxes, message_id)
        if not named:
            searched.looked.append("no box has it")
            if not is_all:
                searched.unavailable.append("Mailbox")
            return
        payload: bytes | None = None
        devices: list[TraceDevice] = []
        for device_id, lane, number, stored_s in named[:MAX_DEVICES]:
            found = await boxes.look(device_id, Sought(None, 0, stored_s * 1000), number, lane)
            payload = payload or found.payload
            devices.append(TraceDevice(device_id, found.outcome, found.note))
        known = {device.outcome for device in devices}
        steps = [TraceStep(min(each.stored_s for each in named), None, "stored")]
        steps += [TraceStep(None, None, "written")] if known & {"written", "acknowledged"} else []
        steps += [TraceStep(None, None, "acknowledged")] if "acknowledged" in known else []
        searched.answer = TraceAnswer(
            records=1,
            steps=tuple(steps),
            devices=tuple(devices),
            others=max(0, len(named) - MAX_DEVICES),
            length=len(payload or b""),
            text=None if payload is None or not with_text else payload.decode("utf-8", "replace"),
        )

    async def _named(self, boxes: BoxSearch, message_id: str) -> tuple[list[NamedMessage], bool]:
        """The stored messages with an ``id``, and whether all boxes were searched."""
        found: list[NamedMessage] = []
        loop = asyncio.get_running_loop()
        deadline, cursor = loop.time() + BOXES_S, -1
        while cursor != 0 and loop.time() < deadline:
            page = await boxes.mailbox.find_id(message_id, max(cursor, 0))
            found += [each for each in page.found if each.number != NOT_STORED]
            cursor = page.cursor
        return found, cursor == 0

    # -- the quarantine

    async def _add_copy(self, searched: Searched, partition: int, offset: int, with_text: bool) -> None:
        """Complete the answer about a rejected record."""
        assert searched.rejected is not None
        row, reason = searched.rejected
        copies = await self._broker.quarantined(QUARANTINED, VALUE_BYTES)
        copy = next((each for each in copies if self._is_origin(each, partition, offset)), None)
        searched.answer = self._rejected(row, reason, copy, with_text)

    def _is_origin(self, copy: Quarantined, partition: int | None, offset: int) -> bool:
        origin = copy.origin
        return (origin.topic, origin.partition, origin.offset) == (self._topic, partition, offset)

    async def _in_quarantine(self, searched: Searched, message_id: str, with_text: bool) -> None:
        source, offset = origin_of(message_id)
        partition = self._partition(source)
        copies = await self._broker.quarantined(QUARANTINED, VALUE_BYTES)
        for copy in copies:
            if self._is_origin(copy, partition, offset) or _may_have_id(copy, message_id):
                row = Row(copy.partition, copy.offset, 0, copy.key, copy.value, copy.headers)
                searched.answer = self._rejected(row, copy.origin.reason or "?", copy, with_text)
                return
        searched.looked.append(
            f"none of the newest {len(copies)} records of the quarantine is it" if copies else "the quarantine is empty"
        )

    def _rejected(
        self, row: Row, reason: str, copy: Quarantined | None, with_text: bool, why_no_copy: str = NO_COPY
    ) -> TraceAnswer:
        value = row.value or b""
        notes = [PROBLEMS.get(reason, reason)]
        steps = [TraceStep(row.timestamp_ms / 1000, None, "produced")] if row.timestamp_ms > 0 else []
        if copy is not None:
            steps.append(TraceStep(copy.timestamp_ms / 1000 if copy.timestamp_ms > 0 else None, None, "read"))
            requeued = ", and was requeued" if copy.is_requeued else ""
            notes.append(f"its copy is {copy.partition}/{copy.offset} of the quarantine{requeued}")
        else:
            notes.append(why_no_copy)
        device_id = _device_of(value)
        return TraceAnswer(
            records=1,
            steps=tuple(steps),
            devices=() if device_id is None else (TraceDevice(device_id, "quarantined"),),
            length=len(value) if copy is None else copy.value_bytes,
            text=value.decode("utf-8", "replace") if with_text else None,
            notes=tuple(notes),
            whole="quarantined",
        )


def _certain(devices: Sequence[TraceDevice]) -> Sequence[TraceDevice]:
    """Of a record that is not committed: the devices whose boxes have it, so that it has been read. Of the others,
    nothing is known yet, even if messages have left their boxes. Empty if no box has it."""
    if not any(device.outcome in IN_BOX for device in devices):
        return ()
    return [device if device.outcome in IN_BOX else TraceDevice(device.device_id, None) for device in devices]


def _why_absent(where: str, offset: int, found: RecordAt) -> str:
    if not found.end and not found.first:
        return f"{where} is empty, or does not exist"
    if offset >= found.end:
        return f"{where} ends before offset {found.end}"
    if offset < found.first:
        return f"{where} begins at offset {found.first} now"
    return f"{where} has no record at this offset"


def _device_of(value: bytes) -> str | None:
    """The device that an invalid record names nevertheless."""
    try:
        record = read_json(value.decode())
    except ValueError:
        return None
    device_id = record.get("device_id") if isinstance(record, dict) and "to" not in record else None
    return device_id if is_device_id(device_id) else None


def _may_have_id(copy: Quarantined, message_id: str) -> bool:
    """Whether a record, which may not be valid JSON, has this ``id`` in a header or in its value."""
    spelled = {json.dumps(message_id), json.dumps(message_id, ensure_ascii=False)}
    spellings = {text.encode("utf-8", "surrogatepass") for text in spelled}
    named = [value for name, value in copy.headers if name == "cocoa.id" and value is not None]
    if any(value in spellings or value == message_id.encode() for value in named):
        return True
    pattern = b"|".join(re.escape(text) for text in spellings)
    return re.search(rb'"id"\s*:\s*(?:' + pattern + rb")", copy.value or b"") is not None
