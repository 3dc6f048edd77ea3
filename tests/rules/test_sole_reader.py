"""Who reads in a group: by examples, and any number of gateways against a model of the group's coordinator."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cocoa_tornado.rules.sole_reader import (
    SHARED_PATIENCE_S,
    TIE_PATIENCE_S,
    UNLISTED_PATIENCE_S,
    Group,
    Member,
    SoleReader,
    Step,
    readers,
)

from ..profiles import examples

TOPIC = "results"


def member(name: str, *topics: str) -> Member:
    return Member(name, "gateway", "10.0.0.1", frozenset(topics or (TOPIC,)))


def group(*members: Member) -> Group:
    return Group(settled=True, members=members)


UNSETTLED = Group(settled=False, members=(Member("a", "gateway", "10.0.0.1", None),))


def proven(me: str = "a") -> SoleReader:
    reader = SoleReader(TOPIC)
    assert reader.judge(me, group(member(me)), 0.0) is Step.READ
    return reader


def test_a_member_that_is_listed_alone_reads() -> None:
    reader = SoleReader(TOPIC)
    assert not reader.is_reader("a")
    assert reader.judge("a", group(member("a")), 0.0) is Step.READ
    assert reader.is_reader("a")


def test_nothing_is_handed_over_while_the_group_is_shared_out_anew() -> None:
    assert SoleReader(TOPIC).judge("a", UNSETTLED, 0.0) is Step.HOLD


def test_the_reader_stays_when_others_join_later() -> None:
    reader = proven("b")
    for now, others in ((1.0, group(member("b"), member("a"))), (2.0, UNSETTLED), (900.0, group(member("a")))):
        assert reader.judge("b", others, now) is Step.READ
        assert reader.is_reader("b")


def test_a_gateway_that_joins_later_leaves_again() -> None:
    assert SoleReader(TOPIC).judge("b", group(member("b"), member("a")), 0.0) is Step.LEAVE


def test_of_two_that_joined_at_the_same_moment_one_waits_for_the_other_to_leave_and_not_for_long() -> None:
    reader, both = SoleReader(TOPIC), group(member("b"), member("a"))
    assert reader.judge("a", both, 0.0) is Step.HOLD
    assert reader.judge("a", both, TIE_PATIENCE_S - 0.1) is Step.HOLD
    assert reader.judge("a", both, TIE_PATIENCE_S) is Step.LEAVE
    assert not reader.is_reader("a")


def test_a_reader_that_was_thrown_out_comes_back_as_one_that_joins_later() -> None:
    reader = proven("a")
    assert not reader.is_reader("c")
    assert reader.judge("c", group(member("b"), member("c")), 1.0) is Step.LEAVE


def test_members_that_read_other_topics_do_not_count() -> None:
    reader = SoleReader(TOPIC)
    assert reader.judge("b", group(member("a", "other"), member("b")), 0.0) is Step.READ
    assert readers(group(member("a", "other"), member("b", "other", TOPIC)), TOPIC) == (member("b", "other", TOPIC),)


def test_a_member_with_unknown_topics_counts() -> None:
    unknown = Member("a", "connect", "10.0.0.2", None)
    assert readers(group(unknown), TOPIC) == (unknown,)


def test_a_member_that_came_later_and_stays_counts_as_another_reader() -> None:
    reader, both = proven("b"), group(member("a"), member("b"))
    reader.judge("b", both, 10.0)
    assert reader.other_reader(10.0 + SHARED_PATIENCE_S - 0.1) is None
    assert reader.other_reader(10.0 + SHARED_PATIENCE_S) == member("a")
    reader.judge("b", group(member("b")), 60.0)
    assert reader.other_reader(60.0) is None


def test_a_gateway_that_is_not_the_reader_yet_has_no_other_reader() -> None:
    reader = SoleReader(TOPIC)
    reader.judge("a", group(member("a"), member("b")), 0.0)
    assert reader.other_reader(100.0) is None


def test_a_broker_that_lists_no_members_does_not_prevent_reading() -> None:
    reader = SoleReader(TOPIC)
    assert reader.judge("a", group(), 0.0) is Step.HOLD
    assert reader.judge("a", group(), UNLISTED_PATIENCE_S) is Step.READ


@dataclass
class Gateway:
    """The Kafka adapter's use of the rule."""

    name: str
    reader: SoleReader = field(default_factory=lambda: SoleReader(TOPIC))
    me: str = ""  # what it takes for its member id; "" outside the group
    may_join: bool = False
    seen: Group | None = None  # an answer that it has not acted upon yet


