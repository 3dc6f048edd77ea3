"""Blocked devices: refused everywhere, until they are unblocked or a time, through restarts."""

from __future__ import annotations

import asyncio
import json
import math
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cocoa_tornado.admin.block_file import BlockFile
from cocoa_tornado.admin.block_redis import BlockRedis
from cocoa_tornado.admin.blocks import BlockFault, Blocks, BlockStore
from cocoa_tornado.hub import Hub
from testing.raw_device import CLOSE
from testing.redis_server import RedisServer
from testing.waiting import eventually

from ..harness import Harness
from ..scripted_engine import ScriptedEngine
from .conftest import StartAdmin, ask, send

pytestmark = pytest.mark.gen_test(timeout=60)
Two = tuple[Harness, Harness]


async def test_a_blocked_device_is_disconnected_and_refused_at_every_endpoint(start_admin: StartAdmin) -> None:
    gateway = await start_admin(engine=ScriptedEngine())
    device, other = await gateway.raw("doll"), await gateway.raw("bear")
    status, body, _ = await ask(gateway, "PUT", "/devices/doll/block")
    assert (status, body) == (200, {"blocked": True, "until": None, "closed": 1, "missing": []})
    assert (await device.read_until(CLOSE)).close_code == 4410
    token = gateway.token("doll")
    refused = await gateway.upgrade(token)
    assert (refused.response.status, refused.response.body) == (403, b'{"message":"Device blocked"}')
    for method, target in (("GET", "/ws"), ("POST", "/api/v1/audio/stream"), ("POST", "/api/v1/transcriptions")):
        response = await send(gateway, method, target, token, b"{}" if method == "POST" else b"")
        assert (response.status, response.body) == (403, b'{"message":"Device blocked"}'), target
    assert gateway.gateway.hub.is_device_connected("bear")
    assert gateway.gateway.counters.handshakes["blocked"] == 1
    await other.end()


async def test_a_device_that_is_unblocked_may_connect(gateway: Harness) -> None:
    await ask(gateway, "PUT", "/devices/doll/block")
    assert (await ask(gateway, "DELETE", "/devices/doll/block"))[:2] == (200, {"blocked": False, "missing": []})
    assert (await gateway.raw("doll")).response.status == 101
    assert (await ask(gateway, "DELETE", "/devices/doll/block"))[0] == 200


