"""Where a partition is to be read from after an assignment. Pure: offsets in, a decision out."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping


class Start(enum.Enum):
    """Where to begin with the partitions that have no committed offset."""

    NOWHERE = "every partition has one"
    BEGINNING = "the group exists, so these partitions are new, and so is all that they hold"
    END_FOR_ALL = "a fresh group, and it is for us to fix where it starts, for every partition at once"
    WAIT = "a fresh group, and the owner of partition 0 is about to fix where it starts"


def where_to_start(assigned: Collection[int], committed: Mapping[int, int | None]) -> Start:
    """Decide for the partitions of one topic that have no committed offset.

    A fresh group begins at the newest record. Were each member to find that out for itself, the second would see what
    the first has committed, and take its own partitions for new ones, to be read from the beginning. So one of them
    decides for all: the owner of partition 0, which every topic has.

    :param committed: the group's offset of every partition of the topic, None where it has none
    """
    if all(committed[partition] is not None for partition in assigned):
        return Start.NOWHERE
    if any(offset is not None for offset in committed.values()):
        return Start.BEGINNING
    return Start.END_FOR_ALL if 0 in assigned else Start.WAIT
