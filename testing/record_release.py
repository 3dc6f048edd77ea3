"""Record what this release stores, so that later releases can prove that they open it.

``python -m testing.record_release tests/releases/<version>`` runs a real gateway once on SQLite and once on Redis.
Devices connect over WebSockets, receive messages, acknowledge some and leave, until the mailbox holds every kind of
state there is. ``testing/releases.py`` describes the files; CONTRIBUTING.rst says when to run this.

:class:`Story` computes what each device must receive later. It goes by what was sent, lost and acknowledged, and never
asks the mailbox.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect

from cocoa_tornado import __version__
from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.mailboxes.port import Mailbox, MailboxState
from cocoa_tornado.mailboxes.redis import RedisMailbox
from cocoa_tornado.mailboxes.sqlite import SqliteMailbox
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.identity import TokenPolicy
from cocoa_tornado.service.gateway import Gateway
from cocoa_tornado.settings import Settings

from .redis_server import RedisServer
from .releases import DATABASE, DUMP, KILLED, Device, HandedOut, Received, Record, Release, ReplayBroker, Stored
from .waiting import eventually

SECRET: Final = "a secret of thirty-two bytes, or more"
LIMITS: Final = BoxLimits(max_messages=8)
HOUR_S, DAY_S = 3600.0, 86_400.0
MARKS_S: Final = 1.5
"""The time after which marks are stored; the mailbox port promises a second."""

DOLL, PENGUIN = "doll", 'Пингвин "7" 🐧'
ALL_READ, FIRMWARE, UNREAD = "all read", "no cursors", "never connected"
FULL, FULL_AND_ACKED = "full box", "full box after an acknowledgement"
EXPIRED, EXPIRED_AND_KEPT, TOLD = "expired", "expired and kept", "told of a gap"
LONG_AWAY, LISTENER, SPEAKER = "away for a month", "hypothesis only", "hypothesis after a message"

PROCESS: Final = ["cocoa:{box}:meta", "run"]


class Clock:
    """A manual clock for a mailbox, in Unix seconds."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass
class Story:
    """What happened to one device's box. A position is a number of messages, counted from the device's first.

    :ivar stored: the texts of all messages
    :ivar base: up to this position, the messages were in a box that has been removed
    :ivar gone: up to this position, they were acknowledged or lost
    :ivar written: up to this position, they were written to a socket, or a gap notice counted them
    :ivar acked: up to this position, the device acknowledged them; None: it never acknowledged anything
    :ivar cursors: each with the text of its message and its position
    """

    device_id: str
    stored: list[str] = field(default_factory=list)
    base: int = 0
    gone: int = 0
    written: int = 0
    acked: int | None = None
    cursors: list[tuple[str, str, int]] = field(default_factory=list)

    def store(self, text: str) -> None:
        self.stored.append(text)
        self.gone = max(self.gone, len(self.stored) - LIMITS.max_messages)

    def acknowledge(self, position: int) -> None:
        self.acked, self.gone = position, max(self.gone, position)

    def expire(self) -> None:
        self.gone = len(self.stored)

    def remove(self) -> None:
        self.base = self.gone = self.written = len(self.stored)
        self.acked = None

    def lose_end(self, before: Story) -> None:
        """The mailbox returns to an earlier state; the device keeps its cursors."""
        known = [(cursor, text, min(position, len(before.stored))) for cursor, text, position in self.cursors]
        self.stored, self.base, self.gone = before.stored, before.base, before.gone
        self.written, self.acked, self.cursors = before.written, before.acked, known

    def copy(self) -> Story:
        return Story(self.device_id, self.stored[:], self.base, self.gone, self.written, self.acked, self.cursors[:])

    def expected(self) -> Device:
        acked = self.base if self.acked is None else self.acked
        plain = self._after(self.written if self.acked is None else self.acked)
        all_kept = self._after(max(acked, min(self.written, self.gone)))
        handed_out = [
            HandedOut(cursor, text, self._after(max(acked, position))) for cursor, text, position in self.cursors
        ]
        return Device(plain, all_kept, handed_out)

    def _after(self, position: int) -> Received:
        return Received(max(0, self.gone - position), self.stored[max(position, self.gone) :])


