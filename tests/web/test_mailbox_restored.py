"""Devices of a gateway whose SQLite mailbox was restored from a backup."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from cocoa_tornado.mailboxes.port import MailboxState
from testing.waiting import eventually

from ..harness import Harness

pytestmark = pytest.mark.gen_test(timeout=90)


@asynccontextmanager
async def gateway_on(path: Path) -> AsyncIterator[Harness]:
    gateway = await Harness.start(mailbox=f"sqlite:///{path}")
    try:
        yield gateway
    finally:
        await gateway.stop()


def back_up(path: Path) -> None:
    """As docs/operations.rst says."""
    with (
        contextlib.closing(sqlite3.connect(path)) as database,
        contextlib.closing(sqlite3.connect(path.with_suffix(".copy"))) as copy,
    ):
        database.backup(copy)


def put_back(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    shutil.copy(path.with_suffix(".copy"), path)


async def hear(device: ClientConnection, count: int) -> list[dict[str, Any]]:
    return [json.loads(await asyncio.wait_for(device.recv(), 20)) for _ in range(count)]


def texts(heard: list[dict[str, Any]]) -> str:
    return "".join(message["text"] for message in heard)


async def say(gateway: Harness, texts: str) -> None:
    mailbox = gateway.gateway.mailbox
    assert mailbox is not None
    before = mailbox.counters.stored
    for text in texts:
        await gateway.publish("doll", text)
    await eventually(lambda: mailbox.counters.stored == before + len(texts))


async def test_after_a_restore_a_newer_cursor_skips_no_message_and_its_acknowledgement_deletes_none(
    tmp_path: Path,
) -> None:
    path = tmp_path / "box.db"
    async with gateway_on(path) as gateway:
        device = await gateway.connect("doll")
        await say(gateway, "abc")
        await hear(device, 3)
        back_up(path)
        await say(gateway, "defgh")
        cursor = (await hear(device, 5))[-1]["cursor"]
    put_back(path)
    async with gateway_on(path) as gateway:
        await say(gateway, "ijklmn")
        device = await gateway.connect_with(f"{gateway.token()}&after={cursor}")
        assert texts(await hear(device, 6)) == "ijklmn"
        await device.send(json.dumps({"type": "ack", "cursor": cursor}))
        await device.close()
        await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
        device = await gateway.connect_with(f"{gateway.token()}&after={cursor}")
        assert texts(await hear(device, 6)) == "ijklmn"


@pytest.mark.logs("cocoa.device", "acknowledgement of an unknown cursor ignored")
async def test_a_cursor_that_the_restored_mailbox_cannot_know_gets_everything_that_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    async with gateway_on(path) as gateway:
        await say(gateway, "abc")
        back_up(path)
    async with gateway_on(path) as gateway:  # another epoch, which the backup does not know
        await say(gateway, "defgh")
        device = await gateway.connect("doll")
        cursor = (await hear(device, 8))[-1]["cursor"]
    put_back(path)
    async with gateway_on(path) as gateway:
        await say(gateway, "ijklmn")
        device = await gateway.connect_with(f"{gateway.token()}&after={cursor}")
        assert texts(await hear(device, 9)) == "abcijklmn"
        await device.send(json.dumps({"type": "ack", "cursor": cursor}))
        await say(gateway, "o")
        await hear(device, 1)
        mailbox = gateway.gateway.mailbox
        assert mailbox is not None
        status = mailbox.status()
        assert (status.state, status.messages) == (MailboxState.READY, 10)
        assert gateway.gateway.counters.bad_acks == 1
