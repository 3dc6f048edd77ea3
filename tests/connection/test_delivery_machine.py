"""One device, its connections and its box: after any reconnect with the last cursor nothing is missing and nothing
arrives twice, in any order of overtaking.

Everything is real but the socket, which takes as much as the test allows, and the time that the mailbox takes to
answer.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.connection.connection import DeviceConnection
from cocoa_tornado.connection.device_context import DeviceContext
from cocoa_tornado.connection.device_socket import DeviceSocket
from cocoa_tornado.connection.flusher import Flushed, Flusher
from cocoa_tornado.connection.intake import IntakeGate
from cocoa_tornado.connection.keepalive import ExpiryCalendar, PingWheel
from cocoa_tornado.connection.limits import DeviceLimits
from cocoa_tornado.connection.mail import Mail
from cocoa_tornado.connection.making_room import OutboxLimits
from cocoa_tornado.counters import Counters
from cocoa_tornado.hub import Hub
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry, LaneRead, lane_of
from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.local import LocalPresence
from cocoa_tornado.relay.memory import MemoryRelay
from cocoa_tornado.rules.addressing import Options, Priority
from cocoa_tornado.rules.box import LANES, NO_CURSOR_YET, Box, BoxLimits, LaneName, PageLimits, Position
from cocoa_tornado.rules.claims import FencingToken
from cocoa_tornado.rules.cursors import read_cursor
from cocoa_tornado.rules.feed import Page
from cocoa_tornado.rules.identity import DeviceIdentity
from cocoa_tornado.rules.terms import Terms
from testing.raw_device import TEXT

from ..profiles import examples

T = TypeVar("T")
ALL = PageLimits(10_000, 10**9)
PRIORITIES: tuple[Priority, ...] = ("normal", "high", "low")
OPTIONS = st.tuples(st.sampled_from(PRIORITIES), st.none() | st.integers(1, 3), st.none() | st.sampled_from("ab")).map(
    lambda options: Options(*options)
)


class Kernel(DeviceSocket):
    """A socket whose peer gets what there is room for."""

    __slots__ = ("is_shut", "received", "room")

    def __init__(self) -> None:
        self._unread, self._unsent, self._taken_bytes = b"", None, 0
        self._on_readable = self._on_sent = None
        self.has_failed = self.is_shut = False
        self._hold = None
        self.received, self.room = bytearray(), 0

    def _send(self, data: bytes | memoryview) -> int:
        taken = min(self.room, len(data))
        self.room -= taken
        self.received += data[:taken]
        return taken

    def give_room(self, size: int) -> None:
        self.room += size
        if self._unsent is not None:
            self._send_rest()

    def _watch_reading(self) -> None: ...

    def _watch_writing(self) -> None: ...

    @property
    def write_mark(self) -> tuple[int, int]:
        return self._taken_bytes, 0

    @property
    def is_closed(self) -> bool:
        return self.is_shut

    def close(self) -> None:
        self.is_shut = True
        self._unsent = None


class LateMailbox(MemoryMailbox):
    """Answers a question later, with the state at the time of asking."""

    def __init__(self, limits: BoxLimits, clock: Callable[[], float]) -> None:
        super().__init__(limits, clock)
        self.waiting: list[tuple[asyncio.Future[Any], Any]] = []

    def _later(self, answer: asyncio.Future[T]) -> asyncio.Future[T]:
        late: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.waiting.append((late, answer.result()))
        return late

    def look(self, device_id: str) -> asyncio.Future[Box]:
        return self._later(super().look(device_id))

    def read(
        self, device_id: str, lanes: Sequence[LaneRead], fencing_token: FencingToken | None = None
    ) -> asyncio.Future[list[Page]]:
        return self._later(super().read(device_id, lanes))

    def answer(self) -> None:
        waiting, self.waiting = self.waiting, []
        for late, answer in waiting:
            if not late.done():
                late.set_result(answer)


class Delivering(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now = 1_000_000.0
        self.stored: dict[int, tuple[LaneName, int]] = {}  # by the message's text
        self.keys: dict[str, int] = {}
        self.replaced: set[int] = set()
        self.transient: dict[int, LaneName] = {}
        self.forwarded: list[tuple[bytes, Terms, int]] = []  # has not arrived yet
        self.written: set[int] = set()  # what a kernel took is not missed by a device without a cursor
        self.got: list[int] = []
        self.cursors: list[Position] = []
        self.missed = self.reconnects = 0
        self.has_unseen = False
        self.connection: DeviceConnection | None = None

    def do(self, act: Callable[[], T]) -> T:
        """Call within the loop, and run it until it is idle."""

        async def doing() -> T:
            result = act()
            for _ in range(6):
                await asyncio.sleep(0)
            return result

        return self.runner.run(doing())

    @initialize(box=st.integers(3, 12), outbox=st.integers(1, 6))
    def begin(self, box: int, outbox: int) -> None:
        self.runner.run(self._begin(box, outbox))
        self.connect()

    async def _begin(self, box: int, outbox: int) -> None:
        loop = asyncio.get_running_loop()
        self.mailbox = LateMailbox(BoxLimits(max_messages=box, ttl_s=10_000.0), lambda: self.now)
        await self.mailbox.start()
        limits = DeviceLimits(outbox=OutboxLimits(max_messages=outbox))
        self.counters = Counters()
        self.presence = LocalPresence(SlotLimits, MemoryRelay(), lambda: self.now)
        hub = Hub()
        self.presence.start(hub)
        self.context = DeviceContext(
            hub=hub,
            presence=self.presence,
            broker=MemoryBroker(),
            counters=self.counters,
            flusher=Flusher(loop, lambda: self.now),
            wheel=PingWheel[Flushed](30.0, 30.0, self.now),
            calendar=ExpiryCalendar[Flushed](),
            limits=lambda: limits,
            messages_topic="device.messages",
            intake=IntakeGate(1 << 20, lambda: self.now, lambda: 1),
            clock=lambda: self.now,
            wall_clock=lambda: self.now,
            mail=Mail(self.mailbox, self.counters, lambda: self.now),
        )

    @property
    def ours(self) -> DeviceConnection:
        assert self.connection is not None
        return self.connection

    # -- the device

    def connect(self) -> None:
        after = self.cursors[-1] if self.cursors else NO_CURSOR_YET
        self.do(lambda: self._connect(after))

    def _connect(self, after: Position) -> None:
        assert after is NO_CURSOR_YET or self.mailbox._store.look("doll").find(after) is not None
        grant = self.presence.try_claim("doll")
        assert grant is not None
        self.kernel, self.heard = Kernel(), 0
        identity = DeviceIdentity("doll", 99, "1.0", (), math.inf)
        self.connection = DeviceConnection(self.kernel, identity, grant, self.context, after=after)
        self.connection.open(1e12)

    @rule(frames=st.integers(1, 5))
    def hear(self, frames: int) -> None:
        """The device gets what the kernel has taken."""
        for payload in self._taken()[self.heard :][:frames]:
            self.heard += 1
            self._hear(json.loads(payload))

    def _taken(self) -> list[bytes]:
        """The messages that the kernel has taken as a whole."""
        found, data, at = [], bytes(self.kernel.received), 0
        while at + 4 <= len(data):
            assert data[at] == 0x80 | TEXT
            length, begin = data[at + 1], at + 2
            if length == 126:
                length, begin = int.from_bytes(data[begin : begin + 2], "big"), begin + 2
            at = begin + length
            if at <= len(data):
                found.append(data[begin:at])
        return found

    def _count_missed(self) -> None:
        """A gap notice counts once the kernel has taken it, even if the device has disconnected by then."""
        found = [json.loads(payload) for payload in self._taken()]
        self.written |= {message["text"] for message in found if message["type"] == "t"}
        self.missed += sum(message["missed"] for message in found if message["type"] == "gap")

    def _hear(self, message: dict[str, Any]) -> None:
        if message["type"] == "gap":
            assert message["missed"] > 0
            return
        text, cursor = message["text"], message.get("cursor")
        assert text not in self.got
        self.got.append(text)
        if cursor is None:
            assert text in self.transient
            return
        key = self.mailbox.key
        assert key is not None
        position = read_cursor(key, "doll", cursor)
        assert position is not None
        assert list(message)[-1] == "cursor"
        if text in self.stored:
            lane, number = self.stored[text]
            assert (position.high if lane == "high" else position.normal) == number
            assert len(cursor) == (32 if position.high else 24)
        self.cursors.append(position)

    @rule()
    def reconnect(self) -> None:
        """Bytes that the kernel has taken and the device has not received are lost."""
        self.do(self.ours.cut)
        self._count_missed()
        self.reconnects += 1
        self.connect()

    @precondition(lambda self: self.cursors)
    @rule(back=st.integers(0, 3))
    def acknowledge(self, back: int) -> None:
        position = self.cursors[max(-len(self.cursors), -1 - back)]
        box = self.ours._box
        assert box is not None
        reader = box._reader
        self.do(lambda: box._carry_out(reader.acknowledge(position)))
        assert not self.counters.bad_acks

    @rule(size=st.integers(1, 300))
    def read(self, size: int) -> None:
        self.do(lambda: self.kernel.give_room(size))

    # -- the backend

    @rule(messages=st.lists(OPTIONS, min_size=1, max_size=6), is_seen=st.booleans())
    def store(self, messages: list[Options], is_seen: bool) -> None:
        """Or another server does. It reads on only behind what this one has read, so behind what waits here. The
        exception, a partition that moves during a first look into the box, is in docs/behaviour.rst."""
        is_seen = is_seen or self._waits_for_its_place()
        for options in messages:
            self.do(lambda options=options: self._store(options, is_seen))  # type: ignore[misc]  # the default has no type

    @rule(
        messages=st.lists(st.sampled_from(PRIORITIES), min_size=1, max_size=6),
        size=st.integers(1, 1000),
        frames=st.integers(0, 10),
        is_next_turn=st.booleans(),
    )
    def live(self, messages: list[Priority], size: int, frames: int, is_next_turn: bool) -> None:
        """Stored messages are written as far as there is room, and partly received."""
        self.answer()
        if is_next_turn:
            self.read(size)
        self.do(lambda: self._store_in_one_turn(messages))
        self.read(size)
        self.hear(frames)

    def _waits_for_its_place(self) -> bool:
        transients = None if self.ours._box is None else self.ours._box._transients.waiting
        return transients is not None and any(each.after is None for each in transients._waiting)

    def _store_in_one_turn(self, messages: list[Priority]) -> None:
        for priority in messages:
            self._store(Options(priority), is_seen=True)

    def _store(self, options: Options, is_seen: bool) -> None:
        text = len(self.stored) + len(self.transient)
        payload = b'{"type":"t","text":%d}' % text
        priority, ttl_s, key, _ = options
        expires_ms = 0 if ttl_s is None else int((self.now + ttl_s) * 1000)
        entry = Entry("doll", payload, 1, "results/0", text, options, expires_ms)
        (number,) = self.mailbox.append([entry]).result()
        assert number is not None
        if key is not None:
            if key in self.keys:
                self.replaced.add(self.keys[key])
            self.keys[key] = text
        self.stored[text] = ("high" if priority == "high" else "normal", number)
        if is_seen:
            self.ours.stored(number, payload, 1, options, expires_ms)
        else:
            self.has_unseen = True

    @rule(is_interim=st.booleans(), priority=st.sampled_from(PRIORITIES), knows_place=st.booleans())
    def suggest(self, is_interim: bool, priority: Priority, knows_place: bool) -> None:
        """:param knows_place: its record went through the mailbox"""
        while self.forwarded:
            self.arrive()  # they keep their order
        if self.has_unseen:
            self.look_again()  # the router says so first
        text, lane = len(self.stored) + len(self.transient), lane_of(Options(priority))
        self.transient[text] = lane
        terms = Terms("session" if is_interim else "", priority)
        after = self.mailbox._store.look("doll").lane(lane).last if knows_place and not is_interim else None
        self.do(lambda: self.ours.suggest(b'{"type":"t","text":%d}' % text, 1, terms, after))

    @rule(is_interim=st.booleans(), priority=st.sampled_from(PRIORITIES))
    def forward(self, is_interim: bool, priority: Priority) -> None:
        """Another server reads a transient message. It arrives later, with its place."""
        text, lane = len(self.stored) + len(self.transient), lane_of(Options(priority))
        self.transient[text] = lane
        after = self.mailbox._store.look("doll").lane(lane).last
        terms = Terms("session" if is_interim else "", priority)
        self.forwarded.append((b'{"type":"t","text":%d}' % text, terms, after))

    @precondition(lambda self: self.forwarded)
    @rule()
    def arrive(self) -> None:
        payload, terms, after = self.forwarded.pop(0)
        self.do(lambda: self.ours.suggest(payload, 1, terms, after))

    @rule()
    def look_again(self) -> None:
        """Another server has stored something, or says so."""
        self.has_unseen = False
        self.do(self.ours.look_again)

    @rule()
    def answer(self) -> None:
        self.do(self.mailbox.answer)

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.do(lambda: None)

    # -- the end

    def settle(self) -> None:
        if self.has_unseen:
            self.look_again()
        before, rounds = -1, 0
        while before != len(self.kernel.received) or self.mailbox.waiting:
            before, rounds = len(self.kernel.received), rounds + 1
            assert rounds < 200, "it ends"
            self.read(1 << 20)
            self.do(self.mailbox.answer)
        self.kernel.room = 0
        self.hear(1 << 20)
        self._check()

    def _check(self) -> None:
        box = self.ours._box
        assert box is not None
        assert box._reader.normal.is_live
        assert box._reader.high.is_live
        assert not len(self.ours.protocol.outbox)
        assert box._transients.waiting is None
        got = set(self.got)
        reads = [LaneRead(lane, 0, ALL) for lane in LANES]
        places = {place: text for text, place in self.stored.items()}
        for lane, page in zip(LANES, self.mailbox._store.read("doll", reads), strict=True):
            for message in page.messages:
                assert places[lane, message.number] in got
        lost = set(self.stored) - got
        earlier = self.missed
        self._count_missed()
        assert self.missed >= len(lost - self.replaced - self.written)
        if not self.reconnects:
            assert self.missed <= len(lost)
        self.missed = earlier

    def teardown(self) -> None:
        if self.connection is not None:
            self.settle()
            self.do(self.ours.cut)
        self.runner.close()

    @invariant()
    def each_lane_is_in_order(self) -> None:
        """Those that are not stored have their place among the others, too."""
        for lane in LANES:
            texts = [text for text in self.got if lane == (self.transient.get(text) or self.stored[text][0])]
            assert texts == sorted(texts)


TestDelivering = Delivering.TestCase
TestDelivering.settings = examples(60, steps=30)


def test_what_an_earlier_connection_was_sent_is_followed_by_nothing_that_comes_before_it() -> None:
    state = Delivering()
    state.begin(box=3, outbox=1)
    state.forward(is_interim=False, priority="normal")
    state.live(frames=0, is_next_turn=False, messages=["normal"], size=108)
    state.live(frames=10, is_next_turn=False, messages=["high"], size=1)
    state.reconnect()
    state.arrive()  # before the connection knows where it begins
    state.live(frames=1, is_next_turn=False, messages=["normal"], size=59)
    state.each_lane_is_in_order()
    state.teardown()
    state.each_lane_is_in_order()
