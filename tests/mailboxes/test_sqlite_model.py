"""The SQLite mailbox does what the embedded one does, which is the reference."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoa_tornado.mailboxes import memory, sqlite_fan_outs
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry, FanOut, LaneRead
from cocoa_tornado.rules.addressing import Options, Priority
from cocoa_tornado.rules.audiences import ALL, of_group
from cocoa_tornado.rules.box import LANES, BoxLimits, PageLimits, Position

from .sqlite_stand import SqliteStand
from .stands import SOURCE, entry, until

pytestmark = pytest.mark.gen_test(timeout=60)

DEVICES = [f"d{n}" for n in range(8)]
GROUPS = [of_group("kitchen"), of_group("hall")]
PRIORITIES: list[Priority] = ["normal", "normal", "low", "high"]
STEP = 3


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteStand]:
    for module in (memory, sqlite_fan_outs):
        monkeypatch.setattr(module, "FAN_OUT_STEP", STEP)
    monkeypatch.setattr(sqlite_fan_outs, "STEP", STEP)
    stand = SqliteStand(tmp_path / "box.db")
    yield stand
    asyncio.run(stand.clear())


class Pair:
    """The reference, and the mailbox that is compared with it."""

    def __init__(self, place: SqliteStand, dice: random.Random) -> None:
        self._place, self._dice = place, dice
        self._limits = BoxLimits(max_messages=dice.choice([3, 40]), max_bytes=dice.choice([200, 3_000]), ttl_s=50)
        self._offset = 0

    async def open(self) -> None:
        self.model = MemoryMailbox(self._limits, self._place.clock)
        await self.model.start()
        self.mailbox = await self._place.open_file(self._limits)
        for device_id in DEVICES:  # before the first message, so that all boxes begin at the same number
            await self.join(device_id, frozenset((ALL, *GROUPS)))

    async def join(self, device_id: str, audiences: frozenset[str]) -> None:
        await self.settle()
        await self.model.join(device_id, audiences)
        await self.mailbox.join(device_id, audiences)

    async def append(self) -> None:
        self._offset = max(0, self._offset - self._dice.randrange(4))
        batch = [self._some(self._offset + n) for n in range(self._dice.randrange(20))]
        self._offset += len(batch)
        stored = [each.append(batch) for each in (self.model, self.mailbox)]
        if self._dice.random() < 0.5:
            assert await stored[1] == await stored[0]

    def _some(self, offset: int) -> Entry | FanOut:
        dice = self._dice
        payload = b"x" * dice.choice([1, 1, 30, 150, 2_000])
        priority = dice.choice(PRIORITIES)
        options = Options(priority, None, dice.choice([None, "k", "l"]), dice.choice([None, None, f"id{offset}", "id"]))
        expires_ms = dice.choice([0, 0, int(self._place.clock.now * 1000) + dice.choice([-1, 0, 5_000])])
        given = (options, expires_ms) if dice.random() < 0.5 else (None, 0)
        if dice.random() < 0.15:
            excluded = frozenset(dice.sample(DEVICES, dice.choice([0, 0, 2])))
            return FanOut(dice.choice([ALL, *GROUPS]), excluded, payload, 1_000 + offset, SOURCE, offset, *given)
        return entry(offset, dice.choice(DEVICES), payload, SOURCE, *given)

    async def mark(self, device_id: str) -> None:
        await self.settle()
        box = await self.model.look(device_id)
        numbers = [self._dice.randint(lane.base, lane.last) for lane in (box.normal, box.high)]
        what = self._dice.choice(["acknowledge", "written"])
        for each in (self.model, self.mailbox):
            getattr(each, what)(device_id, Position(numbers[0], each.epoch, numbers[1]))

    async def sweep(self) -> None:
        # Both look at all of these boxes, this one at once and that one every other time.
        await self.mailbox.append([])
        await self.settle()
        await self.mailbox.sweep()
        await self.model.sweep()
        await self.model.sweep()

    async def read(self, device_id: str) -> None:
        await self.settle()
        dice = self._dice
        page = PageLimits(dice.choice([1, 5, 1_000]), dice.choice([1, 100, 10_000]))
        lanes = [LaneRead(name, dice.randrange(30), page) for name in LANES]
        theirs, ours = await self.model.read(device_id, lanes), await self.mailbox.read(device_id, lanes)
        for one, other in zip(ours, theirs, strict=True):
            assert (list(one.messages), *one[1:]) == (list(other.messages), *other[1:])

    async def reopen(self) -> None:
        await self.mailbox.close(5.0)
        self.mailbox = await self._place.open_file(self._limits)

    async def settle(self) -> None:
        """Everything is stored, fan-outs and marks included."""
        for each in (self.model, self.mailbox):
            await each.append([])
        await until(lambda: not (self.model._store.fan_outs or self.mailbox._store.fan_outs))
        await until(lambda: not self.mailbox._backlog.has_marks and self.mailbox._backlog._group is None)

    async def compare(self) -> None:
        await self.settle()
        assert self.mailbox.status().messages == self.model.status().messages
        assert self.mailbox.status().size_bytes == self.model.status().size_bytes
        for device_id in DEVICES:
            ours, theirs = await self.mailbox.look(device_id), await self.model.look(device_id)
            for lane, other in ((ours.normal, theirs.normal), (ours.high, theirs.high)):
                assert (lane.base, lane.last, lane.gone, lane.acked) == (
                    other.base,
                    other.last,
                    other.gone,
                    other.acked,
                )
                assert (lane.written, lane.retracted) == (other.written, other.retracted)


@pytest.mark.parametrize("seed", range(8))
async def test_it_does_what_the_embedded_one_does(place: SqliteStand, seed: int) -> None:
    """After any operations on both, they have the same contents. Marks have assigned numbers, like a gateway's."""
    dice = random.Random(seed)
    pair = Pair(place, dice)
    await pair.open()
    for _ in range(120):
        device_id = dice.choice(DEVICES)
        match dice.choice(["append", "append", "append", "mark", "join", "sweep", "pass", "read", "read", "reopen"]):
            case "append":
                await pair.append()
            case "mark":
                await pair.mark(device_id)
            case "join":
                await pair.join(device_id, frozenset((ALL, *dice.sample(GROUPS, dice.randrange(3)))))
            case "sweep":
                await pair.sweep()
            case "pass":
                place.clock.now += dice.choice([1, 20])
            case "reopen" if dice.random() < 0.3:
                await pair.reopen()
            case _:
                await pair.read(device_id)
        await pair.compare()
    for _ in range(3):
        await pair.sweep()
    await pair.compare()
    assert counted(place.path) == (pair.mailbox.status().messages, pair.mailbox.status().size_bytes)
    await pair.mailbox.close(1.0)


def counted(path: Path) -> tuple[int, int]:
    """The number of messages in the file, and their total size."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        query = "SELECT count(*), coalesce(sum(coalesce(size, length(payload))), 0) FROM message"
        count, size = database.execute(query).fetchone()
        return count, size
