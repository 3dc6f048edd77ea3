"""The partitions that a member of a consumer group is assigned, and what of each is read, done and committed. Pure.

An assignment may change as a whole (all partitions are revoked, then some are assigned) or incrementally (some come or
go, and the others stay). A partition that stays keeps its ledger, so no record of it is read twice or skipped.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, TypeVar

from .handoff import OffsetLedger

P = TypeVar("P", bound=Hashable)  # a client library's type for a partition
_NONE_BEHIND: Final[Mapping[Any, int]] = MappingProxyType({})


class GivenUp(NamedTuple):
    """The last known state of a partition that is no longer read.

    :ivar done: every offset below it is done
    :ivar is_committed: the broker is known to hold that offset
    """

    done: int
    is_committed: bool


class Assignment(Generic[P]):
    """Not thread-safe: one thread at a time.

    :ivar is_member: this process is a member of the group, with or without partitions
    :ivar ledgers: the partitions that are read. Those that are assigned and have no ledger are in :attr:`unresolved`
    :ivar unresolved: assigned partitions whose starting point is still unknown; None if there is nothing to determine.
        After each assignment it is a set, though perhaps an empty one, until :meth:`begin`
    :ivar ends: lower bounds of where the partitions that are read end
    :ivar changes: grows whenever partitions come, go, or begin to be read
    """

    __slots__ = ("changes", "ends", "is_member", "ledgers", "unresolved")

    def __init__(self) -> None:
        self.is_member = False
        self.ledgers: dict[P, OffsetLedger] = {}
        self.unresolved: set[P] | None = None
        self.ends: dict[P, int] = {}
        self.changes = 0

    @property
    def partitions(self) -> set[P]:
        """All that are assigned."""
        return {*self.ledgers, *(self.unresolved or ())}

    @property
    def is_settled(self) -> bool:
        """True for a member that reads all it is assigned."""
        return self.is_member and self.unresolved is None

    def add(self, partitions: Collection[P]) -> None:
        """The group has assigned these, in addition to earlier ones. A partition that is read already is not
        affected."""
        self.is_member = True
        self.unresolved = (self.unresolved or set()) | (set(partitions) - self.ledgers.keys())
        self.changes += 1

    def begin(self, starts: Mapping[P, int], behind: Mapping[P, int] = _NONE_BEHIND) -> None:
        """These are read from their starting points on. One that is read already, or was revoked meanwhile, is not
        affected.

        :param behind: what the broker holds of those that start later
        """
        begun = starts.keys() & (self.unresolved or set())
        self.ledgers |= {partition: OffsetLedger(starts[partition], behind.get(partition)) for partition in begun}
        self.unresolved = ((self.unresolved or set()) - begun) or None
        self.changes += 1

    def remove(self, partitions: Collection[P]) -> dict[P, GivenUp]:
        """These are revoked: from now on, no record in flight changes an offset of theirs. Return the last state of
        those that were read. The membership continues."""
        given_up = {}
        for partition in self.ledgers.keys() & set(partitions):
            ledger = self.ledgers.pop(partition)
            given_up[partition] = GivenUp(ledger.settle(), ledger.to_commit() is None)
            self.ends.pop(partition, None)
        if self.unresolved is not None:
            self.unresolved -= set(partitions)
        self.changes += 1
        return given_up

    def leave(self) -> None:
        """This process is not a member any more. To get the last state of its partitions, :meth:`remove` them
        before."""
        self.is_member, self.unresolved = False, None
        self.ledgers.clear()
        self.ends.clear()
        self.changes += 1

    def restart(self, partition: P, position: int) -> None:
        """The log has other records from ``position`` on than those that were read: forget everything about the
        latter."""
        if partition in self.ledgers:
            self.ledgers[partition] = OffsetLedger(position)
            self.ends.pop(partition, None)

    def is_idle(self, partitions: Collection[P] | None = None) -> bool:
        """True if all that was read of these partitions is done.

        :param partitions: by default, all
        """
        wanted = self.ledgers.keys() if partitions is None else self.ledgers.keys() & set(partitions)
        return all([self.ledgers[partition].idle for partition in wanted])

    def to_commit(self) -> dict[P, int]:
        """The offsets that the broker is to hold from now on: all below is done."""
        wanted = {partition: ledger.to_commit() for partition, ledger in self.ledgers.items()}
        return {partition: offset for partition, offset in wanted.items() if offset is not None}

    def note_committed(self, partition: P, offset: int) -> None:
        """The broker has acknowledged the offset. The partition may no longer be read."""
        if partition in self.ledgers:
            self.ledgers[partition].note_committed(offset)

    def note_ends(self, ends: Mapping[P, int]) -> None:
        """Record where partitions end at least."""
        for partition, end in ends.items():
            self.ends[partition] = max(self.ends.get(partition, 0), end)

    def lag(self) -> int:
        """Records that are known and not read yet."""
        return sum(max(0, self.ends.get(partition, 0) - ledger.position) for partition, ledger in self.ledgers.items())
