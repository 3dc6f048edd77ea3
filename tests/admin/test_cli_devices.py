"""``cocoa admin devices``, ``device``, ``kick``, ``block`` and ``unblock``, against a gateway."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from cli.admin_client import place, route_of
from testing.raw_device import CLOSE, TEXT
from testing.waiting import eventually

from ..harness import Harness, Neighbors
from .conftest import StartAdmin, admin_token, ask
from .operator import COCOA, done, fails, json_of, run, words

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_devices_is_a_table_with_one_line_for_each_connection(start_admin: StartAdmin) -> None:
    gateway = await start_admin(server_name="here", connections_per_device=2)
    for device_id, claims in (
        ("doll-2", {"user_id": "ann", "groups": ["kitchen", "küche"]}),
        ("doll-1", {"user_id": "99"}),
        ("doll-1", {"user_id": "99"}),
    ):
        await gateway.upgrade(gateway.token(device_id, **claims))
    header, first, second, third = await done(gateway, "devices")
    assert words(header)[:5] == ["DEVICE", "USER", "GROUPS", "SERVER", "CONNECTED"]
    assert words(first)[:4] == words(second)[:4] == ["doll-1", '"99"', "-", "here"]  # the user 99 has no quotes
    assert words(third)[:4] == ["doll-2", "ann", "kitchen, küche", "here"]
    assert words(third)[5:9] == ["127.0.0.1", "1.0.0", "-", "0"]
    assert third.index("here") == header.index("SERVER")


async def test_devices_follows_the_pages_up_to_the_limit(gateway: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.admin_devices.MAX_PAGE", 2)
    for number in range(5):
        await gateway.raw(f"doll-{number}")
    everything = await json_of(gateway, "devices")
    assert [row["device_id"] for row in everything["devices"]] == [f"doll-{number}" for number in range(5)]
    assert (everything["next"], everything["missing"]) == (None, [])
    result = await run(gateway, "devices", "--limit", "3", "--json")
    assert [row["device_id"] for row in json.loads(result.stdout)["devices"]] == ["doll-0", "doll-1", "doll-2"]
    assert (json.loads(result.stdout)["next"], result.exit_code) == ("doll-2", 0)
    assert result.stderr == "There are more (5 connected in all): use a higher --limit, or --after doll-2\n"
    assert (json.loads(result.stdout)["connected"], everything["connected"]) == (5, 5)
    assert [words(line)[0] for line in (await done(gateway, "devices", "--after", "doll-2"))[1:]] == [
        "doll-3",
        "doll-4",
    ]


async def test_json_is_that_of_the_api(gateway: Harness) -> None:
    await gateway.raw("doll")
    for arguments, path in ((["devices"], "/devices"), (["device", "doll"], "/devices/doll")):
        assert (await json_of(gateway, *arguments)).keys() == (await ask(gateway, "GET", path)).body.keys()
    assert (await json_of(gateway, "devices"))["devices"][0]["device_id"] == "doll"


async def test_devices_are_selected_and_status_1_says_that_none_fits(gateway: Harness) -> None:
    await gateway.upgrade(gateway.token("doll", groups=["kitchen"]))
    for found in (["--user", "99"], ["--group", "kitchen"], ["--prefix", "do"]):
        assert len(await done(gateway, "devices", *found)) == 2
    for absent in (["--user", '"99"'], ["--group", "cellar"], ["--prefix", "x"], ["--after", "e"]):
        fails(await run(gateway, "devices", *absent), "no such device is connected")


async def test_without_any_device_the_list_is_empty_and_status_0(gateway: Harness) -> None:
    result = await run(gateway, "devices")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No device is connected.\n")


async def test_members_are_listed_connected_or_not(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    away = await gateway.upgrade(gateway.token("away", groups=["kü/che"]))
    await gateway.upgrade(gateway.token("doll", groups=["kü/che"]))
    await away.end()
    await eventually(lambda: len(gateway.gateway.hub) == 1)
    _, first, second = await done(gateway, "devices", "--group", "kü/che", "--members")
    assert words(first) == ["away", *["-"] * 9]
    assert words(second)[:3] == ["doll", "99", "kü/che"]
    assert len(await done(gateway, "devices", "--user", "99", "--members")) == 3
    fails(await run(gateway, "devices", "--group", "cellar", "--members"), "no such device is known")
    for wrong in (["--members"], ["--members", "--user", "1", "--group", "g"], ["--members", "--user=1", "--prefix=x"]):
        fails(await run(gateway, "devices", *wrong), "--members", 2)


async def test_a_device_is_shown_with_its_connections_box_and_events(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://", server_name="here")
    device = await gateway.raw("doll")
    await gateway.publish("away", "hello")
    await gateway.publish("doll", "hello")
    await device.read_until(TEXT)
    lines = await done(gateway, "device", "doll")
    assert [words(line)[1] for line in lines[:4]] == ["doll", "99", "-", "yes, 1 connection"]
    assert lines[4].startswith("box")
    assert words(lines[7])[0] == "here"
    assert words(lines[-4])[1:] == ["here", "connected", "101"]
    assert words(lines[-2]) == ["AT", "MESSAGE", "OUTCOME", "NOTE"]
    assert words(lines[-1])[1:3] == ["transcription.results/0/1", "written"]

    await eventually(lambda: gateway.gateway.broker.status().lag == 0)
    lines = await done(gateway, "device", "away")
    assert words(lines[3])[1] == "no"
    assert lines[4].split()[1:3] == ["1", "message,"]
    assert lines[4].endswith("acknowledged: nothing, ever")


async def test_a_device_that_nobody_knows_is_status_1(gateway: Harness) -> None:
    fails(await run(gateway, "device", "doll"), "doll: no server knows this device")
    fails(await run(gateway, "device", "d" * 129), "Invalid device")
    fails(await run(gateway, "device", "a/b\x1b"), "Invalid device")


async def test_a_kick_closes_the_connections_of_a_device_a_user_or_a_group(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    assert await done(gateway, "kick", "doll", "--reconnect-after", "5m") == ["Closed 1 connection."]
    assert (await device.read_until(TEXT)).payload == b'{"type":"reconnect","after_ms":300000}'
    assert (await device.read_until(CLOSE)).close_code == 4410
    for arguments in (["--user", "99"], ["--group", "g/1"]):
        for device_id in ("doll", "bear"):
            await gateway.upgrade(gateway.token(device_id, groups=["g/1"]))
        assert await json_of(gateway, "kick", *arguments) == {"closed": 2, "missing": []}
    fails(await run(gateway, "kick", "doll"), "there was no connection to close")
    result = await run(gateway, "kick", "doll", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, {"closed": 0, "missing": []})


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "Give one of DEVICE, --user and --group"),
        (("doll", "--user", "1"), "Give one of DEVICE, --user and --group"),
        (("doll", "--reconnect-after", "soon"), "--reconnect-after: 'soon' is not a duration"),
        (("doll", "--reconnect-after", "1.5"), "whole seconds"),
        (("doll", "--reconnect-after", "2d"), "at most 24h"),
    ],
)
async def test_a_wrong_kick_is_status_2_and_closes_nothing(
    gateway: Harness, arguments: tuple[str, ...], problem: str
) -> None:
    await gateway.raw("doll")
    fails(await run(gateway, "kick", *arguments), problem, 2)
    assert gateway.gateway.hub.is_device_connected("doll")


async def test_a_blocked_device_is_refused_until_it_is_unblocked(gateway: Harness) -> None:
    await gateway.raw("doll")
    assert await done(gateway, "block", "doll") == ["Blocked doll until it is unblocked; closed 1 connection."]
    assert (await gateway.upgrade(gateway.token("doll"))).response.status == 403
    assert "blocked    until it is unblocked" in await done(gateway, "device", "doll")
    assert await done(gateway, "unblock", "doll") == ["doll may connect."]
    assert (await gateway.upgrade(gateway.token("doll"))).response.status == 101
    assert await json_of(gateway, "unblock", "doll") == {"blocked": False, "missing": []}


async def test_a_block_may_end_at_a_time_or_after_one(gateway: Harness) -> None:
    lines = await done(gateway, "block", "doll", "--until", "2100-01-01T00:00:00Z")
    assert lines == ["Blocked doll until 2100-01-01T00:00:00Z; closed 0 connections."]
    until = (await json_of(gateway, "block", "doll", "--for", "2h"))["until"]
    assert timedelta(hours=1) < datetime.fromisoformat(until) - datetime.now(UTC) <= timedelta(hours=2)
    fails(await run(gateway, "block", "doll", "--until", "2000-01-01T00:00:00Z"), "is not in the future")
    fails(await run(gateway, "block", "doll", "--for", "0s"), "is not in the future")
    for wrong in ("yesterday", "2100-01-01T00:00:00"):
        fails(await run(gateway, "block", "doll", "--until", wrong), "is not a time in RFC 3339", 2)
    fails(await run(gateway, "block", "doll", "--until", "2100-01-01T00:00:00Z", "--for", "1h"), "exclusive", 2)
    fails(await run(gateway, "block", "doll", "--for", "x"), "--for: 'x' is not a duration", 2)
    fails(await run(gateway, "block", "doll", "--for", "9" * 30), "--for: too long", 2)


async def test_a_box_is_emptied_once(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    await (await gateway.raw("doll")).end()
    for number in range(2):
        await done(gateway, "send", "--device", "doll", "--text", "hello", "--id", f"m{number}")
    while (await json_of(gateway, "device", "doll"))["box"]["messages"] < 2:
        pass
    fails(await run(gateway, "empty", "doll"), "There is no terminal to ask at: confirm with --yes.", 2)
    assert await done(gateway, "empty", "doll", "--yes") == ["Deleted 2 messages."]
    fails(await run(gateway, "empty", "doll", "--yes"), "there was no message to delete")
    result = await run(gateway, "empty", "doll", "--yes", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, {"deleted": 0})


async def test_without_a_mailbox_there_is_no_box_to_empty(gateway: Harness) -> None:
    fails(await run(gateway, "empty", "doll", "--yes"), "There is no mailbox")


def _state_of(pid: int) -> str:
    """``S`` while the process waits; Linux only."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2][0]


