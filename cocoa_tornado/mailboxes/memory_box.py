"""One device's box in memory, with its messages. Pure: it acts on nothing else, and takes the time as an argument."""

from __future__ import annotations

from collections import OrderedDict
from itertools import takewhile
from typing import Final, NamedTuple

from ..rules.addressing import Options
from ..rules.audiences import ALL, Audience
from ..rules.box import LANES, Box, BoxLimits, Epochs, Lane, LaneName, Numbers, StoredMessage
from ..rules.feed import Page
from .port import ID_REMEMBERED_S, IDS_REMEMBERED, NOT_STORED, Entry, LaneRead, lane_of

_DEFAULTS: Final = Options()
_NO_EPOCHS: Final = Epochs()
_NEW: Final = tuple.__new__
"""Like KeptMessage(...), without the Python function that a NamedTuple has for it."""


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
        is_low = self.options.priority == "low"
        return StoredMessage(self.number, self.payload, self.timestamp_ms, self.expires_ms, key, is_low)


class _Named(NamedTuple):
    """Where the message with an ``id`` is, or was."""

    lane: LaneName
    number: int
    stored_s: float


Removed = list[KeptMessage]


class KeptLane:
    """A lane and its messages. If there are any, the first one's number is ``state.gone + 1``.

    :ivar messages: by number, in order
    """

    __slots__ = ("_has_ttls", "messages", "state")

    def __init__(self, base: int) -> None:
        self.state = Lane.new(base)
        self.messages: dict[int, KeptMessage] = {}
        self._has_ttls = False  # a message has had a ttl of its own, since the lane was empty

    @property
    def first(self) -> KeptMessage | None:
        return self.messages.get(self.state.gone + 1)

    def append(self, message: KeptMessage) -> None:
        """:param message: its number is the next one"""
        self.state = self.state.append(_NO_EPOCHS)
        self.messages[message.number] = message
        if message.expires_ms:
            self._has_ttls = True

    def remove(self, number: int) -> KeptMessage:
        message = self.messages.pop(number)
        if number == self.state.gone + 1:
            self._find_first(number + 1)
        return message

    def acknowledge(self, number: int) -> Removed:
        before = self.state
        self.state = before.acknowledge(number)
        if self.state.gone == before.gone:
            return []
        received = range(before.gone + 1, self.state.gone + 1)
        removed = [self.messages.pop(each) for each in received if each in self.messages]
        self._find_first(self.state.gone + 1)
        return removed

    def _find_first(self, number: int) -> None:
        """No message before this number is left."""
        last, messages = self.state.last, self.messages
        while number <= last and number not in messages:
            number += 1
        self.state = self.state.lose(number - 1)
        self._has_ttls = self._has_ttls and bool(messages)

    def expired(self, limits: BoxLimits, now: float) -> list[int]:
        """The numbers of the messages that have expired. Nearly always they are the oldest."""
        messages, has_expired = self.messages.values(), lambda message: not _is_alive(message, limits, now)
        found = filter(has_expired, messages) if self._has_ttls else takewhile(has_expired, messages)
        return [message.number for message in found]

    def read(self, asked: LaneRead, limits: BoxLimits, now: float) -> Page:
        messages: list[StoredMessage] = []
        size = 0
        for message in self.messages.values():
            if message.number <= asked.after or not _is_alive(message, limits, now):
                continue
            size += len(message.payload)
            if messages and (len(messages) == asked.limits.max_messages or size > asked.limits.max_bytes):
                break
            messages.append(message.stored)
        state = self.state
        return Page(messages, state.last, state.base, state.acked or 0, state.retracted)


