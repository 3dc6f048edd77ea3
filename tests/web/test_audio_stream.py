"""``POST /api/v1/audio/stream`` over real HTTP: every answer, what it leaves behind, and one run with real speech."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
import wave
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.errors import AudioNotDecodable, AudioTooLong, BrokerError, EngineFailed, SpeechError
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.speech.port import SpeechState
from testing.raw_device import PATIENCE_S, TEXT
from testing.waiting import eventually

from ..scripted_engine import ScriptedEngine
from .conftest import StartGateway
from .uploads import MIB, PATH, RAW, Bench, Upload, is_error

SPEECH = Path(__file__).parent.parent / "speech" / "data" / "goforward.raw"

FAILED = pytest.mark.logs("cocoa", "audio stream failed|request")


class Refusing(MemoryBroker):
    """Refuses transcripts on demand."""

    refuses = False

    def publish(self, topic: str, key: str, value: bytes, headers: Any = None) -> asyncio.Future[None]:
        if self.refuses:
            raise BrokerError("it was told to refuse")
        return super().publish(topic, key, value, headers)


# What works


@pytest.mark.parametrize("kind", ["sized", "chunked"])
@pytest.mark.gen_test
async def test_the_words_go_to_the_caller_and_to_the_device_alone(bench: Bench, kind: str) -> None:
    device, other = await bench.harness.raw("doll"), await bench.harness.raw("bear")
    if kind == "sized":
        response = await bench.post(b"go forward")
    else:
        upload = await bench.stream()
        for piece in (b"go", b" ", b"forward"):
            upload.chunk(piece)
        response = await upload.end()
    session = json.loads(response.body)["session_id"]
    assert response.status == 200
    assert response.body == (
        '{"success":true,"message":"Audio processed successfully",'
        f'"session_id":"{session}","text":"go forward"}}'.encode()
    )
    message = (await device.read_until(TEXT)).payload
    start = f'{{"type":"transcription","session_id":"{session}","user_id":99,"device_id":"doll","text":"go forward",'
    assert message.startswith(start.encode())
    assert message.endswith(b'"success":true}')
    await bench.harness.publish("bear", "the next for the other")
    assert json.loads((await other.read_until(TEXT)).payload)["text"] == "the next for the other"
    assert bench.outcomes == {"transcribed": 1}


@pytest.mark.gen_test
async def test_a_connection_takes_one_upload_after_another(bench: Bench) -> None:
    upload = Upload(await bench.harness.dial())
    for words in ("one", "two", "three"):
        upload.head(bench.fields(Content_Length=str(len(words))))
        upload.write(words.encode())
        assert json.loads((await upload.answer()).body)["text"] == words


@pytest.mark.gen_test
async def test_recognition_starts_with_the_first_chunk(bench: Bench) -> None:
    upload = await bench.stream()
    upload.chunk(b"go")
    await eventually(lambda: bench.engine.stream.fed == b"go")
    upload.chunk(b" on")
    await eventually(lambda: bench.engine.stream.fed == b"go on")
    assert (await upload.end()).status == 200


@pytest.mark.parametrize("fields", [{"Content_Length": "0"}, {}])
@pytest.mark.gen_test
async def test_an_empty_body_is_no_speech(bench: Bench, fields: dict[str, str]) -> None:
    upload = Upload(await bench.harness.dial())
    upload.head(bench.fields(**fields))
    response = await upload.answer()
    assert (response.status, json.loads(response.body)["text"]) == (200, "")
    assert [(record["text"], record["success"]) for record in bench.published()] == [("", True)]


@pytest.mark.parametrize("query", ["?interim=true", "?interim=1"])
@pytest.mark.gen_test
async def test_hypotheses_come_to_the_device_before_the_final_words(bench: Bench, query: str) -> None:
    device = await bench.harness.raw("doll")
    upload = await bench.stream(query=query)
    upload.chunk(b"go")
    first = json.loads((await device.read_until(TEXT)).payload)
    upload.chunk(b" forward")
    second = json.loads((await device.read_until(TEXT)).payload)
    response = await upload.end()
    last = json.loads((await device.read_until(TEXT)).payload)
    told = [(message["text"], message["final"]) for message in (first, second, last)]
    assert told == [("go", False), ("go forward", False), ("go forward", True)]
    assert {message["session_id"] for message in (first, second, last)} == {json.loads(response.body)["session_id"]}


@pytest.mark.parametrize("query", ["", "?interim=false", "?interim=0"])
@pytest.mark.gen_test
async def test_without_the_wish_there_are_no_hypotheses(bench: Bench, query: str) -> None:
    assert (await bench.post(b"go", query=query)).status == 200
    assert ["final" in record for record in bench.published()] == [False]


@pytest.mark.parametrize(
    ("content_type", "audio_format"),
    [
        ("audio/L16;rate=8000;channels=1", AudioFormat("raw", "l16", 8000, 1)),
        ("audio/basic", AudioFormat("raw", "mulaw", 8000, 1)),
        ("audio/wav", AudioFormat("wav", "s16le", 16_000, 1, 8_000)),
        ("audio/wav; codecs=audio/pcm; samplerate=16000", AudioFormat("wav", "s16le", 16_000, 1, 16_000)),
        ("audio/flac", AudioFormat("flac", "s16le", 16_000, 1, 8_000)),
        ("audio/webm;codecs=opus", AudioFormat("webm", "s16le", 16_000, 1, 8_000)),
        (RAW, AudioFormat("raw", "s16le", 16_000, 1, 8_000)),
    ],
)
@pytest.mark.gen_test
async def test_the_engine_is_told_what_the_content_type_says(
    bench: Bench, content_type: str, audio_format: AudioFormat
) -> None:
    assert (await bench.post(b"x", Content_Type=content_type)).status == 200
    assert bench.engine.stream.format == audio_format
    assert bench.engine.stream.max_audio_s == 60


@pytest.mark.gen_test
async def test_raw_samples_are_what_the_settings_say(start_gateway: StartGateway, engine: ScriptedEngine) -> None:
    raw: dict[str, Any] = {"audio_encoding": "u8", "audio_rate": 8000, "audio_channels": 2}
    bench = Bench(await start_gateway(engine=engine, **raw), engine)
    await bench.post(b"x")
    assert engine.stream.format == AudioFormat("raw", "u8", 8000, 2)


@pytest.mark.gen_test
async def test_a_client_is_asked_to_continue_only_when_its_audio_is_taken(bench: Bench) -> None:
    upload = Upload(await bench.harness.dial())
    upload.head(bench.fields(Content_Length="2", Expect="100-continue"))
    assert (await upload.answer()).status == 100
    upload.write(b"go")
    assert (await upload.answer()).status == 200
    upload.head(bench.fields(Content_Length=str(MIB + 1), Expect="100-continue"))
    assert (await upload.answer()).status == 413
    assert await upload.is_closed()


# What the first bytes tell


def _wav(data_bytes: int) -> bytes:
    """A header that claims this many bytes of samples, and two seconds of them."""
    file = BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16_000, 0, "NONE", ""))
        writer.writeframes(SPEECH.read_bytes()[:64_000])
    return file.getvalue()[:40] + data_bytes.to_bytes(4, "little") + file.getvalue()[44:]


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({"Content_Length": str(61 * 8_000), "Content_Type": "audio/basic"}, b"\xff" * 600),
        ({"Content_Length": str(61 * 16_000), "Content_Type": "audio/L16;rate=8000"}, bytes(600)),
        ({"Content_Length": str(61 * 8_000), "Content_Type": "audio/wav"}, b"\x80" * 600),
        ({"Content_Length": str(61 * 16_000), "Content_Type": "audio/wav;rate=8000"}, bytes(7_000)),
        ({"Content_Length": str(61 * 16_000), "Content_Type": "audio/L8"}, b"\x80" * 600),
    ],
    ids=["mu-law", "L16", "of 8 bits that nobody has announced", "WAV without a header", "L8"],
)
@pytest.mark.gen_test
async def test_raw_samples_that_are_too_long_are_413_before_a_worker_hears_them(
    bench: Bench, fields: dict[str, str], start: bytes
) -> None:
    upload = Upload(await bench.harness.dial())
    upload.head(bench.fields(**fields))
    upload.write(start)
    assert is_error(await upload.answer(), 413, "Audio too long")
    assert bench.engine.stream.fed == b""
    assert bench.outcomes == {"too_long": 1}
    assert bench.open_streams == 0


@pytest.mark.gen_test
async def test_a_wav_that_is_too_long_is_413_before_a_worker_hears_it(bench: Bench) -> None:
    transcriber = bench.harness.gateway.wiring.transcriber
    assert transcriber is not None
    limits = replace(transcriber.limits(), max_audio_s=30.0)  # the header claims 31 s
    transcriber.limits = lambda: limits
    upload = await bench.stream()
    upload.chunk(_wav(1_000_000))
    assert is_error(await upload.answer(), 413, "Audio too long")
    assert bench.engine.stream.fed == b""


@pytest.mark.gen_test
async def test_something_known_that_is_no_audio_is_400_before_a_worker_hears_it(bench: Bench) -> None:
    upload = await bench.stream()
    upload.chunk(b"%PDF-1.7\n")
    assert is_error(await upload.answer(), 400, "Audio not decodable: this is a PDF document")
    assert bench.engine.stream.fed == b""
    assert bench.outcomes == {"not_decodable": 1}


@pytest.mark.gen_test
async def test_that_samples_have_eight_bits_is_logged_once_for_each_device(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cocoa.transcriber")
    for device_id in ("doll", "bear", "doll"):
        assert (await bench.post(b"xy" * 600, device_id, Content_Type="audio/wav")).status == 200
    assert (await bench.post(b"\x01\x02" * 600, Content_Type="audio/wav")).status == 200
    noted = [record for record in caplog.records if record.getMessage() == "samples have 8 bits"]
    assert [(record.device_id, record.encoding, record.rate_hz) for record in noted] == [  # type: ignore[attr-defined]  # extra
        ("doll", "u8", 8_000),
        ("bear", "u8", 8_000),
    ]


# What is refused before the body


@pytest.mark.gen_test
async def test_speech_that_is_off_is_501_before_the_body(start_gateway: StartGateway) -> None:
    upload = Upload(await (await start_gateway()).dial())
    upload.head({"Host": "localhost", "Content-Type": RAW, "Content-Length": str(9 * MIB)})
    assert is_error(await upload.answer(), 501, "Speech recognition is not available")


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"Authorization": ""}, 401, "Missing JWT token"),
        ({"Authorization": "Bearer x"}, 401, "Invalid JWT token"),
        ({"Content_Type": "text/plain"}, 400, "Unsupported audio type"),
        ({"Content_Type": ""}, 400, "Unsupported audio type"),
        ({"Content_Encoding": "gzip"}, 400, "Unsupported content encoding"),
        ({"Content_Length": str(MIB + 1)}, 413, "Audio too large"),
        ({"Content_Length": str(10**15)}, 413, "Audio too large"),
    ],
)
@pytest.mark.gen_test
async def test_a_refusal_does_not_wait_for_the_body(
    bench: Bench, fields: dict[str, str], status: int, message: str
) -> None:
    upload = Upload(await bench.harness.dial())
    upload.head(bench.fields(**{"Content_Length": "1000", **fields}))
    response = await upload.answer()
    assert is_error(response, status, message)
    assert response.headers["connection"] == "close"
    assert (response.headers.get("www-authenticate") == "Bearer") is (status == 401)
    assert await upload.is_closed()
    assert bench.engine.streams == []


@pytest.mark.parametrize("query", ["?interim=maybe", "?interim=", "?interim=%ff"])
@pytest.mark.gen_test
async def test_a_wish_for_hypotheses_is_yes_or_no(bench: Bench, query: str) -> None:
    assert is_error(await bench.post(b"x", query=query), 400, "Invalid interim")


@pytest.mark.gen_test
async def test_a_token_in_the_query_is_none(bench: Bench) -> None:
    response = await bench.post(b"x", query=f"?token={bench.harness.token()}", Authorization="")
    assert is_error(response, 401, "Missing JWT token")


@pytest.mark.gen_test
async def test_another_method_is_405_like_elsewhere(bench: Bench) -> None:
    for method in ("GET", "PUT", "DELETE"):
        response = await bench.harness.http(method, PATH, {"Content-Length": "1000"})
        assert is_error(response, 405, "Method Not Allowed")
        assert response.headers["allow"] == "POST, OPTIONS"


@pytest.mark.gen_test
async def test_a_device_has_one_stream_at_a_time(bench: Bench) -> None:
    upload = await bench.stream("doll")
    response = await bench.post(b"x", "doll")
    assert is_error(response, 429, "Too many audio streams")
    assert int(response.headers["retry-after"]) >= 1
    assert (await bench.post(b"x", "bear")).status == 200
    assert (await upload.end()).status == 200
    assert (await bench.post(b"x", "doll")).status == 200


@pytest.mark.gen_test
async def test_a_full_queue_says_when_to_come_back(bench: Bench) -> None:
    bench.engine.is_busy = True
    response = await bench.post(b"x")
    assert is_error(response, 429, "Too many audio streams")
    assert response.headers["retry-after"] == "8"


@pytest.mark.logs("cocoa.access", "request")
@pytest.mark.gen_test
async def test_an_engine_that_cannot_start_is_502_and_told_to_the_device(bench: Bench) -> None:
    bench.engine.state = SpeechState.FAILED
    device = await bench.harness.raw("doll")
    assert is_error(await bench.post(b"x"), 502, "Speech recognition failed")
    message = json.loads((await device.read_until(TEXT)).payload)
    assert (message["success"], message["error"]) == (False, "speech recognition failed")


@pytest.mark.gen_test
async def test_a_refused_client_that_goes_on_sending_gets_its_answer(bench: Bench) -> None:
    upload = Upload(await bench.harness.dial())
    upload.head(bench.fields(Authorization="Bearer x", Content_Length=str(8 * MIB)))
    sent = 0
    for _ in range(8):
        upload.write(bytes(MIB))
        await upload.device.writer.drain()
        sent += MIB
    assert sent == 8 * MIB
    assert is_error(await upload.answer(), 401, "Invalid JWT token")
    assert await upload.is_closed()


# What is refused while the body comes


@pytest.mark.gen_test
async def test_too_many_bytes_are_413_at_once(bench: Bench) -> None:
    upload = await bench.stream()
    for _ in range(64):
        upload.chunk(bytes(16 * 1024))
    upload.chunk(b"x")
    assert is_error(await upload.answer(), 413, "Audio too large")
    assert bench.engine.stream.cancelled
    assert (bench.published(), bench.outcomes) == ([], {"too_large": 1})
    upload.device.close()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (AudioNotDecodable("this is noise"), 400, "Audio not decodable: this is noise"),
        (AudioTooLong("61 s"), 413, "Audio too long"),
        pytest.param(EngineFailed("crashed"), 502, "Speech recognition failed", marks=FAILED),
    ],
)
@pytest.mark.parametrize("when", ["while", "after"])
@pytest.mark.gen_test
async def test_what_the_engine_says_is_the_answer(
    bench: Bench, error: SpeechError, status: int, message: str, when: str
) -> None:
    upload = await bench.stream()
    upload.chunk(b"words")
    await eventually(lambda: bench.engine.stream.fed == b"words")
    bench.engine.stream.fail(error)
    if when == "while":
        upload.chunk(b"more")
        assert is_error(await upload.answer(), status, message)
        upload.chunk(b"and more")
        upload.write(b"0\r\n\r\n")
        assert await upload.is_closed()
    else:
        assert is_error(await upload.end(), status, message)
    records = [("", "speech recognition failed")] if status == 502 else []
    assert [(record["text"], record["error"]) for record in bench.published()] == records
    assert (await bench.post(b"the next")).status == 200


@pytest.mark.gen_test
async def test_a_stream_without_a_byte_is_408(start_gateway: StartGateway, engine: ScriptedEngine) -> None:
    bench = Bench(await start_gateway(engine=engine, audio_idle_timeout_s=0.1), engine)
    upload = await bench.stream()
    upload.chunk(b"words, and then nothing")
    assert is_error(await upload.answer(), 408, "Timed out waiting for audio")
    assert await upload.is_closed()
    assert engine.stream.cancelled
    assert (bench.open_streams, bench.published(), bench.outcomes) == (0, [], {"timeout": 1})


@pytest.mark.gen_test
async def test_a_drip_is_408_in_the_end(start_gateway: StartGateway, engine: ScriptedEngine) -> None:
    harness = await start_gateway(engine=engine, audio_idle_timeout_s=1.0, audio_max_duration_s=0.1)
    bench = Bench(harness, engine)
    upload = await bench.stream()
    answer = asyncio.ensure_future(upload.answer())
    while not answer.done():
        upload.chunk(b".")
        await asyncio.wait({answer}, timeout=0.02)
    assert is_error(await answer, 408, "Upload took too long")
    assert bench.open_streams == 0


@pytest.mark.gen_test
async def test_a_device_that_is_held_back_is_not_late(start_gateway: StartGateway, engine: ScriptedEngine) -> None:
    settings: dict[str, Any] = {"audio_idle_timeout_s": 0.3, "audio_max_duration_s": 0.1, "body_timeout_s": 0.1}
    bench = Bench(await start_gateway(engine=engine, **settings), engine)
    engine.takes.clear()
    upload = await bench.stream()
    upload.chunk(b"words")
    await eventually(lambda: engine.stream.fed == b"words")
    answer = asyncio.ensure_future(upload.end())
    held_until = time.monotonic() + 0.7
    await eventually(lambda: time.monotonic() > held_until)
    assert not answer.done()
    engine.takes.set()
    assert (await answer).status == 200


@pytest.mark.gen_test
async def test_an_engine_that_is_behind_holds_the_device_back(bench: Bench) -> None:
    bench.engine.takes.clear()
    upload = Upload(await bench.harness.dial())
    upload.head(bench.fields(Content_Length=str(MIB)))
    upload.write(bytes(MIB))
    await eventually(lambda: bool(bench.engine.streams) and bench.engine.stream.fed != b"")
    taken = len(bench.engine.stream.fed)
    assert taken <= 64 * 1024
    bench.engine.takes.set()
    assert (await upload.answer()).status == 200
    assert len(bench.engine.stream.fed) == MIB


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("fields", [{"Content_Length": "1000"}, {"Transfer_Encoding": "chunked"}])
@pytest.mark.gen_test
async def test_a_client_that_vanishes_frees_everything(bench: Bench, fields: dict[str, str], how: str) -> None:
    upload = Upload(await bench.harness.dial())
    upload.head(bench.fields(**fields))
    upload.write(b"5\r\nwords\r\n")
    await eventually(lambda: bool(bench.engine.streams) and b"words" in bench.engine.stream.fed)
    if how == "reset":
        upload.device.reset()
    else:
        upload.device.close()
    await eventually(lambda: bench.open_streams == 0)
    assert bench.engine.stream.cancelled
    assert (bench.published(), bench.outcomes) == ([], {"vanished": 1})


@pytest.mark.gen_test
async def test_a_client_that_does_not_wait_for_the_answer_gets_its_words(bench: Bench) -> None:
    device = await bench.harness.raw("doll")
    bench.engine.answers.clear()
    upload = await bench.stream()
    upload.chunk(b"fire and forget")
    upload.write(b"0\r\n\r\n")
    await eventually(lambda: bench.engine.stream.fed == b"fire and forget")
    upload.device.close()
    await upload.device.writer.wait_closed()
    bench.engine.answers.set()
    assert json.loads((await device.read_until(TEXT)).payload)["text"] == "fire and forget"


@pytest.mark.parametrize("garbage", [b"zz\r\n", b"5\r\nwordsXX", b"-1\r\n", b"5 " * 1000, b"5;a=\rb\r\n"])
@pytest.mark.gen_test
async def test_garbage_between_chunks_is_400_and_frees_everything(bench: Bench, garbage: bytes) -> None:
    upload = await bench.stream()
    upload.write(garbage)
    assert (await upload.answer()).status == 400
    await eventually(lambda: bench.open_streams == 0)
    assert bench.published() == []


@pytest.mark.parametrize("trailers", [b"", b"X-Checksum: abc\r\nX-Length: 5\r\n"])
@pytest.mark.parametrize("extension", [b"", b";last", b' ; a=b ;c="d;e"'])
@pytest.mark.parametrize("piece", [1, 10_000])
@pytest.mark.gen_test
async def test_chunk_extensions_and_trailer_fields_are_ignored(
    bench: Bench, extension: bytes, trailers: bytes, piece: int
) -> None:
    upload = await bench.stream()
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(word), extension, word) for word in (b"go ", b"forward"))
    body += b"0%b\r\n%b\r\n" % (extension, trailers)
    for start in range(0, len(body), piece):
        upload.write(body[start : start + piece])
        await upload.device.writer.drain()
        await asyncio.sleep(0)
    assert (await upload.answer()).status == 200
    assert bench.engine.stream.fed == b"go forward"
    # The next request begins where this one has ended.
    upload.head(bench.fields(Content_Length="2"))
    upload.write(b"on")
    assert (await upload.answer()).status == 200
    assert bench.engine.stream.fed == b"on"


@pytest.mark.parametrize("length", ["x", "-1", "5,6", "9" * 30])
@pytest.mark.gen_test
async def test_a_length_that_is_none_is_400(bench: Bench, length: str) -> None:
    upload = Upload(await bench.harness.dial())
    upload.head(bench.fields(Content_Length=length))
    assert (await upload.answer()).status == 400
    assert bench.engine.streams == []


@pytest.mark.logs("cocoa.transcriber", "transcript not published")
@pytest.mark.gen_test
async def test_words_that_cannot_be_published_are_503(start_gateway: StartGateway, engine: ScriptedEngine) -> None:
    broker = Refusing()
    bench = Bench(await start_gateway(broker, engine), engine)
    broker.refuses = True
    response = await bench.post(b"words")
    assert is_error(response, 503, "Broker not available")
    assert "retry-after" in response.headers
    assert (bench.open_streams, bench.outcomes) == (0, {"unpublished": 1})


# Draining, readiness, metrics, reloading


@pytest.mark.gen_test
async def test_a_drain_lets_an_upload_end_and_its_words_arrive(bench: Bench) -> None:
    device = await bench.harness.raw("doll")
    upload = await bench.stream("doll")
    upload.chunk(b"last")
    await eventually(lambda: bench.engine.stream.fed == b"last")
    draining = asyncio.ensure_future(bench.harness.gateway.drain_and_stop())
    await eventually(lambda: bench.harness.gateway.presence.draining)
    late = await bench.post(b"x", "bear")
    assert is_error(late, 503, "Gateway is draining")
    assert "retry-after" in late.headers
    upload.chunk(b" words")
    assert json.loads((await upload.end()).body)["text"] == "last words"
    assert json.loads((await device.read_until(TEXT)).payload)["text"] == "last words"
    await draining


@pytest.mark.logs("cocoa.transcriber", "audio streams cut off")
@pytest.mark.gen_test
async def test_a_drain_does_not_wait_for_ever(bench: Bench) -> None:
    upload = await bench.stream()
    upload.chunk(b"and so on")
    await eventually(lambda: bench.engine.stream.fed != b"")
    waiting = await bench.stream("bear")
    bench.engine.answers.clear()
    waiting.chunk(b"and so on")
    waiting.write(b"0\r\n\r\n")
    draining = asyncio.ensure_future(bench.harness.gateway.drain_and_stop())
    for cut in (upload, waiting):
        assert is_error(await cut.answer(), 503, "Gateway is draining")
    await asyncio.wait_for(draining, PATIENCE_S)
    assert (bench.published(), bench.outcomes) == ([], {"drained": 2})


@pytest.mark.gen_test
async def test_ready_waits_for_the_first_worker(bench: Bench) -> None:
    for state, status in (
        (SpeechState.LOADING, 503),
        (SpeechState.FAILED, 503),
        (SpeechState.READY, 200),
    ):
        bench.engine.state = state
        response = await bench.harness.http("GET", "/api/v1/ready")
        part = json.loads(response.body)["parts"]["speech"]
        assert (response.status, part) == (status, {"ok": status == 200, "state": state.value})
    assert bench.engine.has_started


@pytest.mark.gen_test
async def test_the_metrics_tell_of_streams_audio_and_workers(bench: Bench) -> None:
    await bench.post(b"ten bytes.", query="?interim=1")
    await eventually(lambda: bench.harness.gateway.counters.speech.delivery.cumulative()[-1][1] == 1)
    metrics = await bench.harness.metrics()
    assert metrics['cocoa_speech_streams_total{outcome="transcribed"}'] == 1
    assert metrics["cocoa_speech_audio_seconds_total"] == 1.0
    assert metrics["cocoa_speech_hypotheses_total"] == 1
    assert metrics["cocoa_speech_real_time_factor_count"] == 1
    assert metrics["cocoa_speech_queue_seconds_sum"] == 0.25
    assert metrics["cocoa_speech_delivery_seconds_count"] == 1
    assert (metrics["cocoa_speech_workers"], metrics["cocoa_speech_workers_busy"]) == (4, 1)
    assert metrics["cocoa_speech_queued"] == 2
    assert (metrics["cocoa_speech_parked"], metrics["cocoa_speech_kept_bytes"]) == (3, 1000)
    assert metrics["cocoa_speech_taken_back_total"] == 5


@pytest.mark.gen_test
async def test_a_reload_changes_the_limits_for_new_uploads(bench: Bench) -> None:
    gateway = bench.harness.gateway
    changed = dataclasses.replace(
        gateway.settings, audio_max_bytes=1024, audio_max_duration_s=5.0, audio_streams_per_device=2
    )
    await gateway.reload(changed)
    assert is_error(await bench.post(bytes(1025)), 413, "Audio too large")
    uploads = [await bench.stream(), await bench.stream()]
    assert bench.engine.stream.max_audio_s == 5.0
    for upload in uploads:
        assert (await upload.end()).status == 200


# With real speech


@pytest.mark.gen_test(timeout=60)
async def test_real_speech_comes_to_the_device_that_spoke_and_to_no_other(start_gateway: StartGateway) -> None:
    harness = await start_gateway(speech="pocketsphinx://", speech_workers=1)
    device, other = await harness.raw("doll"), await harness.raw("bear")

    async def is_ready() -> bool:
        return (await harness.http("GET", "/api/v1/ready")).status == 200

    end = time.monotonic() + 30
    while not await is_ready():
        assert time.monotonic() < end, "no worker has come up"
        await asyncio.sleep(0.1)
    samples = SPEECH.read_bytes()
    file = BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16_000, 0, "NONE", ""))
        writer.writeframes(samples)
    upload = Upload(await harness.dial())
    token = harness.token("doll")
    upload.head(
        {
            "Host": "localhost",
            "Authorization": f"Bearer {token}",
            "Content-Type": "audio/wav",
            "Transfer-Encoding": "chunked",
        }
    )
    audio = file.getvalue()
    for start in range(0, len(audio), 640):  # 20 ms
        upload.chunk(audio[start : start + 640])
    answer = json.loads((await upload.end()).body)
    # How well it hears the last word of "go forward ten meters" is not this test's affair.
    assert answer["text"].startswith("go forward ten")
    message = json.loads((await device.read_until(TEXT)).payload)
    assert (message["session_id"], message["text"]) == (answer["session_id"], answer["text"])
    await harness.publish("bear", "the next for the other")
    assert json.loads((await other.read_until(TEXT)).payload)["text"] == "the next for the other"
