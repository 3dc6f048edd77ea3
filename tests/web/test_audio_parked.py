"""Audio that drips holds no worker that another one wants, wherever it comes from; nothing of it is lost."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from typing import Any

import pytest

from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.speech.pool import PoolOptions, WorkerPool
from testing.raw_device import Response
from testing.waiting import eventually

from ..harness import Harness
from .conftest import StartGateway
from .test_audio_session import Letters, hear
from .uploads import RAW, Upload

COMMAND = (sys.executable, "-m", "tests.speech.scripted_worker")

pytestmark = [pytest.mark.gen_test(timeout=60), pytest.mark.usefixtures("soon_behind")]


@pytest.fixture
def soon_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoa_tornado.rules.pace.BEHIND_S", 0.1)


async def start(start_gateway: StartGateway, **settings: Any) -> tuple[Harness, WorkerPool]:
    """A gateway with one worker, which hears letters."""
    pool = WorkerPool(PoolOptions("scripted://", workers=1, queue=2, command=COMMAND))
    gateway = await start_gateway(engine=pool, **settings)
    devices = gateway.gateway.wiring.devices
    assert devices.audio is not None
    devices.audio = replace(devices.audio, raw=AudioFormat(), make_segmenter=Letters)
    await eventually(lambda: pool.status().workers == 1, 30)
    return gateway, pool


async def upload(gateway: Harness, device_id: str) -> Upload:
    one = Upload(await gateway.dial())
    token = gateway.token(device_id)
    fields = {"Host": "localhost", "Authorization": f"Bearer {token}", "Content-Type": RAW}
    one.head(fields | {"Transfer-Encoding": "chunked"})
    return one


async def post(gateway: Harness, device_id: str, words: bytes) -> Response:
    one = await upload(gateway, device_id)
    one.chunk(words)
    return await one.end()


def text_of(response: Response) -> str:
    assert response.status == 200, response
    return str(json.loads(response.body)["text"])


async def test_an_upload_that_drips_lets_others_be_heard_and_comes_to_its_words(start_gateway: StartGateway) -> None:
    gateway, pool = await start(start_gateway)
    drip = await upload(gateway, "drip")
    drip.chunk(b"dr")
    await eventually(lambda: pool.status().busy == 1)
    for name in ("doll", "bear"):
        assert text_of(await post(gateway, name, b"quick!")) == "quick!"
        drip.chunk(b"ip")
    assert pool.status().parked == 1
    metrics = await gateway.metrics()
    assert (metrics["cocoa_speech_parked"], metrics["cocoa_speech_taken_back_total"]) == (1, 1)
    assert text_of(await drip.end()) == "dripip"


async def test_an_utterance_over_the_websocket_that_stops_lets_others_be_heard(start_gateway: StartGateway) -> None:
    gateway, pool = await start(start_gateway)
    device = await gateway.connect("drip")
    await device.send(b"he")
    await eventually(lambda: pool.status().busy == 1)
    assert text_of(await post(gateway, "doll", b"quick!")) == "quick!"
    assert pool.status().parked == 1
    await device.send(b"llos|")
    assert (await hear(device))["text"] == "hellos"


@pytest.mark.logs("cocoa.transcriber", "audio stream failed", optional=True)
async def test_streams_that_drip_keep_no_other_out_and_the_longest_parked_is_429(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoa_tornado.rules.speech_pool.PARKED_AT_LEAST_S", 0.0)
    gateway, pool = await start(start_gateway)
    pool._roster.limits = replace(pool._roster.limits, parked=1, queue=1)
    first = await upload(gateway, "first")
    first.chunk(b"dr")
    await eventually(lambda: pool.status().busy == 1)
    second = await gateway.connect("second")
    await second.send(b"dr")
    await eventually(lambda: pool.status().parked == 1)
    third = await upload(gateway, "third")
    third.chunk(b"dr")
    await eventually(lambda: pool.status().parked == 2)
    assert text_of(await post(gateway, "doll", b"quick!")) == "quick!"
    first.chunk(b"ip")
    answer = await first.answer()
    assert (answer.status, "retry-after" in answer.headers) == (429, True)
    assert text_of(await third.end()) == "dr"
    await second.send(b"ip|")
    assert (await hear(second))["text"] == "drip"
    assert (await gateway.metrics())['cocoa_speech_streams_total{outcome="busy"}'] == 1


async def test_a_parked_upload_keeps_its_limits(start_gateway: StartGateway) -> None:
    gateway, pool = await start(start_gateway, audio_max_bytes=1024, audio_idle_timeout_s=1.0)
    silent, large = await upload(gateway, "silent"), await upload(gateway, "large")
    for one in (silent, large):
        one.chunk(b"word")
    quick = asyncio.ensure_future(post(gateway, "doll", b"quick!"))
    await eventually(lambda: pool.status().taken_back >= 1)
    large.chunk(b"x" * 1024)
    assert (await large.answer()).status == 413
    assert text_of(await quick) == "quick!"
    assert (await silent.answer()).status == 408
    assert (pool.status().parked, pool.status().kept_bytes) == (0, 0)


@pytest.mark.logs("cocoa.transcriber", "audio streams cut off", optional=True)
async def test_a_parked_upload_is_cut_off_by_a_drain_like_any_other(start_gateway: StartGateway) -> None:
    gateway, pool = await start(start_gateway, drain_grace_s=1.0)
    drip = await upload(gateway, "drip")
    drip.chunk(b"dr")
    await eventually(lambda: pool.status().busy == 1)
    assert text_of(await post(gateway, "doll", b"quick!")) == "quick!"
    stopping = asyncio.ensure_future(gateway.gateway.drain_and_stop())
    assert (await drip.answer()).status == 503
    await stopping
