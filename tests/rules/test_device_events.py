"""The last events of devices, in a ring of a fixed size."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.device_events import KINDS, MAX_BURSTS, PER_DEVICE, DeviceEvents, Event
from cocoa_tornado.rules.identity import DeviceIdentity

NOW = 1_700_000_000.0
events = st.tuples(st.sampled_from(["doll", "bear", "ö"]), st.sampled_from(KINDS), st.integers(0, 65_535))


def of(device_id: str) -> DeviceIdentity:
    return DeviceIdentity(device_id, 99, "1", (), NOW)


@given(st.lists(events, max_size=60), st.integers(1, 30))
def test_the_ring_has_the_last_events_of_each_device(noted: list[tuple[str, str, int]], size: int) -> None:
    ring, model = DeviceEvents(size), deque[tuple[str, Event]](maxlen=size)
    for at, (device_id, kind, code) in enumerate(noted):
        event = Event(NOW + 11 * at, kind, code)  # type: ignore[arg-type]  # drawn from KINDS
        ring.note(of(device_id), event.kind, event.code, event.at)
        model.append((device_id, event))
    for device_id in ("doll", "bear", "ö", "nobody"):
        assert ring.of(device_id) == [event for name, event in model if name == device_id][-PER_DEVICE:]


def test_no_more_memory_is_used_than_is_said() -> None:
    ring = DeviceEvents(100)
    for number in range(1_000):
        ring.note(of(f"doll-{number}"), "connected", 101, NOW)
    assert len(ring._ring) == 100 * 24


def test_a_device_that_connects_again_and_again_displaces_no_other() -> None:
    ring = DeviceEvents(100)
    ring.note(of("bear"), "connected", 101, NOW)
    for _ in range(10_000):
        ring.note(of("doll"), "refused", 409, NOW + 1)
    assert len(ring.of("doll")) == PER_DEVICE
    assert ring.of("bear") == [Event(NOW, "connected", 101)]
    ring.note(of("doll"), "connected", 101, NOW + 20)
    assert ring.of("doll")[-1] == Event(NOW + 20, "connected", 101)


def test_devices_that_are_watched_for_bursts_are_bounded() -> None:
    ring = DeviceEvents(10)
    for number in range(3 * MAX_BURSTS):
        ring.note(of(f"doll-{number}"), "connected", 101, NOW)
    assert len(ring._bursts) <= MAX_BURSTS


def test_a_clock_that_is_set_back_does_not_silence_a_device() -> None:
    ring = DeviceEvents(100)
    for _ in range(PER_DEVICE):
        ring.note(of("doll"), "connected", 101, NOW)
    ring.note(of("doll"), "closed", 1000, NOW - 3600)
    assert ring.of("doll")[-1] == Event(NOW - 3600, "closed", 1000)
