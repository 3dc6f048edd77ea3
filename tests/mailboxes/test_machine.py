"""Any sequence of events of a mailbox, compared with a trivial model."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from cocoa_tornado.mailboxes.port import Entry, FanOut, FanOutStep, Mailbox
from cocoa_tornado.mailboxes.redis import EPOCHS_SINCE_S
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.audiences import ALL, of_group
from cocoa_tornado.rules.box import LANES, Box, BoxLimits, LaneName, Numbers, PageLimits, Position
from cocoa_tornado.rules.feed import Page

from ..profiles import examples
from .lives import Keeper, RedisKeeper, SqliteKeeper
from .stands import SOURCE, MemoryStand, Stand, contents, entry, missed, page_of, small_steps, until

LIMITS = BoxLimits(max_messages=5, max_bytes=60, ttl_s=100.0)
DEVICES = st.sampled_from(["a", "b", "c"])
GROUPS = st.sampled_from([of_group("kitchen"), of_group("hall"), ALL])

NOTHING = Numbers()

OPTIONS = st.builds(
    Options,
    priority=st.sampled_from(["normal", "high", "low"]),
    collapse_key=st.sampled_from([None, None, "k", "l"]),
    id=st.sampled_from([None, None, None, "x", "y"]),
    ttl_s=st.sampled_from([None, None, None, 0]),
)
NEW = st.tuples(
    st.lists(DEVICES, min_size=1, max_size=3) | GROUPS,
    st.sampled_from([10, 25, 80]),
    st.none() | OPTIONS,
    st.sampled_from([0, 0, 0, -1, 20]),  # seconds until its own ttl ends; 0: it has none
)


@dataclass
class Message:
    """:ivar state: in the box, lost, or retracted"""

    lane: LaneName
    number: int
    payload: bytes
    stored_s: float
    expires_s: float
    options: Options
    audience: str | None
    state: Literal["kept", "lost", "retracted"] = "kept"


@dataclass
class Model:
    """One device's box: nothing is ever removed from the list.

    :ivar named: the ids of transient messages, each with the time when it was last appended
    :ivar exists: there is a box
    :ivar acked_for_sure: the acknowledged position that survives a crash
    :ivar written_for_sure: the written position that survives a crash
    """

    messages: list[Message] = field(default_factory=list)
    acked: Numbers | None = None
    written: Numbers = NOTHING
    acked_for_sure: Numbers | None = None
    written_for_sure: Numbers = NOTHING
    audiences: frozenset[str] = frozenset()
    named: dict[str, float] = field(default_factory=dict)
    exists: bool = False

    def of(self, lane: LaneName) -> list[Message]:
        return [message for message in self.messages if message.lane == lane]

    @property
    def last(self) -> Numbers:
        return Numbers(len(self.of("normal")), len(self.of("high")))

    def present(self) -> list[Message]:
        acked = self.acked or Numbers()
        return [
            message
            for message in self.messages
            if message.state == "kept" and message.number > getattr(acked, message.lane)
        ]

    def expire(self, now: float) -> None:
        for message in self.present():
            if message.stored_s <= now - LIMITS.ttl_s or (message.expires_s and now > message.expires_s):
                message.state = "lost"

    def lost(self, lane: LaneName, after: int, up_to: int) -> int:
        after = max(after, getattr(self.acked or Numbers(), lane))
        return sum(message.state == "lost" for message in self.of(lane)[after:up_to])

    def append(
        self, payload: bytes, options: Options, expires_s: float, audience: str | None, now: float
    ) -> tuple[LaneName, int] | None:
        lane: LaneName = "high" if options.priority == "high" else "normal"
        # What has expired in the box may still be there, or not: a test never asks for its id again.
        for older in self.messages:
            is_known = now - older.stored_s < 600 or older in self.present()
            if options.id is not None and older.options.id == options.id and is_known:
                return None
        if options.id is not None and now - self.named.get(options.id, -1_000.0) < 600:
            return None
        for older in self.present():
            if options.collapse_key is not None and older.options.collapse_key == options.collapse_key:
                older.state = "retracted"
        self.exists = self.exists or not options.is_transient or options.id is not None
        if options.is_transient:
            if options.id is not None:
                self.named[options.id] = now
            return lane, len(self.of(lane))
        newest = Message(lane, len(self.of(lane)) + 1, payload, now, expires_s, options, audience)
        self.messages.append(newest)
        self._shrink(newest)
        return lane, newest.number

    def _shrink(self, newest: Message) -> None:
        while len(present := self.present()) > 1 and (
            len(present) > LIMITS.max_messages or sum(len(item.payload) for item in present) > LIMITS.max_bytes
        ):
            low = [item for item in present if item.options.priority == "low"]
            others = sorted((item for item in present if item is not newest), key=lambda item: item.lane == "high")
            (low or others)[0].state = "lost"

    def withdraw(self) -> None:
        for message in self.present():
            if message.audience not in (None, ALL, *self.audiences):
                message.state = "retracted"


class Machine(RuleBasedStateMachine):
    """Drives one mailbox. A fan-out to more than one device is stored in steps of one."""

    make_stand: Callable[[], Stand]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stand = type(self).make_stand()
        self.steps: list[FanOutStep] = []
        self.mailbox = self.open()
        self.boxes: dict[str, Model] = {}
        self.records: list[list[Entry | FanOut]] = []
        self.complete: set[int] = set()  # offsets of fan-outs

    def teardown(self) -> None:
        self.runner.run(self.mailbox.close(5.0))
        self.runner.run(self.stand.clear())
        self.runner.close()

    def open(self) -> Mailbox:
        mailbox = self.runner.run(self.stand.open(LIMITS))
        mailbox.watch_fan_outs(self.steps.append)
        return mailbox

    def box(self, device_id: str) -> Model:
        return self.boxes.setdefault(device_id, Model())

    def base(self, device_id: str) -> Numbers:
        """Boxes begin above all earlier numbers; the model's begin at 0."""
        box = self.runner.run(self._look(device_id))
        return Numbers(box.normal.base, box.high.base)

    async def _look(self, device_id: str) -> Box:
        return await self.mailbox.look(device_id)

    def _record(self, what: list[str] | str, size: int, options: Options | None, ttl_s: float) -> list[Entry | FanOut]:
        offset, now = len(self.records), self.stand.clock.now
        payload = b"%d" % offset + b"x" * size
        rest = (payload, 1_000 + offset, SOURCE, offset, options, int((now + ttl_s) * 1000) if ttl_s else 0)
        if isinstance(what, str):
            return [FanOut(what, frozenset(["c"] if size == 25 else []), *rest)]
        return [Entry(device_id, *rest) for device_id in what]

    @rule(again=st.integers(0, 4), new=st.lists(NEW, min_size=0, max_size=6))
    def append(self, again: int, new: list[tuple[list[str] | str, int, Options | None, float]]) -> None:
        """A batch that begins with records that have been stored before, as after a crash of the consumer. A record is
        for one device or several, and may name one twice, or for a group."""
        known = len(self.records)
        for what in new:
            self.records.append(self._record(*what))
        first = max(0, known - again)
        batch = [item for record in self.records[first:] for item in record]
        expected: list[tuple[LaneName, int] | None] = []
        given: set[tuple[int, str]] = set()
        for model in self.boxes.values():  # but not between the messages: one that has expired takes room until a sweep
            model.expire(self.stand.clock.now)
        recorded: dict[int, int | None] = {}  # what is returned for fan-outs
        boxless: set[int] = set()  # what changes nothing because there is no box
        for at, item in enumerate(batch):
            is_new = item.offset >= known and (item.offset, item.device_id) not in given
            expected.append(self._model(item) if is_new else None)
            given.add((item.offset, item.device_id))
            if isinstance(item, FanOut):
                recorded[at] = 0 if is_new else None
            elif is_new and not self.box(item.device_id).exists:
                boxless.add(at)
        stored = self.runner.run(self._store(batch))
        for at, (number, wanted, item) in enumerate(zip(stored, expected, batch, strict=True)):
            if at in boxless:
                assert number is not None
                continue
            if at in recorded:
                assert number == recorded[at]
                continue
            relative = number and number - getattr(self.base(item.device_id), wanted[0] if wanted else "normal")
            assert relative == (wanted and wanted[1])
        for model in self.boxes.values() if new else ():
            model.acked_for_sure, model.written_for_sure = model.acked, model.written

    def _model(self, item: Entry | FanOut) -> tuple[LaneName, int] | None:
        rest = (item.payload, item.options or Options(), item.expires_ms / 1000)
        now = self.stand.clock.now
        if isinstance(item, Entry):
            return self.box(item.device_id).append(*rest, None, now)
        for device_id, model in self.boxes.items():
            if item.audience in model.audiences and device_id not in item.excluded:
                model.append(*rest, item.audience, now)
        return None

    async def _store(self, batch: list[Entry | FanOut]) -> list[int | None]:
        # What has expired must have been removed, or the ids and the room that it takes would count.
        for _ in range(3):
            await self.mailbox.sweep()
        self.steps.clear()
        stored = await self.mailbox.append(batch)
        fan_outs = {item.offset for item in batch if isinstance(item, FanOut) and item.offset not in self.complete}
        self.complete |= fan_outs
        await until(lambda: sum(step.is_last for step in self.steps) == len(fan_outs))
        return stored

    @rule(device_id=DEVICES, audiences=st.sets(GROUPS))
    def join(self, device_id: str, audiences: set[str]) -> None:
        model = self.box(device_id)

        async def store() -> None:
            for _ in range(3):
                await self.mailbox.sweep()
            await self.mailbox.join(device_id, frozenset((ALL, *audiences)))

        model.expire(self.stand.clock.now)
        self.runner.run(store())
        model.audiences, model.exists = frozenset((ALL, *audiences)), True
        model.withdraw()

    @rule(
        device_id=DEVICES,
        lane=st.sampled_from(LANES),
        after=st.integers(0, 12),
        count=st.integers(1, 4),
        size=st.sampled_from([1, 40, 1000]),
    )
    def read(self, device_id: str, lane: LaneName, after: int, count: int, size: int) -> None:
        model, base = self.box(device_id), getattr(self.base(device_id), lane)
        last: int = getattr(model.last, lane)
        after = min(after, last)
        model.expire(self.stand.clock.now)
        limits = PageLimits(count, size)

        async def ask() -> Page:
            return await page_of(self.mailbox, device_id, base + after, limits, lane)

        page = self.runner.run(ask())
        messages = [(item.number - base, item.payload) for item in page.messages]
        wanted = [(item.number, item.payload) for item in model.present() if item.lane == lane and item.number > after]
        assert messages == wanted[: len(messages)]
        assert bool(messages) == bool(wanted)
        assert len(messages) <= count
        assert len(messages) == 1 or sum(len(payload) for _, payload in messages) <= size or not messages
        assert page.last - base == last
        end = messages[-1][0] if messages else last
        assert missed(page, base + after) == model.lost(lane, after, end)

    @rule(device_id=DEVICES, normal=st.integers(0, 15), high=st.integers(0, 6))
    def acknowledge(self, device_id: str, normal: int, high: int) -> None:
        if device_id in self.boxes and self.boxes[device_id].messages:
            model = self.boxes[device_id]
            self._mark(device_id, self.mailbox.acknowledge, normal, high)
            acked = Numbers(min(normal, model.last.normal), min(high, model.last.high))
            model.acked = acked.joined(model.acked or Numbers())

    @rule(device_id=DEVICES, normal=st.integers(0, 15), high=st.integers(0, 6))
    def write(self, device_id: str, normal: int, high: int) -> None:
        if device_id in self.boxes and self.boxes[device_id].messages:
            model = self.boxes[device_id]
            self._mark(device_id, self.mailbox.written, normal, high)
            model.written = model.written.joined(Numbers(min(normal, model.last.normal), min(high, model.last.high)))

    def _mark(self, device_id: str, mark: Callable[[str, Position], None], normal: int, high: int) -> None:
        base = self.base(device_id)

        async def set_it() -> None:
            mark(device_id, Position(base.normal + normal, self.mailbox.epoch, base.high + high))

        self.runner.run(set_it())

    @rule(device_id=DEVICES)
    def look(self, device_id: str) -> None:
        model = self.box(device_id)
        if not model.messages:
            return
        box, base = self.runner.run(self._look(device_id)), self.base(device_id)
        assert _relative(box.last, base) == model.last
        assert _relative(box.written, base) == model.written
        assert _relative(_acked(box), base) == model.acked

    @rule(seconds=st.sampled_from([1.0, 30.0, 101.0, 601.0]))
    def wait(self, seconds: float) -> None:
        self.stand.clock.now += seconds

    @rule()
    def sweep(self) -> None:
        # Every box comes under the broom within a few steps.
        for _ in range(3):
            self.runner.run(self.mailbox.sweep())
        for model in self.boxes.values():
            model.expire(self.stand.clock.now)
        kept = [message for model in self.boxes.values() for message in model.present()]
        if all(model.acked == model.acked_for_sure for model in self.boxes.values()):
            assert self.mailbox.status().messages == len(kept)
            assert self.mailbox.status().size_bytes == sum(len(message.payload) for message in kept)

    @precondition(lambda self: self.stand.survives)
    @rule()
    def close_and_open(self) -> None:
        self.runner.run(self.mailbox.close(5.0))
        self.mailbox = self.open()

    @precondition(lambda self: self.stand.survives)
    @rule()
    def crash_and_open(self) -> None:
        """Marks since the last append may be lost, and nothing else."""
        self.runner.run(self.stand.crash(self.mailbox))
        self.mailbox = self.open()
        for device_id, model in self.boxes.items():
            if not model.messages:
                continue
            box, base = self.runner.run(self._look(device_id)), self.base(device_id)
            acked, written = _relative(_acked(box), base), _relative(box.written, base)
            assert written is not None
            for lane in (0, 1):
                least, most = model.acked_for_sure or Numbers(), model.acked or Numbers()
                assert least[lane] <= (acked or Numbers())[lane] <= most[lane]
                assert model.written_for_sure[lane] <= written[lane] <= model.written[lane]
            model.acked, model.written = acked, written