class Peer:
    """A device, connected."""

    def __init__(self, socket: ClientConnection, story: Story) -> None:
        self._socket, self._story = socket, story

    async def hear(self, count: int) -> None:
        """Receive this many messages."""
        for _ in range(count):
            message = await self._receive()
            at = self._story.stored.index(message["text"]) + 1
            self._story.written = max(self._story.written, at)
            self._note_cursor(message, at)

    async def hear_gap(self) -> None:
        missed = self._story.gone - self._story.written
        found = await self._receive()
        assert found == {"type": "gap", "missed": missed}, found
        self._story.written = self._story.gone

    async def hear_hypothesis(self, timeout_s: float = 10.0) -> str:
        message = await self._receive(timeout_s)
        assert message["final"] is False, message
        self._note_cursor(message, len(self._story.stored))
        return str(message["text"])

    async def acknowledge(self, position: int) -> None:
        """Acknowledge everything up to a message, by the cursor that came with it."""
        (cursor, *_) = (cursor for cursor, _, at in self._story.cursors if at == position)
        await self._socket.send(json.dumps({"type": "ack", "cursor": cursor}))
        self._story.acknowledge(position)

    async def _receive(self, timeout_s: float = 10.0) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await asyncio.wait_for(self._socket.recv(), timeout_s))
        return message

    def _note_cursor(self, message: dict[str, Any], position: int) -> None:
        if message["cursor"] not in [cursor for cursor, *_ in self._story.cursors]:
            self._story.cursors.append((message["cursor"], message["text"], position))


