from __future__ import annotations

import math
from itertools import count

import pytest

from cocoa_tornado.presence.grants import Lease
from cocoa_tornado.presence.membership import (
    Action,
    Actions,
    Beat,
    Cut,
    Fence,
    Fenced,
    Join,
    Joined,
    Leave,
    Membership,
    Settle,
    Settled,
    Timing,
)

TIMING = Timing()
STRICT = Timing(cut_s=5.0)


class Member:
    """A server, and a store that answers as a test says. ``now`` is the server's time."""

    def __init__(self, timing: Timing = TIMING) -> None:
        numbers = count(1)
        self.now = 100.0
        self.of = Membership(timing, lambda: f"e{next(numbers)}")
        self.did: Actions = []
        self.beats: dict[str, int] = {}
        self.is_settled = True

    def note(self, actions: Actions) -> Actions:
        self.did += actions
        return actions

    def last(self, kind: type[Action]) -> Action:
        return next(action for action in reversed(self.did) if isinstance(action, kind))

    def count(self, kind: type[Action]) -> int:
        return sum(isinstance(action, kind) for action in self.did)

    def join(self, term: int = 1, run: str = "r1", took_s: float = 0.0) -> Actions:
        """Answer the last JOIN."""
        join, sent_at = self.last(Join), self.now
        assert isinstance(join, Join)
        self.now += took_s
        return self.note(self.of.joined(join, run, term, self.is_settled, sent_at, self.now))

    def answer(self) -> Actions:
        """Answer the last BEAT."""
        beat = self.last(Beat)
        assert isinstance(beat, Beat)
        beats = {self.of.epoch: beat.seen + 1, **self.beats}
        return self.note(self.of.beaten(beat, beat.seen + 1, self.is_settled, beats, {}, self.now))

    def wait(self, until: float, *, is_answered: bool = True) -> None:
        """Let time pass, and wake the server when it wants to be woken."""
        while self.of.wake_at <= until:
            self.now = max(self.now, self.of.wake_at)
            for action in self.note(self.of.wake(self.now)):
                if isinstance(action, Beat):
                    self.answer() if is_answered else self.note(self.of.beat_failed(action, self.now))
        self.now = until


@pytest.fixture
def member() -> Member:
    """Joined at 100."""
    made = Member()
    made.note(made.of.start(made.now))
    made.join()
    return made


def strict_member() -> Member:
    made = Member(STRICT)
    made.note(made.of.start(made.now))
    made.join()
    return made


# -- joining


def test_a_server_joins_under_a_new_epoch() -> None:
    member = Member()
    assert member.of.start(100.0) == [Join("e1", 0)]


def test_it_is_a_member_from_the_answer_on() -> None:
    member = Member()
    member.note(member.of.start(member.now))
    assert (member.of.epoch, member.of.may_admit(member.now)) == ("", False)
    member.join(term=7, run="r9")
    assert (member.of.epoch, member.of.stamp, member.of.may_admit(member.now)) == ("e1", "7:r9", True)


def test_the_lease_runs_from_the_sending_of_join() -> None:
    member = Member()
    member.note(member.of.start(member.now))
    member.join(took_s=0.8)
    assert member.of.lease.until == 105.0


def test_each_attempt_to_join_has_an_epoch_of_its_own() -> None:
    member = Member()
    (first,) = member.note(member.of.start(member.now))
    assert isinstance(first, Join)
    member.note(member.of.join_failed(first, 101.0))
    assert member.of.wake_at == 101.5
    assert member.of.wake(101.5) == [Join("e2", 0)]
    assert member.of.joined(first, "r1", 1, True, 100.0, 101.6) == []  # its answer comes late


def test_nothing_is_admitted_before_the_term_is_settled() -> None:
    member = Member()
    member.is_settled = False
    member.note(member.of.start(member.now))
    member.join()
    assert not member.of.may_admit(member.now)
    member.is_settled = True
    member.wait(101.0)
    assert member.of.may_admit(member.now)
    assert member.count(Settled) == 1


# -- beats and the lease


def test_it_beats_at_once_and_then_every_second(member: Member) -> None:
    member.wait(103.5)
    beats = [action for action in member.did if isinstance(action, Beat)]
    assert beats == [Beat("1:r1", "e1", seen) for seen in range(4)]


def test_one_beat_is_under_way_at_a_time(member: Member) -> None:
    assert member.of.wake(100.0) == [Beat("1:r1", "e1", 0)]
    assert member.of.wake(103.0) == []


def test_the_lease_runs_from_the_first_sending_of_a_beat(member: Member) -> None:
    """Others may have seen the first copy of it."""
    member.wait(102.0)
    member.wait(104.9, is_answered=False)  # sent at 103, and again at 104
    assert member.of.lease.until == 107.0
    member.wait(105.0)
    assert member.of.lease.until == 108.0
    assert member.of.answered_at == 103.0


