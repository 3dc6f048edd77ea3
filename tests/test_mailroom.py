"""What of a batch is told again, once the gateway has read it a second time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.mailroom import _stale_hypotheses
from cocoa_tornado.rules.records import Delivery


def final(device_id: str) -> Delivery:
    return Delivery(device_id, b"{}", 0)


def hypothesis(device_id: str) -> Delivery:
    return Delivery(device_id, b"{}", 0, interim_of="s")


def test_a_hypothesis_is_stale_if_a_message_behind_it_had_been_stored_before() -> None:
    batch = [hypothesis("a"), hypothesis("b"), final("a"), hypothesis("a"), final("b"), hypothesis("b")]
    assert _stale_hypotheses(batch, [None, 7]) == {0}
    assert _stale_hypotheses(batch, [None, None]) == {0, 1}
    assert _stale_hypotheses(batch, [6, 7]) == set()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["hypothesis", "new", "known"])), max_size=12))
def test_no_message_and_no_newer_hypothesis_is_ever_stale(steps: list[tuple[str, str]]) -> None:
    batch = [hypothesis(device) if kind == "hypothesis" else final(device) for device, kind in steps]
    stored = [1 if kind == "new" else None for _, kind in steps if kind != "hypothesis"]
    stale = _stale_hypotheses(batch, stored)
    for at, (device, kind) in enumerate(steps):
        is_known_later = (device, "known") in steps[at + 1 :]
        assert (at in stale) == (kind == "hypothesis" and is_known_later)
