"""Calls to append that are stored together, in one script; and what is known of their sources. Awaits nothing."""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from ..rules.box import FORGET_AFTER_S, BoxLimits
from ..rules.seen import Remembered, Run, SeenOffsets, judge
from .port import Entry
from .redis_scripts import APPEND, GROUP_ID_BYTES, PREFIX, Command

MOST_RUNS: Final = 256
"""Of a source that are written down; beyond that they are joined and written down anew."""

UNDELIVERABLE: Final = b"-"
"""In place of the number of a message whose device has a foreign key for a box."""

_FIRST: Final = struct.Struct("<q")
_REMEMBER_MS: Final = b"%d" % int(FORGET_AFTER_S * 1000)


class Call(NamedTuple):
    """One call to append, not answered yet."""

    entries: Sequence[Entry]
    future: asyncio.Future[list[int | None]]


class Source(NamedTuple):
    """What was stored of a partition lately.

    :ivar version: the group that was stored last of it; empty if there was none. Whoever has judged by another one has
        judged by what is not true any more.
    :ivar runs: that are written down
    """

    seen: SeenOffsets
    version: bytes
    runs: int = 0


class Group:
    """Calls that are stored together, in their order.

    :ivar id: of the group; under it Redis keeps what it has answered, for a gateway that did not hear it
    :ivar fresh: for each entry whether it is new, once it was judged
    """

    def __init__(self, calls: list[Call]) -> None:
        self.id = secrets.token_hex(GROUP_ID_BYTES // 2).encode()
        self.calls = calls
        self.entries = [entry for call in calls for entry in call.entries]
        self.fresh: list[bool] = []
        self._arguments: list[bytes] | None = None
        self._remembered: dict[str, Remembered] = {}

    def __repr__(self) -> str:
        return f"<Group {len(self.entries)} entries of {len(self.calls)} calls>"

    def sources(self) -> list[str]:
        return list({entry.source: None for entry in self.entries})

    def judge(self, sources: dict[str, Source], gateway: bytes, limits: BoxLimits) -> None:
        """Decide what is new, and make the command that stores it. Changes ``sources``, which holds all of its own."""

        def take(name: str, records: Sequence[tuple[int, int]]) -> list[bool]:
            source = sources[name]
            fresh, remembered = source.seen.take(records)
            if source.runs + len(remembered.runs) > MOST_RUNS and remembered.runs:
                # To read many short ones back takes long.
                remembered.anew, remembered.runs = True, source.seen.runs()
            self._remembered[name] = remembered
            return fresh

        self.fresh = judge([call.entries for call in self.calls], take)
        self._arguments = self._made(sources, gateway, limits)

    @property
    def is_judged(self) -> bool:
        return self._arguments is not None

    def doubt(self) -> None:
        """It was judged by what is not true any more."""
        self._arguments = None

    def command(self, key: bytes, now_ms: int) -> Command:
        """What stores it, now: however long it was under way, its messages expire from then on."""
        assert self._arguments is not None
        return APPEND.call(key, b"%d" % now_ms, *self._arguments)

    def settle(self, numbers: bytes, sources: dict[str, Source]) -> None:
        """It is stored: tell the callers, and note what their sources' versions are now."""
        for name, remembered in self._remembered.items():
            if remembered.runs:
                before = 0 if remembered.anew else sources[name].runs
                sources[name] = sources[name]._replace(version=self.id, runs=before + len(remembered.runs))
        given = (None if number == UNDELIVERABLE else int(number) for number in numbers.split())
        results = iter([next(given) if fresh else None for fresh in self.fresh])
        for entries, future in self.calls:
            result = [next(results) for _ in entries]
            if not future.done():
                future.set_result(result)

    def _made(self, sources: dict[str, Source], gateway: bytes, limits: BoxLimits) -> list[bytes]:
        places: dict[str, int] = {}
        stored: list[bytes] = []
        for entry, fresh in zip(self.entries, self.fresh, strict=True):
            if fresh:
                place = places.setdefault(entry.device_id, len(places) + 1)
                stored += (b"%d" % place, b"%d" % entry.timestamp_ms, entry.payload)
        head = [gateway, self.id, b"%d" % limits.max_messages, b"%d" % limits.max_bytes, _REMEMBER_MS]
        head += [b"%d" % count for count in (len(self._remembered), len(places), len(stored) // 3)]
        for name, remembered in self._remembered.items():
            runs = [self.id + _FIRST.pack(run.first) + run.to_bytes() for run in remembered.runs]
            head += [name.encode(), sources[name].version, b"%d" % remembered.anew, b"%d" % remembered.floor]
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
