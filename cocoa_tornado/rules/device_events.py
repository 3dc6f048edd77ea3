"""The last events of devices, for operators: one bounded ring for all devices. Pure.

An event takes 24 bytes and the whole ring 768 KiB, for any number of devices. An event has a 64-bit hash of the
device's id instead of the id.
"""

from __future__ import annotations

import struct
from typing import Final, Literal, NamedTuple, TypeAlias

from .identity import DeviceIdentity
from .live_events import LiveEvents

EventKind: TypeAlias = Literal["connected", "refused", "challenged", "closed"]
KINDS: Final[tuple[EventKind, ...]] = ("connected", "refused", "challenged", "closed")
MAX_EVENTS: Final = 32_768
PER_DEVICE: Final = 20
BURST_S: Final = 10.0
"""Of one device, no more than ``PER_DEVICE`` events are remembered in this time, so that one that connects again and
again does not displace those of all others."""
MAX_BURSTS: Final = 4_096

_EVENT: Final = struct.Struct("<QdHB5x")
_MASK: Final = 2**64 - 1


class Event(NamedTuple):
    """:ivar at: Unix seconds
    :ivar code: ``refused``: the HTTP status; ``closed``: the close code, 1006 if there was none; 0: there is none
    """

    at: float
    kind: EventKind
    code: int


class DeviceEvents:
    """The last events of this server's devices.

    :ivar live: receives every event, also those that are not remembered
    """

    __slots__ = ("_burst_until", "_bursts", "_max_events", "_ring", "_written", "live")

    def __init__(self, max_events: int = MAX_EVENTS, live: LiveEvents | None = None) -> None:
        self._max_events = max_events
        self.live = LiveEvents(lambda: "", lambda: 0.0) if live is None else live
        self._ring = bytearray()  # grows to its size
        self._written = 0  # events, ever
        self._bursts: dict[int, int] = {}
        self._burst_until = 0.0

    def __repr__(self) -> str:
        return f"<DeviceEvents {self._written}>"

    def note(self, identity: DeviceIdentity, kind: EventKind, code: int, now: float) -> None:
        """Remember an event, and pass it to those that watch.

        :param now: Unix seconds
        """
        if self.live.sinks:
            self.live.happened(identity, kind, code, now)
        key = hash(identity.device_id) & _MASK
        if not self._burst_until - BURST_S <= now < self._burst_until or len(self._bursts) >= MAX_BURSTS:
            self._bursts.clear()
            self._burst_until = now + BURST_S
        count = self._bursts[key] = self._bursts.get(key, 0) + 1
        if count > PER_DEVICE:
            return
        packed = _EVENT.pack(key, now, code, KINDS.index(kind))
        if self._written < self._max_events:
            self._ring += packed
        else:
            at = self._written % self._max_events * _EVENT.size
            self._ring[at : at + _EVENT.size] = packed
        self._written += 1

    def of(self, device_id: str) -> list[Event]:
        """Return the last events of a device, at most ``PER_DEVICE``, oldest first."""
        key = struct.pack("<Q", hash(device_id) & _MASK)
        oldest = self._written % self._max_events * _EVENT.size if self._written > self._max_events else 0
        found = [*self._behind(key, 0, oldest), *self._behind(key, oldest, len(self._ring))][:PER_DEVICE]
        return found[::-1]

    def _behind(self, key: bytes, begin: int, end: int) -> list[Event]:
        """The events of a device in a part of the ring, newest first."""
        found: list[Event] = []
        at = self._ring.rfind(key, begin, end)
        while at >= 0 and len(found) < PER_DEVICE:
            if at % _EVENT.size == 0:
                _, when, code, kind = _EVENT.unpack_from(self._ring, at)
                found.append(Event(when, KINDS[kind], code))
            at = self._ring.rfind(key, begin, at + len(key) - 1)
        return found
