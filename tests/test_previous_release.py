"""This release opens what earlier releases stored, with all messages, cursors and positions.

``testing/record_release.py`` recorded each folder below ``tests/releases`` with the code of that release. The tests use
copies. A mailbox's clock stands shortly after the time of the recording, so messages expire only where a test turns it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from websockets.asyncio.client import ClientConnection

from cocoa_tornado.mailboxes.port import Mailbox, MailboxState
from cocoa_tornado.mailboxes.redis import RedisMailbox
from cocoa_tornado.mailboxes.sqlite import SqliteMailbox
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.service.gateway import Gateway
from cocoa_tornado.settings import Settings
from testing.redis_server import RedisServer
from testing.releases import (
    DATABASE,
    DUMP,
    EXPECTED,
    KILLED,
    Device,
    HandedOut,
    Received,
    Record,
    Release,
    ReplayBroker,
    Stored,
)
from testing.waiting import eventually

from .harness import SECRET, Harness

ROOT = Path(__file__).parent.parent
RELEASES = sorted(path.parent for path in (Path(__file__).parent / "releases").glob(f"*/{EXPECTED}"))
assert RELEASES, "no release is there to be opened"
MOST_BYTES = 400_000
DAY_S = 86_400.0
NEW_SOURCE = "transcription.results/77"

pytestmark = pytest.mark.gen_test(timeout=120)


class Site(Protocol):
    """Where the copies of one mailbox of one release are opened.

    :ivar stored: what the release stored there
    """

    stored: Stored

    def copy(self) -> None:
        """Make a fresh copy, in place of the one that a test has changed."""

    def mailbox(self, limits: BoxLimits, now: float) -> Mailbox:
        """Today's mailbox on the copy, with a clock that stands at ``now``."""


class SqliteSite:
    """:param folder: of the original database, and of its write-ahead log if it has one"""

    def __init__(self, release: Release, folder: Path, copy: Path) -> None:
        self.stored = release.sqlite
        self._folder, self._copy = folder, copy

    def copy(self) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)
        self._copy.mkdir()
        for path in self._folder.glob(f"{DATABASE}*"):
            shutil.copy(path, self._copy)

    def mailbox(self, limits: BoxLimits, now: float) -> Mailbox:
        return SqliteMailbox(self._copy / DATABASE, limits, lambda: now)


class RedisSite:
    """:param goes_on: pretend that Redis was not restarted since the release stored the last message"""

    def __init__(self, release: Release, dump: Path, server: RedisServer, goes_on: bool) -> None:
        self.stored = release.redis
        self._dump, self._server, self._goes_on = dump, server, goes_on

    def copy(self) -> None:
        self._server.kill()
        shutil.copy(self._dump, self._server.folder / "dump.rdb")
        try:
            self._server.start(appendonly="no")
        except RuntimeError as error:
            if "RDB format version" in str(error):
                assert "CI" not in os.environ, "this Redis is older than the one that wrote the dump"
                pytest.skip("this Redis is older than the one that wrote the dump")
            raise
        for key, left_ms in self.stored.expires_ms.items():
            assert self._server.command("PEXPIRE", key, left_ms) == 1
        if self._goes_on:
            with self._server.client() as client:
                assert client.hset(*self.stored.process, client.info("server")["run_id"]) == 0

    def mailbox(self, limits: BoxLimits, now: float) -> Mailbox:
        return RedisMailbox(self._server.url, limits, lambda: now)


