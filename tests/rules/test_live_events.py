"""Events as they happen: who gets which, and what a queue that is too short costs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.device_events import DeviceEvents
from cocoa_tornado.rules.identity import DeviceIdentity
from cocoa_tornado.rules.live_events import EVENT_BYTES, Backlog, LiveEvent, LiveEvents, ToWrite, Watch

NOW = 1_700_000_000.0


def identity(device_id: str = "doll", user_id: int | str = 99, groups: tuple[str, ...] = ()) -> DeviceIdentity:
    return DeviceIdentity(device_id, user_id, "1", groups, NOW + 600)


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self, *watches: Watch) -> None:
        self.watches: Sequence[Watch] = watches
        self.got: list[tuple[LiveEvent, list[int]]] = []

    def put(self, event: LiveEvent, numbers: Sequence[int]) -> None:
        self.got.append((event, list(numbers)))


def live(*sinks: Kept) -> LiveEvents:
    events = LiveEvents(lambda: "here", lambda: NOW)
    for sink in sinks:
        events.add(sink)
    return events


def test_an_event_reaches_each_sink_once_with_the_watches_that_it_is_for() -> None:
    one = Kept(Watch(1), Watch(2, device_id="bear"), Watch(3, group="g"))
    other, nothing = Kept(Watch(1, user_id=99)), Kept(Watch(1, user_id="99"), Watch(2, group="x"))
    events = live(one, other, nothing)
    DeviceEvents(live=events).note(identity(groups=("g", "h")), "closed", 1000, NOW)
    event = LiveEvent(event="closed", at=NOW, server="here", device_id="doll", user="99", code=1000)
    assert (one.got, other.got, nothing.got) == ([(event, [1, 3])], [(event, [1])], [])


def test_every_text_of_a_stranger_counts_in_a_queue() -> None:
    sink = Kept(Watch(1))
    DeviceEvents(live=live(sink)).note(identity("d" * 100, "u" * 10_000), "connected", 101, NOW)
    ((event, _),) = sink.got
    assert event.size_bytes >= EVENT_BYTES + 10_100


def test_a_sink_is_added_once_and_gets_nothing_when_it_is_gone() -> None:
    sink = Kept(Watch(1))
    events = live(sink, sink)
    assert repr(events) == "<LiveEvents for 1 sinks>"
    events.discard(sink)
    events.discard(sink)
    DeviceEvents(live=events).note(identity(), "connected", 101, NOW)
    assert (sink.got, events.sinks) == ([], ())


def test_text_goes_only_to_sinks_with_a_watch_that_may_see_it() -> None:
    seeing, blind = Kept(Watch(1), Watch(2, with_text=True)), Kept(Watch(1), Watch(2, device_id="x", with_text=True))
    payload = b'{"type":"transcription","text":"hi","id":"m1"}'
    live(seeing, blind).written(identity(), [ToWrite(payload, 1_699_999_999_000)], NOW)
    texts = [None if event.message is None else event.message.text for sink in (seeing, blind) for event, _ in sink.got]
    assert texts == [payload.decode(), None]
    for sink in (seeing, blind):
        message = sink.got[0][0].message
        assert message is not None
        assert (message.id, message.length, message.age_ms) == ("m1", len(payload), 1000)


@given(
    st.binary(max_size=30)
    | st.dictionaries(st.just("id"), st.text() | st.integers()).map(lambda d: json.dumps(d).encode())
)
def test_any_payload_is_shown_with_its_id_if_it_has_a_valid_one(payload: bytes) -> None:
    sink = Kept(Watch(1, with_text=True))
    live(sink).written(identity(), [ToWrite(payload, 0)], NOW)
    message = sink.got[0][0].message
    assert message is not None
    assert message.id is None or 0 < len(message.id.encode()) <= 64
    assert (message.length, message.age_ms) == (len(payload), None)


steps = st.lists(
    st.tuples(st.just("put"), st.lists(st.sampled_from([1, 2]), min_size=1, max_size=2, unique=True))
    | st.tuples(st.sampled_from(["take", "fail"]), st.just([])),
    max_size=60,
)


@given(steps, st.integers(1, 5), st.integers(1, 6))
def test_every_event_is_taken_or_counted_as_lost_in_its_place(
    plan: list[tuple[str, list[int]]], max_events: int, max_size: int
) -> None:
    """For each watch: the events in order, where those that are missing are as many as is said."""
    losses: list[int] = []
    events = LiveEvents(lambda: "here", lambda: NOW)
    backlog = Backlog(max_events, max_size * EVENT_BYTES, events.lost, losses.append)
    put: dict[int, list[float]] = {1: [], 2: []}
    seen: dict[int, int] = {1: 0, 2: 0}

    def see(taken: Sequence[tuple[LiveEvent, Sequence[int]]]) -> None:
        for event, numbers in taken:
            for number in numbers:
                if event.event == "lost":
                    assert event.lost is not None
                    seen[number] += event.lost
                else:
                    assert event.at in put[number]
                    seen[number] += 1

    for at, (step, numbers) in enumerate(plan):
        if step == "put":
            for number in numbers:
                put[number].append(float(at))
            backlog.put(LiveEvent(event="closed", at=float(at), server="here"), numbers)
        elif step == "take":
            see(backlog.take(2 * EVENT_BYTES))
        else:
            backlog.give_up(backlog.take(2 * EVENT_BYTES))
        assert len(backlog._waiting) <= max_events + 2
    while backlog:
        see(backlog.take(2 * EVENT_BYTES))
    assert seen == {number: len(events) for number, events in put.items()}
    assert backlog._bytes == 0
    assert sum(losses) <= sum(step == "put" for step, _ in plan)


def test_what_is_lost_is_told_before_what_comes_after_it() -> None:
    events = LiveEvents(lambda: "here", lambda: NOW)
    backlog = Backlog(2, 10_000, events.lost)
    for at in range(5):
        backlog.put(LiveEvent(event="closed", at=float(at), server="here"), [1])
    assert [event.at for event, _ in backlog.take(EVENT_BYTES)] == [0.0]
    backlog.put(LiveEvent(event="closed", at=9.0, server="here"), [1])
    taken = [(event.event, event.lost, event.at) for event, _ in backlog.take(10_000)]
    assert taken == [("closed", None, 1.0), ("lost", 3, NOW), ("closed", None, 9.0)]