def test_the_answer_to_a_beat_that_was_given_up_is_ignored(member: Member) -> None:
    (beat,) = member.of.wake(100.0)
    assert isinstance(beat, Beat)
    member.of.beat_failed(beat, 101.0)
    assert member.of.beaten(beat, 1, True, {"e1": 1}, {}, 101.1) == []
    assert member.of.lease.until == 105.0


def test_without_answers_the_lease_ends(member: Member) -> None:
    member.wait(104.9, is_answered=False)
    assert member.of.may_admit(104.9)
    assert not member.of.may_admit(105.0)


def test_it_is_valid_again_once_a_beat_is_answered(member: Member) -> None:
    member.wait(120.0, is_answered=False)
    member.wait(121.0)  # the answer is to the beat of 101, so another one follows at once
    assert member.of.may_admit(member.now)
    assert member.count(Cut) == 0


def test_a_server_that_does_not_read_its_inbox_does_not_beat(member: Member) -> None:
    member.of.inbox_read_at = 102.0
    member.wait(120.0)
    assert member.count(Beat) == 8  # until 107
    member.of.inbox_read_at = 120.0
    member.wait(121.0)
    assert member.count(Beat) == 9


# -- others


def test_a_member_whose_beat_stays_the_same_is_fenced_when_it_is_time(member: Member) -> None:
    member.beats = {"b": 7}
    member.wait(100.0)
    member.wait(108.7)
    assert member.count(Fence) == 0
    member.wait(108.9)
    assert member.last(Fence) == Fence("1:r1", "b", 7)
    assert TIMING.watch_s == pytest.approx(8.8)


def test_a_member_that_beats_is_not_fenced(member: Member) -> None:
    for second in range(30):
        member.beats = {"b": second}
        member.wait(100.0 + second)
    assert member.count(Fence) == 0


def test_a_fence_is_repeated_until_the_member_is_gone(member: Member) -> None:
    member.beats = {"b": 7}
    member.wait(111.0)
    assert member.count(Fence) == 3
    member.beats = {}
    member.wait(112.0)
    assert member.count(Fence) == 4
    member.wait(120.0)
    assert member.count(Fence) == 4
    assert member.of.others() == []


def test_without_own_answers_nobody_is_fenced(member: Member) -> None:
    member.beats = {"b": 7}
    member.wait(104.0)
    member.wait(130.0, is_answered=False)
    assert member.count(Fence) == 0


def test_after_a_gap_the_others_are_watched_anew(member: Member) -> None:
    member.beats = {"b": 7}
    member.wait(104.0)
    member.wait(107.0, is_answered=False)
    member.wait(116.7)  # answered again at 108
    assert member.count(Fence) == 0
    member.wait(116.9)
    assert member.count(Fence) == 1


def test_after_an_own_pause_nobody_is_fenced_at_once(member: Member) -> None:
    member.beats = {"b": 7}
    member.wait(104.0)
    assert not [action for action in member.of.wake(120.0) if isinstance(action, Fence)]


def test_it_is_known_how_long_a_member_has_been_silent(member: Member) -> None:
    member.beats = {"b": 7}
    member.wait(104.0)
    assert (member.of.silent_for("b", 104.0), member.of.silent_for("c", 104.0)) == (4.0, 0.0)


def test_it_is_foreseen_when_a_member_that_has_stopped_is_fenced(member: Member) -> None:
    """One that still beats is no reason to wait, and neither is a gap: the next reply starts the observation anew."""
    member.beats = {"b": 7}
    member.wait(101.8)
    assert member.of.admits_in(101.8) is None
    member.wait(104.0)
    assert member.of.admits_in(104.0) == pytest.approx(4.8)
    member.wait(108.9)
    assert member.last(Fence) == Fence("1:r1", "b", 7)
    member.wait(112.0, is_answered=False)
    assert member.of.admits_in(112.0) is None


# -- terms


def test_it_is_foreseen_when_a_term_is_settled() -> None:
    member = Member()
    member.is_settled = False
    member.note(member.of.start(member.now))
    assert member.of.admits_in(member.now) is None
    member.join()
    member.wait(103.0)
    assert member.of.admits_in(103.0) == pytest.approx(5.8)


def test_a_term_is_settled_when_every_lease_of_the_last_one_has_ended() -> None:
    member = Member()
    member.is_settled = False
    member.note(member.of.start(member.now))
    member.join()
    member.wait(108.7)
    assert member.count(Settle) == 0
    member.wait(108.9)
    assert member.last(Settle) == Settle("1:r1")


def test_a_gap_puts_off_the_settling_of_a_term() -> None:
    member = Member()
    member.is_settled = False
    member.note(member.of.start(member.now))
    member.join()
    member.wait(104.0)
    member.wait(107.0, is_answered=False)
    member.wait(116.7)  # answered again at 108
    assert member.count(Settle) == 0
    member.wait(116.9)
    assert member.count(Settle) == 1


