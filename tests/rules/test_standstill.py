from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.standstill import Ends, Standstill, StandstillWatch

PATIENCE_S = 10.0


def news(*seen: tuple[float, Ends]) -> list[Standstill | None]:
    watch = StandstillWatch(PATIENCE_S)
    return [watch.judge(ends, now) for now, ends in seen]


def test_a_stable_offset_that_stands_still_is_news_once_its_patience_is_over() -> None:
    open_transaction = Ends(5, 7)
    assert news((0, open_transaction), (9, Ends(5, 8)), (10, Ends(5, 9)), (99, Ends(5, 99))) == [
        None,
        None,
        Standstill(False, Ends(5, 9), 10),
        None,
    ]


def test_that_it_moves_again_is_news_once() -> None:
    assert news((0, Ends(5, 7)), (10, Ends(5, 7)), (12, Ends(8, 8)), (13, Ends(8, 8)), (14, Ends(9, 9))) == [
        None,
        Standstill(False, Ends(5, 7), 10),
        Standstill(True, Ends(5, 7), 12),
        None,
        None,
    ]


def test_it_may_move_on_to_the_next_transaction_that_is_never_ended() -> None:
    assert news((0, Ends(5, 9)), (10, Ends(5, 9)), (20, Ends(8, 9)), (29, Ends(8, 9)), (30, Ends(8, 9))) == [
        None,
        Standstill(False, Ends(5, 9), 10),
        Standstill(True, Ends(5, 9), 20),
        None,
        Standstill(False, Ends(8, 9), 10),
    ]


def test_a_quiet_partition_does_not_stand_still() -> None:
    assert news((0, Ends(5, 5)), (100, Ends(5, 5)), (101, Ends(5, 6)), (110, Ends(5, 6))) == [None] * 4


def test_transactions_that_end_do_not_stand_still() -> None:
    assert news(*((float(now), Ends(now, now + 3)) for now in range(100))) == [None] * 100


def test_a_log_that_has_lost_its_end_moves() -> None:
    assert news((0, Ends(5, 9)), (10, Ends(5, 9)), (11, Ends(5, 6)))[2] == Standstill(True, Ends(5, 9), 11)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3), st.integers(0, 2)), max_size=50))
def test_news_of_a_standstill_and_of_its_end_take_turns(steps: list[tuple[int, int, int]]) -> None:
    watch, now, stable = StandstillWatch(PATIENCE_S), 0.0, 0
    news = []
    for wait, open_records, moved in steps:
        now, stable = now + wait, stable + moved
        step = watch.judge(Ends(stable, stable + open_records), now)
        if step is not None:
            news.append(step)
            assert step.ends.stable < step.ends.high
            assert step.seconds >= PATIENCE_S
    assert [step.over for step in news] == [bool(at % 2) for at in range(len(news))]
