"""Who of a consumer group may read, where one gateway holds all the devices.

Records that a second member reads are lost to the devices of the first. So a gateway joins the group only while no
member of it reads the topic, and after each join it hands nothing over before the brokers have listed it without
another reader. From then on it is the group's reader, for as long as the brokers know it by the same member id:
a gateway that joins later finds it there, and leaves again. Clocks decide nothing, and a member of another program, or
of a release that knows no such rule, counts like any other.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

TIE_PATIENCE_S = 3.0  # for the other one of two that joined at the same moment to leave
SHARED_PATIENCE_S = 6.0  # for a member that joined later to leave: longer than a tie takes
UNLISTED_PATIENCE_S = 10.0  # for the brokers to list this member at all


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the group.

    :ivar id: the brokers make one for each membership, and never use it again
    :ivar topics: what it reads; None where the brokers do not say
    """

    id: str
    client: str
    host: str
    topics: frozenset[str] | None

    def __str__(self) -> str:
        return f"{self.client} at {self.host}"


@dataclass(frozen=True, slots=True)
class Group:
    """A group as its coordinator describes it.

    :ivar settled: False while it shares out its partitions anew, and nobody can tell who reads what
    """

    settled: bool
    members: tuple[Member, ...] = ()


class Step(enum.Enum):
    READ = "no other member reads, or those that do joined later"
    HOLD = "stay in the group, hand nothing over, ask again"
    LEAVE = "another member was there before"


def readers(group: Group, topic: str, without: str | None = None) -> tuple[Member, ...]:
    """The members that read the topic, or may for all that is known, except the one with the id ``without``."""
    return tuple(
        member for member in group.members if member.id != without and (member.topics is None or topic in member.topics)
    )


class SoleReader:
    """One gateway's standing in its group.

    :ivar others: who else reads the topic, when last seen
    """

    __slots__ = ("_others_since", "_proven", "_topic", "_unlisted_since", "others")

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._proven = ""
        self.others: tuple[Member, ...] = ()
        self._others_since: float | None = None
        self._unlisted_since: float | None = None

    def is_reader(self, me: str) -> bool:
        """True if this membership has been the only one that reads. Only its end changes that."""
        return bool(me) and me == self._proven

    def judge(self, me: str, group: Group, now: float) -> Step:
        """What follows from a description that was asked for after partitions had been assigned.

        :param me: this gateway's present member id
        """
        if not group.settled:
            return Step.READ if self.is_reader(me) else Step.HOLD
        self.others = readers(group, self._topic, without=me)
        listed = any(member.id == me for member in group.members)
        if not self.others:
            self._others_since = None
            return self._judge_alone(me, listed, now)
        if self._others_since is None:
            self._others_since = now
        if self.is_reader(me):
            return Step.READ
        # Of two that joined at the same moment one has to stay. If the other does not leave, it was there before.
        has_precedence = listed and me < min(member.id for member in self.others)
        return Step.HOLD if has_precedence and now - self._others_since < TIE_PATIENCE_S else Step.LEAVE

    def _judge_alone(self, me: str, listed: bool, now: float) -> Step:
        if listed:
            self._proven, self._unlisted_since = me, None
            return Step.READ
        if self._unlisted_since is None:
            self._unlisted_since = now
        # There are brokers that describe no group; their answers keep no gateway from reading.
        return Step.READ if now - self._unlisted_since >= UNLISTED_PATIENCE_S else Step.HOLD

    def other_reader(self, now: float) -> Member | None:
        """Another reader that stays, though this gateway was there before: none that knows this rule."""
        if not self._proven or self._others_since is None or now - self._others_since < SHARED_PATIENCE_S:
            return None
        return self.others[0]