class Opened:
    """Today's gateway on what the release stored."""

    def __init__(self, harness: Harness, broker: ReplayBroker, mailbox: Mailbox, release: Release) -> None:
        self.harness, self.mailbox = harness, mailbox
        self._broker, self._release = broker, release
        self._fields = {record.text: record.fields for record in release.records}

    async def connect(self, device_id: str, query: str = "") -> ClientConnection:
        return await self.harness.connect_with(self.harness.token(device_id) + query)

    async def leave(self, device_id: str, connection: ClientConnection) -> None:
        await connection.close()
        await eventually(lambda: not self.harness.gateway.hub.is_device_connected(device_id))

    async def hand_over(self, *records: Record) -> None:
        await self._broker.hand_over(records)

    async def publish(self, offset: int, text: str, device_ids: Iterable[str]) -> None:
        """Store one new message for each of these devices.

        :param offset: of the first record; each call needs its own range
        """
        timestamp_ms = int(self._release.recorded_at * 1000) + offset
        await self.hand_over(
            *(
                Record(NEW_SOURCE, at, timestamp_ms, json.dumps({"device_id": device_id, "text": text}))
                for at, device_id in enumerate(device_ids, offset)
            )
        )

    async def hear(self, connection: ClientConnection, expected: Received) -> None:
        """Receive the expected messages, field for field."""
        if expected.missed:
            assert await _receive(connection) == {"type": "gap", "missed": expected.missed}
        messages = [await _receive(connection) for _ in expected.texts]
        found = [[field for field in message.items() if field[0] != "cursor"] for message in messages]
        assert found == [[("type", "transcription"), *self._fields[text].items()] for text in expected.texts]
        assert all(list(message)[-1] == "cursor" for message in messages)

    async def hear_new(self, connection: ClientConnection, text: str) -> str:
        """Receive a message of :meth:`publish`, and nothing before it; returns its cursor."""
        message = await _receive(connection)
        assert message.get("text") == text, message
        return str(message["cursor"])

    async def hear_no_more(self, offset: int, connections: dict[str, ClientConnection]) -> None:
        """Check that nothing more was to come: messages come in order, and a new one comes next.

        :param offset: see :meth:`publish`
        """
        await self.publish(offset, "no more", connections)
        for connection in connections.values():
            await self.hear_new(connection, "no more")


class Case:
    """One mailbox of one release."""

    def __init__(self, release: Release, site: Site) -> None:
        self.release, self.stored = release, site.stored
        self._site = site

    @property
    def devices(self) -> dict[str, Device]:
        return self.stored.devices

    @property
    def kept(self) -> list[Record]:
        """The records of all messages that are in the mailbox."""
        texts = {text for device in self.devices.values() for text in device.all_kept.texts}
        return [record for record in self.release.records if record.text in texts]

    @asynccontextmanager
    async def fresh(self, later_s: float = 60.0) -> AsyncIterator[Opened]:
        """A gateway on a fresh copy of the mailbox.

        :param later_s: how long after the recording
        """
        await asyncio.to_thread(self._site.copy)
        async with self.again(later_s) as opened:
            yield opened

    @asynccontextmanager
    async def again(self, later_s: float = 120.0) -> AsyncIterator[Opened]:
        """Another gateway on the copy that the last one used."""
        mailbox = self._site.mailbox(BoxLimits(ttl_s=DAY_S), self.release.recorded_at + later_s)
        settings = Settings(port=0, jwt_secret=SECRET, speech="none://", drain_grace_s=5.0)
        broker = ReplayBroker()
        harness = Harness(Gateway(settings, broker, mailbox=mailbox))
        await harness.gateway.start()
        try:
            await eventually(lambda: mailbox.status().state is MailboxState.READY)
            yield Opened(harness, broker, mailbox, self.release)
        finally:
            await harness.stop()

    def rounds(self) -> Iterator[dict[str, HandedOut]]:
        """Every cursor, one per device at a time. Each round needs a fresh copy, for a connection changes the box."""
        most = max(len(device.handed_out) for device in self.devices.values())
        for at in range(most):
            yield {
                device_id: device.handed_out[at]
                for device_id, device in self.devices.items()
                if at < len(device.handed_out)
            }


async def _receive(connection: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await asyncio.wait_for(connection.recv(), 20))
    return message


async def _for_each(
    device_ids: Iterable[str], connect: Callable[[str], Awaitable[ClientConnection]]
) -> dict[str, ClientConnection]:
    return {device_id: await connect(device_id) for device_id in device_ids}


async def _hear_after(opened: Opened, cursors: dict[str, HandedOut]) -> dict[str, ClientConnection]:
    """Connect each device with its cursor: it gets the messages after it, and no others."""
    connections = {
        device_id: await opened.connect(device_id, f"&after={handed_out.cursor}")
        for device_id, handed_out in cursors.items()
    }
    for device_id, connection in connections.items():
        await opened.hear(connection, cursors[device_id].next)
    await opened.hear_no_more(0, connections)
    return connections


