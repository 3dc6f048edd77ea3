"""Where to read a partition from after an assignment. Pure.

Partitions are numbers here.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..rules.topic_log import Committed, Log


class Start(enum.Enum):
    """Where to begin with the partitions that have no committed offset."""

    NOWHERE = "every partition has one"
    BEGINNING = "the group has read the topic before, so these partitions are new, and so is all that they hold"
    END_FOR_ALL = "a fresh group, and it is for us to fix where it starts, for every partition at once"
    WAIT = "a fresh group, and the owner of partition 0 is about to fix where it starts"


def where_to_start(assigned: Collection[int], committed: Mapping[int, int | None], *, has_read: bool = False) -> Start:
    """Decide for the partitions of one topic that have no committed offset.

    A fresh group begins at the newest record. If each member determined that by itself, the second would see the first
    one's commits, take its own partitions for newly added ones, and read them from the beginning. So the owner of
    partition 0, which every topic has, decides for all.

    :param committed: the group's offset of every partition of the topic; None if it has none in the present log
    :param has_read: the group has read a topic of this name before, even if none of its offsets is valid any more
    """
    if all(committed[partition] is not None for partition in assigned):
        return Start.NOWHERE
    if has_read or any(offset is not None for offset in committed.values()):
        return Start.BEGINNING
    return Start.END_FOR_ALL if 0 in assigned else Start.WAIT


class Plan(NamedTuple):
    """Where to read the assigned partitions from.

    :ivar log: the topic's current log
    :ivar previous: the id of the log that was read before, if it is another one
    :ivar starts: the offsets of partitions that have one in this log
    :ivar uncommitted: those of them whose offset only this process knows
    :ivar behind: the committed offsets of those that start later, because what lies between was done here
    :ivar rest: the other partitions
    :ivar start: where those begin
    """

    log: Log
    previous: str | None
    starts: dict[int, int]
    uncommitted: frozenset[int]
    behind: dict[int, int]
    rest: frozenset[int]
    start: Start


@dataclass(slots=True)
class History:
    """This process's knowledge of the results topic, from the partitions that it has read.

    :ivar log: the log that was read last; None if there was none
    :ivar earlier: ids of the logs that it has replaced
    :ivar left_at: the done offset of each partition when it was revoked
    :ivar done_here: the same, while the brokers do not have it yet
    """

    log: Log | None = None
    earlier: set[str] = field(default_factory=set)
    left_at: dict[int, int] = field(default_factory=dict)
    done_here: dict[int, int] = field(default_factory=dict)

    def give_up(self, partition: int, done: int, *, is_committed: bool) -> None:
        """A partition was revoked; the offsets below ``done`` are done."""
        self.left_at[partition] = done
        if is_committed:
            self.done_here.pop(partition, None)
        else:
            self.done_here[partition] = done

    def note_committed(self, partition: int, offset: int) -> None:
        """The brokers have this offset of a partition that was revoked."""
        if self.done_here.get(partition, offset + 1) <= offset:
            del self.done_here[partition]

    def enter(self, log: Log) -> bool:
        """This log is read from now on. Return True if this process has read another one until now."""
        before, self.log = self.log, log
        if before is None or before.id is None or before.id == log.id:
            return False
        self.earlier.add(before.id)
        self.earlier.discard(log.id or "")
        self.left_at.clear()
        self.done_here.clear()
        return True

    def plan(self, assigned: Collection[int], committed: Mapping[int, Committed | None], topic_id: str | None) -> Plan:
        """
        :param committed: the group's committed offsets of every partition of the topic
        :param topic_id: the topic's id from the brokers; None if they have none
        """
        log = identify(topic_id, committed.values(), self.log)
        offsets = {
            partition: known.offset if known is not None and self._holds(known, log) else None
            for partition, known in committed.items()
        }
        # The group's offsets may be lost although the log is not: for example, with the brokers' offsets topic.
        is_same = self.log is not None and log.id is not None and log.id == self.log.id
        lost = {
            partition: self.left_at[partition]
            for partition in assigned
            if is_same and offsets[partition] is None and partition in self.left_at
        }
        start = where_to_start(
            assigned,
            offsets | lost,
            has_read=self.log is not None or any(known is not None for known in committed.values()),
        )
        # Don't read again what was done here and could not be committed: the offsets below it are done, even if another
        # member has committed since.
        done_here = self.done_here if is_same or log.id is None else {}
        starts = {
            partition: max(offset, done_here.get(partition, 0))
            for partition, offset in (offsets | lost).items()
            if partition in assigned and offset is not None
        }
        return Plan(
            log,
            self._previous(committed.values(), log),
            starts,
            frozenset(lost),
            {
                partition: offset
                for partition, start in starts.items()
                if (offset := offsets[partition]) is not None and offset < start
            },
            frozenset(assigned) - starts.keys(),
            start,
        )

    def _previous(self, committed: Iterable[Committed | None], log: Log) -> str | None:
        if self.log is not None:
            return self.log.id if self.log.id != log.id else None
        marks = {known.log.id for known in committed if known is not None and known.log is not None}
        return None if log.id in marks else min((id_ for id_ in marks if id_ is not None), default=None)

    def _holds(self, committed: Committed, log: Log) -> bool:
        """True if a committed offset belongs to this log.

        An offset without a mark does, unless this process knows that the topic was another one: then it may come from a
        member that had not noticed.
        """
        if log.id is None:
            return True
        if committed.log is not None:
            return committed.log.id == log.id
        return self.log is None or self.log.id in (None, log.id)


def identify(topic_id: str | None, committed: Iterable[Committed | None], before: Log | None) -> Log:
    """Determine the topic's current log.

    :param topic_id: from the brokers; None if they have none
    :param committed: the group's offsets
    :param before: the log that this process has read before; None if it has read none
    """
    marks = [known.log for known in committed if known is not None and known.log is not None]
    if before is not None:
        marks.append(before)
    if topic_id is None:
        # Nothing indicates another log.
        return before or (marks[0] if marks else Log(None))
    for mark in marks:
        if mark.id == topic_id:
            return mark
    return Log(topic_id, first=all(mark.id is None for mark in marks))
