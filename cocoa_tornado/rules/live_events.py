"""Live events of this server's devices: the watches of operators, and the queues of their events. Pure.

Without watchers no event is created: the caller looks at :attr:`LiveEvents.sinks` first.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from .addressing import Priority
from .identity import DeviceIdentity

LiveKind: TypeAlias = Literal["connected", "refused", "challenged", "closed", "message", "lost"]
MAX_ID_BYTES: Final = 64
EVENT_BYTES: Final = 256
"""The bytes that an event counts as in addition to its strings."""


class WrittenMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that a device's socket has taken.

    :ivar id: the record's own; None: it has none
    :ivar interim: a later one of its session replaces it
    :ivar length: of the message, in bytes, without its cursor
    :ivar age_ms: since the record's timestamp; None: that is not known
    :ivar text: the message; None: no watcher may see it
    """

    id: str | None
    priority: Priority
    interim: bool
    length: int
    age_ms: int | None
    text: str | None = None


class LiveEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event. Servers of neighboring releases send it to each other, so new fields need defaults.

    :ivar at: Unix seconds
    :ivar server: where it happened
    :ivar user: JSON text of the user id; None: there is none
    :ivar code: of ``refused`` the HTTP status, of ``closed`` the close code; None: there is none
    :ivar message: of ``message``
    :ivar lost: of ``lost``: how many events are not shown; None: unknown
    """

    event: LiveKind
    at: float
    server: str
    device_id: str | None = None
    user: str | None = None
    code: int | None = None
    message: WrittenMessage | None = None
    lost: int | None = None

    @property
    def size_bytes(self) -> int:
        """The size that an event counts as in a queue."""
        text = None if self.message is None else self.message.text
        return EVENT_BYTES + len(self.device_id or "") + len(self.user or "") + len(text or "")

    def without_text(self) -> LiveEvent:
        if self.message is None or self.message.text is None:
            return self
        return msgspec.structs.replace(self, message=msgspec.structs.replace(self.message, text=None))


class Watch(NamedTuple):
    """The filter of one operator. A field that is None does not restrict it.

    :ivar number: unique within the server that the operator is connected to
    :ivar user_id: 99 and "99" are two users
    :ivar with_text: the operator may see the text of messages
    """

    number: int
    device_id: str | None = None
    user_id: int | str | None = None
    group: str | None = None
    with_text: bool = False

    def fits(self, identity: DeviceIdentity) -> bool:
        return (
            (self.device_id is None or self.device_id == identity.device_id)
            and (self.user_id is None or self.user_id == identity.user_id)
            and (self.group is None or self.group in identity.groups)
        )


class Sink(Protocol):
    """Receives the events for some watches: those of this server's operators, or those of another server's."""

    @property
    def watches(self) -> Sequence[Watch]: ...

    def put(self, event: LiveEvent, numbers: Sequence[int]) -> None:
        """Take an event for the watches with these numbers. Never raises, waits or blocks."""


class ToWrite(NamedTuple):
    """A message that a socket has taken.

    :ivar payload: without its frame and its cursor
    :ivar timestamp_ms: of its record; 0: unknown
    :ivar id: its id, if known without parsing the payload
    """

    payload: bytes
    timestamp_ms: int
    priority: Priority = "normal"
    id: str | None = None
    interim: bool = False


class LiveEvents:
    """Passes this server's events to the watchers. IOLoop thread only.

    :param server: returns the name of this server
    :param wall_clock: Unix seconds
    :ivar sinks: empty without watchers; then don't call the other methods
    """

    __slots__ = ("_server", "_wall_clock", "sinks")

    def __init__(self, server: Callable[[], str], wall_clock: Callable[[], float]) -> None:
        self._server, self._wall_clock = server, wall_clock
        self.sinks: tuple[Sink, ...] = ()

    def __repr__(self) -> str:
        return f"<LiveEvents for {len(self.sinks)} sinks>"

    def add(self, sink: Sink) -> None:
        """Pass events to a sink, too. Idempotent."""
        if sink not in self.sinks:
            self.sinks = (*self.sinks, sink)

    def discard(self, sink: Sink) -> None:
        self.sinks = tuple(each for each in self.sinks if each is not sink)

    def happened(self, identity: DeviceIdentity, kind: LiveKind, code: int, now: float) -> None:
        """Pass on an event of a device's connection.

        :param code: 0: there is none
        :param now: Unix seconds
        """
        wanted = self._wanted(identity)
        if wanted:
            event = LiveEvent(
                event=kind,
                at=now,
                server=self._server(),
                device_id=identity.device_id,
                user=_user(identity),
                code=code or None,
            )
            for sink, watches in wanted:
                sink.put(event, [watch.number for watch in watches])

    def written(self, identity: DeviceIdentity, messages: Iterable[ToWrite], now: float) -> None:
        """A device's socket has taken messages.

        :param now: Unix seconds
        """
        wanted = self._wanted(identity)
        if not wanted:
            return
        server, user = self._server(), _user(identity)
        with_text = any(watch.with_text for _, watches in wanted for watch in watches)
        for message in messages:
            full = LiveEvent(
                event="message",
                at=now,
                server=server,
                device_id=identity.device_id,
                user=user,
                message=_shown(message, now, with_text=with_text),
            )
            for sink, watches in wanted:
                event = full if any(watch.with_text for watch in watches) else full.without_text()
                sink.put(event, [watch.number for watch in watches])

    def lost(self, count: int | None, server: str | None = None) -> LiveEvent:
        """Return the event that replaces lost ones.

        :param count: None: how many is not known
        :param server: where they were lost; None: here
        """
        here = self._server() if server is None else server
        return LiveEvent(event="lost", at=self._wall_clock(), server=here, lost=count)

    def _wanted(self, identity: DeviceIdentity) -> list[tuple[Sink, list[Watch]]]:
        found = [(sink, [watch for watch in sink.watches if watch.fits(identity)]) for sink in self.sinks]
        return [(sink, watches) for sink, watches in found if watches]


class Backlog:
    """A bounded queue of events. Events that do not fit are lost, and counted in their place.

    :param lost: ``LiveEvents.lost``
    :param on_lost: is called with how many events are lost
    """

    def __init__(
        self,
        max_events: int,
        max_bytes: int,
        lost: Callable[[int], LiveEvent],
        on_lost: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._max_events, self._max_bytes = max_events, max_bytes
        self._make_lost, self._on_lost = lost, on_lost
        self._waiting: deque[tuple[LiveEvent, Sequence[int]]] = deque()
        self._bytes = 0
        self._lost: Counter[int] = Counter()

    def __repr__(self) -> str:
        return f"<Backlog {len(self._waiting)} events, {self._bytes} bytes>"

    def __bool__(self) -> bool:
        """Whether :meth:`take` returns anything."""
        return bool(self._waiting or self._lost)

    def put(self, event: LiveEvent, numbers: Sequence[int]) -> None:
        """Queue an event for the watches with these numbers."""
        size = event.size_bytes
        if self._waiting and (len(self._waiting) >= self._max_events or self._bytes + size > self._max_bytes):
            self._lose(event, numbers)
            return
        for lost in self._take_lost():  # one for each watch, at most
            self._append(*lost)
        self._append(event, numbers)

    def take(self, max_bytes: int) -> list[tuple[LiveEvent, Sequence[int]]]:
        """Take the first events out, at least one if there is any."""
        taken: list[tuple[LiveEvent, Sequence[int]]] = []
        size = 0
        while self._waiting and (not taken or size + self._waiting[0][0].size_bytes <= max_bytes):
            item = self._waiting.popleft()
            size += item[0].size_bytes
            taken.append(item)
        self._bytes -= size
        return taken if self._waiting else [*taken, *self._take_lost()]

    def give_up(self, taken: Iterable[tuple[LiveEvent, Sequence[int]]]) -> None:
        """The events that were taken could not be passed on: count them as lost."""
        for event, numbers in taken:
            self._lose(event, numbers)

    def _lose(self, event: LiveEvent, numbers: Iterable[int]) -> None:
        if event.event != "lost":
            self._lost.update(numbers)
            self._on_lost(1)
        elif event.lost is not None:  # counted before
            self._lost.update(dict.fromkeys(numbers, event.lost))

    def _take_lost(self) -> list[tuple[LiveEvent, Sequence[int]]]:
        lost: list[tuple[LiveEvent, Sequence[int]]]
        lost = [(self._make_lost(count), [number]) for number, count in self._lost.items()]
        self._lost.clear()
        return lost

    def _append(self, event: LiveEvent, numbers: Sequence[int]) -> None:
        self._waiting.append((event, numbers))
        self._bytes += event.size_bytes


class _Head(msgspec.Struct):
    """The part of a message that every operator may see."""

    id: object = None


def _shown(message: ToWrite, now: float, *, with_text: bool) -> WrittenMessage:
    age_ms = max(0, round(now * 1000 - message.timestamp_ms)) if message.timestamp_ms > 0 else None
    return WrittenMessage(
        id=message.id if message.id is not None else _id_in(message.payload),
        priority=message.priority,
        interim=message.interim,
        length=len(message.payload),
        age_ms=age_ms,
        text=message.payload.decode("utf-8", "replace") if with_text else None,
    )


def _id_in(payload: bytes) -> str | None:
    """Contract section 8: an ``id`` that is no such string is an ordinary field."""
    try:
        value = msgspec.json.decode(payload, type=_Head).id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, str) and 0 < len(value.encode()) <= MAX_ID_BYTES else None


def _user(identity: DeviceIdentity) -> str:
    return json.dumps(identity.user_id, ensure_ascii=False)