MAY_LOSE = pytest.mark.logs("cocoa.mailbox", "mailbox may lose messages")  # Redis runs without an append-only file


@pytest.fixture(params=RELEASES, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture(
    params=[
        "sqlite",
        "sqlite-killed",
        pytest.param("redis", marks=[pytest.mark.redis, MAY_LOSE]),
        pytest.param("redis-restarted", marks=[pytest.mark.redis, MAY_LOSE]),
    ]
)
def case(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Case:
    release = Release.read(folder)
    if request.param.startswith("sqlite"):
        source = folder / KILLED if request.param == "sqlite-killed" else folder
        return Case(release, SqliteSite(release, source, tmp_path / "mailbox"))
    server: RedisServer = request.getfixturevalue("own_redis")
    goes_on = request.param == "redis"
    return Case(release, RedisSite(release, folder / DUMP, server, goes_on))


async def test_every_message_not_yet_written_reaches_its_device_in_order_and_once(case: Case) -> None:
    async with case.fresh() as opened:
        connections = await _for_each(case.devices, opened.connect)
        for device_id, connection in connections.items():
            await opened.hear(connection, case.devices[device_id].plain)
        await opened.hear_no_more(0, connections)


async def test_a_device_that_uses_cursors_and_has_none_receives_everything_kept(case: Case) -> None:
    async with case.fresh() as opened:
        connections = await _for_each(case.devices, lambda device_id: opened.connect(device_id, "&cursors=1"))
        for device_id, connection in connections.items():
            await opened.hear(connection, case.devices[device_id].all_kept)
        await opened.hear_no_more(0, connections)


async def test_every_cursor_handed_out_gives_exactly_what_came_after_it(case: Case) -> None:
    for cursors in case.rounds():
        async with case.fresh() as opened:
            await _hear_after(opened, cursors)


async def test_an_acknowledgement_with_an_old_cursor_deletes_what_it_covers(case: Case) -> None:
    for cursors in case.rounds():
        async with case.fresh() as opened:
            connections = await _hear_after(opened, cursors)
            for device_id, connection in connections.items():
                await connection.send(json.dumps({"type": "ack", "cursor": cursors[device_id].cursor}))
                await opened.leave(device_id, connection)
            assert opened.harness.gateway.counters.bad_acks == 0
            assert not opened.harness.broker.records("device.messages")
        covered = sum(
            len(case.devices[device_id].all_kept.texts) - len(handed_out.next.texts)
            for device_id, handed_out in cursors.items()
        )
        assert opened.mailbox.counters.acknowledged == covered
        async with case.again() as opened:
            assert opened.mailbox.status().messages == len(case.kept) - covered + len(cursors)
            for device_id, handed_out in cursors.items():
                # Without a cursor now: the mailbox remembers what was acknowledged.
                connection = await opened.connect(device_id)
                if not handed_out.next.missed:  # or the device may have been told of its gap and nothing else
                    await opened.hear(connection, handed_out.next)
                    await opened.hear_new(connection, "no more")


async def test_a_pending_gap_is_sent_first_and_once(case: Case) -> None:
    owed = {device_id: device.plain for device_id, device in case.devices.items() if device.plain.missed}
    assert owed
    async with case.fresh() as opened:
        for device_id, expected in owed.items():
            connection = await opened.connect(device_id)
            await opened.hear(connection, expected)
            await opened.leave(device_id, connection)
        # A device that acknowledges is sent the gap again, until it acknowledges a message behind the gap.
        told = [device_id for device_id in owed if not (case.devices[device_id].handed_out and owed[device_id].texts)]
        assert told
        await opened.hear_no_more(0, await _for_each(told, opened.connect))


async def test_a_record_stored_by_the_release_is_not_stored_again(case: Case) -> None:
    remembered = [record for record in case.release.records if record.text in case.stored.remembered]
    assert len(remembered) == len(case.stored.remembered) > 0
    async with case.fresh() as opened:
        await opened.hand_over(*remembered)
        assert (opened.mailbox.counters.stored, opened.mailbox.counters.duplicates) == (0, len(remembered))
        assert opened.mailbox.status().messages == len(case.kept)
        connections = await _for_each(case.devices, opened.connect)
        for device_id, connection in connections.items():
            await opened.hear(connection, case.devices[device_id].plain)
        await opened.hear_no_more(0, connections)
        # With another timestamp, it is another record: the topic was made anew.
        await opened.hand_over(remembered[-1]._replace(timestamp_ms=remembered[-1].timestamp_ms + 1))
        assert opened.mailbox.counters.stored == len(case.devices) + 1


async def test_the_mailbox_knows_how_much_is_in_it(case: Case) -> None:
    payloads = [{"type": "transcription"} | record.fields for record in case.kept]
    size = sum(len(json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()) for payload in payloads)
    async with case.fresh() as opened:
        status = opened.mailbox.status()
        assert (status.messages, status.size_bytes) == (len(payloads), size)


async def test_messages_of_the_release_expire_a_day_after_they_were_stored(case: Case) -> None:
    async with case.fresh(later_s=DAY_S + 1) as opened:
        connections = await _for_each(case.devices, opened.connect)
        await opened.publish(0, "no more", connections)
        for device_id, connection in connections.items():
            plain = case.devices[device_id].plain
            await opened.hear(connection, Received(plain.missed + len(plain.texts), []))
            await opened.hear_new(connection, "no more")


async def test_new_messages_come_behind_the_old_and_cursors_of_both_work_after_a_restart(case: Case) -> None:
    first: dict[str, str] = {}
    second: dict[str, str] = {}
    async with case.fresh() as opened:
        await opened.publish(0, "first new", case.devices)
        connections = await _for_each(case.devices, opened.connect)
        for device_id, connection in connections.items():
            await opened.hear(connection, case.devices[device_id].plain)
            first[device_id] = await opened.hear_new(connection, "first new")
        await opened.publish(100, "second new", case.devices)
        for device_id, connection in connections.items():
            second[device_id] = await opened.hear_new(connection, "second new")
    async with case.again() as opened:
        for device_id, device in case.devices.items():
            connection = await opened.connect(device_id, f"&after={first[device_id]}")
            await opened.hear_new(connection, "second new")
            await opened.leave(device_id, connection)
            for handed_out in device.handed_out:
                connection = await opened.connect(device_id, f"&after={handed_out.cursor}")
                await opened.hear(connection, handed_out.next)
                for text in ("first new", "second new"):
                    await opened.hear_new(connection, text)
                await opened.leave(device_id, connection)
        connections = await _for_each(
            second, lambda device_id: opened.connect(device_id, f"&after={second[device_id]}")
        )
        await opened.hear_no_more(200, connections)


async def test_a_cursor_of_another_device_or_mailbox_is_refused(case: Case) -> None:
    other = case.release.redis if case.stored is case.release.sqlite else case.release.sqlite
    async with case.fresh() as opened:
        for device_id, device in case.devices.items():
            others = [
                handed_out.cursor
                for other_id, other_device in case.devices.items()
                if other_id != device_id
                for handed_out in other_device.handed_out
            ]
            foreign = [handed_out.cursor for handed_out in other.devices[device_id].handed_out]
            changed = [
                handed_out.cursor[:-1] + ("B" if handed_out.cursor.endswith("A") else "A")
                for handed_out in device.handed_out
            ]
            for cursor in (*others[:2], *foreign[:2], *changed[:2]):
                refused = await opened.harness.upgrade(f"{opened.harness.token(device_id)}&after={cursor}")
                assert (refused.response.status, refused.response.body) == (400, b'{"message":"Unknown cursor"}')


@pytest.mark.redis
async def test_the_script_records_a_release_with_every_state(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    command = [sys.executable, "-m", "testing.record_release", str(folder)]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)) for path in files}
    assert names == {DATABASE, f"{KILLED}/{DATABASE}", f"{KILLED}/{DATABASE}-wal", DUMP, EXPECTED}
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    release = Release.read(folder)
    for stored in (release.sqlite, release.redis):
        devices = stored.devices.values()
        assert any(device.plain.missed and not device.plain.texts for device in devices)
        assert any(device.plain.missed and device.plain.texts for device in devices)
        assert any(device.plain != device.all_kept for device in devices)
        assert any(handed_out.next.missed for device in devices for handed_out in device.handed_out)


async def test_the_script_writes_over_no_release(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "testing.record_release", str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    assert "exists already" in done.stderr