class GroupMachine(RuleBasedStateMachine):
    """Gateways that ask, join, act upon old answers, are evicted and die, in any order; then all continue in turn."""

    @initialize(count=st.integers(2, 4))
    def begin(self, count: int) -> None:
        self.now, self.memberships = 0.0, 0
        self.members: dict[str, str] = {}  # by member id; the value is the gateway's name
        self.gateways = {str(number): Gateway(str(number)) for number in range(count)}
        self.settled = True

    def describe(self) -> Group:
        return Group(self.settled, tuple(member(name) for name in self.members))

    @rule(data=st.data(), wait_s=st.sampled_from([0.0, 0.1, 1.0, 5.0]))
    def step(self, data: st.DataObject, wait_s: float) -> None:
        self.now += wait_s
        gateway = self.gateways[data.draw(st.sampled_from(sorted(self.gateways)))]
        data.draw(st.sampled_from([self.ask, self.act]))(gateway, data.draw(st.integers(0, 9)))

    def ask(self, gateway: Gateway, number: int) -> None:
        gateway.seen = self.describe()

    def act(self, gateway: Gateway, number: int) -> None:
        if gateway.me and gateway.me not in self.members:  # it learns from a heartbeat that it was thrown out, and
            self.join(gateway, number)  # its library joins again by itself
        elif not gateway.me and gateway.may_join:
            self.join(gateway, number)
        elif gateway.seen is not None:
            seen, gateway.seen = gateway.seen, None
            if gateway.me:
                was_reader = gateway.reader.is_reader(gateway.me)
                step = gateway.reader.judge(gateway.me, seen, self.now)
                assert not (was_reader and step is not Step.READ), "the reader stays"
                if step is Step.LEAVE:
                    del self.members[gateway.me]
                    gateway.me, gateway.reader = "", SoleReader(TOPIC)
            else:
                gateway.may_join = seen.settled and not readers(seen, TOPIC)

    def join(self, gateway: Gateway, number: int) -> None:
        self.memberships += 1
        gateway.me = f"{number}-{self.memberships}"  # their order has nothing to do with that of the joins
        gateway.may_join, gateway.seen = False, None  # an answer from before the assignment is of no use
        self.members[gateway.me] = gateway.name

    @rule(settled=st.booleans())
    def share_out(self, settled: bool) -> None:
        self.settled = settled

    @rule(data=st.data())
    def throw_out(self, data: st.DataObject) -> None:
        """A session times out."""
        if self.members:
            del self.members[data.draw(st.sampled_from(sorted(self.members)))]

    def current_readers(self) -> list[Gateway]:
        return [
            gateway
            for gateway in self.gateways.values()
            if gateway.me in self.members and gateway.reader.is_reader(gateway.me)
        ]

    @invariant()
    def never_two_readers(self) -> None:
        if hasattr(self, "gateways"):
            assert len(self.current_readers()) <= 1

    def teardown(self) -> None:
        """However it has come about: left alone, exactly one becomes the reader, and the others are outside."""
        if not hasattr(self, "gateways"):
            return
        self.settled = True
        before = self.current_readers()
        for turn in range(60):
            for gateway in self.gateways.values():
                self.now += 0.1
                self.ask(gateway, 0)
                self.act(gateway, turn % 10)
        [reader] = self.current_readers()
        assert list(self.members) == [reader.me]
        assert before in ([], [reader])


GroupMachine.TestCase.settings = examples(150, steps=40)
TestGroup = GroupMachine.TestCase
