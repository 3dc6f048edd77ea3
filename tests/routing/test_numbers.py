"""The place of a transient message among the stored ones, as far as a batch's numbers tell it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.mailboxes.port import FanOutStep, lane_of
from cocoa_tornado.routing import numbers as module
from cocoa_tornado.routing.address import Group
from cocoa_tornado.routing.numbers import BatchNumbers, Stored
from cocoa_tornado.routing.plan import Part
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.audiences import of_group
from cocoa_tornado.rules.records import Record

from .anyone import DEVICES, record

RED = Group("red")
HIGH = Options(priority="high")
NOW = record(interim_of="s")


def of(
    records: Sequence[Record], stored: Sequence[int | None] | None, *steps: tuple[int, dict[str, int]]
) -> BatchNumbers:
    """:param stored: by record, None: not yet; :param steps: of fan-outs, by the index of the record"""
    parts: list[Part] = [
        (at, one.address if isinstance(one.address, str) else None)
        for at, one in enumerate(records)
        if not one.is_transient
    ]
    numbers = BatchNumbers(records, parts, done(None if stored is None else [stored[at] for at, _ in parts]), {})
    for at, given_numbers in steps:
        step = (of_group("red"), frozenset[str](), b"{}", 0, None, 0, given_numbers)
        numbers.add(at, FanOutStep(*step, is_last=False, recipients=len(given_numbers)))
    return numbers


def done(result: list[int | None] | None) -> Stored:
    loop = asyncio.new_event_loop()
    future: Stored = loop.create_future()
    if result is not None:
        future.set_result(result)
    loop.close()
    return future


def test_the_first_later_message_of_a_device_at_another_server_is_that_of_its_lane() -> None:
    records = [record("a"), NOW, record("b"), record("a", options=HIGH), record("a")]
    numbers = of(records, [7, None, 1, 3, 8])
    assert (numbers.first(1, "a", "normal", None), numbers.first(1, "a", "high", None)) == (8, 3)
    assert (numbers.first(-1, "a", "normal", None), numbers.first(4, "a", "normal", None)) == (7, None)
    assert numbers.first(1, "c", "normal", None) is None


def test_while_the_batch_is_being_stored_a_later_message_has_no_number_yet() -> None:
    numbers = of([NOW, record("a")], None)
    assert (numbers.first(0, "a", "normal", None), numbers.last(1, "a", "normal")) == (module.NOT_KNOWN, None)


def test_of_a_fan_out_only_the_steps_that_are_known_count_for_other_servers() -> None:
    numbers = of([NOW, record(RED), record("a")], [None, 0, 6], (1, {"a": 5, "b": 2}))
    found = [numbers.first(0, device_id, "normal", None) for device_id in "abc"]
    assert found == [5, 2, None]


def test_a_message_that_was_stored_earlier_is_no_later_one() -> None:
    assert of([NOW, record("a"), record("a")], [None, None, 4]).first(0, "a", "normal", None) == 4


def test_the_last_earlier_message_is_that_of_the_lane_and_was_stored_now() -> None:
    records = [record("a"), record("a"), record("a", options=HIGH), record("b"), NOW, record("a")]
    numbers = of(records, [3, None, 9, 1, None, 4])
    assert [numbers.last(at, "a", "normal") for at in (0, 4, 6)] == [None, 3, 4]


batches = st.lists(
    st.tuples(st.sampled_from([*DEVICES, RED]), st.sampled_from([None, HIGH]), st.none() | st.integers(1, 99)),
    max_size=8,
)


@given(batches, st.integers(-1, 8), st.sampled_from(["normal", "high"]), st.booleans())
def test_all_first_numbers_together_are_those_of_each_device(
    batch: list[tuple[str | Group, Options | None, int | None]], after: int, lane: str, is_stored: bool
) -> None:
    records = [record(address, options=options) for address, options, _ in batch]
    steps = [(at, {"a": number, "d": number}) for at, (to, _, number) in enumerate(batch) if to == RED and number]
    numbers = of(records, [number for _, _, number in batch] if is_stored else None, *(steps if is_stored else ()))
    firsts: dict[str, int] = {"kept": 1}
    numbers.add_firsts(after, lane, firsts)  # type: ignore[arg-type]  # a lane
    each = {name: numbers.first(after, name, lane, None) for name in DEVICES}  # type: ignore[arg-type]  # a lane
    assert firsts == {"kept": 1} | {name: first for name, first in each.items() if first is not None}


def test_the_places_that_go_with_a_record_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PLACES", 2)
    firsts: dict[str, int] = {}
    of([record(name) for name in DEVICES], [1, 2, 3, 4]).add_firsts(-1, lane_of(None), firsts)
    assert firsts == {"a": 1, "b": 2}
