"""Binary WebSocket messages: one utterance after another, each device's words to itself alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from cocoa_tornado.connection.audio_session import HELD_BYTES, is_audio_end
from cocoa_tornado.connection.connection import DeviceConnection
from cocoa_tornado.connection.protocol import PAUSED
from cocoa_tornado.errors import AudioNotDecodable, EngineFailed
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.rules.endpointing import End, Segment, Speech
from testing.raw_device import BINARY, CLOSE, PONG, TEXT
from testing.waiting import eventually

from ..harness import Harness
from ..scripted_engine import ScriptedEngine
from .conftest import StartGateway

DEMO = Path(__file__).parents[2] / "demo"


class Letters:
    """A segmenter for the scripted engine: letters are speech, ``|`` ends an utterance, ``!`` can't be read."""

    out_format, has_eight_bits = AudioFormat(), False

    def __init__(self, audio_format: AudioFormat, max_utterance_s: float) -> None:
        self.max_utterance_s = max_utterance_s
        self._speaking = False

    def feed(self, data: bytes) -> Iterator[Segment]:
        for letter in data.decode():
            if letter == "!":
                raise AudioNotDecodable("no letter")
            if letter == "|":
                yield from self.end()
            elif letter != ".":
                self._speaking = True
                yield Speech(letter.encode())

    def end(self) -> Iterator[Segment]:
        if self._speaking:
            self._speaking = False
            yield End()


async def start(start_gateway: StartGateway, **settings: Any) -> tuple[Harness, ScriptedEngine]:
    engine = ScriptedEngine()
    gateway = await start_gateway(engine=engine, **settings)
    devices, transcriber = gateway.gateway.wiring.devices, gateway.gateway.wiring.transcriber
    assert transcriber is not None
    assert devices.audio is not None
    devices.audio = replace(devices.audio, raw=AudioFormat(), make_segmenter=Letters)
    return gateway, engine


async def hear(device: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await asyncio.wait_for(device.recv(), 5))
    return message


@pytest.mark.gen_test
async def test_utterances_come_back_one_after_another_as_records(start_gateway: StartGateway) -> None:
    gateway, _ = await start(start_gateway)
    device, other = await gateway.connect("doll"), await gateway.connect("other")
    for piece in (b"he", b"llo|..", b"wor", b"ld|"):
        await device.send(piece)
    first, second = await hear(device), await hear(device)
    assert [first["text"], second["text"]] == ["hello", "world"]
    assert first["session_id"] != second["session_id"]
    assert (first["device_id"], first["user_id"], first["success"]) == ("doll", 99, True)
    assert "final" not in first
    await gateway.publish("other", "nothing else")
    assert (await hear(other))["text"] == "nothing else"
    assert not gateway.broker.records("device.messages")


@pytest.mark.gen_test
async def test_audio_end_ends_an_utterance_at_once_and_is_no_message(start_gateway: StartGateway) -> None:
    gateway, _ = await start(start_gateway)
    device = await gateway.connect("doll")
    await device.send(b"hello")
    await device.send('{ "type": "audio_end" }')
    assert (await hear(device))["text"] == "hello"
    await device.send('{"type":"audio_end"}')
    await device.send(b"again|")
    assert (await hear(device))["text"] == "again"
    assert not gateway.broker.records("device.messages")


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ('{"type":"audio_end"}', True),
        ('{"type": "audio_end", "more": 1}', True),
        ('{"type":"audio_ending"}', False),
        ('["audio_end"]', False),
        ("audio_end", False),
        ('{"type":"audio_end"', False),
        ('{"type":"audio_end"}' + " " * 1000, False),
    ],
)
def test_only_an_object_of_that_type_is_the_end_of_audio(text: str, ends: bool) -> None:
    assert is_audio_end(text) is ends


@pytest.mark.gen_test
async def test_with_speech_off_audio_end_is_an_ordinary_message(gateway: Harness) -> None:
    device = await gateway.connect("doll")
    await device.send('{"type":"audio_end"}')
    await eventually(lambda: len(gateway.broker.records("device.messages")) == 1)


@pytest.mark.gen_test
async def test_hypotheses_come_where_the_device_asks_for_them(start_gateway: StartGateway) -> None:
    gateway, _ = await start(start_gateway)
    device = await gateway.connect_with(f"{gateway.token('doll')}&interim=true")
    await device.send(b"ab|")
    heard: list[dict[str, Any]] = []
    while not heard or not heard[-1]["final"]:
        heard.append(await hear(device))
    assert heard[0]["final"] is False
    assert heard[-1]["text"] == "ab"


@pytest.mark.gen_test
async def test_an_interim_that_is_neither_true_nor_false_is_a_400(gateway: Harness) -> None:
    response = (await gateway.upgrade(f"{gateway.token()}&interim=perhaps")).response
    assert (response.status, response.body) == (400, b'{"message":"Invalid interim"}')


