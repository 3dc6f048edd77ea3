"""Each device of examples/ that can run here: token, cursors, close codes, refusals and speech, on a real gateway."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.rules.close_codes import CloseReason
from testing.waiting import eventually

from ..harness import Harness
from .programs import ROOT, Program, Running, go, in_ci_or_nightly, node, python, start

pytestmark = [pytest.mark.slow, pytest.mark.gen_test(timeout=120)]

DEVICES = [
    Program("python", python("python/device.py")),
    Program("go", go("go"), ["go"]),
    Program("node", node("node", "device.js"), ["node", "npm"]),
]
CODES = (1001, 1012, 4409, 4401)
SPEECH = ROOT / "demo" / "digits.wav"
LARGEST = "x" * 1_040_000  # nearly 1 MiB, which is all that a record of Kafka has by default


@contextlib.asynccontextmanager
async def site(**settings: Any) -> AsyncIterator[Harness]:
    """A gateway whose box for a device has room for eight messages."""
    gateway = await Harness.start(
        mailbox="memory://",
        mailbox_max_messages=8,
        api_credentials=(("backend", "a secret"),),
        duplicate_challenge_s=0.3,
        **settings,
    )
    try:
        yield gateway
    finally:
        await gateway.stop()


@contextlib.asynccontextmanager
async def running(device: Program, gateway: Harness, cursor_file: Path, *arguments: str) -> AsyncIterator[Running]:
    environment = {
        "GATEWAY_URL": gateway.ws_url,
        "API_KEY": "backend",
        "API_SECRET": "a secret",
        "DEVICE_ID": "doll",
        "CURSOR_FILE": str(cursor_file),
        "WAIT_SCALE": "0.005",
    }
    program = await start([*device.command(), *arguments], environment)
    try:
        yield program
    finally:
        await program.stop()


def end_connection(gateway: Harness, code: int) -> None:
    client = gateway.gateway.hub.get_client_by_device("doll")
    assert client is not None
    client.end(CloseReason(code, "for a test", "drain"))


def acknowledged(gateway: Harness) -> int:
    mailbox = gateway.gateway.mailbox
    assert isinstance(mailbox, MemoryMailbox)
    return mailbox.counters.acknowledged


def pauses(program: Running, why: str) -> list[float]:
    """The seconds that a program has said it would wait, each time that it was ended so."""
    found = re.findall(rf"^ended: {why}, again in ([0-9.]+) s$", "\n".join(program.lines), re.MULTILINE)
    assert found, f"never ended by {why}"
    return [float(seconds) for seconds in found]


async def hears_each_once(program: Running, gateway: Harness, rival: ClientConnection) -> None:
    """A program gets each message once, though another client holds its place at first and its connections end.

    Four messages were kept for it.
    """
    await program.prints("ended: 409", 1)
    await rival.close()
    assert await program.prints("heard", 4) == [f"kept {number}" for number in range(4)]
    for count, code in enumerate(CODES, 5):
        await eventually(lambda: gateway.gateway.hub.is_device_connected("doll"))
        end_connection(gateway, code)
        await gateway.publish("doll", f"after {code}")
        assert (await program.prints("heard", count))[-1] == f"after {code}"
    await eventually(lambda: acknowledged(gateway) == 8)
    # Retry-After is a minimum, and after 4409 it is minutes: here a two-hundredth of them.
    assert all(pause >= 0.02 for pause in pauses(program, "409"))
    assert all(0.3 <= pause <= 1.5 for pause in pauses(program, "4409"))
    assert len(program.all_of("heard")) == 8


@pytest.mark.parametrize("device", in_ci_or_nightly(DEVICES), ids=str)
async def test_a_device_gets_each_message_once_whatever_ends_its_connections(device: Program, tmp_path: Path) -> None:
    cursor_file = tmp_path / "cursor"
    cursor_file.write_text("AAAAAAAAAAeYure9PRtfD2Qx")  # of another mailbox: 400
    async with site() as gateway:
        for number in range(4):
            await gateway.publish("doll", f"kept {number}")
        rival = await gateway.connect("doll")  # it answers pings, so the device gets 409 as long as it is there
        async with running(device, gateway, cursor_file) as program:
            await hears_each_once(program, gateway, rival)
        # One for each 4401, and one to begin with: a token is kept as long as it is accepted.
        assert (await gateway.metrics())['cocoa_token_requests_total{outcome="issued"}'] == 2
        texts = [LARGEST if number == 5 else f"off {number}" for number in range(10)]
        for text in texts:
            await gateway.publish("doll", text)
        async with running(device, gateway, cursor_file) as program:
            # A message over a device's own limit would end its connection, and come again after each reconnect.
            assert await program.prints("heard", 8) == texts[2:]
            assert program.all_of("missed") == ["2"]


@pytest.mark.parametrize("device", in_ci_or_nightly(DEVICES), ids=str)
async def test_a_device_hears_what_it_has_said(device: Program, tmp_path: Path) -> None:
    async with (
        site(speech="pocketsphinx://") as gateway,
        running(device, gateway, tmp_path / "cursor", str(SPEECH)) as program,
    ):
        assert await program.prints("heard", 1) == ["two nine three four zero"]
