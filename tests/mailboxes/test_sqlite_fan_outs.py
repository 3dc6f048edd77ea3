"""Fan-outs, members and lanes in the SQLite mailbox's file: lost replies, upkeep, files of earlier releases."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoa_tornado.mailboxes import sqlite_schema
from cocoa_tornado.mailboxes.port import FanOut, FanOutStep, Mailbox
from cocoa_tornado.mailboxes.sqlite import SqliteMailbox
from cocoa_tornado.mailboxes.sqlite_boxes import Change
from cocoa_tornado.mailboxes.sqlite_fan_outs import STEP
from cocoa_tornado.mailboxes.sqlite_rows import Rows
from cocoa_tornado.mailboxes.sqlite_schema import MIGRATIONS
from cocoa_tornado.mailboxes.sqlite_sweep import SHARED_AFTER_S
from cocoa_tornado.mailboxes.store import FAN_OUT_STEP
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.audiences import ALL
from cocoa_tornado.rules.box import BoxLimits, Lane, Position

from .sqlite_stand import SqliteStand
from .stands import SOURCE, contents, entries, entry, missed, numbers, page_of, payloads, until

pytestmark = pytest.mark.gen_test(timeout=60)

away = pytest.mark.logs("cocoa.mailbox", "mailbox unavailable")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[SqliteStand]:
    stand = SqliteStand(tmp_path / "box.db")
    yield stand
    asyncio.run(stand.clear())


def fan_out(offset: int, payload: bytes = b"{}", options: Options | None = None) -> FanOut:
    return FanOut(ALL, frozenset(), payload, 1_000 + offset, SOURCE, offset, options)


async def joined(mailbox: Mailbox, count: int) -> list[FanOutStep]:
    """Have this many devices join; return the steps of fan-outs from now on."""
    await asyncio.gather(*(mailbox.join(f"d{n}", frozenset((ALL,))) for n in range(count)))
    steps: list[FanOutStep] = []
    mailbox.watch_fan_outs(steps.append)
    return steps


def ask(path: Path, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def io_error() -> sqlite3.Error:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_IOERR, "SQLITE_IOERR_FSYNC"
    return error


class FailsLate:
    """A connection whose commits are stored, and fail nevertheless, as when the disk fails after the log is written."""

    def __init__(self, database: sqlite3.Connection, fails: list[str]) -> None:
        self._database, self._fails, self._steps = database, fails, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._database, name)

    def execute(self, statement: str, *args: object) -> sqlite3.Cursor:
        done = self._database.execute(statement, *args)  # type: ignore[arg-type]  # passed on as they came
        if statement == "COMMIT" and self._fails:
            self._fails.pop()
            raise io_error()
        return done


@away
@pytest.mark.parametrize("at", ["store", "fan_out", "last"])
async def test_a_step_whose_commit_fails_late_is_reported_with_its_numbers_and_not_stored_again(
    place: SqliteStand, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    mailbox = await place.open_file()
    count = 2 * FAN_OUT_STEP + 10
    steps = await joined(mailbox, count)
    fails, calls = list[str](), list[str]()
    name = "store" if at == "store" else "fan_out"
    real = getattr(Rows, name)
    ordinal = -(-(count - STEP - 1) // STEP) if at == "last" else 1  # one in the commit, and one device out of turn

    def fails_late(self: Rows, *args: object) -> Change:
        calls.append(name)
        if len(calls) == ordinal:
            fails.append(name)
            self._database = FailsLate(self._database, fails)  # type: ignore[assignment]  # a proxy of it
        change: Change = real(self, *args)
        return change

    monkeypatch.setattr(Rows, name, fails_late)
    assert await mailbox.append([fan_out(0), entry(1, "d1009")]) == [0, 2]
    await until(lambda: any(step.is_last for step in steps))
    assert (len(calls) > ordinal, fails) == (True, [])
    told = [device_id for step in steps for device_id in step.numbers or ()]
    assert sorted(told) == sorted(f"d{n}" for n in range(count))
    assert (steps[-1].is_last, [step.is_last for step in steps].count(True)) == (True, 1)
    assert max(step.recipients for step in steps) == count
    assert mailbox.status().messages == count + 1
    assert ask(place.path, "SELECT count(*), count(DISTINCT box) FROM message WHERE number = 1") == [(count, count)]
    await mailbox.close(1.0)


async def test_a_large_payload_is_stored_once_and_deleted_when_nobody_needs_it(place: SqliteStand) -> None:
    limits = BoxLimits(ttl_s=100)
    mailbox = await place.open_file(limits)
    steps = await joined(mailbox, FAN_OUT_STEP + 1)
    await mailbox.append([fan_out(0, b"x" * 5_000), fan_out(1, b"y" * 1_023)])
    await until(lambda: sum(step.is_last for step in steps) == 2)
    assert ask(place.path, "SELECT length(data) FROM payload") == [(5_000,)]
    assert await contents(mailbox, "d7") == [b"x" * 5_000, b"y" * 1_023]
    assert mailbox.status().size_bytes == (FAN_OUT_STEP + 1) * 6_023
    place.clock.now += 101 + SHARED_AFTER_S
    for _ in range(5):
        await mailbox.sweep()
    assert mailbox.status().messages == 0
    assert ask(place.path, "SELECT count(*) FROM payload") == [(0,)]
    await mailbox.close(1.0)


async def test_a_message_whose_shared_payload_is_gone_counts_as_missed(place: SqliteStand) -> None:
    """It had expired, but is not yet deleted when the mailbox gets a longer ``ttl_s``."""
    mailbox = await place.open_file()
    steps = await joined(mailbox, 2)
    await mailbox.append([fan_out(0, b"x" * 5_000), entry(1, "d0")])
    await until(lambda: steps[-1].is_last)
    with contextlib.closing(sqlite3.connect(place.path, isolation_level=None)) as other:
        other.execute("DELETE FROM payload")
    page = await page_of(mailbox, "d0")
    assert (numbers(page), missed(page)) == ([2], 1)
    await mailbox.close(1.0)


async def test_every_box_gets_a_cut_in_a_new_epoch(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    steps = await joined(mailbox, 3)
    await mailbox.append([fan_out(0), fan_out(1, options=Options("high"))])
    before = mailbox.epoch
    await mailbox.close(1.0)
    mailbox = await place.open_file()
    steps = await joined(mailbox, 3)
    await mailbox.append([fan_out(2), fan_out(3, options=Options("high")), fan_out(4)])
    await until(lambda: sum(step.is_last for step in steps) == 3)
    box = await mailbox.look("d1")
    assert (box.normal.cuts, box.high.cuts) == (((mailbox.epoch, 1),), ((mailbox.epoch, 1),))
    assert box.find(Position(2, before, 2)) == (1, 1)
    await mailbox.close(1.0)


async def test_a_join_that_changes_nothing_writes_nothing(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    await joined(mailbox, 3)
    size = Path(f"{place.path}-wal").stat().st_size
    for _ in range(3):
        place.clock.now += 1_000
        await joined(mailbox, 3)
    assert Path(f"{place.path}-wal").stat().st_size == size
    place.clock.now += 1_000
    await joined(mailbox, 3)
    assert Path(f"{place.path}-wal").stat().st_size > size
    await mailbox.close(1.0)


def _older_file(path: Path, messages: int, boxes: int) -> None:
    """A file of the release before lanes."""
    path.touch()
    with contextlib.closing(sqlite_schema.open_writer(path, MIGRATIONS[:2])) as database:
        each = messages // boxes
        database.execute("BEGIN")
        database.execute("UPDATE meta SET value = '0 77' WHERE key = 'eras'")
        database.execute("UPDATE meta SET value = ? WHERE key = 'given'", (messages,))
        box = "INSERT INTO box(id, device, base, last, gone, acked, written, bytes, touched, cuts)"
        of_box = [
            (n, f"d{n}", each, 1 if n == 1 else 0, 1 if n == 1 else None, 10 * each, "77:2")
            for n in range(1, boxes + 1)
        ]
        database.executemany(f"{box} VALUES (?, ?, 0, ?, ?, ?, 1, ?, 1e9, ?)", of_box)
        message = "INSERT INTO message(box, number, stored_at, timestamp_ms, payload)"
        rows = ((1 + n // each, 1 + n % each, 1.7e9, 5, b"%010d" % n) for n in range(messages))
        database.executemany(f"{message} VALUES (?, ?, ?, ?, ?)", rows)
        database.execute("DELETE FROM message WHERE box = 1 AND number = 1")
        database.execute("UPDATE box SET bytes = bytes - 10 WHERE id = 1")
        database.execute("COMMIT")


async def test_a_file_of_the_release_before_lanes_keeps_messages_numbers_and_marks(place: SqliteStand) -> None:
    _older_file(place.path, 40, 4)
    mailbox = await place.open_file()
    box = await mailbox.look("d1")
    assert (box.normal, box.high) == (Lane(0, 10, 1, 1, 1, ((77, 2),)), Lane.new(0))
    assert (mailbox.status().messages, mailbox.status().size_bytes) == (39, 390)
    assert await contents(mailbox, "d2") == [b"%010d" % n for n in range(10, 20)]
    steps = await joined(mailbox, 3)
    assert await mailbox.append([fan_out(0), entry(1, "d1", options=Options("high")), *entries(2, 1, "d1")]) == [
        0,
        1,
        12,
    ]
    await until(lambda: steps[-1].is_last)
    mailbox.acknowledge("d1", Position(11, mailbox.epoch, 1))
    assert await contents(mailbox, "d1") == payloads([2])
    await mailbox.append([entry(3, "new")])
    assert (await mailbox.look("new")).normal.base == 40 + 5
    assert mailbox.status().messages == 39 - 9 + 1 + 2 + 1
    await mailbox.close(1.0)


async def test_it_can_be_opened_while_a_fan_out_is_under_way(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    await joined(mailbox, FAN_OUT_STEP + 5)
    stored = mailbox.append([fan_out(0, b"x" * 2_000, Options("low", None, "k", "id"))])
    await stored
    await place.crash(mailbox)
    mailbox = SqliteMailbox(place.path, BoxLimits(), place.clock)
    steps: list[FanOutStep] = []
    mailbox.watch_fan_outs(steps.append)
    await mailbox.start()
    await until(lambda: mailbox.status().messages == FAN_OUT_STEP + 5)
    assert await contents(mailbox, f"d{FAN_OUT_STEP + 4}") == [b"x" * 2_000]
    assert all((step.options, step.payload) == (Options("low", None, "k", "id"), b"x" * 2_000) for step in steps)
    await mailbox.close(1.0)
