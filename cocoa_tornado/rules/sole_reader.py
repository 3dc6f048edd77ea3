"""Which member of a consumer group may read, given that one gateway serves all the devices.

Records that a second member reads are lost to the devices of the first. So a gateway joins the group only while no
member reads the topic, and after each join it hands nothing over until the brokers have listed it without another
reader. From then on it is the group's reader, for as long as its member id is valid: a gateway that joins later sees it
and leaves again. The members' clocks need not agree. Members that don't follow this rule (other programs, older
releases) count like any other.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

TIE_PATIENCE_S = 3.0  # of two members that joined at the same moment, wait this long for the other to leave
SHARED_PATIENCE_S = 6.0  # wait for a member that joined later to leave: longer than a tie takes
UNLISTED_PATIENCE_S = 10.0  # wait for the brokers to list this member at all


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the group.

    :ivar id: unique for each membership; the brokers never reuse it
    :ivar topics: the topics it reads; None if the brokers don't say
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

    :ivar settled: False during a rebalance, when it is unknown who reads what
    """

    settled: bool
    members: tuple[Member, ...] = ()


class Step(enum.Enum):
    READ = "no other member reads, or all that do joined later"
    HOLD = "stay in the group, hand nothing over, ask again"
    LEAVE = "another member was there before"


def readers(group: Group, topic: str, without: str | None = None) -> tuple[Member, ...]:
    """The members that read the topic, or may be reading it, except the one with the id ``without``."""
    return tuple(
        member for member in group.members if member.id != without and (member.topics is None or topic in member.topics)
    )


class SoleReader:
    """One gateway's standing in its group.

    :ivar others: the other readers of the topic, when last seen
    """

    __slots__ = ("_others_since", "_proven", "_topic", "_unlisted_since", "others")

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._proven = ""
        self.others: tuple[Member, ...] = ()
        self._others_since: float | None = None
        self._unlisted_since: float | None = None

    def is_reader(self, me: str) -> bool:
        """True if this membership has been seen as the only reader. Only its end changes that."""
        return bool(me) and me == self._proven

    def judge(self, me: str, group: Group, now: float) -> Step:
        """Decide from a description that was requested after partitions were assigned.

        :param me: this gateway's current member id
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
        # If two joined at the same moment, one has to stay. If the other does not leave, it was there before.
        has_precedence = listed and me < min(member.id for member in self.others)
        return Step.HOLD if has_precedence and now - self._others_since < TIE_PATIENCE_S else Step.LEAVE

    def _judge_alone(self, me: str, listed: bool, now: float) -> Step:
        if listed:
            self._proven, self._unlisted_since = me, None
            return Step.READ
        if self._unlisted_since is None:
            self._unlisted_since = now
        # Some brokers describe no groups; that must not keep a gateway from reading.
        return Step.READ if now - self._unlisted_since >= UNLISTED_PATIENCE_S else Step.HOLD

    def other_reader(self, now: float) -> Member | None:
        """Another reader that stays although this gateway was there first: a program that does not follow the rule."""
        if not self._proven or self._others_since is None or now - self._others_since < SHARED_PATIENCE_S:
            return None
        return self.others[0]
