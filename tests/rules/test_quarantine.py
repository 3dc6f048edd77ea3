"""Copies on their way to the quarantine topic: by examples, and any sequence of events against the promises."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cocoa_tornado.rules.backoff import Backoff
from cocoa_tornado.rules.quarantine import (
    LINE_RUNS,
    LOST_LINES_S,
    MAX_LOST_LINES,
    MAX_STEP_S,
    PATIENCE_S,
    STALL_S,
    Bounds,
    Cause,
    Copies,
    Losses,
    Step,
    runs,
)

from ..profiles import examples

BOUNDS = Bounds(records=4, size_bytes=1_000, offsets=100)


class Topic:
    """The copies of one partition, and a clock of its own."""

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self.copies: Copies[str] = Copies(bounds, Backoff(base_s=0.5, cap_s=10.0, uniform=lambda low, high: high))
        self.now = 0.0
        self.position = 0

    def take(self, *names: str, size: int = 10) -> None:
        for name in names:
            self.copies.take(name, partition=0, offset=self.position, size=size)
            self.position += 1

    def step(self, after_s: float = 0.0, *, brokers_answer: bool = True) -> Step[str]:
        """After so many seconds, in which the thread has made a step every half second."""
        end = self.now + after_s
        found: list[Step[str]] = []
        while not found or self.now < end:
            self.now = min(end, self.now + 0.5) if found else self.now
            found.append(self.copies.step(self.now, brokers_answer=brokers_answer, positions={0: self.position}))
        send, recall = (tuple(copy for step in found for copy in getattr(step, name)) for name in ("send", "recall"))
        return Step(send, recall, tuple(lost for step in found for lost in step.lose), found[-1].must_wait)


def test_a_copy_is_sent_at_once_and_held_until_it_is_acknowledged() -> None:
    topic = Topic()
    topic.take("a", "b")
    assert topic.step() == Step(send=("a", "b"))
    assert topic.step(1.0) == Step()
    assert topic.copies.acknowledged("a")
    assert (len(topic.copies), topic.copies.size_bytes) == (1, 10)
    assert not topic.copies.acknowledged("a")


def test_a_copy_that_the_topic_does_not_take_is_lost_after_a_minute_and_not_before() -> None:
    topic = Topic()
    topic.copies.judge(Cause.MISSING)
    topic.take("a")
    assert topic.step(PATIENCE_S) == Step()
    assert topic.step(1.0) == Step(lose=(("a", Cause.MISSING),))
    assert len(topic.copies) == 0


def test_while_the_brokers_do_not_answer_no_time_passes_for_a_copy() -> None:
    topic = Topic()
    topic.copies.judge(Cause.MISSING)
    topic.take("a")
    topic.step()
    assert topic.step(10 * PATIENCE_S, brokers_answer=False).lose == ()
    assert topic.step(PATIENCE_S).lose == ()
    assert topic.step(1.0).lose == (("a", Cause.MISSING),)


def test_a_process_that_stood_still_gives_nothing_up_for_it() -> None:
    topic = Topic()
    topic.take("a")
    topic.step()
    topic.now += 3600.0
    assert topic.step().lose == ()
    assert topic.step(PATIENCE_S - MAX_STEP_S).lose == ()
    assert topic.step(1.0).lose == (("a", Cause.UNANSWERED),)


def test_a_refusal_recalls_the_others_and_leaves_one_that_is_tried_with_backoff() -> None:
    topic = Topic()
    topic.take("a", "b", "c")
    assert topic.step().send == ("a", "b", "c")
    topic.copies.refused("a", Cause.REFUSED, topic.now)
    assert topic.copies.failing is Cause.REFUSED
    step = topic.step()
    assert (step.send, step.recall) == ((), ("b", "c"))
    topic.copies.recalled("b")
    topic.copies.recalled("c")
    assert topic.step(0.4).send == ()
    assert topic.step(0.1).send == ("a",)
    topic.take("d")
    assert topic.step(5.0).send == ()  # one at a time
    topic.copies.refused("a", Cause.REFUSED, topic.now)
    assert topic.step(0.5).send == ()
    assert topic.step(0.5).send == ("a",)
    topic.copies.acknowledged("a")
    assert topic.copies.failing is None
    assert topic.step().send == ("b", "c", "d")


def test_nothing_is_sent_while_a_check_fails_and_everything_once_it_succeeds() -> None:
    topic = Topic()
    topic.copies.judge(Cause.MISSING)
    topic.take("a", "b")
    assert topic.step(30.0) == Step()
    topic.copies.judge(None)
    assert topic.copies.failing is None
    assert topic.step().send == ("a", "b")


def test_a_topic_that_goes_unanswered_takes_no_copies_until_it_answers() -> None:
    topic = Topic()
    topic.take("a")
    topic.step(STALL_S)
    assert topic.copies.failing is None
    topic.step(1.0)
    assert topic.copies.failing is Cause.UNANSWERED
    topic.copies.acknowledged("a")
    assert topic.copies.failing is None


def test_a_copy_that_is_too_large_for_the_topic_keeps_no_other_from_it() -> None:
    topic = Topic()
    topic.take("large", "b")
    topic.step()
    topic.copies.refused("large", Cause.TOO_LARGE, topic.now)
    assert topic.copies.failing is None
    topic.copies.acknowledged("b")
    topic.take("c")
    assert topic.step().send == ("c",)
    topic.copies.acknowledged("c")
    for _ in range(6):
        assert topic.step(10.0) == Step(send=("large",))
        topic.copies.refused("large", Cause.TOO_LARGE, topic.now)
    assert topic.step(1.0).lose == (("large", Cause.TOO_LARGE),)


def test_a_topic_that_takes_copies_too_slowly_has_reading_wait_and_loses_nothing() -> None:
    topic = Topic()
    topic.take("a", "b", "c")
    assert not topic.step().must_wait
    topic.take("d")
    assert topic.step().must_wait
    topic.copies.acknowledged("a")
    assert topic.step().must_wait
    topic.copies.acknowledged("b")
    topic.copies.acknowledged("c")
    step = topic.step()
    assert (step.must_wait, step.lose) == (False, ())


def test_beyond_a_bound_a_topic_that_takes_no_copies_loses_the_oldest_and_reading_never_waits() -> None:
    topic = Topic()
    topic.copies.judge(Cause.MISSING)
    topic.take("a", "b", "c", "d", "e")
    assert topic.step() == Step(lose=(("a", Cause.FULL),))
    topic.take("f", size=980)
    assert topic.step() == Step(lose=(("b", Cause.FULL), ("c", Cause.FULL)))
    topic.position += 97
    assert topic.step().lose == ()
    topic.position += 1
    assert topic.step() == Step(lose=(("d", Cause.FULL),))


def test_a_copy_that_the_publisher_has_no_room_for_is_sent_a_little_later() -> None:
    topic = Topic()
    topic.take("a")
    assert topic.step().send == ("a",)
    topic.copies.postponed("a", topic.now)
    assert topic.copies.failing is None
    assert topic.step(0.4).send == ()
    assert topic.step(0.1).send == ("a",)


def test_what_is_forgotten_is_neither_lost_nor_sent() -> None:
    topic = Topic()
    topic.take("a", "b")
    topic.step()
    assert topic.copies.forget({1}) == []
    assert topic.copies.forget({0, 1}) == ["a", "b"]
    assert not topic.copies.acknowledged("a")
    topic.copies.refused("b", Cause.REFUSED, topic.now)
    topic.copies.postponed("b", topic.now)
    topic.copies.recalled("b")
    assert topic.step(2 * PATIENCE_S) == Step()
    assert topic.copies.size_bytes == 0


# -- log lines about lost records


def lost(losses: Losses, *offsets: int, partition: int = 0) -> None:
    for offset in offsets:
        losses.note("results", partition, Cause.FULL, offset, "why")


def test_losses_are_logged_at_once_and_then_once_a_second() -> None:
    losses = Losses()
    assert losses.lines(0.0) == []
    lost(losses, 5, 7, 8, 9)
    assert [(line.offsets, line.records) for line in losses.lines(0.0)] == [("5,7-9", 4)]
    logged = []
    for turn in range(300):  # of a second in which each poll loses one
        lost(losses, 10 + turn)
        logged += losses.lines(turn / 301 * LOST_LINES_S)
    assert logged == []
    [line] = losses.lines(LOST_LINES_S)
    assert (line.offsets, line.records) == ("10-309", 300)
    assert losses.lines(9.0) == []


def test_partitions_have_lines_of_their_own() -> None:
    losses = Losses()
    lost(losses, 5)
    lost(losses, 5, partition=1)
    assert [(line.partition, line.offsets) for line in losses.lines(0.0)] == [(0, "5"), (1, "5")]


def test_every_offset_that_may_be_held_back_is_named() -> None:
    losses, offsets = Losses(), list(range(0, 2 * Bounds().records, 2))
    lost(losses, *offsets)
    lines = losses.lines(0.0)
    assert ",".join(line.offsets for line in lines) == ",".join(map(str, offsets))
    assert [line.suppressed for line in lines] == [0] * MAX_LOST_LINES


def test_beyond_that_the_last_line_counts_the_suppressed_ones() -> None:
    losses = Losses()
    lost(losses, *range(0, 2 * (LINE_RUNS * MAX_LOST_LINES + 7), 2))
    lines = losses.lines(0.0)
    assert (len(lines), lines[-1].suppressed) == (MAX_LOST_LINES, 7)


def test_nothing_is_left_unlogged_at_the_end() -> None:
    losses = Losses()
    lost(losses, 1)
    losses.lines(0.0)
    lost(losses, 2)
    assert [line.offsets for line in losses.lines(0.1, at_once=True)] == ["2"]


def test_runs_are_of_offsets_that_follow_each_other_in_whatever_order_they_come() -> None:
    assert runs([9, 7, 8, 5, 5]) == [(5, 5), (7, 9)]


class CopiesMachine(RuleBasedStateMachine):
    """Two partitions. What the publisher has is in ``sent``; each copy ends once, and only as it may."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: Copies[int] = Copies(BOUNDS, Backoff(base_s=0.5, cap_s=10.0))
        self.now = self.answered_s = 0.0
        self.positions = {0: 0, 1: 0}
        self.taken_at: dict[int, float] = {}  # of those held, by seconds in which the brokers answered
        self.partitions: dict[int, int] = {}  # of each copy
        self.sent: set[int] = set()
        self.count = 0

    @rule(partition=st.integers(0, 1), size=st.sampled_from([0, 10, 400, 2_000]), others=st.sampled_from([0, 1, 60]))
    def take(self, partition: int, size: int, others: int) -> None:
        self.count += 1
        self.copies.take(self.count, partition=partition, offset=self.positions[partition], size=size)
        self.positions[partition] += 1 + others
        self.taken_at[self.count], self.partitions[self.count] = self.answered_s, partition

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0]), answer=st.booleans())
    def step(self, seconds: float, answer: bool) -> None:
        self.now += seconds
        if answer:
            self.answered_s += seconds
        step = self.copies.step(self.now, brokers_answer=answer, positions=self.positions)
        failing = self.copies.failing
        for copy, cause in step.lose:
            age_s = self.answered_s - self.taken_at.pop(copy)
            self.sent.discard(copy)
            if cause is Cause.FULL:
                assert failing is not None
            else:
                assert age_s > PATIENCE_S - 1e-6
        assert set(step.send).isdisjoint(self.sent)
        if failing is not None:
            assert not step.must_wait
            assert len(step.send) <= 1
            assert not (step.send and self.sent)
            assert len(self.taken_at) <= BOUNDS.records
            assert self.copies.size_bytes <= BOUNDS.size_bytes
        assert set(step.send) | set(step.recall) <= set(self.taken_at)
        self.sent |= set(step.send)
        if self.copies.failing is None:
            assert all(self.answered_s - taken_at <= PATIENCE_S + 1e-6 for taken_at in self.taken_at.values())

    @rule(seconds=st.floats(10.0, 70.0))
    def time_passes(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.step(1.0, True)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), answer=st.sampled_from(["ok", "ok", "refused", "too large", "recalled", "postponed"]))
    def answer(self, data: st.DataObject, answer: str) -> None:
        copy = data.draw(st.sampled_from(sorted(self.sent)))
        self.sent.remove(copy)
        if answer == "ok":
            assert self.copies.acknowledged(copy)
            del self.taken_at[copy]
            assert self.copies.failing is None
        elif answer == "refused":
            self.copies.refused(copy, Cause.REFUSED, self.now)
            assert self.copies.failing is not None
        elif answer == "too large":
            self.copies.refused(copy, Cause.TOO_LARGE, self.now)
        elif answer == "recalled":
            self.copies.recalled(copy)
        else:
            self.copies.postponed(copy, self.now)

    @rule(verdict=st.sampled_from([None, None, Cause.MISSING, Cause.REFUSED]))
    def judge(self, verdict: Cause | None) -> None:
        self.copies.judge(verdict)

    @rule(partitions=st.sampled_from([{0}, {1}, {0, 1}]))
    def forget(self, partitions: set[int]) -> None:
        gone = {copy for copy in self.taken_at if self.partitions[copy] in partitions}
        assert set(self.copies.forget(partitions)) == gone
        self.taken_at = {copy: at for copy, at in self.taken_at.items() if copy not in gone}
        self.sent -= gone

    @invariant()
    def holds_what_was_neither_acknowledged_nor_lost(self) -> None:
        assert len(self.copies) == len(self.taken_at)
        assert all(copy in self.copies for copy in self.taken_at)
        if not self.taken_at:
            assert self.copies.size_bytes == 0

    def teardown(self) -> None:
        """However it went: a topic that takes copies from now on gets every one that is held."""
        self.copies.judge(None)
        for _ in range(100):
            for copy in sorted(self.sent):
                self.copies.acknowledged(copy)
                del self.taken_at[copy]
            self.sent.clear()
            if not self.taken_at:
                return
            self.step(0.5, False)
        raise AssertionError(f"never sent: {self.taken_at}")


CopiesMachine.TestCase.settings = examples(100, steps=40)
TestCopies = CopiesMachine.TestCase