async def test_a_block_ends_at_its_time(gateway: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    until = datetime.fromtimestamp(time.time() + 3600, UTC).isoformat()
    assert (await ask(gateway, "PUT", "/devices/doll/block", {"until": until}))[1]["until"] == until
    assert (await gateway.upgrade(gateway.token("doll"))).response.status == 403
    blocked = gateway.gateway.parts.blocks.blocked
    assert blocked.holds("doll", time.time() + 3599)
    assert not blocked.holds("doll", time.time() + 3601)


INVALID = [5, "tomorrow", "2020-01-01T00:00:00Z", "2099-01-01T00:00:00", "", [], True, "9999-12-31T23:59:59-23:59"]


@pytest.mark.parametrize("until", INVALID)
async def test_an_invalid_time_is_a_400(gateway: Harness, until: object) -> None:
    assert (await ask(gateway, "PUT", "/devices/doll/block", {"until": until}))[:2] == (
        400,
        {"message": "Invalid until"},
    )
    assert not gateway.gateway.parts.blocks.blocked.until


@pytest.mark.parametrize("mailbox", ["none://", "sqlite:///"])
async def test_a_block_outlives_a_restart(start_admin: StartAdmin, tmp_path: Path, mailbox: str) -> None:
    url = f"sqlite:///{tmp_path / 'box.db'}" if mailbox == "sqlite:///" else mailbox
    first = await start_admin(mailbox=url)
    await ask(first, "PUT", "/devices/doll/block")
    await first.gateway.drain_and_stop()
    second = await start_admin(mailbox=url, admin_jwt_secret="")  # also where the admin API is disabled
    assert (await second.upgrade(second.token("doll"))).response.status == 403
    path = tmp_path / ("box.db-blocked.json" if mailbox == "sqlite:///" else "blocked.json")
    assert json.loads(path.read_text()) == {"doll": None}
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_block_holds_on_all_servers_at_once(two_admins: Two) -> None:
    """Their store is one file here."""
    a, b = two_admins
    device = await b.raw("doll")
    assert (await ask(a, "PUT", "/devices/doll/block"))[1]["closed"] == 1
    assert (await device.read_until(CLOSE)).close_code == 4410
    for gateway in two_admins:
        assert (await gateway.upgrade(gateway.token("doll"))).response.status == 403
    await ask(b, "DELETE", "/devices/doll/block")
    assert (await a.raw("doll")).response.status == 101


async def test_a_block_that_cannot_be_stored_is_a_503_and_blocks_nobody(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin()
    (tmp_path / "blocked.json").mkdir()
    assert (await ask(gateway, "PUT", "/devices/doll/block"))[0] == 503
    assert (await gateway.raw("doll")).response.status == 101


@pytest.mark.parametrize("text", ["{", "[]", '{"doll":"x"}', "\xff"])
async def test_a_damaged_file_is_said_and_never_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "blocked.json"
    path.write_text(text, encoding="latin-1")
    store = BlockFile(path)
    with pytest.raises(BlockFault, match="damaged"):
        await Blocks(store, Hub(), time.time).start()
    with pytest.raises(BlockFault, match="damaged"):
        await store.write("doll", math.inf)
    assert path.read_text(encoding="latin-1") == text


async def check_store(store: BlockStore, other: BlockStore) -> None:
    """Two servers' views of one store."""
    assert dict(await store.read()) == {}
    await store.write("döll", math.inf)
    await store.write("bear", 1_700_000_000.25)
    assert dict(await other.read()) == dict(await store.read()) == {"döll": math.inf, "bear": 1_700_000_000.25}
    await other.write("bear", None)
    await other.write("nobody", None)
    assert dict(await store.read()) == {"döll": math.inf}
    await store.write("changed", 1_700_000_000.5)
    await store.write("over", 1_600_000_000.25)
    await store.forget({"over": 1_600_000_000.25, "changed": 1_600_000_000.0, "nobody": 1.0, "döll": 2.0})
    assert dict(await other.read()) == {"döll": math.inf, "changed": 1_700_000_000.5}
    await other.write("changed", None)


async def test_a_file_keeps_blocks(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "blocked.json"
    await check_store(BlockFile(path), BlockFile(path))


async def test_changes_of_a_file_that_are_made_at_the_same_time_do_not_undo_each_other(tmp_path: Path) -> None:
    store = BlockFile(tmp_path / "blocked.json")
    await store.write("over", 1_600_000_000.0)
    names = [f"doll-{number}" for number in range(5)]
    changes = [store.write(name, math.inf) for name in names]
    await asyncio.gather(*changes, store.forget({"over": 1_600_000_000.0}), store.write("bear", 1_700_000_000.0))
    assert set(await store.read()) == {*names, "bear"}


async def test_blocks_that_are_over_are_removed_from_the_store_when_it_is_read(tmp_path: Path) -> None:
    store, now = BlockFile(tmp_path / "blocked.json"), 1_700_000_000.0
    for name, until in (("over", now - 61), ("just over", now - 59), ("blocked", now + 1), ("for ever", math.inf)):
        await store.write(name, until)
    await Blocks(store, Hub(), lambda: now).start()
    assert set(await store.read()) == {"just over", "blocked", "for ever"}
    assert set(json.loads((tmp_path / "blocked.json").read_text())) == {"just over", "blocked", "for ever"}


@pytest.mark.redis
async def test_redis_keeps_blocks_and_every_server_notices_a_change(redis_server: RedisServer) -> None:
    store, other = BlockRedis(redis_server.url), BlockRedis(redis_server.url)
    await check_store(store, other)
    await other.read()
    assert not await other.changed()
    await store.write("doll", math.inf)
    assert await other.changed()
    await other.read()
    assert not await other.changed()
    redis_server.command("FLUSHALL")
    assert await other.changed()
    for each in (store, other):
        await each.close()


@pytest.mark.redis
@pytest.mark.logs("cocoa.presence", "^lease lost$", optional=True)
async def test_a_block_at_one_server_holds_at_another_within_two_seconds_and_through_restarts(
    start_admin: StartAdmin, redis_server: RedisServer
) -> None:
    """On a real Redis, without the servers telling each other."""
    redis_server.command("FLUSHALL")

    async def start() -> Harness:
        gateway = await start_admin(mailbox=redis_server.url)
        await eventually(lambda: not gateway.gateway.readiness().failing)
        return gateway

    a, b = await start(), await start()
    device = await b.raw("doll")
    since = time.monotonic()
    assert (await ask(a, "PUT", "/devices/doll/block"))[0] == 200
    assert (await device.read_until(CLOSE)).close_code == 4410
    assert time.monotonic() - since < 60  # two seconds, on a machine that is not loaded
    assert (await b.upgrade(b.token("doll"))).response.status == 403
    await a.gateway.drain_and_stop()
    await b.gateway.drain_and_stop()
    c = await start()
    assert (await c.upgrade(c.token("doll"))).response.status == 403
    await ask(c, "DELETE", "/devices/doll/block")
    assert (await c.raw("doll")).response.status == 101
