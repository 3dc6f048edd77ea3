"""What happens to devices again and again, in a table of a fixed size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.repeats import Repeat, Repeats

NOW = 1_700_000_000.0


def test_the_same_thing_counts_until_it_ends_changes_or_is_long_ago() -> None:
    repeats = Repeats(10.0)
    for at in range(3):
        repeats.note("doll", NOW + at, "a")
    assert repeats.most(5, NOW + 2) == [("doll", Repeat(3, NOW, NOW + 2, "a"))]
    assert repeats.most(5, NOW + 13) == []
    repeats.note("doll", NOW + 3, "b")
    assert repeats.most(5, NOW + 3) == []
    repeats.note("doll", NOW + 4, "b")
    assert repeats.most(5, NOW + 4) == [("doll", Repeat(2, NOW + 3, NOW + 4, "b"))]
    repeats.note("doll", NOW + 15, "b")
    repeats.forget("doll")
    repeats.forget("doll")
    assert (len(repeats), repeats.most(5, NOW + 15)) == (0, [])


def test_several_at_once_count_as_many_and_a_list_may_begin_with_one() -> None:
    repeats = Repeats(10.0)
    repeats.note("doll", NOW, times=3)
    repeats.note("bear", NOW)
    assert [(name, row.times) for name, row in repeats.most(5, NOW)] == [("doll", 3)]
    assert [(name, row.times) for name, row in repeats.most(5, NOW, least=1)] == [("doll", 3), ("bear", 1)]


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60), st.integers(1, 5), st.integers(0, 9))
def test_the_last_devices_are_known_and_no_others(noted: list[str], size: int, limit: int) -> None:
    repeats = Repeats(1e9, size)
    for at, device_id in enumerate(noted):
        repeats.note(device_id, NOW + at)
    last = list(dict.fromkeys(reversed(noted)))[:size]
    assert set(repeats._rows) == set(last)
    most = repeats.most(limit, NOW + len(noted))
    counts = [row.times for _, row in most]
    assert counts == sorted(counts, reverse=True)
    assert len(most) <= limit
    assert all(1 < row.times <= noted.count(device_id) for device_id, row in most)
