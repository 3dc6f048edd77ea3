"""What one script stores of a group, and what is known of the sources of its records. Awaits nothing."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from ..rules.box import FORGET_AFTER_S, BoxLimits
from ..rules.seen import Remembered, Run, SeenOffsets, judge
from .backlog import Group
from .redis_scripts import APPEND, GROUP_ID_BYTES, PREFIX, Command

MOST_RUNS: Final = 256
"""Of a source that are written down; beyond that they are joined and written down anew."""

UNDELIVERABLE: Final = b"-"
"""In place of the number of a message whose device has a foreign key for a box."""

_FIRST: Final = struct.Struct("<q")
_REMEMBER_MS: Final = b"%d" % int(FORGET_AFTER_S * 1000)


class Source(NamedTuple):
    """What was stored of a partition lately.

    :ivar version: the group that was stored last of it; empty if there was none. Whoever has judged by another one has
        judged by what is not true any more.
    :ivar runs: that are written down
    """

    seen: SeenOffsets
    version: bytes
    runs: int = 0


class Judged:
    """What is new of a group, by what is known of its sources; and the arguments of the script that stores it.

    It changes ``sources``, which hold all of its own: it must not be judged by them again.

    :ivar group_id: under it Redis keeps what it has answered, for a gateway that did not hear it
    :ivar fresh: for each entry whether it is new
    """

    def __init__(self, group: Group, sources: dict[str, Source], gateway: bytes, limits: BoxLimits) -> None:
        self.group_id = group.id.encode()
        self._calls = [call.entries for call in group.calls]
        self._remembered: dict[str, Remembered] = {}
        self._sources = sources
        self.fresh = judge(self._calls, self._take)
        self._arguments = self._made(gateway, limits)

    def command(self, key: bytes, now_ms: int) -> Command:
        """What stores it, now: however long it was under way, its messages expire from then on."""
        return APPEND.call(key, b"%d" % now_ms, *self._arguments)

    def settle(self, numbers: bytes) -> list[list[int | None]]:
        """It is stored: note what the versions of its sources are now. Returns the numbers of each call."""
        for name, remembered in self._remembered.items():
            if remembered.runs:
                source = self._sources[name]
                before = 0 if remembered.anew else source.runs
                self._sources[name] = source._replace(version=self.group_id, runs=before + len(remembered.runs))
        given = (None if number == UNDELIVERABLE else int(number) for number in numbers.split())
        results = iter([next(given) if fresh else None for fresh in self.fresh])
        return [[next(results) for _ in entries] for entries in self._calls]

    def _take(self, name: str, records: Sequence[tuple[int, int]]) -> list[bool]:
        source = self._sources[name]
        fresh, remembered = source.seen.take(records)
        if source.runs + len(remembered.runs) > MOST_RUNS and remembered.runs:
            # To read many short ones back takes long.
            remembered.anew, remembered.runs = True, source.seen.runs()
        self._remembered[name] = remembered
        return fresh

    def _made(self, gateway: bytes, limits: BoxLimits) -> list[bytes]:
        places: dict[str, int] = {}
        stored: list[bytes] = []
        entries = (entry for call in self._calls for entry in call)
        for entry, fresh in zip(entries, self.fresh, strict=True):
            if fresh:
                place = places.setdefault(entry.device_id, len(places) + 1)
                stored += (b"%d" % place, b"%d" % entry.timestamp_ms, entry.payload)
        head = [gateway, self.group_id, b"%d" % limits.max_messages, b"%d" % limits.max_bytes, _REMEMBER_MS]
        head += [b"%d" % count for count in (len(self._remembered), len(places), len(stored) // 3)]
        for name, remembered in self._remembered.items():
            runs = [self.group_id + _FIRST.pack(run.first) + run.to_bytes() for run in remembered.runs]
            head += [name.encode(), self._sources[name].version, b"%d" % remembered.anew, b"%d" % remembered.floor]
            head += [b"%d" % len(runs), *runs]
        return head + [device_key(device_id) for device_id in places] + stored


def device_key(device_id: str) -> bytes:
    """A device's id as a part of a key. Any text can be one, even what is no valid UTF-8."""
    return device_id.encode("utf-8", "surrogatepass")


def seen_key(source: str) -> bytes:
    return PREFIX + b"seen:" + source.encode()


def source_of(runs: Iterable[bytes]) -> Source:
    """A source as it is written down, oldest run first. ValueError where that was not our hand."""
    version = b""
    joined: list[Run] = []
    count = 0
    for data in runs:
        count += 1
        if len(data) < GROUP_ID_BYTES + _FIRST.size:
            raise ValueError("a run is too short")
        version = data[:GROUP_ID_BYTES]
        run = Run.from_bytes(_FIRST.unpack_from(data, GROUP_ID_BYTES)[0], data[GROUP_ID_BYTES + _FIRST.size :])
        if joined and joined[-1].end == run.first:
            joined[-1].stamps.extend(run.stamps)  # written down by batches, however small
        else:
            joined.append(run)
    return Source(SeenOffsets(joined), version, count)
