"""The seed's own test, on real parts: devices speak at the same time, and each hears its own words and no others."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.ioloop import IOLoop

from testing.kafka_server import KafkaServer, TansuServer
from testing.waiting import eventually

from .harness import Harness
from .test_gateway_on_kafka import Hearing, Site

pytestmark = [pytest.mark.gen_test(timeout=240), pytest.mark.kafka]

RECORDINGS = Path(__file__).parent.parent / "demo"
SPOKEN = {"somewhere.wav": "go somewhere and do something", "digits.wav": "two nine three four zero"}


@pytest.fixture
def site(kafka: KafkaServer | TansuServer, io_loop: IOLoop) -> Iterator[Site]:
    site = Site(kafka)
    yield site
    io_loop.run_sync(site.stop)


async def speak(gateway: Harness, device_id: str, file: str, pace_s: float = 0.0) -> HTTPResponse:
    """POST a recording as a device does: in pieces of a tenth of a second."""
    samples = (RECORDINGS / file).read_bytes()

    async def produce(write: object) -> None:
        assert callable(write)
        for start in range(0, len(samples), 3200):
            await write(samples[start : start + 3200])
            await asyncio.sleep(pace_s)

    return await AsyncHTTPClient().fetch(
        f"http://127.0.0.1:{gateway.port}/api/v1/audio/stream",
        method="POST",
        headers={"Authorization": f"Bearer {gateway.token(device_id)}", "Content-Type": "audio/wav"},
        body_producer=produce,
        connect_timeout=200.0,  # the client sends ten at a time; the others wait, and that counts as connecting
        request_timeout=200.0,
    )


async def ready_to_hear(site: Site, workers: int, devices: list[str]) -> tuple[Harness, dict[str, Hearing]]:
    await site.create(4)
    gateway = await site.start_ready(speech="pocketsphinx://", speech_workers=workers, speech_queue=32)
    return gateway, {device: Hearing(await gateway.connect(device)) for device in devices}


def words_of(response: HTTPResponse) -> tuple[str, str]:
    body = json.loads(response.body)
    assert body["success"] is True
    return body["session_id"], body["text"]


async def test_two_devices_speak_at_once_and_each_hears_its_own_words_and_nothing_else(site: Site) -> None:
    gateway, hearing = await ready_to_hear(site, 2, ["A", "B", "C"])
    answers = await asyncio.gather(
        speak(gateway, "A", "somewhere.wav", pace_s=0.05), speak(gateway, "B", "digits.wav", pace_s=0.05)
    )
    for device, answer, words in zip("AB", answers, SPOKEN.values(), strict=True):
        session, text = words_of(answer)
        [heard] = await hearing[device].hears(1)
        message = json.loads(heard)
        assert (message["device_id"], message["session_id"], message["text"]) == (device, session, text)
        assert text == words
    # A record for C, behind the others' in Kafka's order or beside them, is all that C hears.
    [expected] = await site.say("C", 1)
    assert await hearing["C"].hears(1) == [expected]
    assert [len(hearing[device].heard) for device in "ABC"] == [1, 1, 1]


@pytest.mark.parametrize(("streams", "workers"), [(6, 2), pytest.param(20, 4, marks=pytest.mark.nightly)])
async def test_many_streams_at_once_are_never_mixed_up(site: Site, streams: int, workers: int) -> None:
    devices = [f"doll-{number}" for number in range(streams)]
    gateway, hearing = await ready_to_hear(site, workers, devices)
    files = dict(zip(devices, itertools.cycle(SPOKEN), strict=False))
    answers = await asyncio.gather(*(speak(gateway, device, files[device]) for device in devices))
    for device, answer in zip(devices, answers, strict=True):
        session, text = words_of(answer)
        assert text == SPOKEN[files[device]]
        [heard] = await hearing[device].hears(1)
        message = json.loads(heard)
        assert (message["device_id"], message["session_id"], message["text"]) == (device, session, text)
    await eventually(
        lambda: gateway.gateway.wiring.transcriber is not None and not len(gateway.gateway.wiring.transcriber)
    )
    assert [len(hearing[device].heard) for device in devices] == [1] * streams
