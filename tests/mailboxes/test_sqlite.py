"""The SQLite mailbox: its file, its faults and its threads. What every mailbox promises is in test_contract.py."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cocoa_tornado.errors import MailboxClosed, MailboxError, ServiceError
from cocoa_tornado.mailboxes import sqlite_schema
from cocoa_tornado.mailboxes.port import Entry, Mailbox, MailboxState
from cocoa_tornado.mailboxes.sqlite import TIMING, SqliteMailbox
from cocoa_tornado.mailboxes.sqlite_boxes import Boxes, Change
from cocoa_tornado.mailboxes.sqlite_reader import Reader
from cocoa_tornado.mailboxes.sqlite_rows import Rows
from cocoa_tornado.mailboxes.sqlite_schema import APPLICATION_ID, MIGRATIONS, InodeLock
from cocoa_tornado.mailboxes.sqlite_seen import LONG_RUN, MANY_RUNS, put_together
from cocoa_tornado.mailboxes.store import QueryResult, StoreFault
from cocoa_tornado.rules.box import FORGET_AFTER_S, BoxLimits, Lane, Position
from cocoa_tornado.rules.seen import HOLE, MAX_HOLE, SeenRun

from .sqlite_stand import SqliteStand
from .stands import Clock, contents, entries, entry, numbers, page_of, payloads, ready, until

pytestmark = pytest.mark.gen_test(timeout=60)

ROOT = Path(__file__).parent.parent.parent
away = pytest.mark.logs("cocoa.mailbox", "mailbox unavailable")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[SqliteStand]:
    stand = SqliteStand(tmp_path / "box.db")
    yield stand
    asyncio.run(stand.clear())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte. Requires root, and does not work everywhere."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def freezer(tmp_path: Path) -> Iterator[Freezer]:
    """A file system that can be frozen. Requires root, and does not work everywhere."""
    folder, image = tmp_path / "disk", tmp_path / "image"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    commands = (["mkfs.ext4", "-q", "-F", str(image)], ["mount", "-o", "loop", str(image), str(folder)])
    for command in commands:
        if os.geteuid() != 0 or not shutil.which("fsfreeze") or not shutil.which("mkfs.ext4"):
            pytest.skip("cannot mount a file system here")
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("cannot mount a file system here")
    freezer = Freezer(folder)
    yield freezer
    freezer.thaw()
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Freezer:
    """Blocks all writes to a folder's file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_frozen = False

    def freeze(self) -> None:
        subprocess.run(["fsfreeze", "--freeze", str(self.folder)], check=True)
        self._is_frozen = True

    def thaw(self) -> None:
        if self._is_frozen:
            subprocess.run(["fsfreeze", "--unfreeze", str(self.folder)], check=True)
            self._is_frozen = False


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A transaction that SQLite takes for another process's."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def ask(path: Path, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def leftovers(path: Path) -> list[str]:
    """The files beside the database, except the lock."""
    return sorted(found.name for found in path.parent.iterdir() if found.name not in (path.name, f"{path.name}.lock"))


def is_unavailable(mailbox: Mailbox) -> bool:
    return mailbox.status().state is MailboxState.OPENING


async def refused(path: Path) -> str:
    """Why the mailbox cannot be opened."""
    mailbox = SqliteMailbox(path, BoxLimits())
    with pytest.raises(ServiceError) as refusal:
        await mailbox.start()
    await mailbox.close(1.0)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


async def used(path: Path) -> None:
    """Create a mailbox with messages, and close it."""
    mailbox = SqliteMailbox(path, BoxLimits())
    await mailbox.start()
    await mailbox.append(entries(0, 500))
    await mailbox.close(5.0)


# -- the file