def test_in_a_new_term_the_old_lease_goes_on_and_is_not_extended(member: Member) -> None:
    member.wait(102.0)
    old = member.of.lease
    assert member.note(member.of.term_over("1:r1", 102.5)) == [Join("e2", 1)]
    assert not member.of.may_admit(102.5)
    assert member.join(term=2, run="r2")[0] == Joined(member.of.lease, is_new_term=True)
    member.wait(106.0)
    assert (old.until, member.of.lease.server, member.of.lease.until > 106.0) == (107.0, "e2", True)


def test_a_term_that_is_over_already_is_ignored(member: Member) -> None:
    member.note(member.of.term_over("1:r1", 102.0))
    assert member.of.term_over("1:r1", 102.1) == []
    member.join(term=2, run="r2")
    assert member.of.term_over("1:r1", 102.2) == []


def test_while_it_joins_again_it_does_not_beat(member: Member) -> None:
    member.wait(102.0)
    member.note(member.of.term_over("1:r1", 102.0))
    assert member.of.wake(103.5) == []


# -- the end


def test_a_fenced_server_ends_its_connections_and_joins_again(member: Member) -> None:
    lease = member.of.lease
    assert member.note(member.of.epoch_over("e1", 101.0)) == [Fenced(lease), Join("e2", 1)]
    assert not lease.is_valid(101.0)
    assert member.join()[0] == Joined(member.of.lease, is_new_term=False)


def test_the_end_of_a_former_epoch_is_ignored(member: Member) -> None:
    member.note(member.of.epoch_over("e1", 101.0))
    assert member.of.epoch_over("e1", 101.0) == []
    member.join()
    assert member.of.epoch_over("e1", 101.0) == []


def test_a_server_that_was_fenced_before_the_term_ended_ends_its_connections(member: Member) -> None:
    """The answer to an earlier script comes while it joins the next term."""
    member.note(member.of.term_over("1:r1", 101.0))
    assert member.of.epoch_over("e1", 101.1) == [Fenced(member.of.lease)]
    assert member.join(term=2)[0] == Joined(member.of.lease, is_new_term=False)


def test_leases_of_earlier_terms_end_with_the_fence(member: Member) -> None:
    old = member.of.lease
    member.note(member.of.term_over("1:r1", 101.0))
    member.join(term=2)
    member.note(member.of.epoch_over("e2", 101.5))
    assert not old.is_valid(101.5)


def test_connections_are_cut_when_the_store_has_been_away_for_long(member: Member) -> None:
    member.wait(102.0)
    member.wait(221.9, is_answered=False)
    assert member.count(Cut) == 0
    member.wait(230.0, is_answered=False)
    assert member.count(Cut) == 1


def test_in_strict_mode_they_are_cut_with_the_lease() -> None:
    member = strict_member()
    member.wait(102.0)
    member.wait(106.9, is_answered=False)
    assert member.count(Cut) == 0
    member.wait(107.0, is_answered=False)
    assert member.count(Cut) == 1


def test_a_lease_is_over_by_any_clock_once_its_connections_are_cut() -> None:
    member = strict_member()
    lease = member.of.lease
    member.wait(105.0, is_answered=False)
    assert (member.count(Cut), lease.is_valid(104.9)) == (1, False)
    member.wait(106.0)
    assert lease.is_valid(106.0)


def test_in_strict_mode_a_new_term_does_not_keep_connections_open_without_a_lease() -> None:
    member = strict_member()
    member.wait(102.0)
    member.note(member.of.term_over("1:r1", 103.0))
    member.now = 103.0
    member.join(term=2)
    member.wait(106.9)
    assert member.count(Cut) == 0
    member.wait(107.0)
    assert member.count(Cut) == 1
    member.wait(200.0)
    assert member.count(Cut) == 1


def test_in_strict_mode_a_pause_before_a_new_term_does_not_either() -> None:
    member = strict_member()
    member.note(member.of.term_over("1:r1", 103.0))
    member.now = 109.0
    member.join(term=2)
    assert Cut() in member.of.wake(109.0)


def test_a_server_that_leaves_has_no_lease_and_does_nothing_more(member: Member) -> None:
    lease = member.of.lease
    assert member.of.leave(102.0) == [Leave("1:r1", "e1")]
    assert (lease.is_valid(102.0), member.of.wake_at) == (False, math.inf)
    assert member.of.wake(200.0) == []
    assert member.of.leave(201.0) == []


def test_a_server_that_has_never_joined_has_nothing_to_leave() -> None:
    member = Member()
    member.note(member.of.start(member.now))
    assert member.of.leave(101.0) == []
    assert member.join() == []
    assert member.of.lease == member.of.lease
    assert isinstance(member.of.lease, Lease)


def test_a_server_does_not_know_the_others_of_an_epoch_until_a_beat_is_answered(member: Member) -> None:
    member.beats = {"other": 3}
    for term in (1, 2):
        assert not member.of.knows_others
        assert member.of.others() == []
        member.wait(member.now)
        assert member.of.knows_others
        assert member.of.others() == ["other"]
        member.note(member.of.term_over(member.of.stamp, member.now))
        member.join(term + 1)
