"""Devices to which the same event happens repeatedly, for operators: a bounded table of the last ones. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Final, NamedTuple

MAX_DEVICES: Final = 1_024


class Repeat(NamedTuple):
    """How often an event has happened to a device.

    :ivar since: when it happened first; :ivar last: when it happened last; both Unix seconds
    :ivar what: only what is equal is the same thing
    """

    times: int
    since: float
    last: float
    what: Hashable


class Repeats:
    """Counts repeated events of each device. Beyond :data:`MAX_DEVICES`, it forgets the device whose last event is
    oldest.

    :param quiet_s: what happens later than that after the last time is counted from 1 again
    """

    __slots__ = ("_max_devices", "_quiet_s", "_rows")

    def __init__(self, quiet_s: float, max_devices: int = MAX_DEVICES) -> None:
        self._quiet_s, self._max_devices = quiet_s, max_devices
        self._rows: dict[str, Repeat] = {}  # in the order of their last events

    def __repr__(self) -> str:
        return f"<Repeats of {len(self._rows)} devices>"

    def __len__(self) -> int:
        """How many devices are known."""
        return len(self._rows)

    def note(self, device_id: str, now: float, what: Hashable = None, times: int = 1) -> None:
        """The event has happened.

        :param now: Unix seconds
        :param times: so often at once
        """
        row = self._rows.pop(device_id, None)
        if row is None or row.what != what or now - row.last > self._quiet_s:
            row = Repeat(0, now, now, what)
        if len(self._rows) >= self._max_devices:
            del self._rows[next(iter(self._rows))]
        self._rows[device_id] = Repeat(row.times + times, row.since, now, what)

    def forget(self, device_id: str) -> None:
        """Forget the device: the repetition has ended."""
        self._rows.pop(device_id, None)

    def most(self, limit: int, now: float, least: int = 2) -> list[tuple[str, Repeat]]:
        """Return the devices with the most repetitions, at least ``least``, that have not been quiet since."""
        found = (
            (device_id, row)
            for device_id, row in self._rows.items()
            if row.times >= least and now - row.last <= self._quiet_s
        )
        return heapq.nlargest(limit, found, key=lambda each: each[1].times)
