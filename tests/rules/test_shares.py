"""What one operator may use of what all operators share."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.shares import Shares


@given(st.integers(0, 3), st.lists(st.tuples(st.booleans(), st.sampled_from("abc"))))
def test_no_holder_uses_more_than_its_share_whatever_others_use(most: int, steps: list[tuple[bool, str]]) -> None:
    shares, used = Shares(most), Counter[str]()
    for takes, holder in steps:
        if takes:
            assert shares.take(holder) is (used[holder] < most)
            used[holder] = min(most, used[holder] + 1)
        elif used[holder]:
            shares.give_back(holder)
            used[holder] -= 1
        assert len(shares) == len(+used)
