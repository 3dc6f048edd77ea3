"""``cocoa admin`` in a pipeline, and with a full disk: processes of their own, against one gateway."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from typing import NamedTuple

import pytest

from testing.waiting import eventually

from ..harness import Harness
from .conftest import admin_token
from .operator import COCOA
from .test_quarantine import reject

pytestmark = pytest.mark.gen_test(timeout=60)
PRINTING = (
    ("devices",),
    ("devices", "--json"),
    ("device", "doll"),
    ("block", "bear"),
    ("unblock", "bear"),
    ("send", "--device", "doll", "--text", "Hello"),
    ("explain", "--device", "doll"),
    ("quarantine",),
    ("quarantine", "0/0", "--value"),
    ("top", "--json"),
    ("tail",),
    ("tail", "--json"),
    ("kick", "doll"),
)


class Ended(NamedTuple):
    status: int
    errors: str


async def run(gateway: Harness, *arguments: str, stdout: int) -> Ended:
    """Run a command with this descriptor as its standard output."""
    process = await start(gateway, *arguments, stdout=stdout)
    _, errors = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, errors.decode())


async def start(gateway: Harness, *arguments: str, stdout: int) -> asyncio.subprocess.Process:
    env = {"COCOA_ADMIN_URL": f"http://127.0.0.1:{gateway.port}", "COCOA_ADMIN_TOKEN": admin_token()}
    return await asyncio.create_subprocess_exec(
        *(COCOA, "admin", *arguments),
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


async def test_a_command_that_is_not_read_any_more_dies_of_sigpipe_without_a_message(gateway: Harness) -> None:
    await gateway.raw("doll")
    await reject(gateway, b"{}")
    for command in PRINTING:
        reader, writer = os.pipe()
        os.close(reader)
        ended = await run(gateway, *command, stdout=writer)
        os.close(writer)
        assert ended == (-signal.SIGPIPE, ""), command


async def test_output_that_a_full_disk_does_not_take_is_one_line_and_status_1(gateway: Harness) -> None:
    await gateway.raw("doll")
    await reject(gateway, b"{}")
    full = os.open("/dev/full", os.O_WRONLY)
    for command in PRINTING:
        if command[0] != "tail":
            ended = await run(gateway, *command, stdout=full)
            assert ended == (1, "Error: cannot write to standard output: No space left on device\n"), command
    os.close(full)


async def test_a_tail_ends_when_its_reader_has_enough_although_nothing_more_happens(gateway: Harness) -> None:
    reader, writer = os.pipe()
    process = await start(gateway, "tail", stdout=writer)
    os.close(writer)
    await eventually(lambda: len(gateway.gateway.wiring.admin.watchers) == 1)
    await gateway.raw("doll")
    assert b"connected" in await asyncio.to_thread(os.read, reader, 1000)
    os.close(reader)
    _, errors = await process.communicate()
    assert (await process.wait(), errors) == (-signal.SIGPIPE, b"")
    await eventually(lambda: not gateway.gateway.wiring.admin.watchers)