class Recording:
    """The lifetime of one mailbox.

    :param make: creates a mailbox on the stored data of the previous one
    """

    def __init__(self, make: Callable[[Clock], Mailbox], now: float) -> None:
        self._make, self._now = make, now
        self.clock = Clock(now)
        self.stories: dict[str, Story] = {}
        self.records: list[Record] = []
        self.remembered: list[str] = []
        self._ends: dict[int, int] = {}
        self._gateway: Gateway
        self._broker: ReplayBroker

    @asynccontextmanager
    async def gateway(self, ago_s: float) -> AsyncIterator[None]:
        """A gateway whose mailbox has a clock that is ``ago_s`` seconds slow."""
        self.clock.now = self._now - ago_s
        mailbox = self._make(self.clock)
        self._broker = ReplayBroker()
        settings = Settings(port=0, jwt_secret=SECRET, speech="none://", drain_grace_s=10.0)
        self._gateway = Gateway(settings, self._broker, mailbox=mailbox)
        await self._gateway.start()
        try:
            await eventually(lambda: mailbox.status().state is MailboxState.READY)
            while await mailbox.sweep():
                pass
            yield
        finally:
            await self._gateway.drain_and_stop()

    @asynccontextmanager
    async def device(self, device_id: str, query: str = "") -> AsyncIterator[Peer]:
        """A device while it is connected.

        :param query: appended to the URL
        """
        request = TokenRequest(device_id, 99, lifetime_s=600)
        token = mint(request, Signer.from_secret(SECRET), TokenPolicy(), time.time())
        url = f"ws://127.0.0.1:{self._gateway.port}/ws?token={token}{query}"
        async with connect(url, ping_interval=None, proxy=None) as socket:
            yield Peer(socket, self.story(device_id))
        await eventually(lambda: not self._gateway.hub.is_device_connected(device_id))

    def story(self, device_id: str) -> Story:
        return self.stories.setdefault(device_id, Story(device_id))

    async def store(self, partition: int, *counts: tuple[str, int], padding: str = "", is_lost: bool = False) -> None:
        """Store messages in one batch.

        :param counts: how many for which device
        :param padding: an extra field that makes them large
        :param is_lost: the mailbox will lose them
        """
        batch = []
        for device_id, count in counts:
            for _ in range(count):
                at = len(self.story(device_id).stored) + 1
                text = f"{device_id}: lost" if is_lost else f"{device_id}: {at}"
                batch.append(self._record(partition, device_id, text, **({"padding": padding} if padding else {})))
                self.story(device_id).store(text)
        await self._broker.hand_over(batch)
        self.remembered += [] if is_lost else [record.text for record in batch]

    async def suggest(self, partition: int, device_id: str, text: str) -> None:
        """Hand over a hypothesis."""
        await self._broker.hand_over([self._record(partition, device_id, text, final=False)])

    def _record(self, partition: int, device_id: str, text: str, **fields: object) -> Record:
        offset = self._ends.get(partition, 100 * partition)
        self._ends[partition] = offset + 1
        value = {"session_id": "s", "user_id": 99, "device_id": device_id, "text": text} | fields
        source, timestamp_ms = f"transcription.results/{partition}", int(self.clock.now * 1000) + offset
        self.records.append(Record(source, offset, timestamp_ms, json.dumps(value, ensure_ascii=False)))
        return self.records[-1]

    def result(self, **facts: Any) -> Stored:
        devices = {device_id: story.expected() for device_id, story in self.stories.items()}
        return Stored(devices, self.remembered, **facts)

    # -- the life

    async def a_month_ago(self) -> None:
        async with self.gateway(32 * DAY_S), self.device(LONG_AWAY, "&cursors=1") as device:
            await self.store(9, (LONG_AWAY, 2))
            await device.hear(2)
            await device.acknowledge(2)

    async def a_day_ago(self) -> None:
        async with self.gateway(25 * HOUR_S):
            # The mailbox has removed the empty box and the partition, after a month without use.
            self.story(LONG_AWAY).remove()
            self.remembered.clear()
            async with self.device(EXPIRED, "&cursors=1") as device:
                await self.store(1, (EXPIRED, 1))
                await device.hear(1)
                await device.acknowledge(1)
            await self.store(1, (EXPIRED, 2), (EXPIRED_AND_KEPT, 2), (TOLD, 2))

    async def an_hour_ago(self) -> None:
        async with self.gateway(HOUR_S):
            for device_id in (EXPIRED, EXPIRED_AND_KEPT, TOLD):
                self.story(device_id).expire()
            async with self.device(TOLD) as device:
                await device.hear_gap()
            await self.store(1, (EXPIRED_AND_KEPT, 1), (LONG_AWAY, 2))
            await self._hypotheses()
            await self._conversations()
            await self.store(0, (DOLL, 2), (PENGUIN, 1), (FIRMWARE, 2), (UNREAD, 5), (FULL, 11), (FULL_AND_ACKED, 9))
            await self.store(2, (PENGUIN, 1), padding=" ".join(map(str, range(2_500))))
            await asyncio.sleep(MARKS_S)

    async def _hypotheses(self) -> None:
        async with self.device(LISTENER, "&cursors=1") as device:
            # The gateway drops a hypothesis until it has looked into the box. The partition is used for nothing else,
            # so that the number of attempts changes no other offset.
            before = len(self.records)
            for attempt in range(100):
                await self.suggest(4, LISTENER, f"hypothesis {attempt}")
                with contextlib.suppress(TimeoutError):
                    heard = await device.hear_hypothesis(0.2)
                    self.records[before:] = [made for made in self.records[before:] if heard in made.value]
                    break
        async with self.device(SPEAKER, "&cursors=1") as device:
            await self.store(0, (SPEAKER, 1))
            await device.hear(1)
            await self.suggest(0, SPEAKER, "a hypothesis behind a message")
            await device.hear_hypothesis()

    async def _conversations(self) -> None:
        async with (
            self.device(DOLL, "&cursors=1") as doll,
            self.device(PENGUIN, "&cursors=1") as penguin,
            self.device(ALL_READ, "&cursors=1") as all_read,
            self.device(FULL_AND_ACKED, "&cursors=1") as full,
            self.device(FIRMWARE) as firmware,
        ):
            await self.store(0, (DOLL, 2), (PENGUIN, 3), (ALL_READ, 2), (FULL_AND_ACKED, 2), (FIRMWARE, 3))
            await self.store(2, (DOLL, 2))
            await doll.hear(4)
            await penguin.hear(3)
            await all_read.hear(2)
            await full.hear(2)
            await firmware.hear(3)
            await doll.acknowledge(2)
            await penguin.acknowledge(1)
            await all_read.acknowledge(2)
            await full.acknowledge(1)

    async def what_will_be_lost(self) -> None:
        """A message that a device receives and that is gone when Redis restarts."""
        async with self.gateway(HOUR_S / 2), self.device(DOLL, self._after(DOLL, 4)) as device:
            await device.hear(2)
            await self.store(7, (DOLL, 1), is_lost=True)
            await device.hear(1)

    @asynccontextmanager
    async def now(self) -> AsyncIterator[None]:
        """The last gateway, after it has stored everything."""
        async with self.gateway(0.0):
            await self.store(1, (DOLL, 1), (FIRMWARE, 1), (EXPIRED_AND_KEPT, 1))
            async with self.device(DOLL, self._after(DOLL, 4)) as device:
                await device.hear(3)
            await asyncio.sleep(MARKS_S)
            yield

    def _after(self, device_id: str, position: int) -> str:
        (cursor, *_) = (cursor for cursor, _, at in self.story(device_id).cursors if at == position)
        return f"&after={cursor}"


