from __future__ import annotations

from cocoa_tornado.workers.gathering import MAX_OPEN, PATIENCE_S, Gatherings


def test_it_is_complete_when_all_have_answered() -> None:
    gatherings = Gatherings()
    number = gatherings.ask("ready", 1, 77, [1, 2], [], 0.0)
    assert number is not None
    gatherings.on_answer(1, number, "one")
    assert gatherings.complete(0.5) == []
    gatherings.on_answer(2, number, "two")
    (done,) = gatherings.complete(0.5)
    assert (done.asker, done.asker_number, done.answers, done.missing) == (1, 77, {1: "one", 2: "two"}, [])
    assert gatherings.complete(5.0) == []


def test_after_a_second_those_without_an_answer_are_missing() -> None:
    gatherings = Gatherings()
    number = gatherings.ask("metrics", 1, 1, [1, 2], [3], 10.0)
    assert number is not None
    gatherings.on_answer(1, number, "one")
    assert gatherings.next_at() == 10.0 + PATIENCE_S
    assert gatherings.complete(10.0 + PATIENCE_S - 0.01) == []
    (done,) = gatherings.complete(10.0 + PATIENCE_S)
    assert (done.answers, done.missing) == ({1: "one"}, [2, 3])


def test_a_worker_that_ends_is_not_waited_for() -> None:
    gatherings = Gatherings()
    number = gatherings.ask("ready", 1, 1, [1, 2], [], 0.0)
    assert number is not None
    gatherings.on_answer(1, number, "one")
    gatherings.on_exit(2)
    (done,) = gatherings.complete(0.0)
    assert done.missing == [2]


def test_a_worker_that_has_answered_and_then_ends_counts() -> None:
    gatherings = Gatherings()
    number = gatherings.ask("ready", 1, 1, [1, 2], [], 0.0)
    assert number is not None
    gatherings.on_answer(2, number, "two")
    gatherings.on_exit(2)
    gatherings.on_answer(1, number, "one")
    (done,) = gatherings.complete(0.0)
    assert done.missing == []


def test_an_asker_that_ends_needs_no_answer() -> None:
    gatherings = Gatherings()
    gatherings.ask("ready", 1, 1, [1, 2], [], 0.0)
    gatherings.on_exit(1)
    assert gatherings.complete(9.0) == []
    assert gatherings.next_at() is None


def test_answers_that_are_late_doubled_or_unasked_have_no_effect() -> None:
    gatherings = Gatherings()
    number = gatherings.ask("ready", 1, 1, [1, 2], [], 0.0)
    assert number is not None
    gatherings.on_answer(1, number, "first")
    gatherings.on_answer(1, number, "second")
    gatherings.on_answer(3, number, "nobody asked")
    gatherings.on_answer(1, number + 1, "no such question")
    (done,) = gatherings.complete(2.0)
    assert done.answers == {1: "first"}
    gatherings.on_answer(2, number, "late")
    assert gatherings.complete(9.0) == []


def test_questions_under_way_are_bounded() -> None:
    gatherings = Gatherings()
    numbers = [gatherings.ask("ready", 1, n, [1], [], 0.0) for n in range(MAX_OPEN + 1)]
    assert numbers[-1] is None
    assert None not in numbers[:-1]
    gatherings.complete(2.0)
    assert gatherings.ask("ready", 1, 0, [1], [], 2.0) is not None
