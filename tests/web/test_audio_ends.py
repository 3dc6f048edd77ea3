"""Abnormal ends of audio streams: the device's messages, and the release of resources."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import pytest

from cocoa_tornado.errors import EngineFailed
from cocoa_tornado.rules.audio import AudioFormat
from testing.raw_device import BINARY, TEXT
from testing.waiting import eventually

from ..harness import Harness
from .conftest import StartGateway
from .test_audio_session import hear, start
from .uploads import PATH, Bench, is_error

IDLE = {"audio_idle_timeout_s": 0.3}


def records(gateway: Harness) -> list[dict[str, Any]]:
    return [json.loads(record.value or b"") for record in gateway.broker.records("transcription.results")]


# Over the WebSocket


@pytest.mark.gen_test
async def test_a_device_that_falls_silent_on_the_wire_has_ended_its_utterance(start_gateway: StartGateway) -> None:
    gateway, _ = await start(start_gateway, **IDLE)
    device = await gateway.connect("doll")
    await device.send(b"hello")
    assert (await hear(device))["text"] == "hello"
    transcriber = gateway.gateway.wiring.transcriber
    assert transcriber is not None
    assert len(transcriber) == 0
    await device.send(b"again|")
    assert (await hear(device))["text"] == "again"


@pytest.mark.gen_test
async def test_an_utterance_that_drips_is_ended_in_time(start_gateway: StartGateway) -> None:
    gateway, _ = await start(start_gateway, audio_max_duration_s=0.3, **IDLE)
    device = await gateway.connect("doll")
    listening = asyncio.ensure_future(hear(device))
    since = time.monotonic()
    while not listening.done() and time.monotonic() < since + 5:
        await device.send(b"a")
        await asyncio.sleep(0.1)
    assert set((await listening)["text"]) == {"a"}


@pytest.mark.gen_test
async def test_words_that_were_spoken_to_the_end_outlive_their_connection(start_gateway: StartGateway) -> None:
    gateway, engine = await start(start_gateway)
    engine.answers.clear()
    device = await gateway.raw("doll")
    device.send(BINARY, b"hello|half of it")
    await eventually(lambda: bool(engine.streams))
    device.reset()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    back = await gateway.connect("doll")
    engine.answers.set()
    assert (await hear(back))["text"] == "hello"
    assert [record["text"] for record in records(gateway)] == ["hello"]


@pytest.mark.gen_test
@pytest.mark.logs("cocoa.transcriber", "audio streams cut off")
async def test_a_drain_tells_the_device_whose_utterance_it_cuts_off(start_gateway: StartGateway) -> None:
    gateway, engine = await start(start_gateway, drain_grace_s=1.0)
    device = await gateway.connect_with(f"{gateway.token('doll')}&interim=true")
    await device.send(b"hel")
    assert (await hear(device))["final"] is False
    engine.answers.clear()
    stopping = asyncio.ensure_future(gateway.gateway.drain_and_stop())
    heard = [await hear(device)]
    while not heard[-1]["final"]:
        heard.append(await hear(device))
    assert (heard[-1]["success"], heard[-1]["error"]) == (False, "the gateway is going away")
    await stopping


@pytest.mark.gen_test
async def test_audio_that_begins_during_a_drain_is_told_why_it_is_not_heard(start_gateway: StartGateway) -> None:
    gateway, engine = await start(start_gateway, drain_grace_s=3.0)
    engine.answers.clear()
    one, two = await gateway.connect("one"), await gateway.connect("two")
    await one.send(b"hello|")
    await eventually(lambda: bool(engine.streams))
    stopping = asyncio.ensure_future(gateway.gateway.drain_and_stop())
    await asyncio.sleep(0)
    await two.send(b"late|")
    assert (await hear(two))["error"] == "the gateway is going away"
    engine.answers.set()
    assert (await hear(one))["text"] == "hello"
    await stopping


@pytest.mark.gen_test
async def test_a_long_message_gives_way_to_others(start_gateway: StartGateway) -> None:
    """A message of 512 KiB is taken in slices, with a turn of the loop between them."""
    gateway, _ = await start(start_gateway)
    devices = gateway.gateway.wiring.devices
    assert devices.audio is not None
    turns: list[int] = []

    class Counting:
        out_format, max_utterance_s, has_eight_bits = AudioFormat(), 60.0, False

        def feed(self, data: bytes) -> Any:
            turns.append(len(data))
            return iter(())

        def end(self) -> Any:
            return iter(())

    devices.audio = replace(devices.audio, raw=AudioFormat(), make_segmenter=lambda *_: Counting())
    device = await gateway.connect("doll")
    await device.send(bytes(512 * 1024))
    await eventually(lambda: sum(turns) == 512 * 1024)
    assert max(turns) <= 16 * 1024


@pytest.mark.gen_test
async def test_text_of_any_depth_is_a_message_and_harms_nothing(start_gateway: StartGateway) -> None:
    gateway, _ = await start(start_gateway)
    device = await gateway.raw("doll")
    device.send(BINARY, b".")
    device.send(TEXT, b"[" * 980 + b'"audio_end"')
    await eventually(lambda: len(gateway.broker.records("device.messages")) == 1)
    assert gateway.gateway.hub.is_device_connected("doll")


@pytest.mark.gen_test
async def test_without_audio_before_it_audio_end_is_an_ordinary_message(start_gateway: StartGateway) -> None:
    gateway, _ = await start(start_gateway)
    device = await gateway.connect("doll")
    await device.send('{"type":"audio_end"}')
    await eventually(lambda: len(gateway.broker.records("device.messages")) == 1)


# Over HTTP


@pytest.mark.gen_test
async def test_hypotheses_have_an_end_when_the_upload_has_none(bench: Bench) -> None:
    for how in ("vanished", "too large"):
        upload = await bench.stream(query="?interim=true")
        upload.chunk(b"hel")
        before = len(bench.published())
        await eventually(lambda before=before: len(bench.published()) > before)  # type: ignore[misc]  # bound at once
        if how == "vanished":
            upload.device.reset()
        else:
            upload.chunk(b"x" * (1024 * 1024 + 1))
            assert (await upload.answer()).status == 413
        await eventually(lambda: bool(bench.published()[-1].get("final")))
        last = bench.published()[-1]
        assert (last["success"], last["error"]) == (False, "the audio did not come to its end")


@pytest.mark.gen_test
async def test_a_client_that_vanishes_while_it_is_held_back_frees_everything(bench: Bench) -> None:
    upload = await bench.stream()
    bench.engine.takes.clear()
    upload.chunk(b"hello")
    await eventually(lambda: bench.engine.stream.fed == b"hello")
    upload.device.reset()
    await eventually(lambda: bench.open_streams == 0)
    assert bench.outcomes == {"vanished": 1}
    bench.engine.stream.fail(EngineFailed("the stream was cancelled"))


@pytest.mark.parametrize("length", ["000000000000000000003", "1000000000000000000", "4611686018427387904"])
@pytest.mark.gen_test
async def test_a_length_in_whatever_spelling_lets_nobody_in(bench: Bench, length: str) -> None:
    device = await bench.harness.dial()
    lines = [f"POST {PATH} HTTP/1.1", "Host: localhost", "Content-Type: audio/wav", f"Content-Length: {length}"]
    device.writer.write("\r\n".join([*lines, "", "abc"]).encode())
    response = await device.read_response()
    assert (response.status, response.body) == (401, b'{"message":"Missing JWT token"}')


@pytest.mark.gen_test
async def test_a_reload_changes_the_patience_with_utterances(start_gateway: StartGateway) -> None:
    gateway, _ = await start(start_gateway)
    service = gateway.gateway
    await service.reload(replace(service.settings, audio_idle_timeout_s=0.2))
    device = await gateway.connect("doll")
    await device.send(b"hello")
    assert (await hear(device))["text"] == "hello"


# A silent stream, and another one of its device


def clock_of(gateway: Harness) -> list[float]:
    """Lets a test turn the clock of the device's silence."""
    transcriber, now = gateway.gateway.wiring.transcriber, [1000.0]
    assert transcriber is not None
    transcriber.clock = lambda: now[0]
    return now


