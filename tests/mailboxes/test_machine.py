"""Any sequence of events of a mailbox, compared with a trivial model."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from cocoa_tornado.mailboxes.port import Mailbox
from cocoa_tornado.mailboxes.redis import EPOCHS_SINCE_S
from cocoa_tornado.rules.box import Box, BoxLimits, PageLimits, Position

from ..profiles import examples
from .lives import Keeper, RedisKeeper, SqliteKeeper
from .stands import SOURCE, MemoryStand, Stand, contents, entry

LIMITS = BoxLimits(max_messages=5, max_bytes=60, ttl_s=100.0)
DEVICES = st.sampled_from(["a", "b", "c"])


@dataclass
class Message:
    number: int
    payload: bytes
    stored_s: float


@dataclass
class Model:
    """One device's box: nothing is ever removed from the list, only counted as gone.

    :ivar acked_for_sure: the acknowledged position that survives a crash
    :ivar written_for_sure: the written position that survives a crash
    """

    messages: list[Message] = field(default_factory=list)
    lost: int = 0
    acked: int | None = None
    written: int = 0
    acked_for_sure: int | None = None
    written_for_sure: int = 0

    @property
    def gone(self) -> int:
        return max(self.lost, self.acked or 0)

    def present(self) -> list[Message]:
        return self.messages[self.gone :]

    def expire(self, now: float) -> None:
        for message in self.present():
            if message.stored_s > now - LIMITS.ttl_s:
                return
            self.lost = message.number

    def append(self, payload: bytes, now: float) -> int:
        self.messages.append(Message(len(self.messages) + 1, payload, now))
        while len(self.present()) > 1 and (
            len(self.present()) > LIMITS.max_messages
            or sum(len(message.payload) for message in self.present()) > LIMITS.max_bytes
        ):
            self.lost = self.present()[0].number
        return len(self.messages)


class Machine(RuleBasedStateMachine):
    """Drives one mailbox."""

    make_stand: Callable[[], Stand]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stand = type(self).make_stand()
        self.mailbox: Mailbox = self.runner.run(self.stand.open(LIMITS))
        self.boxes: dict[str, Model] = {}
        self.devices: list[list[str]] = []  # of each record
        self.sizes: list[int] = []

    def teardown(self) -> None:
        self.runner.run(self.mailbox.close(5.0))
        self.runner.run(self.stand.clear())
        self.runner.close()

    def box(self, device_id: str) -> Model:
        return self.boxes.setdefault(device_id, Model())

    def base(self, device_id: str) -> int:
        """Boxes begin above all earlier numbers; the model's begin at 0."""
        return self.runner.run(self._look(device_id)).base

    async def _look(self, device_id: str) -> Box:
        return await self.mailbox.look(device_id)

    @rule(
        again=st.integers(0, 4),
        new=st.lists(
            st.tuples(st.lists(DEVICES, min_size=1, max_size=3), st.sampled_from([10, 25, 80])), min_size=0, max_size=6
        ),
    )
    def append(self, again: int, new: list[tuple[list[str], int]]) -> None:
        """A batch that begins with records that have been stored before, as after a crash of the consumer. A record is
        for one device or several, and may name one twice."""
        first = max(0, len(self.devices) - again)
        known = len(self.devices)
        self.devices += [devices for devices, _ in new]
        self.sizes += [size for _, size in new]
        batch = [
            entry(offset, device_id, b"%d" % offset + b"x" * self.sizes[offset], SOURCE)
            for offset in range(first, len(self.devices))
            for device_id in self.devices[offset]
        ]
        now = self.stand.clock.now
        expected: list[int | None] = []
        given: set[tuple[int, str]] = set()
        for item in batch:
            is_new = item.offset >= known and (item.offset, item.device_id) not in given
            expected.append(self.box(item.device_id).append(item.payload, now) if is_new else None)
            given.add((item.offset, item.device_id))

        async def store() -> list[int | None]:
            return await self.mailbox.append(batch)

        stored = self.runner.run(store())
        bases = {item.device_id: self.base(item.device_id) for item in batch}
        assert [
            number and number - bases[item.device_id] for number, item in zip(stored, batch, strict=True)
        ] == expected
        for model in self.boxes.values() if new else ():
            model.acked_for_sure, model.written_for_sure = model.acked, model.written

    @rule(device_id=DEVICES, after=st.integers(0, 12), count=st.integers(1, 4), size=st.sampled_from([1, 40, 1000]))
    def read(self, device_id: str, after: int, count: int, size: int) -> None:
        model, base = self.box(device_id), self.base(device_id)
        after = min(after, len(model.messages))
        model.expire(self.stand.clock.now)

        async def ask() -> tuple[list[tuple[int, bytes]], int, int]:
            page = await self.mailbox.read(device_id, base + after, PageLimits(count, size))
            return [(item.number - base, item.payload) for item in page.messages], page.gone - base, page.last - base

        messages, gone, last = self.runner.run(ask())
        wanted = [(item.number, item.payload) for item in model.present() if item.number > after]
        assert messages == wanted[: len(messages)]
        assert bool(messages) == bool(wanted)
        assert len(messages) <= count
        assert len(messages) == 1 or sum(len(payload) for _, payload in messages) <= size or not messages
        assert (gone, last) == (model.gone, len(model.messages))

    @rule(device_id=DEVICES, number=st.integers(0, 15))
    def acknowledge(self, device_id: str, number: int) -> None:
        if device_id in self.boxes and self.boxes[device_id].messages:
            model, base = self.boxes[device_id], self.base(device_id)
            self._mark(lambda: self.mailbox.acknowledge(device_id, Position(base + number, self.mailbox.epoch)))
            model.acked = max(model.acked or 0, min(number, len(model.messages)))

    @rule(device_id=DEVICES, number=st.integers(0, 15))
    def write(self, device_id: str, number: int) -> None:
        if device_id in self.boxes and self.boxes[device_id].messages:
            model, base = self.boxes[device_id], self.base(device_id)
            self._mark(lambda: self.mailbox.written(device_id, Position(base + number, self.mailbox.epoch)))
            model.written = max(model.written, min(number, len(model.messages)))

    def _mark(self, mark: Callable[[], None]) -> None:
        async def set_it() -> None:
            mark()

        self.runner.run(set_it())

    @rule(device_id=DEVICES)
    def look(self, device_id: str) -> None:
        model = self.box(device_id)
        if not model.messages:
            return
        box = self.runner.run(self._look(device_id))
        acked = None if box.acked is None else box.acked - box.base
        assert (box.last - box.base, acked, box.written - box.base) == (
            len(model.messages),
            model.acked,
            model.written,
        )
        # What has expired may not have been found out yet.
        assert box.gone - box.base <= max(model.gone, self._expired(model))

    def _expired(self, model: Model) -> int:
        model.expire(self.stand.clock.now)
        return model.gone

    @rule(seconds=st.sampled_from([1.0, 30.0, 101.0]))
    def wait(self, seconds: float) -> None:
        self.stand.clock.now += seconds

    @rule()
    def sweep(self) -> None:
        # Every box comes under the broom within a few steps.
        for _ in range(3):
            self.runner.run(self.mailbox.sweep())
        for model in self.boxes.values():
            model.expire(self.stand.clock.now)

    @precondition(lambda self: self.stand.survives)
    @rule()
    def close_and_open(self) -> None:
        self.runner.run(self.mailbox.close(5.0))
        self.mailbox = self.runner.run(self.stand.open(LIMITS))

    @precondition(lambda self: self.stand.survives)
    @rule()
    def crash_and_open(self) -> None:
        """Marks since the last append may be lost, and nothing else."""
        self.runner.run(self.stand.crash(self.mailbox))
        self.mailbox = self.runner.run(self.stand.open(LIMITS))
        for device_id, model in self.boxes.items():
            if not model.messages:
                continue
            box = self.runner.run(self._look(device_id))
            acked = None if box.acked is None else box.acked - box.base
            assert (model.acked_for_sure or 0) <= (acked or 0) <= (model.acked or 0)
            assert model.written_for_sure <= box.written - box.base <= model.written
            model.acked, model.written = acked, box.written - box.base


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
                number = box.find(cursor.place)
                assert number is not None
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
        number = box.find(place)
        assert number is not None
        return await contents(self.mailbox, device_id, box.start(number))

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
        settings=settings(examples(20, steps=20), suppress_health_check=list(HealthCheck)),
    )


def test_no_sequence_of_events_loses_repeats_or_reorders_a_message(make_stand: Callable[[], Stand]) -> None:
    machine = type("AnyMachine", (Machine,), {"make_stand": staticmethod(make_stand)})
    run_state_machine_as_test(
        machine,
        settings=settings(examples(60, steps=30), suppress_health_check=list(HealthCheck)),
    )
