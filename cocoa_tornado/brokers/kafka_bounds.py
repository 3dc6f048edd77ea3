"""Limits in bytes for a kafka-python consumer, which has none beyond the size of one fetch.

By default it decompresses batches without a limit, returns records by number alone, and keeps fetching for each
partition that has nothing waiting. All of this is in its ``Fetcher``, as of 3.0.12;
``tests/brokers/test_kafka_inner_parts.py`` fails if a version differs.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError, UnsupportedCodecError
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch

from ..rules.decompression import DECODERS, NoCodec, Oversized
from ..rules.handoff import RECORD_BYTES


class BatchTooLarge(CorruptRecordError):  # type: ignore[misc]  # kafka-python ships no types
    """A batch that would take too much memory when decompressed. None of it is read."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """All in bytes.

    :ivar fetched: while this much is fetched and unread, fetching pauses; one fetch may exceed it
    :ivar batch: the largest decompressed batch
    :ivar poll: the records of a poll() if there are several; the last one may exceed it
    """

    fetched: int
    batch: int
    poll: int


def bound_consumer(consumer: Any, bounds: Bounds) -> None:
    """Make a ``KafkaConsumer`` observe the bounds from now on."""
    fetcher = consumer._fetcher
    fetchable, fetch, append = fetcher._fetchable_partitions, fetcher.fetched_records, fetcher._append
    left = 0

    def fetchable_partitions() -> list[Any]:
        return fetchable() if held_bytes(fetcher) < bounds.fetched else []

    def fetched_records(*args: Any, **options: Any) -> Any:
        nonlocal left
        left = bounds.poll
        return fetch(*args, **options)

    def take_some(drained: Any, part: Any, max_records: int, update_offsets: bool) -> int:
        nonlocal left
        part.max_bytes, part.taken_bytes = left, 0
        count: int = append(drained, part, max_records, update_offsets)
        left -= part.taken_bytes
        # Report the full number, so that this poll asks for no more.
        return count if left > 0 else max_records

    batch_kinds = _batch_kinds(bounds.batch)

    class PartitionRecords(_PartitionRecords):
        kinds = batch_kinds

    fetcher._fetchable_partitions = fetchable_partitions
    fetcher.fetched_records = fetched_records
    fetcher._append = take_some
    fetcher.PartitionRecords = PartitionRecords


def held_bytes(fetcher: Any) -> int:
    """The bytes that are fetched and unread, except those of the batch being read. Thread-safe."""
    waiting = [*fetcher._completed_fetches.copy(), *fetcher._paused_completed_fetches.copy().values()]
    return sum(len(fetch.partition_data.records or b"") for fetch in waiting)


class _PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python ships no types
    """The records of one partition from one fetch.

    :cvar kinds: the classes assigned to its batches
    :ivar max_bytes: :meth:`take` stops after the record that reaches it
    :ivar taken_bytes: by the last :meth:`take`
    """

    kinds: dict[type, type]

    def __init__(self, *args: Any, **options: Any) -> None:
        self.max_bytes = self.taken_bytes = 0
        super().__init__(*args, **options)

    def take(self, n: int | None = None) -> list[Any]:
        self.taken_bytes = 0
        self._maybe_raise_next_inline_exception()
        records: list[Any] = []
        taken, most, count = 0, self.max_bytes, 0
        try:
            for record in self.record_iterator:
                records.append(record)
                taken += len(record.value or b"") + len(record.key or b"") + RECORD_BYTES
                if record.headers:
                    taken += sum(len(name) + len(value or b"") for name, value in record.headers)
                count += 1
                if count == n or taken >= most:
                    break
        except Exception as error:
            if not records:
                raise
            self._next_inline_exception = error  # like the base class: raised by the next call
        self.taken_bytes = taken
        return records

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Any:
        return super()._unpack_records(tp, _Bounded(records, self.kinds), *deserializers)


class _Bounded:
    """``MemoryRecords`` whose batches observe the bound."""

    __slots__ = ("_kinds", "_records")

    def __init__(self, records: Any, kinds: dict[type, type]) -> None:
        self._records, self._kinds = records, kinds

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if batch is not None:
            batch.__class__ = self._kinds[type(batch)]  # the same data, with a bounded decompression
        return batch


def _batch_kinds(limit: int) -> dict[type, type]:
    """The replacement for each of kafka-python's batch classes."""

    class Batch(DefaultRecordBatch):  # type: ignore[misc]  # kafka-python ships no types
        __slots__ = ()

        def _maybe_uncompress(self: Any) -> None:
            if not self._decompressed and self.compression_type:
                self._assert_has_codec(self.compression_type)
                self._buffer = _decompressed(self.compression_type, memoryview(self._buffer)[self._pos :], limit)
                self._pos = 0
            self._decompressed = True

    class OldBatch(LegacyRecordBatch):  # type: ignore[misc]  # kafka-python ships no types
        """Message formats 0 and 1, written by brokers before 0.11."""

        __slots__ = ()

        def _decompress(self: Any, key_offset: int) -> bytes:
            [key_size] = struct.unpack_from(">i", self._buffer, key_offset)
            at = key_offset + self.KEY_LENGTH + max(key_size, 0)
            [size] = struct.unpack_from(">i", self._buffer, at)
            if size < 0:
                raise CorruptRecordError("a compressed message without a value")
            at += self.VALUE_LENGTH
            self._assert_has_codec(self.compression_type)
            return _decompressed(self.compression_type, self._buffer[at : at + size], limit)

    return {DefaultRecordBatch: Batch, LegacyRecordBatch: OldBatch}


def _decompressed(codec: int, data: memoryview, limit: int) -> bytes:
    """Raises BatchTooLarge, CorruptRecordError, or UnsupportedCodecError if this installation lacks a library."""
    decode = DECODERS.get(codec)
    if decode is None:
        raise UnsupportedCodecError(f"no codec has the number {codec}")
    try:
        return decode(data, limit)
    except NoCodec as error:
        raise UnsupportedCodecError(f"the library for {error} is not installed") from error
    except Oversized as error:
        raise BatchTooLarge(f"a batch {error}") from None
    except (ValueError, EOFError, zlib.error) as error:
        raise CorruptRecordError(f"a batch cannot be decompressed: {error}") from None
