"""Why a record is known by its offset *and* timestamp (rules/seen.py), and not by how far its partition was read.

The rule that is not used: of each partition remember the leader epoch and the offset of the newest record. What comes
at or before that offset, in no later leader epoch, was stored before. It needs two numbers instead of 65,536
timestamps, and it loses messages in each history below. Both client libraries report a record's leader epoch
(``ConsumerRecord.leader_epoch``, -1 where it is unknown; ``Message.leader_epoch()``, None), but not for messages that
were stored in a format older than Kafka 0.11, and the embedded broker has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest

from cocoa_tornado.rules.seen import SeenOffsets

UNKNOWN = -1


class Record(NamedTuple):
    epoch: int
    offset: int
    timestamp_ms: int


class HighWater:
    """The rule that is not used."""

    def __init__(self) -> None:
        self._epoch, self._offset = UNKNOWN, -1

    def is_new(self, record: Record) -> bool:
        is_new = record.offset > self._offset or record.epoch > self._epoch
        if is_new:
            self._epoch, self._offset = max(self._epoch, record.epoch), record.offset
        return is_new


def log(epoch: int, first: int, last: int, made_at_ms: int = 1_000) -> list[Record]:
    return [Record(epoch, offset, made_at_ms + offset) for offset in range(first, last + 1)]


def stored_by_high_water(readings: Sequence[Sequence[Record]]) -> list[Record]:
    rule = HighWater()
    return [record for reading in readings for record in reading if rule.is_new(record)]


def stored_by_timestamps(readings: Sequence[Sequence[Record]]) -> list[Record]:
    rule = SeenOffsets()
    stored = []
    for reading in readings:
        fresh, _ = rule.take([(record.offset, record.timestamp_ms) for record in reading])
        stored += [record for record, is_new in zip(reading, fresh, strict=True) if is_new]
    return stored


# A consumer that fills a hole: the record at offset 3 was no message when it was read first, such as one in quarantine,
# or for a group without a member, and the gateway was killed before it had committed. It is one when it is read again.
WITH_HOLE = [record for record in log(0, 0, 5) if record.offset != 3]
FILLS_A_HOLE = [WITH_HOLE, log(0, 0, 6)], [*WITH_HOLE, *log(0, 3, 3), *log(0, 6, 6)]

# The broker's disk is put back to a snapshot, the controller's with it: the topic's id is the same, the leader epoch is
# the same, and offsets 3 to 5 now are other records.
ANOTHER_END = log(0, 3, 5, made_at_ms=90_000)
RESTORED = [log(0, 0, 5), ANOTHER_END], [*log(0, 0, 5), *ANOTHER_END]

# The embedded broker with a mailbox in a file: each start of the gateway begins at offset 0, and there is no epoch.
RESTARTED = log(UNKNOWN, 0, 3, made_at_ms=90_000)
EMBEDDED_BROKER = [log(UNKNOWN, 0, 5), RESTARTED], [*log(UNKNOWN, 0, 5), *RESTARTED]

# An unclean election cuts the log off at 3, and its records do not have their epoch (an old message format).
OLD_FORMAT = [log(UNKNOWN, 0, 5), log(UNKNOWN, 3, 4, made_at_ms=90_000)]
TRUNCATED_WITHOUT_EPOCH = OLD_FORMAT, [record for reading in OLD_FORMAT for record in reading]


@pytest.mark.parametrize(
    ("readings", "right"),
    [
        pytest.param(*FILLS_A_HOLE, id="a-hole-is-filled"),
        pytest.param(*RESTORED, id="a-broker-is-restored-from-a-snapshot"),
        pytest.param(*EMBEDDED_BROKER, id="the-embedded-broker-starts-again"),
        pytest.param(*TRUNCATED_WITHOUT_EPOCH, id="truncated-and-the-epoch-is-unknown"),
    ],
)
def test_timestamps_lose_nothing_where_a_high_water_mark_would(
    readings: Sequence[Sequence[Record]], right: Sequence[Record]
) -> None:
    assert stored_by_timestamps(readings) == right
    lost = set(right) - set(stored_by_high_water(readings))
    assert lost


def test_with_the_leader_epoch_a_truncated_log_is_no_problem_for_either() -> None:
    """The one history that the mark would have been for."""
    readings = [log(0, 0, 5), log(1, 3, 4, made_at_ms=90_000), log(1, 3, 4, made_at_ms=90_000)]
    right = [*log(0, 0, 5), *log(1, 3, 4, made_at_ms=90_000)]
    assert stored_by_timestamps(readings) == stored_by_high_water(readings) == right
