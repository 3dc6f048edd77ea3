"""The arguments of the script that stores a group, and the remembered offsets of its sources. No I/O."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from ..redis_store.scripts import PREFIX, Command
from ..rules.addressing import Options
from ..rules.box import FORGET_AFTER_S, BoxLimits
from ..rules.claims import bucket_of
from ..rules.seen import Remembered, SeenOffsets, SeenRun, judge
from .backlog import CommitGroup
from .port import RECORDED, Entry, FanOut
from .redis_scripts import APPEND, GROUP_ID_BYTES

MOST_RUNS: Final = 256
"""The largest number of stored runs of a source; beyond it, they are joined and stored again."""

UNDELIVERABLE: Final = b"-"
"""Replaces the number of a message whose box is a key of a wrong type."""

SAME_ID: Final = b"="
"""Replaces the number of a message whose device has had one with its ``id``."""

FANNED_OUT: Final = b"*"
"""Stands for a fan-out among the numbers of messages."""

PASSED_BY: Final = b"~"
"""Begins a transient message, and precedes the number that it comes after."""

_FIRST: Final = struct.Struct("<q")
_REMEMBER_MS: Final = b"%d" % int(FORGET_AFTER_S * 1000)


class Source(NamedTuple):
    """The offsets of a partition that were stored recently.

    :ivar version: the id of the group that last stored records of this partition; empty if there was none. A decision
        based on another version is stale.
    :ivar runs: the number of stored runs
    """

    seen: SeenOffsets
    version: bytes
    runs: int = 0


class Judged:
    """The decision which entries of a group are new, and the arguments of the script that stores them.

    Creating it adds the group's records to ``sources``, so a group must not be judged by the same sources twice.

    :ivar group_id: Redis keeps its reply under this id, in case the gateway misses the reply
    :ivar fresh: for each entry, whether it is new
    :ivar fan_outs: the new fan-outs, by the ids that they have in Redis
    """

    def __init__(self, group: CommitGroup, sources: dict[str, Source], gateway: bytes) -> None:
        self.group_id = group.id.encode()
        self._calls = [call.entries for call in group.calls]
        self._bells = [
            (call.doorbell, device_id)
            for call in group.calls
            if call.doorbell
            for device_id in call.doorbell.device_ids
        ]
        self._remembered: dict[str, Remembered] = {}
        self._sources = sources
        self._gateway = gateway
        self.fresh = judge(self._calls, self._take)
        self.fan_outs: dict[bytes, FanOut] = {}
        self._arguments = self._made()

    def command(self, key: bytes, now_ms: int, limits: BoxLimits, known: Iterable[bytes], at_once: int) -> Command:
        """The command that stores the group. The messages' time to live begins at ``now_ms``.

        :param known: the ids of fan-outs that the reply need not describe
        :param at_once: a fan-out to at most so many members is stored together with the messages around it
        """
        head = [b"%d" % now_ms, self._gateway, self.group_id, *limit_arguments(limits), _REMEMBER_MS]
        return APPEND.call(key, *head, b" ".join((*known, *self.fan_outs)), b"%d" % at_once, *self._arguments)

    def settle(self, numbers: bytes, rung: bytes) -> list[list[int | None]]:
        """The group was stored: update the versions of its sources. Returns the numbers of each call.

        :param rung: the positions of the devices whose servers were woken
        """
        for position in rung.split():
            doorbell, device_id = self._bells[int(position) - 1]
            doorbell.held.add(device_id)
        for name, remembered in self._remembered.items():
            if remembered.runs:
                source = self._sources[name]
                before = 0 if remembered.reset else source.runs
                self._sources[name] = source._replace(version=self.group_id, runs=before + len(remembered.runs))
        given = map(number_of, numbers.split())
        results = iter([next(given) if fresh else None for fresh in self.fresh])
        return [[next(results) for _ in entries] for entries in self._calls]

    def _take(self, name: str, records: Sequence[tuple[int, int]]) -> list[bool]:
        source = self._sources[name]
        fresh, remembered = source.seen.take(records)
        if source.runs + len(remembered.runs) > MOST_RUNS and remembered.runs:
            # Many short runs are slow to load.
            remembered.reset, remembered.runs = True, source.seen.runs()
        self._remembered[name] = remembered
        return fresh

    def _made(self) -> list[bytes]:
        indexes: dict[str, int] = {}
        stored: list[bytes] = []
        count = 0
        entries = (entry for call in self._calls for entry in call)
        for entry, fresh in zip(entries, self.fresh, strict=True):
            if not fresh:
                continue
            count += 1
            if isinstance(entry, FanOut):
                id_ = self.group_id + b":%d" % count
                self.fan_outs[id_] = entry
                stored += (FANNED_OUT, id_, *_content(entry), *_audience(entry))
                continue
            index = b"%d" % indexes.setdefault(entry.device_id, len(indexes) + 1)
            if entry.options is not None and entry.options.is_transient:
                stored += (PASSED_BY, index, *_names(entry.options))
            elif entry.options is None and not entry.expires_ms:
                stored += (index, b"%d" % entry.timestamp_ms, entry.payload)
            else:
                stored += (b"+", index, *_content(entry))
        head = [b"%d" % number for number in (len(self._remembered), len(indexes), count)]
        for name, remembered in self._remembered.items():
            runs = [self.group_id + _FIRST.pack(run.first) + run.to_bytes() for run in remembered.runs]
            head += [name.encode(), self._sources[name].version, b"%d" % remembered.reset, b"%d" % remembered.floor]
            head += [b"%d" % len(runs), *runs]
        if self._bells:
            stored.append(self._bells[-1][0].server.encode())
        for _, device_id in self._bells:
            key = device_key(device_id)
            stored += (b"%d" % bucket_of(key), key)
        return head + [device_key(device_id) for device_id in indexes] + stored


def number_of(result: bytes) -> int | None:
    """The number that a script returns for a message or for a fan-out; None if it has none."""
    if result == FANNED_OUT:
        return RECORDED
    number = result.removeprefix(PASSED_BY)
    return int(number) if number.isdigit() else None


def limit_arguments(limits: BoxLimits) -> list[bytes]:
    """The limits of a box, and how long a message is kept, in milliseconds."""
    return [b"%d" % number for number in (limits.max_messages, limits.max_bytes, limits.ttl_s * 1000)]


def _content(entry: Entry | FanOut) -> list[bytes]:
    return [b"%d" % entry.timestamp_ms, entry.payload, b"%d" % entry.expires_ms, *_names(entry.options or Options())]


def _names(options: Options) -> list[bytes]:
    return [device_key(name or "") for name in (options.priority, options.collapse_key, options.id)]


def _audience(fan_out: FanOut) -> list[bytes]:
    is_transient = fan_out.options is not None and fan_out.options.is_transient
    options = b"" if fan_out.options is None else json.dumps(fan_out.options).encode()
    names = sorted(fan_out.excluded)
    excluded = [json.dumps(names).encode(), b"%d" % len(names), *map(device_key, names)]
    return [b"1" if is_transient else b"", device_key(fan_out.audience), options, *excluded]


def device_key(device_id: str) -> bytes:
    """A device id as part of a key. The id may be any text, even if UTF-8 cannot encode it."""
    return device_id.encode("utf-8", "surrogatepass")


def seen_key(source: str) -> bytes:
    return PREFIX + b"seen:" + source.encode()


def source_of(runs: Iterable[bytes]) -> Source:
    """Decode a source from its stored runs, oldest first.

    :raises ValueError: another program wrote them
    """
    version = b""
    joined: list[SeenRun] = []
    count = 0
    for data in runs:
        count += 1
        if len(data) < GROUP_ID_BYTES + _FIRST.size:
            raise ValueError("a run is too short")
        version = data[:GROUP_ID_BYTES]
        run = SeenRun.from_bytes(_FIRST.unpack_from(data, GROUP_ID_BYTES)[0], data[GROUP_ID_BYTES + _FIRST.size :])
        if joined and joined[-1].end == run.first:
            joined[-1].stamps.extend(run.stamps)  # each batch stored a run of its own
        else:
            joined.append(run)
    return Source(SeenOffsets(joined), version, count)