async def record_sqlite(folder: Path, now: float) -> tuple[Recording, Stored]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / DATABASE
        recording = Recording(lambda clock: SqliteMailbox(path, LIMITS, clock), now)
        await recording.a_month_ago()
        await recording.a_day_ago()
        await recording.an_hour_ago()
        async with recording.now():
            (folder / KILLED).mkdir()
            # In another process: closing a copy's source in this one would drop SQLite's POSIX locks on it.
            subprocess.run(["cp", path, f"{path}-wal", folder / KILLED], check=True)
        shutil.copy(path, folder / DATABASE)
    return recording, recording.result()


async def record_redis(folder: Path, now: float) -> tuple[Recording, Stored]:
    with tempfile.TemporaryDirectory() as scratch:
        server = RedisServer(Path(scratch), appendonly="no")
        server.start()
        try:
            recording = Recording(lambda clock: RedisMailbox(server.url, LIMITS, clock), now)
            await recording.a_month_ago()
            await recording.a_day_ago()
            await recording.an_hour_ago()
            server.command("SAVE")
            before = {device_id: story.copy() for device_id, story in recording.stories.items()}
            await recording.what_will_be_lost()
            server.kill()
            server.start()
            for device_id, story in recording.stories.items():
                story.lose_end(before[device_id])
            async with recording.now():
                pass
            expires_ms = _without_expiry(server)
            server.command("SAVE")
            shutil.copy(Path(scratch) / "dump.rdb", folder / DUMP)
        finally:
            server.close()
    return recording, recording.result(expires_ms=expires_ms, process=PROCESS)


def _without_expiry(server: RedisServer) -> dict[str, int]:
    """Remove the expiry of all keys; returns the milliseconds that each had left."""
    found = {}
    with server.client() as client:
        for key in client.scan_iter():
            if (left_ms := client.pttl(key)) > 0:
                found[key.decode()] = left_ms
                client.persist(key)
    return found


async def record(folder: Path) -> None:
    now = round(time.time(), 3)
    on_sqlite, sqlite = await record_sqlite(folder, now)
    on_redis, redis = await record_redis(folder, now)
    Release(__version__, now, _joined(on_sqlite.records, on_redis.records), sqlite, redis).write(folder)


def _joined(*records: Iterable[Record]) -> list[Record]:
    return sorted({record for some in records for record in some})


def main() -> None:
    parser = argparse.ArgumentParser(description="Record what this release stores, for later releases to open.")
    parser.add_argument("folder", type=Path, help="tests/releases/<version>; must not exist yet")
    folder: Path = parser.parse_args().folder
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        sys.exit(f"{folder} exists already; the fixtures of a release are never recorded again")
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(record(folder))


if __name__ == "__main__":
    main()
