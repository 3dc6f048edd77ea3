"""The fixtures of a release: its stored mailboxes, and what their devices must receive from later releases.

A folder below ``tests/releases`` contains:

=======================  ==============================================================================================
``mailbox.db``           a SQLite mailbox, closed
``killed/mailbox.db``    the same mailbox as a killed gateway leaves it, with its ``-wal``
``redis.rdb``            a Redis mailbox, written by SAVE
``expected.json``        a :class:`Release`
=======================  ==============================================================================================

``record_release.py`` writes such a folder; ``tests/test_previous_release.py`` reads all of them. The folders of earlier
releases are never written again, so a field may be added here, with a default, but never change its meaning.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.brokers.port import Batch, Decoder
from cocoa_tornado.rules.records import Rejected

DATABASE: Final = "mailbox.db"
KILLED: Final = "killed"
DUMP: Final = "redis.rdb"
EXPECTED: Final = "expected.json"


class Record(NamedTuple):
    """A record of the results topic.

    :ivar source: its partition, as a mailbox names it
    """

    source: str
    offset: int
    timestamp_ms: int
    value: str

    @property
    def fields(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.value)
        return found

    @property
    def text(self) -> str:
        return str(self.fields["text"])


@dataclass(frozen=True)
class Received:
    """What one connection receives: a gap notice if ``missed`` is not 0, then messages in this order.

    :ivar texts: of the messages; each text is unique in its release
    """

    missed: int
    texts: list[str]


@dataclass(frozen=True)
class HandedOut:
    """A cursor.

    :ivar text: of the message that it came with
    :ivar next: what a connection with ``?after=`` and this cursor receives
    """

    cursor: str
    text: str
    next: Received


@dataclass(frozen=True)
class Device:
    """:ivar plain: what a connection without cursors receives
    :ivar all_kept: what a connection with ``?cursors=1`` receives
    :ivar handed_out: the device's cursors, oldest first
    """

    plain: Received
    all_kept: Received
    handed_out: list[HandedOut]


@dataclass(frozen=True)
class Stored:
    """One mailbox.

    :ivar devices: by device id
    :ivar remembered: texts of the records that must not be stored again when they are read again
    :ivar expires_ms: Redis keys that expire, and the milliseconds that each had left. The dump has them without an
        expiry, because Redis drops expired keys when it loads a dump, and its clock cannot be set
    :ivar process: the Redis key and field that hold the id of the Redis process; empty for SQLite
    """

    devices: dict[str, Device]
    remembered: list[str]
    expires_ms: dict[str, int] = field(default_factory=dict)
    process: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Release:
    """What one release stored.

    :ivar recorded_at: Unix seconds, by the mailboxes' clocks. The default limits keep every message for some hours more
    :ivar records: all records that the gateways read
    """

    version: str
    recorded_at: float
    records: list[Record]
    sqlite: Stored
    redis: Stored

    def write(self, folder: Path) -> None:
        (folder / EXPECTED).write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Release:
        found = json.loads((folder / EXPECTED).read_text(encoding="utf-8"))
        records = [Record(*record) for record in found["records"]]
        stored = (_stored(found[name]) for name in ("sqlite", "redis"))
        return cls(found["version"], found["recorded_at"], records, *stored)


class ReplayBroker(MemoryBroker):
    """The embedded broker, which also hands over records of any partition, with their own offsets and timestamps."""

    def start(self, sink: Callable[[Batch], None], decode: Decoder) -> None:
        self._receiver = sink, decode
        super().start(sink, decode)

    async def hand_over(self, records: Iterable[Record]) -> None:
        """Hand records over in one batch; returns when the gateway is done with it, so its messages are stored.

        :param records: those of one partition together
        """
        sink, decode = self._receiver
        done = asyncio.Event()
        batch = Batch([], done.set, [], [])
        sources: list[tuple[str, int]] = []
        for source, of_source in groupby(records, lambda record: record.source):
            before = len(batch.records)
            for record in of_source:
                decoded = decode(None, record.value.encode(), record.timestamp_ms, None)
                assert not isinstance(decoded, Rejected), (record, decoded)
                batch.records.append(decoded)
                batch.offsets = [*batch.offsets, record.offset]
            sources.append((source, len(batch.records) - before))
        batch.sources = sources
        sink(batch)
        await asyncio.wait_for(done.wait(), 30)


def _stored(found: dict[str, Any]) -> Stored:
    devices = {device_id: _device(device) for device_id, device in found["devices"].items()}
    return Stored(devices, found["remembered"], found["expires_ms"], found["process"])


def _device(found: dict[str, Any]) -> Device:
    handed_out = [HandedOut(one["cursor"], one["text"], Received(**one["next"])) for one in found["handed_out"]]
    return Device(Received(**found["plain"]), Received(**found["all_kept"]), handed_out)