@pytest.mark.gen_test
async def test_a_busy_engine_is_told_to_the_device_and_the_next_utterance_is_heard(
    start_gateway: StartGateway,
) -> None:
    gateway, engine = await start(start_gateway)
    device = await gateway.connect("doll")
    engine.is_busy = True
    await device.send(b"hello")
    refused = await hear(device)
    assert (refused["success"], refused["error"]) == (False, "speech recognition is busy")
    engine.is_busy = False
    await device.send(b"lost|heard|")
    assert (await hear(device))["text"] == "heard"


@pytest.mark.logs("cocoa.transcriber", "audio stream failed")
@pytest.mark.gen_test
async def test_an_engine_that_fails_costs_its_utterance_alone(start_gateway: StartGateway) -> None:
    gateway, engine = await start(start_gateway)
    device = await gateway.connect("doll")
    await device.send(b"hel")
    await eventually(lambda: bool(engine.streams) and engine.stream.fed == b"hel")
    engine.stream.fail(EngineFailed("crashed"))
    await device.send(b"lo|next|")
    failed = await hear(device)
    assert (failed["success"], failed["error"]) == (False, "speech recognition failed")
    assert (await hear(device))["text"] == "next"


@pytest.mark.gen_test
async def test_audio_that_cannot_be_read_is_told_once_and_passed_over_until_its_end(
    start_gateway: StartGateway,
) -> None:
    gateway, _ = await start(start_gateway)
    device = await gateway.connect("doll")
    for piece in (b"!", b"x|", b"y|"):
        await device.send(piece)
    await device.send('{"type":"audio_end"}')
    await device.send(b"good|")
    told = await hear(device)
    assert (told["success"], told["error"]) == (False, "audio not decodable")
    assert (await hear(device))["text"] == "good"


@pytest.mark.gen_test
async def test_a_device_that_leaves_in_mid_utterance_frees_everything(start_gateway: StartGateway) -> None:
    gateway, engine = await start(start_gateway)
    device = await gateway.raw("doll")
    device.send(BINARY, b"hel")
    await eventually(lambda: bool(engine.streams) and engine.stream.fed == b"hel")
    device.reset()
    await eventually(lambda: engine.stream.cancelled)
    transcriber = gateway.gateway.wiring.transcriber
    assert transcriber is not None
    assert len(transcriber) == 0
    assert not gateway.broker.records("transcription.results")


@pytest.mark.gen_test
async def test_a_device_that_is_faster_than_the_engine_is_held_back_and_loses_nothing(
    start_gateway: StartGateway,
) -> None:
    gateway, engine = await start(start_gateway, ping_interval_s=0.2, ping_timeout_s=0.2)
    device = await gateway.connect("doll")
    engine.takes.clear()
    quiet = b"." * 50_000
    await device.send(b"a|")
    for _ in range(HELD_BYTES // len(quiet) + 1):
        await device.send(quiet)
    client = gateway.gateway.hub.get_client_by_device("doll")
    assert isinstance(client, DeviceConnection)
    await eventually(lambda: client.protocol.reading is PAUSED)
    # Our own doing: it is not closed for silence.
    await asyncio.sleep(0.7)
    assert gateway.gateway.hub.is_device_connected("doll")
    engine.takes.set()
    assert (await hear(device))["text"] == "a"
    await device.send(b"b|")
    assert (await hear(device))["text"] == "b"


@pytest.mark.gen_test
async def test_pings_and_text_go_on_while_a_device_speaks(start_gateway: StartGateway) -> None:
    gateway, engine = await start(start_gateway)
    engine.answers.clear()
    device = await gateway.raw("doll")
    device.send(BINARY, b"hello|")
    device.send(TEXT, b"meanwhile")
    await eventually(lambda: len(gateway.broker.records("device.messages")) == 1)
    engine.answers.set()
    assert b"hello" in (await device.read_frame()).payload
    device.send(PONG)
    device.send(CLOSE, b"\x03\xe8")
    await device.read_until(CLOSE)


@pytest.mark.gen_test(timeout=60)
async def test_two_devices_speak_in_20_ms_pieces_and_each_hears_its_own_words(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(speech="pocketsphinx://", speech_workers=2, inbound_rate=0.0)
    spoken = {"A": ("somewhere.wav", "go somewhere and do something"), "B": ("digits.wav", "two nine three four zero")}
    devices = {name: await gateway.connect(name) for name in spoken}

    async def speak(name: str) -> list[str]:
        samples = bytes(16_000) + (DEMO / spoken[name][0]).read_bytes()[44:] + bytes(48_000)
        for start in range(0, len(samples), 640):
            await devices[name].send(samples[start : start + 640])
        await devices[name].send('{"type":"audio_end"}')
        first = await asyncio.wait_for(devices[name].recv(), 30)
        return [json.loads(first)["text"]]

    heard = await asyncio.gather(*map(speak, spoken))
    for (name, (_, words)), texts in zip(spoken.items(), heard, strict=True):
        assert texts == [words], name
