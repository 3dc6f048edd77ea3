"""The promises of ``Membership`` that need no store, for any sequence of events."""

from __future__ import annotations

import math
from itertools import count

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cocoa_tornado.presence.grants import Lease
from cocoa_tornado.presence.membership import Actions, Beat, Fence, Fenced, Join, Joined, Membership, Settle, Timing

STEPS = st.sampled_from([0.0, 0.3, 1.0, 2.6, 6.0, 20.0])


class MembershipMachine(RuleBasedStateMachine):
    """:ivar answered: for each lease, the first sending of the last answered request of its epoch
    :ivar first_sent: when a beat was first sent, by its epoch and what had been seen
    :ivar heard_at: the last reply to a beat or JOIN
    """

    def __init__(self) -> None:
        super().__init__()
        numbers = count(1)
        self.now = 0.0
        self.timing = Timing()
        self.member = Membership(self.timing, lambda: f"e{next(numbers)}")
        self.joins: list[tuple[Join, float]] = []
        self.beats: list[Beat] = []
        self.leases: list[Lease] = []
        self.answered: dict[str, float] = {}
        self.first_sent: dict[tuple[str, int], float] = {}
        self.seen: dict[str, float] = {}
        self.heard_at = -math.inf
        self.term = 1
        self.has_left = False

    @initialize()
    def start(self) -> None:
        self.take(self.member.start(self.now))

    def take(self, actions: Actions) -> None:
        assert not (self.has_left and actions)
        for action in actions:
            match action:
                case Join(epoch):
                    assert epoch not in {join.epoch for join, _ in self.joins}
                    self.joins.append((action, self.now))
                case Beat(_, epoch, seen):
                    self.beats.append(action)
                    self.first_sent.setdefault((epoch, seen), self.now)
                case Fence(_, epoch):
                    assert epoch != self.member.epoch
                    assert self.now - self.seen[epoch] >= self.timing.watch_s
                    assert self.now - self.heard_at <= self.timing.gap_s
                case Settle():
                    assert self.now - self.heard_at <= self.timing.gap_s
                    assert not self.member.is_settled
                case Joined(lease):
                    self.leases.append(lease)
                case Fenced():
                    assert not any(lease.is_valid(self.now) for lease in self.leases)

    @rule(seconds=STEPS)
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wake(self) -> None:
        self.now = max(self.now, min(self.member.wake_at, self.now + 30.0))
        self.take(self.member.wake(self.now))
        assert self.member.wake_at > self.now

    @precondition(lambda self: self.joins)
    @rule(data=st.data(), is_settled=st.booleans())
    def answer_join(self, data: st.DataObject, is_settled: bool) -> None:
        """One of all that were ever sent: only the last one counts."""
        join, sent_at = data.draw(st.sampled_from(self.joins))
        actions = self.member.joined(join, "r", self.term, is_settled, sent_at, self.now)
        if actions:
            assert join is self.joins[-1][0]
            self.heard_at, self.seen = self.now, {}
            self.answered[join.epoch] = sent_at
        self.take(actions)

    @precondition(lambda self: self.joins)
    @rule(data=st.data())
    def fail_join(self, data: st.DataObject) -> None:
        join, _ = data.draw(st.sampled_from(self.joins))
        self.take(self.member.join_failed(join, self.now))

    @precondition(lambda self: self.beats)
    @rule(data=st.data(), is_settled=st.booleans(), others=st.dictionaries(st.sampled_from("xy"), st.integers(0, 2)))
    def answer_beat(self, data: st.DataObject, is_settled: bool, others: dict[str, int]) -> None:
        beat = data.draw(st.sampled_from(self.beats))
        before = (self.member.answered_at, self.member.lease.until)
        had_gap = self.now - self.heard_at > self.timing.gap_s
        old = dict(self.observed)
        actions = self.member.beaten(
            beat, beat.seen + 1, is_settled, {beat.epoch: beat.seen + 1, **others}, {}, self.now
        )
        if (self.member.answered_at, self.member.lease.until) != before or actions:
            self.heard_at = self.now
            self.answered[beat.epoch] = self.first_sent[beat.epoch, beat.seen]
            self.observed = others
            changed = {epoch for epoch, value in others.items() if had_gap or old.get(epoch) != value}
            self.seen = {epoch: self.now if epoch in changed else self.seen[epoch] for epoch in others}
        self.take(actions)

    observed: dict[str, int] = {}  # noqa: RUF012  # replaced, never changed

    @precondition(lambda self: self.beats)
    @rule(data=st.data())
    def fail_beat(self, data: st.DataObject) -> None:
        self.take(self.member.beat_failed(data.draw(st.sampled_from(self.beats)), self.now))

    @rule(is_current=st.booleans())
    def end_term(self, is_current: bool) -> None:
        self.term += is_current
        self.take(self.member.term_over(self.member.stamp if is_current else "0:old", self.now))

    @rule(is_current=st.booleans())
    def end_epoch(self, is_current: bool) -> None:
        self.take(self.member.epoch_over(self.member.epoch if is_current else "e0", self.now))

    @precondition(lambda self: not self.has_left and len(self.joins) > 3)
    @rule()
    def leave(self) -> None:
        self.member.leave(self.now)
        self.has_left = True

    @invariant()
    def no_lease_is_longer_than_the_first_sending_of_an_answered_request_allows(self) -> None:
        for lease in self.leases:
            assert lease.until <= self.answered[lease.server] + self.timing.freeze_s

    @invariant()
    def after_leaving_no_lease_is_valid(self) -> None:
        if self.has_left:
            assert not any(lease.is_valid(self.now) for lease in self.leases)


TestMembership = MembershipMachine.TestCase