@pytest.mark.gen_test
async def test_a_silent_upload_ends_when_its_device_opens_another(bench: Bench) -> None:
    now = clock_of(bench.harness)
    silent = await bench.stream()
    silent.chunk(b"half of it")
    await eventually(lambda: bench.engine.stream.fed == b"half of it")
    now[0] += 1.0
    refused = await bench.post(b"again")
    assert is_error(refused, 429, "Too many audio streams")
    assert refused.headers["retry-after"] == "1"
    now[0] += 1.0
    again = await bench.post(b"again")
    assert (again.status, json.loads(again.body)["text"]) == (200, "again")
    ended = await silent.answer()
    assert is_error(ended, 429, "Too many audio streams")
    assert ended.headers["retry-after"] == "2"
    assert await silent.is_closed()
    assert bench.outcomes == {"busy": 1, "replaced": 1, "transcribed": 1}
    assert [record["text"] for record in bench.published()] == ["again"]


@pytest.mark.gen_test
async def test_a_silent_utterance_over_the_websocket_yields_to_an_upload_and_keeps_its_words(
    start_gateway: StartGateway,
) -> None:
    gateway, engine = await start(start_gateway)
    now = clock_of(gateway)
    device = await gateway.connect("doll")
    await device.send(b"hello")
    await eventually(lambda: bool(engine.streams) and engine.stream.fed == b"hello")
    now[0] += 2.0
    response = await Bench(gateway, engine).post(b"by post")
    assert (response.status, json.loads(response.body)["text"]) == (200, "by post")
    assert {(await hear(device))["text"], (await hear(device))["text"]} == {"hello", "by post"}


@pytest.mark.gen_test
async def test_a_silent_upload_yields_to_speech_over_the_websocket(start_gateway: StartGateway) -> None:
    gateway, engine = await start(start_gateway)
    now, bench = clock_of(gateway), Bench(gateway, engine)
    silent = await bench.stream()
    now[0] += 2.0
    device = await gateway.connect("doll")
    await device.send(b"hello|")
    assert (await hear(device))["text"] == "hello"
    assert is_error(await silent.answer(), 429, "Too many audio streams")
