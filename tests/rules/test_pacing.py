from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.pacing import QUIET_AFTER_S, QUIET_FACTOR, Probe, ProbePace, QuestionPace, Quiet


def due_at(pace: QuestionPace) -> int:
    return next(now for now in range(1_000) if pace.is_due(now))


def test_the_first_question_is_due_at_once() -> None:
    assert QuestionPace(2).is_due(0)


def test_while_nothing_happens_it_is_asked_a_fifth_as_often() -> None:
    pace = QuestionPace(2)
    pace.note_asked(0)
    assert due_at(pace) == 2 * QUIET_FACTOR == 10


def test_while_things_happen_it_is_asked_at_its_busy_pace() -> None:
    pace = QuestionPace(2)
    pace.note_asked(0)
    for now in (0, 1):
        pace.note_event(now)
    assert due_at(pace) == 2


def test_the_first_event_after_a_quiet_time_is_confirmed_as_soon_as_any_other() -> None:
    pace = QuestionPace(2)
    pace.note_asked(0)
    pace.note_event(7)
    assert due_at(pace) == 9


def test_an_event_never_puts_the_question_off() -> None:
    pace = QuestionPace(2)
    pace.note_asked(0)
    pace.note_event(9)
    assert due_at(pace) == 10


def test_a_question_in_a_hurry_is_due_at_once() -> None:
    pace = QuestionPace(2)
    pace.note_asked(0)
    pace.hurry()
    assert pace.is_due(0)


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=60), st.integers(1, 5))
def test_no_event_waits_longer_than_the_busy_pace(steps: list[tuple[int, bool]], busy_s: int) -> None:
    """A consumer that looks at the clock each second, and asks when the question is due."""
    pace, now, asked_at = QuestionPace(busy_s), 0, 0
    unconfirmed: int | None = None  # when the earliest event happened that was not asked about
    for seconds, is_event in steps:
        for _ in range(seconds):
            now += 1
            if pace.is_due(now):
                pace.note_asked(now)
                unconfirmed, asked_at = None, now
            assert unconfirmed is None or now - unconfirmed < busy_s
            assert now - asked_at <= QUIET_FACTOR * busy_s
        if is_event:
            pace.note_event(now)
            unconfirmed = now if unconfirmed is None else unconfirmed


def test_a_consumer_is_quiet_some_time_after_its_last_work() -> None:
    quiet = Quiet()
    assert quiet.look(0, has_work=False)
    assert not quiet.look(1, has_work=True)
    looks = [quiet.look(1 + after_s, has_work=False) for after_s in (0, QUIET_AFTER_S / 2, QUIET_AFTER_S)]
    assert looks == [False, False, True]


def test_the_brokers_are_asked_at_intervals() -> None:
    pace = ProbePace(2)
    assert [pace.look(now) for now in (0, 1, 2)] == [Probe.ASK, Probe.NOT_DUE, Probe.ASK]


def test_they_are_asked_at_once_when_that_would_explain_something() -> None:
    pace = ProbePace(2)
    pace.look(0, rests=True, answered=True)
    pace.hurry()
    assert pace.look(1, rests=True, answered=True) is Probe.ASK


def test_a_consumer_that_rests_does_not_ask_while_other_answers_come() -> None:
    pace = ProbePace(2)
    assert pace.look(0) is Probe.ASK
    looks = [pace.look(now, rests=True, answered=True) for now in (1, 2, 3, 4)]
    assert looks == [Probe.NOT_DUE, Probe.TRUST, Probe.NOT_DUE, Probe.TRUST]


def test_it_asks_once_those_fail_to_come_and_then_at_intervals() -> None:
    pace = ProbePace(2)
    pace.look(0)
    pace.look(2, rests=True, answered=True)
    assert pace.look(3, rests=True, answered=False) is Probe.ASK
    assert [pace.look(now, rests=True, answered=False) for now in (4, 5)] == [Probe.NOT_DUE, Probe.ASK]


def test_it_does_not_ask_right_after_the_rest() -> None:
    pace = ProbePace(2)
    pace.look(0)
    pace.look(2, rests=True, answered=True)
    assert [pace.look(now) for now in (4, 5, 6)] == [Probe.NOT_DUE, Probe.NOT_DUE, Probe.ASK]


@given(st.lists(st.sampled_from([(False, False), (True, False), (True, True)]), max_size=40))
def test_brokers_that_fall_silent_are_never_trusted_for_longer_than_a_look(looks: list[tuple[bool, bool]]) -> None:
    """What the consumer goes by, look by look, a second each: it has asked, or the brokers have just answered."""
    pace, asked_at = ProbePace(2), 0
    pace.look(0)
    for now, (rests, answered) in enumerate(looks, start=1):
        probe = pace.look(now, rests=rests, answered=answered)
        assert probe is not Probe.TRUST or answered
        if probe is Probe.ASK or answered:
            asked_at = now
        assert now - asked_at <= 2