@pytest.mark.parametrize("typed", ["n\n", "\n", "\x04", "y\n", "YES\n", "Ctrl-C"])
async def test_at_a_terminal_a_box_is_emptied_only_after_a_yes(start_admin: StartAdmin, typed: str) -> None:
    gateway = await start_admin(mailbox="memory://")
    await (await gateway.raw("doll")).end()
    await done(gateway, "send", "--device", "doll", "--text", "hello")
    while not (await json_of(gateway, "device", "doll"))["box"]["messages"]:
        pass
    terminal, its_side = os.openpty()
    url = f"http://127.0.0.1:{gateway.port}"
    process = await asyncio.create_subprocess_exec(
        *(COCOA, "admin", "empty", "doll", "--url", url, "--token", admin_token(), "--json"),
        stdin=its_side,
        stdout=subprocess.PIPE,
        stderr=its_side,
        # A shell that runs the tests in the background has them, and so their children, ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    shown = b""
    while b"[y/N] " not in shown:
        shown += await asyncio.to_thread(os.read, terminal, 1000)
    assert shown == b"Delete all messages in the box of doll? [y/N] "
    if typed == "Ctrl-C":
        # Between the last look for signals and the read, Python would notice it with the next input only.
        await eventually(lambda: _state_of(process.pid) == "S")
        process.send_signal(signal.SIGINT)
    else:
        os.write(terminal, typed.encode())
    printed, _ = await process.communicate()
    os.close(its_side)
    os.close(terminal)
    is_yes = typed.lower().startswith("y")
    assert await process.wait() == (130 if typed == "Ctrl-C" else 0 if is_yes else 1)
    assert printed == (b'{"deleted":1}\n' if is_yes else b"")
    assert (await json_of(gateway, "device", "doll"))["box"]["messages"] == (0 if is_yes else 1)


@pytest.mark.parametrize("neighbors", ["memory"], indirect=True)  # there a server is cut off without being fenced
async def test_servers_that_do_not_answer_are_named_on_standard_error(
    two_admins: tuple[Harness, Harness], neighbors: Neighbors, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two_admins
    monkeypatch.setattr("cocoa_tornado.admin.servers.PATIENCE_S", 0.1)
    await a.raw("here")
    neighbors.cut(b.gateway)
    result = await run(a, "devices")
    assert (result.exit_code, words(result.stdout.splitlines()[1])[0]) == (0, "here")
    assert result.stderr.startswith("No answer from: ")


def test_an_id_that_proxies_rewrite_in_paths_is_in_the_query() -> None:
    for name, route in (
        (".", "/devices/-/box?id=."),
        ("..", "/devices/-/box?id=.."),
        ("a/../b", "/devices/-/box?id=a%2F..%2Fb"),
        ("a\\b", "/devices/-/box?id=a%5Cb"),
        ("...", "/devices/.../box"),
        ("-", "/devices/-/box"),
        ("a b?#%2e", "/devices/a%20b%3F%23%252e/box"),
    ):
        assert route_of(*place("devices", name, "box")) == f"/api/v1/admin{route}"


async def test_commands_take_ids_of_dots_and_slashes(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    for device_id in (".", "..", "a/../b", "//", "a\\b", "-"):
        await gateway.upgrade(gateway.token(device_id, user_id="u/./1", groups=[".."]))
        assert (await json_of(gateway, "device", device_id))["device_id"] == device_id
        assert (await done(gateway, "block", device_id))[0].startswith(f"Blocked {device_id} ")
        assert (await json_of(gateway, "device", device_id))["blocked"] is True
        assert await done(gateway, "unblock", device_id) == [f"{device_id} may connect."]
        await gateway.upgrade(gateway.token(device_id, user_id="u/./1", groups=[".."]))
    for option in (("--user", "u/./1"), ("--group", "..")):
        assert len((await json_of(gateway, "devices", "--members", *option))["devices"]) == 6
    assert await done(gateway, "kick", "--user", "u/./1") == ["Closed 6 connections."]