async def test_a_new_file_is_ours_to_read_alone_and_says_what_it_is(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    assert place.path.stat().st_mode & 0o777 == 0o600
    assert Path(f"{place.path}-wal").stat().st_mode & 0o777 == 0o600
    assert ask(place.path, "PRAGMA journal_mode") == [("wal",)]
    assert "survive the end of the gateway" in mailbox.status().detail
    await mailbox.close(1.0)
    assert leftovers(place.path) == []
    # In the file's header, visible without SQLite.
    assert place.path.read_bytes()[68:72] == APPLICATION_ID.to_bytes(4, "big")


async def test_an_odd_name_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "b?x %41#&é.db"
    await used(path)
    assert leftovers(path) == []
    assert path.exists()


async def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert "does not exist" in await refused(tmp_path / "none" / "box.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"hello, world\n" * 50, b"SQLite", b"\0" * 8192], ids=["text", "short", "zeros"])
async def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "box.db"
    path.write_bytes(content)
    assert "is not an SQLite database" in await refused(path)
    assert path.read_bytes() == content
    assert leftovers(path) == []


async def test_another_applications_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE box(mine)")
    content = path.read_bytes()
    assert "another application" in await refused(path)
    assert path.read_bytes() == content
    assert leftovers(path) == []


async def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "box.db").mkdir()
    assert "directory" in (await refused(tmp_path / "box.db")).lower()


async def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    await used(path)
    content = path.read_bytes()[:20_000]
    path.write_bytes(content)
    assert "is damaged" in await refused(path)
    assert path.read_bytes() == content
    assert leftovers(path) == []


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    await used(path)
    content = bytearray(path.read_bytes())
    content[16_384 : len(content) - 4096] = b"\xa5" * (len(content) - 4096 - 16_384)
    path.write_bytes(content)
    assert "is damaged" in await refused(path)
    assert path.read_bytes() == content
    assert leftovers(path) == []


async def test_a_mailbox_without_its_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    await used(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("DELETE FROM meta WHERE key = 'key'")
    assert "incomplete" in await refused(path)


def _next_version(database: sqlite3.Connection) -> None:
    database.execute("ALTER TABLE box ADD COLUMN colour TEXT NOT NULL DEFAULT 'brown'")


def _broken_version(database: sqlite3.Connection) -> None:
    _next_version(database)
    database.execute("ALTER TABLE nowhere ADD COLUMN colour")


async def test_an_older_file_is_brought_up_to_date_and_a_newer_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    await used(path)
    newer = SqliteMailbox(path, BoxLimits(), migrations=(*MIGRATIONS, _next_version))
    await newer.start()
    assert await contents(newer, after=498) == payloads([498, 499])
    assert await newer.append(entries(499, 2)) == [None, 501]
    await newer.close(5.0)
    assert ask(path, "PRAGMA user_version") == [(len(MIGRATIONS) + 1,)]
    assert ask(path, "SELECT colour FROM box") == [("brown",)]
    content = path.read_bytes()
    assert "newer version" in await refused(path)
    assert path.read_bytes() == content
    assert leftovers(path) == []


async def test_a_newer_version_that_stands_in_the_log_only_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    await used(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA wal_autocheckpoint = 0")
        other.execute("PRAGMA user_version = 7")
        for name in (path.name, f"{path.name}-wal"):
            shutil.copy(tmp_path / name, tmp_path / f"copy-{name}")
    assert "newer version" in await refused(tmp_path / f"copy-{path.name}")


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    await used(path)
    newer = SqliteMailbox(path, BoxLimits(), migrations=(*MIGRATIONS, _broken_version))
    with pytest.raises(ServiceError, match="no such table"):
        await newer.start()
    await newer.close(1.0)
    assert ask(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    mailbox = SqliteMailbox(path, BoxLimits())
    await mailbox.start()
    assert mailbox.status().messages == 500
    await mailbox.close(1.0)


async def test_a_folder_that_cannot_be_written_is_refused(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "ead-only file system" in await refused(small_disk / "box.db")


# -- one gateway for one file


async def test_a_second_mailbox_on_the_file_is_refused(place: SqliteStand, tmp_path: Path) -> None:
    mailbox = await place.open_file()
    assert "in use by another gateway" in await refused(place.path)
    link = tmp_path / "elsewhere"
    link.symlink_to(place.path)
    other = SqliteMailbox(link, BoxLimits())
    with pytest.raises(ServiceError, match="in use by another gateway"):
        await other.start()
    await other.close(1.0)
    assert await mailbox.append(entries(0, 1)) == [1]
    await mailbox.close(1.0)
    await used(place.path)


async def test_a_hard_link_does_not_get_past_the_lock(place: SqliteStand, tmp_path: Path) -> None:
    mailbox = await place.open_file()
    await mailbox.append(entries(0, 1))
    link = tmp_path / "elsewhere" / "other.db"
    link.parent.mkdir()
    link.hardlink_to(place.path)
    assert "in use by another gateway, under another name" in await refused(link)
    assert await mailbox.append(entries(1, 1)) == [2]
    await mailbox.close(1.0)
    await used(link)


def test_a_hard_link_does_not_get_past_the_lock_of_another_process(tmp_path: Path) -> None:
    path, link = tmp_path / "box.db", tmp_path / "link.db"
    command = [sys.executable, "-c", CHILD, str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        link.hardlink_to(path)
        assert "in use by another gateway" in asyncio.run(refused(link))
        assert leftovers(link) == sorted(["box.db", "box.db-shm", "box.db-wal", "box.db.lock"])
        child.kill()


def test_a_refused_lock_takes_no_more_descriptors_with_every_try(tmp_path: Path) -> None:
    path, holder, other = tmp_path / "box.db", InodeLock(), InodeLock()
    path.touch()
    holder.take(path)
    counts = set()
    for _ in range(5):
        with pytest.raises(ServiceError, match="another name"):
            other.take(path)
        counts.add(len(os.listdir("/proc/self/fd")))
    assert len(counts) == 1
    holder.release()
    other.take(path)
    other.release()


def test_where_sqlite_would_meet_it_the_inode_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "box.db"
    path.touch()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        InodeLock().take(path)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_a_refused_start_leaves_no_thread_behind(place: SqliteStand) -> None:
    mailbox, other = await place.open_file(), SqliteMailbox(place.path, BoxLimits())
    before = threading.active_count()
    with pytest.raises(ServiceError):
        await other.start()
    assert threading.active_count() == before
    await mailbox.close(1.0)


async def test_a_pipe_in_its_place_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "box.db")
    assert "not a regular file" in await refused(tmp_path / "box.db")


CHILD = """
import asyncio, sys
from pathlib import Path
from cocoa_tornado.mailboxes.sqlite import SqliteMailbox
from cocoa_tornado.rules.box import BoxLimits
from tests.mailboxes.stands import entries

async def main():
    mailbox = SqliteMailbox(Path(sys.argv[1]), BoxLimits())
    await mailbox.start()
    offset = 0
    while True:
        numbers = await mailbox.append(entries(offset, 10))
        print(numbers[-1], flush=True)
        offset += 10

asyncio.run(main())
"""


def test_what_a_killed_process_has_stored_is_there_and_its_lock_is_not(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    command = [sys.executable, "-c", CHILD, str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as child:
        assert child.stdout is not None
        reported = 0
        while reported < 300:
            reported = int(child.stdout.readline())
        assert "in use by another gateway" in asyncio.run(refused(path))
        child.send_signal(signal.SIGKILL)
        reported = max([reported, *map(int, child.stdout.read().split())])

    async def look_after() -> None:
        mailbox = SqliteMailbox(path, BoxLimits(max_messages=1_000_000))
        await mailbox.start()
        lane = (await mailbox.look("doll")).normal
        assert lane.last >= reported
        assert await mailbox.append(entries(0, reported)) == [None] * reported
        assert mailbox.status().messages == lane.last - lane.gone
        await mailbox.close(1.0)

    asyncio.run(look_after())


# -- faults


@away
async def test_a_file_that_is_locked_is_waited_for_and_still_read(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    await mailbox.append(entries(0, 3))
    with locked(place.path):
        first, second = mailbox.append(entries(3, 2)), mailbox.append(entries(5, 1))
        await until(lambda: is_unavailable(mailbox))
        detail = mailbox.status().detail
        assert str(place.path) in detail
        assert "locked by another process" in detail
        assert mailbox.status().messages == 3
        mailbox.acknowledge("doll", Position(2))
        assert (await mailbox.look("doll")).normal.acked == 2
        assert await contents(mailbox) == payloads([2])
        place.clock.now += 10**9  # something to sweep
        with pytest.raises(MailboxError):
            await mailbox.sweep()
        place.clock.now -= 10**9
        assert not first.done()
        await asyncio.sleep(1.0)  # long enough for some attempts: they say nothing more
    assert await first == [4, 5]
    assert await second == [6]
    await ready(mailbox)
    assert mailbox.counters.failures == 1
    assert await contents(mailbox) == payloads([2, 3, 4, 5])
    await mailbox.close(5.0)


@away
async def test_one_outage_is_one_line_in_the_log(place: SqliteStand, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "cocoa.mailbox")
    mailbox = await place.open_file()
    caplog.clear()
    for outage in range(2):
        with locked(place.path):
            stored = mailbox.append(entries(outage, 1))
            await until(lambda: is_unavailable(mailbox))
            await asyncio.sleep(1.0)
        await stored
        await ready(mailbox)
    lines = [record.message for record in caplog.records if record.name == "cocoa.mailbox"]
    assert lines == ["mailbox unavailable", "mailbox ready"] * 2
    await mailbox.close(1.0)


@away
async def test_a_file_that_is_locked_at_the_start_is_waited_for(place: SqliteStand) -> None:
    await used(place.path)
    mailbox = SqliteMailbox(place.path, BoxLimits(), place.clock)
    with locked(place.path):
        await mailbox.start()
        assert is_unavailable(mailbox)
        assert "locked" in mailbox.status().detail
        assert mailbox.key is None
        with pytest.raises(MailboxError, match="locked"):
            await mailbox.look("doll")
        mailbox.acknowledge("doll", Position(100))
        stored = mailbox.append(entries(499, 2))
    assert await stored == [None, 501]
    await ready(mailbox)
    assert (await mailbox.look("doll")).normal.acked == 100
    assert mailbox.counters.failures == 0
    await mailbox.close(1.0)


async def test_a_full_disk_is_found_out_without_a_message(small_disk: Path) -> None:
    mailbox = SqliteMailbox(small_disk / "box.db", BoxLimits())
    await mailbox.start()
    fill(small_disk)
    with pytest.raises(StoreFault, match="the disk is full"):
        await mailbox._store.try_storing()
    await mailbox.close(5.0)


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return ballast


@away
async def test_a_full_disk_is_waited_for_and_still_read(small_disk: Path) -> None:
    clock = Clock()
    mailbox = SqliteMailbox(small_disk / "box.db", BoxLimits(ttl_s=1000), clock)
    await mailbox.start()
    await mailbox.append([entry(n, payload=b"x" * 1000) for n in range(50)])
    ballast = fill(small_disk)
    waiting = [mailbox.append([entry(n, payload=b"x" * 10_000)]) for n in range(50, 60)]
    await until(lambda: is_unavailable(mailbox))
    assert "the disk is full" in mailbox.status().detail
    assert len(await contents(mailbox)) == 50 + sum(future.done() for future in waiting)
    mailbox.written("doll", Position(50))
    assert (await mailbox.look("doll")).normal.written == 50
    ballast.unlink()
    assert await asyncio.gather(*waiting) == [[n + 1] for n in range(50, 60)]
    await ready(mailbox)
    assert len(await contents(mailbox)) == 60
    assert mailbox.counters.failures == 1
    await mailbox.close(5.0)


@away
async def test_a_disk_that_hangs_is_down_after_five_seconds_and_up_when_it_answers(
    freezer: Freezer, caplog: pytest.LogCaptureFixture
) -> None:
    mailbox = SqliteMailbox(freezer.folder / "box.db", BoxLimits(), Clock())
    await mailbox.start()
    await mailbox.append(entries(0, 3))
    freezer.freeze()
    stored = mailbox.append(entries(3, 2))
    await until(lambda: is_unavailable(mailbox))
    assert "the disk hangs: nothing was stored for 5 s" in mailbox.status().detail
    assert not stored.done()
    freezer.thaw()
    assert await stored == [4, 5]
    await ready(mailbox)
    assert mailbox.counters.failures == 1
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["mailbox unavailable"]
    await mailbox.close(5.0)


@away
async def test_close_does_not_hang_on_a_disk_that_hangs(freezer: Freezer) -> None:
    mailbox = SqliteMailbox(freezer.folder / "box.db", BoxLimits(), Clock())
    await mailbox.start()
    freezer.freeze()
    stored = mailbox.append(entries(0, 1))
    await until(lambda: is_unavailable(mailbox))
    async with asyncio.timeout(20.0):
        await mailbox.close(0.5)
    with pytest.raises(MailboxClosed):
        await stored
    assert mailbox.status().state is MailboxState.CLOSED
    freezer.thaw()
    mailbox.abandon()


@away
async def test_a_start_does_not_hang_on_a_disk_that_hangs(freezer: Freezer) -> None:
    path = freezer.folder / "box.db"
    await used(path)
    freezer.freeze()
    mailbox = SqliteMailbox(path, BoxLimits(max_messages=5_000), Clock())
    async with asyncio.timeout(20.0):
        await mailbox.start()
    await until(lambda: "the disk hangs" in mailbox.status().detail)
    with pytest.raises(MailboxError, match="the disk hangs"):
        await mailbox.look("doll")
    freezer.thaw()
    assert await mailbox.append(entries(499, 2)) == [None, 501]
    await ready(mailbox)
    await mailbox.close(5.0)


@away
@pytest.mark.parametrize("part", ["storing", "reading"])
async def test_a_hanging_operation_makes_the_mailbox_unavailable_until_it_completes(
    place: SqliteStand, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    mailbox = SqliteMailbox(place.path, BoxLimits(), place.clock, timing=replace(TIMING, patience_s=0.3))
    await mailbox.start()
    goes_on, store, answers = threading.Event(), Rows.store, Reader.answers

    def stores(self: Rows, *args: object) -> Change:
        goes_on.wait(60.0)
        return store(self, *args)  # type: ignore[arg-type]  # passed on as they came

    def reads(self: Reader, *args: object) -> list[QueryResult]:
        goes_on.wait(60.0)
        return answers(self, *args)  # type: ignore[arg-type]  # passed on as they came

    waiting = None
    if part == "storing":
        monkeypatch.setattr(Rows, "store", stores)
        waiting = mailbox.append(entries(0, 1))
    else:
        monkeypatch.setattr(Reader, "answers", reads)
        with pytest.raises(MailboxError, match="no answer within"):
            await mailbox.look("doll")
    await until(lambda: is_unavailable(mailbox))
    assert "the disk hangs" in mailbox.status().detail
    if part == "reading":  # other work continues, and does not hide it
        assert await mailbox.append(entries(0, 1)) == [1]
        assert "nothing was read" in mailbox.status().detail
    goes_on.set()
    assert waiting is None or await waiting == [1]
    await ready(mailbox)
    assert mailbox.counters.failures == 1
    await mailbox.close(5.0)


@away
async def test_a_file_that_is_not_ours_and_is_found_late_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start did not wait for it."""
    path = tmp_path / "box.db"
    path.write_bytes(b"hello, world\n" * 50)
    goes_on, real = threading.Event(), sqlite_schema.take_lock

    def hangs(path: Path) -> int:
        goes_on.wait(60.0)
        return real(path)

    monkeypatch.setattr(sqlite_schema, "take_lock", hangs)
    mailbox = SqliteMailbox(path, BoxLimits(), timing=replace(TIMING, patience_s=0.1))
    await mailbox.start()
    goes_on.set()
    await until(lambda: "is not an SQLite database" in mailbox.status().detail)
    assert is_unavailable(mailbox)
    await mailbox.close(5.0)
    assert path.read_bytes() == b"hello, world\n" * 50


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (sqlite3.SQLITE_FULL, "the disk is full"),
        (sqlite3.SQLITE_IOERR, "disk I/O error"),
        (sqlite3.SQLITE_READONLY, "cannot be written"),
        (sqlite3.SQLITE_CORRUPT, "is damaged"),
        (sqlite3.SQLITE_BUSY, "locked by another process"),
    ],
)
@away
async def test_failed_operations_are_retried_in_order(
    place: SqliteStand, monkeypatch: pytest.MonkeyPatch, code: int, cause: str
) -> None:
    mailbox = await place.open_file()
    await mailbox.append(entries(0, 2))
    real, failures = Boxes.write, 0

    def fails(self: Boxes) -> None:
        nonlocal failures
        if failures < 3:
            failures += 1
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode, error.sqlite_errorname = code, "SQLITE_SOMETHING"
            raise error
        real(self)

    monkeypatch.setattr(Boxes, "write", fails)
    details = []
    waiting = [mailbox.append(entries(2 * n, 3)) for n in range(1, 6)]
    while not all(future.done() for future in waiting):
        details.append(mailbox.status().detail)
        await asyncio.sleep(0.01)
    assert any(cause in detail and str(place.path) in detail for detail in details)
    assert await asyncio.gather(*waiting) == [[3, 4, 5], [None, 6, 7], [None, 8, 9], [None, 10, 11], [None, 12, 13]]
    await ready(mailbox)
    assert failures == 3
    assert await contents(mailbox) == payloads(range(13))
    assert mailbox.status().messages == 13
    assert mailbox.counters.stored == 13
    assert mailbox.counters.duplicates == 4
    assert mailbox.counters.failures == 1
    await mailbox.close(1.0)
    assert ask(place.path, "SELECT value FROM meta WHERE key = 'given'") == [(13,)]


@away
@pytest.mark.logs("cocoa.mailbox", "mailbox internal error")
async def test_a_fault_of_ours_stops_nothing_for_good(place: SqliteStand, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = await place.open_file()

    def fails(self: Rows, *args: object) -> Change:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "store", fails)
        stored = mailbox.append(entries(0, 1))
        await until(lambda: is_unavailable(mailbox))
    assert await stored == [1]
    await mailbox.close(1.0)


@away
async def test_a_file_that_is_gone_is_waited_for(place: SqliteStand, tmp_path: Path) -> None:
    mailbox = await place.open_file()
    await mailbox.append(entries(0, 3))
    aside = tmp_path / "aside"
    place.path.rename(aside)
    stored = mailbox.append(entries(3, 2))
    await until(lambda: is_unavailable(mailbox))
    assert mailbox.status().detail == f"{place.path}: the file is gone"
    assert not place.path.exists()
    with pytest.raises(MailboxError, match="the file is gone"):
        await page_of(mailbox)
    with pytest.raises(MailboxError, match="the file is gone"):
        await mailbox.sweep()
    aside.rename(place.path)
    assert await stored == [4, 5]
    await ready(mailbox)
    assert await contents(mailbox) == payloads(range(5))
    await mailbox.close(5.0)
    assert ask(place.path, "SELECT count(*) FROM message") == [(5,)]
    assert ask(place.path, "PRAGMA integrity_check") == [("ok",)]


@away
async def test_another_file_in_its_place_is_not_written_to(place: SqliteStand, tmp_path: Path) -> None:
    mailbox = await place.open_file()
    await mailbox.append(entries(0, 3))
    place.path.rename(tmp_path / "aside")
    place.path.write_bytes(b"something else")
    stored = mailbox.append(entries(3, 2))
    await until(lambda: is_unavailable(mailbox))
    assert "another file is in its place" in mailbox.status().detail
    with pytest.raises(MailboxError):
        await mailbox.look("doll")
    assert place.path.read_bytes() == b"something else"
    (tmp_path / "aside").rename(place.path)
    assert await stored == [4, 5]
    await mailbox.close(5.0)


@away
async def test_a_backup_moved_into_its_place_is_not_written_to_before_a_restart(
    place: SqliteStand, tmp_path: Path
) -> None:
    mailbox = await place.open_file()
    epoch = mailbox.epoch
    await mailbox.append(entries(0, 3))
    with contextlib.closing(sqlite3.connect(place.path)) as database:
        database.execute("VACUUM INTO ?", (str(tmp_path / "copy.db"),))
    await mailbox.append(entries(3, 3))
    (tmp_path / "copy.db").rename(place.path)
    stored = mailbox.append(entries(6, 2))
    await until(lambda: is_unavailable(mailbox))
    assert "another file is in its place; put it back, or restart the gateway" in mailbox.status().detail
    await mailbox.close(1.0)
    with pytest.raises(MailboxClosed):
        await stored
    mailbox = await place.open_file()
    assert mailbox.epoch != epoch
    assert await mailbox.append(entries(6, 2)) == [4, 5]
    assert (await mailbox.look("doll")).find(Position(6, epoch)) == (3, 0)
    await mailbox.close(1.0)


@away
@pytest.mark.logs("cocoa.mailbox", "mailbox restored")
async def test_a_file_that_was_rolled_back_while_it_could_not_be_used_begins_an_epoch(
    place: SqliteStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox = await place.open_file()
    before = mailbox.epoch
    await mailbox.append(entries(0, 5))
    real, is_broken = Rows.store, True

    def fails(self: Rows, *args: object) -> Change:
        nonlocal is_broken
        if is_broken:
            is_broken = False
            # SQLite takes this for another process, which removes what was stored last.
            self._database.execute("UPDATE meta SET value = 3 WHERE key = 'given'")
            self._database.execute("UPDATE box SET last = 3")
            self._database.execute("DELETE FROM message WHERE number > 3")
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_IOERR, "SQLITE_IOERR"
            raise error
        return real(self, *args)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(Rows, "store", fails)
    mailbox.acknowledge("doll", Position(5, before))
    assert await mailbox.append(entries(5, 2)) == [4, 5]
    assert mailbox.epoch != before
    box = await mailbox.look("doll")
    assert (box.normal.acked, box.normal.last, box.find(Position(5, before))) == (3, 5, (3, 0))
    await mailbox.close(1.0)


async def test_a_log_that_is_removed_takes_nothing_with_it(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    await mailbox.append(entries(0, 3))
    assert await contents(mailbox) == payloads(range(3))
    Path(f"{place.path}-wal").unlink()
    assert await mailbox.append(entries(3, 2)) == [4, 5]
    assert await contents(mailbox) == payloads(range(5))
    await place.crash(mailbox)
    mailbox = await place.open_file()
    assert await contents(mailbox) == payloads(range(5))
    await mailbox.close(1.0)


@away
async def test_a_mark_that_waits_counts(place: SqliteStand) -> None:
    """Also while its transaction is in progress, and after that fails."""
    mailbox = await place.open_file()
    await mailbox.append(entries(0, 5))
    with locked(place.path):
        mailbox.acknowledge("doll", Position(2))
        await until(lambda: is_unavailable(mailbox))
        mailbox.acknowledge("doll", Position(1))
        mailbox.written("doll", Position(4))
        assert (await mailbox.look("doll")).normal == Lane(0, 5, 2, 2, 4)
        assert numbers(await page_of(mailbox)) == [3, 4, 5]
    await ready(mailbox)
    await until(lambda: mailbox.counters.acknowledged == 2)
    assert (await mailbox.look("doll")).normal == Lane(0, 5, 2, 2, 4)
    await mailbox.close(1.0)


async def test_a_mark_is_stored_soon(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    await mailbox.append(entries(0, 5))
    begun = time.monotonic()
    mailbox.acknowledge("doll", Position(2))
    await until(lambda: mailbox.status().messages == 3)
    assert time.monotonic() - begun > 0.3
    assert ask(place.path, "SELECT acked, gone FROM box") == [(2, 2)]
    await mailbox.close(1.0)


# -- threads and transactions


async def test_what_has_queued_up_is_one_transaction(place: SqliteStand, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = await place.open_file()
    real, transactions = Rows.store, []

    def counted(self: Rows, calls: list[list[Entry]], *others: object) -> Change:
        transactions.append(len(calls))
        return real(self, calls, *others)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(Rows, "store", counted)
    waiting = [mailbox.append([entry(n)]) for n in range(2_000)]
    assert await asyncio.gather(*waiting) == [[n + 1] for n in range(2_000)]
    assert sum(transactions) == 2_000
    assert len(transactions) < 100
    await mailbox.close(1.0)


async def test_a_transaction_has_a_bound(place: SqliteStand, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = await place.open_file()
    real, transactions = Rows.store, []

    def counted(self: Rows, calls: list[list[Entry]], *others: object) -> Change:
        transactions.append(sum(map(len, calls)))
        return real(self, calls, *others)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(Rows, "store", counted)
    waiting = [mailbox.append(entries(600 * n, 600)) for n in range(30)]
    await asyncio.gather(*waiting)
    assert max(transactions) <= 5_000
    await mailbox.close(1.0)


@pytest.mark.logs("cocoa.mailbox", "mailbox unavailable")
async def test_a_commit_that_failed_and_is_there_all_the_same_is_answered_when_it_is_on_the_disk(
    place: SqliteStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has the transaction although fsync failed, so SQLite finds it stored after reopening the file."""
    mailbox = await place.open_file()
    real, steps = Rows.store, list[str]()

    def fails_late(self: Rows, *args: object) -> Change:
        change = real(self, *args)  # type: ignore[arg-type]  # passed on as they came
        steps.append("stored")
        if len(steps) == 1:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_IOERR, "SQLITE_IOERR_FSYNC"
            raise error
        return change

    def checkpoint(self: Rows) -> bool:
        steps.append("checkpoint")
        return steps.count("checkpoint") > 1

    monkeypatch.setattr(Rows, "store", fails_late)
    monkeypatch.setattr(Rows, "checkpoint", checkpoint)
    assert await mailbox.append(entries(0, 3)) == [1, 2, 3]
    assert steps == ["stored", "checkpoint", "checkpoint", "stored"]
    assert await contents(mailbox) == payloads(range(3))
    assert mailbox.status().messages == 3
    assert await mailbox.append(entries(2, 2)) == [None, 4]
    await mailbox.close(1.0)


@away
async def test_a_thread_that_cannot_be_started_is_an_outage_that_ends(
    place: SqliteStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, failures = threading.Thread.start, [True, True]

    def fails_twice(self: threading.Thread) -> None:
        if self.name.startswith("cocoa-sqlite") and failures:
            failures.pop()
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", fails_twice)
    mailbox = await place.open_file()
    assert await mailbox.append(entries(0, 1)) == [1]
    assert not failures
    await mailbox.close(1.0)


async def test_a_lock_file_that_was_removed_is_made_anew(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    await mailbox.append(entries(0, 1))
    Path(f"{place.path}.lock").unlink()
    await mailbox.append(entries(1, 1))
    with pytest.raises(ServiceError, match="in use"):
        await SqliteMailbox(place.path, BoxLimits()).start()
    await mailbox.close(1.0)


async def test_a_question_that_cannot_be_asked_fails_alone(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    await mailbox.append(entries(0, 1))
    asked = [mailbox.look("doll"), mailbox.look("\ud800"), mailbox.look("doll")]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert answers[0] == answers[2] == await mailbox.look("doll")
    assert isinstance(answers[1], MailboxError)
    await mailbox.close(1.0)


async def test_the_threads_end_with_the_mailbox(place: SqliteStand) -> None:
    before = set(threading.enumerate())

    def ours() -> list[str]:
        return sorted(thread.name for thread in set(threading.enumerate()) - before)

    mailbox = await place.open_file()
    assert ours() == ["cocoa-sqlite-reader", "cocoa-sqlite-writer"]
    await asyncio.gather(mailbox.close(1.0), mailbox.close(1.0))
    assert ours() == []
    with pytest.raises(MailboxClosed):
        await mailbox.look("doll")
    with pytest.raises(MailboxClosed):
        await mailbox.sweep()
    mailbox.written("doll", Position(3))


async def test_close_stores_what_is_queued(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    waiting = [mailbox.append(entries(1_000 * n, 1_000)) for n in range(10)]
    mailbox.written("doll", Position(10))
    await mailbox.close(20.0)
    assert [future.result()[-1] for future in waiting] == [1_000 * n for n in range(1, 11)]


@away
async def test_close_does_not_wait_longer_than_it_may(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    with locked(place.path):
        stored = mailbox.append(entries(0, 1))
        await until(lambda: is_unavailable(mailbox))
        async with asyncio.timeout(15.0):
            await mailbox.close(0.3)
        with pytest.raises(MailboxClosed):
            await stored
    assert mailbox.status().state is MailboxState.CLOSED


@away
async def test_close_makes_use_of_its_time(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    with locked(place.path):
        stored = mailbox.append(entries(0, 1))
        await until(lambda: is_unavailable(mailbox))
        closing = asyncio.ensure_future(mailbox.close(10.0))
        await asyncio.sleep(0.3)
    await closing
    assert await stored == [1]


async def test_a_mailbox_that_was_never_started_can_be_closed(place: SqliteStand) -> None:
    mailbox = SqliteMailbox(place.path, BoxLimits())
    stored = mailbox.append(entries(0, 1))
    await mailbox.close(1.0)
    with pytest.raises(MailboxClosed):
        await stored
    assert not place.path.exists()


def test_a_loop_that_is_gone_is_no_trouble(place: SqliteStand) -> None:
    async def leave() -> SqliteMailbox:
        mailbox = await place.open_file()
        for n in range(200):
            mailbox.append(entries(10 * n, 10))
        mailbox.look("doll")
        return mailbox

    asyncio.run(leave()).abandon()


async def test_a_large_write_does_not_delay_reads(place: SqliteStand, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = await place.open_file()
    await mailbox.append(entries(0, 5))
    real, goes_on = Boxes.write, threading.Event()

    def slow(self: Boxes) -> None:
        goes_on.wait(60.0)
        real(self)

    monkeypatch.setattr(Boxes, "write", slow)
    stored = mailbox.append(entries(5, 1))
    async with asyncio.timeout(20.0):
        assert await contents(mailbox) == payloads(range(5))
    assert not stored.done()
    goes_on.set()
    assert await stored == [6]
    await mailbox.close(1.0)


# -- housekeeping


async def test_the_log_does_not_grow_for_ever(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    for first in range(0, 6_000, 500):
        await mailbox.append([entry(n, f"d{n}", b"x" * 12_000) for n in range(first, first + 500)])
        await mailbox.look("d0")
    written = place.path.stat().st_size
    assert written > 60_000_000
    assert Path(f"{place.path}-wal").stat().st_size < 45_000_000
    await mailbox.close(5.0)


async def test_unused_sources_are_removed(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    await mailbox.append([entry(5, source="old/0"), entry(5, source="used/0")])
    place.clock.now += FORGET_AFTER_S - 100
    await mailbox.append([entry(6, source="used/0")])
    place.clock.now += 200
    for _ in range(3):
        await mailbox.sweep()
    assert ask(place.path, "SELECT name FROM source") == [("used/0",)]
    assert ask(place.path, "SELECT count(*) FROM seen") == [(2,)]
    again = [entry(5, source="old/0"), entry(5, source="used/0"), entry(6, source="used/0")]
    assert await mailbox.append(again) == [4, None, None]
    await mailbox.close(1.0)


async def test_what_was_seen_takes_few_rows(place: SqliteStand) -> None:
    mailbox = await place.open_file()
    for n in range(2 * MANY_RUNS):
        await mailbox.append([entry(3 * n)])
    assert ask(place.path, "SELECT count(*) FROM seen")[0] < (MANY_RUNS + 3,)
    assert await mailbox.append([entry(3 * n) for n in range(2 * MANY_RUNS)]) == [None] * (2 * MANY_RUNS)
    await place.crash(mailbox)
    mailbox = await place.open_file()
    assert await mailbox.append([entry(3 * n) for n in range(2 * MANY_RUNS)]) == [None] * (2 * MANY_RUNS)
    await mailbox.close(1.0)


def run(first: int, *stamps: int) -> SeenRun:
    return SeenRun(first, array("q", stamps))


def test_runs_are_put_together_across_small_holes() -> None:
    apart = 14 + MAX_HOLE + 1
    runs = [run(10, 1), run(11, 2), run(13, 3), run(apart, 4), run(apart + 1, 5)]
    assert put_together(runs) == [run(10, 1, 2, HOLE, 3), run(apart, 4, 5)]
    assert put_together([]) == []
    long = run(0, *range(LONG_RUN))
    assert put_together([long, run(LONG_RUN, 1)]) == [long, run(LONG_RUN, 1)]