class KeptBox:
    """A box and its messages. Methods that remove messages return them.

    :ivar size_bytes: the total size of the payloads
    :ivar touched_s: when a message was last stored
    :ivar audiences: those of the device's newest token, each with a number that grows with every device that joins one;
        empty: the device is not known
    :ivar joined_s: when the device last joined them
    """

    __slots__ = (
        "_collapsible",
        "_count",
        "_high",
        "_low",
        "_named",
        "_newest",
        "_normal",
        "audiences",
        "joined_s",
        "size_bytes",
        "touched_s",
    )

    def __init__(self, base: int, now: float) -> None:
        self._normal, self._high = KeptLane(base), KeptLane(base)
        self._low: OrderedDict[int, None] | None = None  # numbers of messages of low priority
        self._collapsible: dict[str, tuple[LaneName, int]] | None = None
        self._named: dict[str, _Named] | None = None
        self._newest: KeptMessage | None = None
        self._count = 0
        self.size_bytes = 0
        self.touched_s = now
        self.audiences: dict[Audience, int] = {}
        self.joined_s = 0.0

    @property
    def box(self) -> Box:
        return Box(self._normal.state, self._high.state)

    def __len__(self) -> int:
        """The number of messages in both lanes."""
        return self._count

    def _lane(self, name: LaneName) -> KeptLane:
        return self._high if name == "high" else self._normal

    # -- adding

    def has(self, id_: str, now: float) -> bool:
        """True if a message with this ``id`` is in the box, or was stored within the last 10 minutes."""
        named = None if self._named is None else self._named.get(id_)
        if named is None:
            return False
        return now - named.stored_s < ID_REMEMBERED_S or named.number in self._lane(named.lane).messages

    def place_of(self, id_: str) -> tuple[LaneName, int, float] | None:
        """Where the message with this ``id`` is, or was, and when it was stored; None: it is not known."""
        return None if self._named is None else self._named.get(id_)

    def append(self, entry: Entry, audience: Audience | None, now: float) -> tuple[int, Removed]:
        """Store a message. Returns its number, and the message that it replaces, if any."""
        _, payload, timestamp_ms, _, _, options, expires_ms = entry
        lane, replaced = self._normal, list[KeptMessage]()
        if options is not None:
            lane, replaced = self._lane(lane_of(options)), self._collapse(options.collapse_key)
        number = lane.state.last + 1
        kept = (number, payload, timestamp_ms, now, expires_ms, options or _DEFAULTS, audience)
        self._newest = message = _NEW(KeptMessage, kept)
        lane.append(message)
        self._count += 1
        self.size_bytes += len(payload)
        self.touched_s = now
        if options is not None:
            self._note_options(message)
        return number, replaced

    def pass_by(self, options: Options, now: float) -> tuple[int, Removed]:
        """A message is not stored, but its ``collapse_key`` and its ``id`` count. Returns the number that it comes
        after, and the message that it replaces, if any."""
        name, replaced = lane_of(options), self._collapse(options.collapse_key)
        if options.id is not None:
            self._name(options.id, _Named(name, NOT_STORED, now))
        return self.box.lane(name).last, replaced

    def _note_options(self, message: KeptMessage) -> None:
        options, place = message.options, (message.lane, message.number)
        if options.priority == "low":
            self._low = self._low or OrderedDict()
            self._low[message.number] = None
        if options.collapse_key is not None:
            self._collapsible = self._collapsible or {}
            self._collapsible[options.collapse_key] = place
        if options.id is not None:
            self._name(options.id, _Named(*place, message.stored_s))

    def _name(self, id_: str, named: _Named) -> None:
        self._named = self._named or {}
        self._named.pop(id_, None)
        self._named[id_] = named
        if len(self._named) > IDS_REMEMBERED:
            del self._named[next(iter(self._named))]

    def shrink(self, limits: BoxLimits) -> Removed:
        """Drop messages until the box is within its limits: low ones first, then normal ones, then high ones."""
        dropped: Removed = []
        while (self._count > limits.max_messages or self.size_bytes > limits.max_bytes) and self._count > 1:
            message = self._drop_first()
            self._note_removed(message)
            dropped.append(message)
        return dropped

    def _drop_first(self) -> KeptMessage:
        if self._low:
            return self._normal.remove(next(iter(self._low)))
        for lane in (self._normal, self._high):
            first = lane.first
            if first is not None and first is not self._newest:
                return lane.remove(first.number)
        raise AssertionError("the newest message is alone")

    def count_unconfirmed(self, removed: Removed) -> int:
        """How many of these messages the device has not got for sure, see ``Lane.confirmed``."""
        confirmed = {"normal": self._normal.state.confirmed, "high": self._high.state.confirmed}
        return sum(message.number > confirmed[message.lane] for message in removed)

    # -- removing

    def acknowledge(self, numbers: Numbers) -> Removed:
        removed = [*self._normal.acknowledge(numbers.normal), *self._high.acknowledge(numbers.high)]
        for message in removed:
            self._note_removed(message)
        return removed

    def write(self, normal: int, high: int) -> None:
        """Mark everything up to these numbers as written to a socket."""
        if normal > self._normal.state.written:
            self._normal.state = self._normal.state.write(normal)
        if high > self._high.state.written:
            self._high.state = self._high.state.write(high)

    def expire(self, limits: BoxLimits, now: float) -> Removed:
        return [self._remove(lane, number) for lane in LANES for number in self._lane(lane).expired(limits, now)]

    def withdraw(self) -> Removed:
        """Remove the messages that are for audiences which the device is no longer in."""
        kept = [*self._normal.messages.values(), *self._high.messages.values()]
        return [
            self._retract(message.lane, message.number)
            for message in kept
            if message.audience not in (None, ALL) and message.audience not in self.audiences
        ]

    def read(self, asked: LaneRead, limits: BoxLimits, now: float) -> Page:
        return self._lane(asked.lane).read(asked, limits, now)

    def _collapse(self, key: str | None) -> Removed:
        place = None if key is None or self._collapsible is None else self._collapsible.get(key)
        return [] if place is None else [self._retract(*place)]

    def _retract(self, name: LaneName, number: int) -> KeptMessage:
        lane = self._lane(name)
        lane.state = lane.state.retract(number)
        return self._remove(name, number)

    def _remove(self, name: LaneName, number: int) -> KeptMessage:
        message = self._lane(name).remove(number)
        self._note_removed(message)
        return message

    def _note_removed(self, message: KeptMessage) -> None:
        self._count -= 1
        self.size_bytes -= len(message.payload)
        if message.options is _DEFAULTS:
            return
        if self._low is not None and message.options.priority == "low":
            self._low.pop(message.number, None)
        key = message.options.collapse_key
        place = (message.lane, message.number)
        if self._collapsible is not None and key is not None and self._collapsible.get(key) == place:
            del self._collapsible[key]


def _is_alive(message: KeptMessage, limits: BoxLimits, now: float) -> bool:
    if message.stored_s <= now - limits.ttl_s:
        return False
    return not message.expires_ms or now * 1000 <= message.expires_ms
