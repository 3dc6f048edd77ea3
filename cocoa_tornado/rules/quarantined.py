"""Records of the quarantine topic: where each came from, and what a requeue publishes on the results topic. Pure.

A copy of a rejected record ends with the gateway's own headers, from the last ``cocoa.reason`` on. A marker says that a
copy has been requeued. It is in the same partition, behind the copy, so it is retained as long as the copy. Only the
gateway writes headers without ``cocoa.reason``: a rejected record that imitates a marker gets that header when it is
quarantined.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

REASON: Final = "cocoa.reason"
REQUEUED: Final = "cocoa.requeued"
"""The header of a marker: the offset of the copy that has been requeued."""
OWN_PREFIX: Final = "cocoa."
MAX_LIST_KEY_BYTES: Final = 1_200
"""Of a key, and of a header's value, in a list: at least as much as is shown of one."""
MAX_LIST_HEADERS_BYTES: Final = 4 * 1024
"""Of all headers of a record in a list. A record may have a megabyte of them, and a list a thousand records."""

Pairs = Sequence[tuple[str, bytes | None]]


class Origin(NamedTuple):
    """Where the record of a copy was read, according to the copy's headers; None for what they lack.

    :ivar dropped: the parts that the copy lacks because of the topic's size limit, each with its bytes (of headers:
        their number)
    """

    reason: str | None = None
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    dropped: tuple[tuple[str, int], ...] = ()


class Quarantined(NamedTuple):
    """A record of the quarantine topic.

    :ivar headers: those of the rejected record, without the gateway's own
    :ivar value: in a list it may be cut, as may the key and the headers; ``value_bytes`` is the whole length
    :ivar is_requeued: it was put back on the results topic; None: not known, only for a single record
    """

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    value_bytes: int
    headers: Pairs
    origin: Origin
    is_requeued: bool | None = False


class Returned(NamedTuple):
    """What a requeue publishes on the results topic."""

    key: bytes | None
    value: bytes
    headers: Pairs


class Row(NamedTuple):
    """A record as a client library reads it."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Pairs


def requeued_by(headers: Pairs) -> int | None:
    """Return the offset of the copy that a marker refers to; None if these are not a marker's headers."""
    names = [name for name, _ in headers]
    return None if names != [REQUEUED] else _number(headers[0][1])


def marker_of(offset: int) -> list[tuple[str, bytes]]:
    """The headers of a marker."""
    return [(REQUEUED, str(offset).encode())]


def read_copy(row: Row, max_value_bytes: int | None = None) -> Quarantined:
    """Read a record of the quarantine topic, which another program may have written.

    :param max_value_bytes: truncate the value to this, and the key and headers to what a list needs; None: keep all
    """
    theirs, origin = split(row.headers)
    key, value = row.key, row.value
    if max_value_bytes is not None:
        key, value, theirs = _cut(key, MAX_LIST_KEY_BYTES), _cut(value, max_value_bytes), list(_first(theirs))
    return Quarantined(row.partition, row.offset, row.timestamp_ms, key, value, len(row.value or b""), theirs, origin)


def _first(headers: Pairs) -> Iterator[tuple[str, bytes | None]]:
    """The first headers, each cut."""
    left = MAX_LIST_HEADERS_BYTES
    for name, value in headers:
        name, value = name[:MAX_LIST_KEY_BYTES], _cut(value, MAX_LIST_KEY_BYTES)
        left -= len(name) + len(value or b"")
        if left < 0:
            break
        yield name, value


def _cut(value: bytes | None, most: int) -> bytes | None:
    return None if value is None else value[:most]


def split(headers: Pairs) -> tuple[Pairs, Origin]:
    """Separate a copy's headers into the rejected record's and those that the gateway added."""
    last = max((at for at, (name, _) in enumerate(headers) if name == REASON), default=None)
    if last is None:
        return headers, Origin()
    own = dict(headers[last:])
    dropped = [(name.removeprefix("cocoa.dropped-"), _number(value)) for name, value in own.items()]
    return headers[:last], Origin(
        _text(own[REASON]),
        _text(own.get("cocoa.topic")),
        _number(own.get("cocoa.partition")),
        _number(own.get("cocoa.offset")),
        tuple(
            (name, size)
            for (name, size), full in zip(dropped, own, strict=True)
            if full.startswith("cocoa.dropped-") and size is not None
        ),
    )


def returned(record: Quarantined, corrected: bytes) -> Returned:
    """Return what to check and publish.

    :param corrected: the new value; the record's ``cocoa.*`` headers are then dropped. Empty: publish the record
        unchanged
    """
    if not corrected:
        return Returned(record.key, record.value or b"", record.headers)
    kept = [(name, value) for name, value in record.headers if not name.startswith(OWN_PREFIX)]
    return Returned(record.key, corrected, kept)


class Newest:
    """Collects the newest of the records that are read, in any order of partitions.

    :param limit: how many to keep
    """

    def __init__(self, limit: int, max_value_bytes: int) -> None:
        self._limit, self._max_value_bytes = limit, max_value_bytes
        self._kept: list[Quarantined] = []
        self._requeued: set[tuple[int, int]] = set()

    def take(self, rows: Iterable[Row]) -> None:
        for row in rows:
            copy = requeued_by(row.headers)
            if copy is None:
                self._kept.append(read_copy(row, self._max_value_bytes))
            else:
                self._requeued.add((row.partition, copy))
        if len(self._kept) > 2 * self._limit:
            self._kept = self._sorted()

    def records(self) -> list[Quarantined]:
        """Newest first."""
        return [
            record._replace(is_requeued=(record.partition, record.offset) in self._requeued)
            for record in self._sorted()
        ]

    def _sorted(self) -> list[Quarantined]:
        """By timestamp, and within a partition by offset even if the brokers' clocks disagree."""
        order = sorted(self._kept, key=lambda record: (record.timestamp_ms, record.offset, record.partition))
        return order[::-1][: self._limit]


def _text(value: bytes | None) -> str | None:
    return None if value is None else value[:MAX_LIST_KEY_BYTES].decode("utf-8", "replace")


def _number(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() and len(value) <= 19 else None
