"""Where a member of the group begins to read the partitions that it was assigned.

``kafka_positions.py`` decides. This module requests the facts for it from the brokers, and commits the starting points
that the group does not have. On the consumer's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Final, Generic

from .kafka_library import CALL_S, FailureReader, GroupReader, P
from .kafka_logs import LogWatch
from .kafka_positions import History, Plan, Start

FRESH_PATIENCE_S: Final = 15.0
"""For the owner of partition 0 to determine where a fresh group starts."""
ID_PATIENCE_S: Final = 5.0
"""For the topic's id; without it the topic counts as unchanged."""

log = logging.getLogger("cocoa.broker")


class Beginning(Generic[P]):
    """See the module.

    :param history: what this process has read, and done
    """

    def __init__(self, reader: GroupReader[P], failures: FailureReader, history: History, log_watch: LogWatch) -> None:
        self._reader, self._failures, self._history, self._log_watch = reader, failures, history, log_watch

    def __repr__(self) -> str:
        return f"<Beginning of {self._reader!r}>"

    def has_group_begun(self, since: float) -> bool:
        """True if the group has the offset of some partition, as they are all determined at once; or if that has taken
        too long.

        :param since: when the assignment came (monotonic clock)
        """
        if time.monotonic() - since >= FRESH_PATIENCE_S:
            return True
        reader = self._reader
        try:
            every = {reader.key(number) for number in reader.numbers()}
            committed = reader.committed(every) if every else {}
        except self._failures.failures as error:
            if not self._failures.is_retriable(error):
                raise
            return False
        return any(offset is not None for offset in committed.values())

    def find(self, assigned: Collection[P], since: float) -> tuple[Plan, dict[P, int]] | None:
        """Return the plan and each partition's starting point; None: they are unknown yet. Commit starting points that
        the group does not have. Raises the library's errors.

        :param since: when the assignment came (monotonic clock)
        """
        reader = self._reader
        is_known, topic_id = self._find_topic_id(since)
        if not is_known:
            return None
        every = {reader.key(number) for number in reader.numbers()} | set(assigned)
        committed = reader.committed(every)
        plan = self._history.plan(
            {reader.number(partition) for partition in assigned},
            {reader.number(partition): known for partition, known in committed.items()},
            topic_id,
        )
        if plan.start is Start.WAIT and time.monotonic() - since < FRESH_PATIENCE_S:
            return None
        rest = {reader.key(number) for number in plan.rest}
        starts = {reader.key(number): start for number, start in plan.starts.items()}
        to_commit = {reader.key(number): plan.starts[number] for number in plan.uncommitted}
        if plan.start is Start.BEGINNING:
            to_commit |= reader.find_beginnings(rest)
        elif plan.start is not Start.NOWHERE:
            to_commit |= reader.find_ends(every if plan.start is Start.END_FOR_ALL else rest)
        reader.mark = plan.log.mark()
        if to_commit:
            # Before reading, so that after an early crash the records that arrive from now on are not lost.
            reader.commit_and_wait(to_commit)
            for number in plan.rest:
                self._history.done_here.pop(number, None)  # of a deleted topic of the same name
        return plan, {
            partition: starts[partition] if partition in starts else to_commit[partition] for partition in assigned
        }

    def _find_topic_id(self, since: float) -> tuple[bool, str | None]:
        """Return whether the topic's id is certain, and the id. Blocks for at most :data:`CALL_S`."""
        is_given_up = time.monotonic() - since >= ID_PATIENCE_S
        try:
            topic_id = self._log_watch.wait_for_answer(CALL_S).topic_id
        except Exception as error:  # of the brokers, a token endpoint, descriptors, threads
            if is_given_up:
                log.debug("topic id unknown", extra={"error": str(error)})
            return is_given_up, None
        # An earlier log's id comes from a broker that does not know of the new one yet; or, if it persists, from a
        # cluster restored from an older copy.
        return topic_id not in self._history.earlier or is_given_up, topic_id