def _acked(box: Box) -> Numbers | None:
    normal, high = box.normal.acked, box.high.acked
    assert (normal is None) is (high is None)
    return None if normal is None or high is None else Numbers(normal, high)


def _relative(numbers: Numbers | None, base: Numbers) -> Numbers | None:
    return None if numbers is None else Numbers(numbers.normal - base.normal, numbers.high - base.high)


@pytest.fixture(params=["memory", "sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def make_stand(request: pytest.FixtureRequest) -> Iterator[Callable[[], Stand]]:
    if request.param == "memory":
        yield MemoryStand
    elif request.param == "sqlite":
        from .sqlite_stand import SqliteStand

        with tempfile.TemporaryDirectory() as folder:
            numbers = iter(range(1_000_000))
            yield lambda: SqliteStand(Path(folder) / f"box-{next(numbers)}.db")
    else:
        from .redis_stand import RedisStand

        server = request.getfixturevalue("redis_server")
        yield lambda: RedisStand(server)


@dataclass(frozen=True)
class Cursor:
    """A position that a device received, and the messages it had received by then."""

    place: Position
    had: frozenset[bytes]


@dataclass
class Life:
    """The stored messages of each device, oldest first, and those that may be deleted because the device has them."""

    stored: dict[str, list[bytes]] = field(default_factory=dict)
    done: dict[str, set[bytes]] = field(default_factory=dict)

    def copy(self) -> Life:
        copies = ({name: list(items) for name, items in self.stored.items()}, self.done.items())
        return Life(copies[0], {name: set(items) for name, items in copies[1]})


class RestoredMachine(RuleBasedStateMachine):
    """A mailbox that is backed up, restored, restarted, and used in turns with a copy of it, at any time, while its
    devices keep all their cursors.

    In any case, a cursor never covers more than its device has received, and no acknowledgement deletes more.
    """

    make_keeper: Callable[[], Keeper]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.keeper = type(self).make_keeper()
        self.keeper.clock.now = EPOCHS_SINCE_S
        self.mailbox: Mailbox = self.runner.run(self.keeper.open())
        self.life, self.backup = Life(), Life()
        self.cursors: dict[str, list[Cursor]] = {}
        self.offset = 0
        self.runner.run(self.keeper.back_up())

    def teardown(self) -> None:
        self.runner.run(self.mailbox.close(5.0))
        self.runner.run(self.keeper.clear())
        self.runner.close()

    @rule(devices=st.lists(DEVICES, min_size=1, max_size=4))
    def append(self, devices: list[str]) -> None:
        batch = [entry(self.offset + at, device_id) for at, device_id in enumerate(devices)]
        self.offset += len(batch)

        async def store() -> list[int | None]:
            return await self.mailbox.append(batch)

        for item, number in zip(batch, self.runner.run(store()), strict=True):
            assert number is not None
            stored = self.life.stored.setdefault(item.device_id, [])
            stored.append(item.payload)
            place = Position(number, self.mailbox.epoch)
            self.cursors.setdefault(item.device_id, []).append(Cursor(place, frozenset(stored)))

    @rule(device_id=DEVICES, at=st.integers(0, 100))
    def acknowledge(self, device_id: str, at: int) -> None:
        """Acknowledge with any cursor that the device has received."""
        given = self.cursors.get(device_id, [])
        if given:
            cursor = given[at % len(given)]

            async def mark() -> None:
                box = await self.mailbox.look(device_id)
                assert box.find(cursor.place) is not None
                self.mailbox.acknowledge(device_id, cursor.place)
                await self.mailbox.append([])

            self.runner.run(mark())
            self.life.done.setdefault(device_id, set()).update(cursor.had)

    @rule(device_id=DEVICES)
    def connect(self, device_id: str) -> None:
        """With each cursor, no later message that is not acknowledged is skipped."""
        done = self.life.done.get(device_id, set())
        for cursor in self.cursors.get(device_id, []):
            messages = self.runner.run(self._after(device_id, cursor.place))
            expected = [payload for payload in self.life.stored.get(device_id, []) if payload not in cursor.had | done]
            assert [payload for payload in messages if payload in expected] == expected

    async def _after(self, device_id: str, place: Position) -> list[bytes]:
        box = await self.mailbox.look(device_id)
        assert box.find(place) is not None
        return await contents(self.mailbox, device_id, box.start(place).normal)

    @rule()
    def back_up(self) -> None:
        self._store_marks()
        self.runner.run(self.keeper.back_up())
        self.backup = self.life.copy()

    @rule()
    def put_back(self) -> None:
        self.runner.run(self.mailbox.close(5.0))
        self.runner.run(self.keeper.put_back())
        # Where epochs are numbered by the clock, no two begin in the same second.
        self.keeper.clock.now += 1
        self.life = self.backup.copy()
        self.mailbox = self.runner.run(self.keeper.open())

    @precondition(lambda self: self.keeper.can_be_copied)
    @rule()
    def use_the_copy(self) -> None:
        """Switch to the copy, which continues independently."""
        self.runner.run(self.mailbox.close(5.0))
        self.runner.run(self.keeper.exchange())
        self.life, self.backup = self.backup, self.life
        self.mailbox = self.runner.run(self.keeper.open())

    @rule()
    def restart(self) -> None:
        self.runner.run(self.mailbox.close(5.0))
        self.runner.run(self.keeper.restart())
        self.keeper.clock.now += 1
        self.mailbox = self.runner.run(self.keeper.open())

    def _store_marks(self) -> None:
        """Marks are stored with the next message."""
        self.append(["a"])


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def make_keeper(request: pytest.FixtureRequest) -> Iterator[Callable[[], Keeper]]:
    if request.param == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            numbers = iter(range(1_000_000))
            yield lambda: SqliteKeeper(Path(folder) / f"box-{next(numbers)}.db")
    else:
        server = request.getfixturevalue("own_redis")
        keeper = RedisKeeper(server)
        yield lambda: keeper


@pytest.mark.logs("cocoa.mailbox", "mailbox may lose messages", optional=True)
def test_no_cursor_ever_stands_for_more_than_its_device_has_had(make_keeper: Callable[[], Keeper]) -> None:
    machine = type("AnyRestoredMachine", (RestoredMachine,), {"make_keeper": staticmethod(make_keeper)})
    run_state_machine_as_test(
        machine,
        settings=settings(examples(14, steps=20), suppress_health_check=list(HealthCheck)),
    )


def test_no_sequence_of_events_loses_repeats_or_reorders_a_message(
    make_stand: Callable[[], Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = type("AnyMachine", (Machine,), {"make_stand": staticmethod(make_stand)})
    small_steps(monkeypatch)
    run_state_machine_as_test(
        machine,
        settings=settings(examples(40, steps=30), suppress_health_check=list(HealthCheck)),
    )
