"""One device's box in memory, with its messages. Pure: it acts on nothing else, and takes the time as an argument."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import takewhile
from types import MappingProxyType
from typing import Final, NamedTuple

from ..rules.addressing import Options
from ..rules.audiences import ALL, Audience
from ..rules.box import LANES, Box, BoxLimits, LaneName, Numbers, StoredMessage
from ..rules.feed import Page
from .port import ID_REMEMBERED_S, IDS_REMEMBERED, Entry, LaneRead, lane_of

_DEFAULTS: Final = Options()
_NO_MESSAGES: Final[Mapping[int, KeptMessage]] = MappingProxyType({})


class KeptMessage(NamedTuple):
    """:ivar stored_s: Unix seconds
    :ivar audience: the user or group that it was addressed to, if the device is only one of its members
    """

    number: int
    payload: bytes
    timestamp_ms: int
    stored_s: float
    expires_ms: int
    options: Options
    audience: Audience | None

    @property
    def lane(self) -> LaneName:
        return lane_of(self.options)

    @property
    def stored(self) -> StoredMessage:
        key = self.options.collapse_key
        return StoredMessage(self.number, self.payload, self.timestamp_ms, self.expires_ms, key)


class _Named(NamedTuple):
    """Where the message with an ``id`` is, or was."""

    lane: LaneName
    number: int
    stored_s: float


Removed = list[KeptMessage]


class KeptBox:
    """A box and its messages. Methods that remove messages return them.

    :ivar size_bytes: the total size of the payloads
    :ivar touched_s: when a message was last stored
    :ivar audiences: those of the device's newest token; empty: it is not known
    :ivar joined_s: when the device last joined them
    """

    __slots__ = (
        "_collapsible",
        "_count",
        "_lanes",
        "_low",
        "_named",
        "_newest",
        "audiences",
        "box",
        "joined_s",
        "size_bytes",
        "touched_s",
    )

    def __init__(self, base: int, now: float) -> None:
        self.box = Box.new(base)
        self._lanes: dict[LaneName, OrderedDict[int, KeptMessage]] = {}
        self._low: OrderedDict[int, None] | None = None  # numbers of messages of low priority
        self._collapsible: dict[str, tuple[LaneName, int]] | None = None
        self._named: dict[str, _Named] | None = None
        self._newest: KeptMessage | None = None
        self._count = 0
        self.size_bytes = 0
        self.touched_s = now
        self.audiences: frozenset[Audience] = frozenset()
        self.joined_s = 0.0

    def __len__(self) -> int:
        """The number of messages in both lanes."""
        return self._count

    def __iter__(self) -> Iterator[KeptMessage]:
        """A snapshot of the messages, lane by lane, oldest first."""
        return iter([message for lane in LANES for message in self._lane(lane).values()])

    def _lane(self, name: LaneName) -> Mapping[int, KeptMessage]:
        return self._lanes.get(name, _NO_MESSAGES)

    # -- adding

    def has(self, id_: str, now: float) -> bool:
        """True if a message with this ``id`` is in the box, or was stored within the last 10 minutes."""
        named = None if self._named is None else self._named.get(id_)
        if named is None:
            return False
        return now - named.stored_s < ID_REMEMBERED_S or named.number in self._lane(named.lane)

    def append(self, entry: Entry, audience: Audience | None, now: float) -> tuple[int, Removed]:
        """Store a message. Returns its number, and the message that it replaces, if any."""
        options = entry.options or _DEFAULTS
        replaced = self._collapse(options.collapse_key)
        name = lane_of(options)
        lane = self.box.lane(name).append(self.box.epochs)
        self.box = self.box.with_lane(name, lane)
        message = KeptMessage(lane.last, entry.payload, entry.timestamp_ms, now, entry.expires_ms, options, audience)
        self._lanes.setdefault(name, OrderedDict())[lane.last] = self._newest = message
        self._count += 1
        self.size_bytes += len(entry.payload)
        self.touched_s = now
        if entry.options is not None:
            self._note_options(message)
        return lane.last, replaced

    def _note_options(self, message: KeptMessage) -> None:
        options, place = message.options, (message.lane, message.number)
        if options.priority == "low":
            self._low = self._low or OrderedDict()
            self._low[message.number] = None
        if options.collapse_key is not None:
            self._collapsible = self._collapsible or {}
            self._collapsible[options.collapse_key] = place
        if options.id is not None:
            self._named = self._named or {}
            self._named.pop(options.id, None)
            self._named[options.id] = _Named(*place, message.stored_s)
            if len(self._named) > IDS_REMEMBERED:
                del self._named[next(iter(self._named))]

    def shrink(self, limits: BoxLimits) -> Removed:
        """Drop messages until the box is within its limits: low ones first, then normal ones, then high ones."""
        dropped: Removed = []
        while self._count > 1 and (self._count > limits.max_messages or self.size_bytes > limits.max_bytes):
            victim = self._first_to_drop()
            dropped.append(self._remove(victim.lane, victim.number))
        return dropped

    def _first_to_drop(self) -> KeptMessage:
        if self._low:
            return self._lane("normal")[next(iter(self._low))]
        for lane in LANES:
            for message in self._lane(lane).values():
                if message is not self._newest:
                    return message
        raise AssertionError("the newest message is alone")

    # -- removing

    def acknowledge(self, numbers: Numbers) -> Removed:
        self.box = self.box.acknowledge(numbers)
        removed: Removed = []
        for name in LANES:
            gone = self.box.lane(name).gone
            received = list(takewhile(gone.__ge__, self._lane(name)))
            removed += [self._remove(name, number) for number in received]
        return removed

    def expire(self, limits: BoxLimits, now: float) -> Removed:
        return [self._remove(message.lane, message.number) for message in self if not _is_alive(message, limits, now)]

    def withdraw(self) -> Removed:
        """Remove the messages that are for audiences which the device is no longer in."""
        return [
            self._retract(message.lane, message.number)
            for message in self
            if message.audience not in (None, ALL) and message.audience not in self.audiences
        ]

    def read(self, asked: LaneRead, limits: BoxLimits, now: float) -> Page:
        lane = self.box.lane(asked.lane)
        messages: list[StoredMessage] = []
        size = 0
        for message in self._lane(asked.lane).values():
            if message.number <= asked.after or not _is_alive(message, limits, now):
                continue
            size += len(message.payload)
            if messages and (len(messages) == asked.limits.max_messages or size > asked.limits.max_bytes):
                break
            messages.append(message.stored)
        return Page(messages, lane.last, lane.base, lane.acked or 0, lane.retracted)

    def _collapse(self, key: str | None) -> Removed:
        place = None if key is None or self._collapsible is None else self._collapsible.get(key)
        return [] if place is None else [self._retract(*place)]

    def _retract(self, name: LaneName, number: int) -> KeptMessage:
        self.box = self.box.with_lane(name, self.box.lane(name).retract(number))
        return self._remove(name, number)

    def _remove(self, name: LaneName, number: int) -> KeptMessage:
        of_lane = self._lanes[name]
        message = of_lane.pop(number)
        self._count -= 1
        self.size_bytes -= len(message.payload)
        if self._low is not None and name == "normal":
            self._low.pop(number, None)
        key = message.options.collapse_key
        if self._collapsible is not None and key is not None and self._collapsible.get(key) == (name, number):
            del self._collapsible[key]
        lane = self.box.lane(name)
        self.box = self.box.with_lane(name, lane.lose(next(iter(of_lane)) - 1 if of_lane else lane.last))
        return message


def _is_alive(message: KeptMessage, limits: BoxLimits, now: float) -> bool:
    if message.stored_s <= now - limits.ttl_s:
        return False
    return not message.expires_ms or now * 1000 <= message.expires_ms
