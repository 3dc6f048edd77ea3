"""What browsers and phones record, over real HTTP and through real speech recognition."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from testing.raw_device import Response
from testing.waiting import eventually
from testing.words import spoken

from ..harness import Harness
from ..speech.recordings import encoded, picture, with_video
from .conftest import StartGateway
from .uploads import Upload, is_error

DATA = Path(__file__).parents[1] / "speech" / "data"
SPEECH = (Path(__file__).parents[2] / "demo" / "somewhere.wav").read_bytes()[44:]
WORDS = "go somewhere and do something"
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "100000"}
PATIENCE_S = 60.0

# As Chromium's MediaRecorder has written them: demo/somewhere.wav, through its microphone.
RECORDINGS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "WebM of Chromium": ("audio/webm;codecs=opus", (DATA / "chromium.webm").read_bytes),
    "WebM of Chromium as WAV": ("audio/wav", (DATA / "chromium.webm").read_bytes),
    "MP4 of Chromium": ("audio/mp4", (DATA / "chromium.mp4").read_bytes),
    "WebM": ("application/octet-stream", lambda: encoded(SPEECH, "webm", "libopus", 48_000)),
    "MP4": ("audio/mp4", lambda: encoded(SPEECH, "mp4", "aac", 44_100)),
    "MP4 in fragments": ("audio/wav", lambda: encoded(SPEECH, "mp4", "aac", 48_000, options=FRAGMENTED)),
    "QuickTime with video": ("application/octet-stream", lambda: with_video(SPEECH, "mov", "aac", "libx264")),
    "CAF": ("audio/x-caf", lambda: encoded(SPEECH, "caf", "alac", 44_100)),
    "AIFF": ("audio/aiff", lambda: encoded(SPEECH, "aiff", "pcm_s16be", 44_100)),
    "AAC": ("audio/aac", lambda: encoded(SPEECH, "adts", "aac", 44_100)),
    "AU": ("audio/wav", lambda: encoded(SPEECH, "au", "pcm_s16be")),
    "WAV of Azure's clients": (
        "audio/wav; codecs=audio/pcm; samplerate=16000",
        lambda: encoded(SPEECH, "wav", "pcm_s16le"),
    ),
}


async def post(harness: Harness, content_type: str, audio: bytes) -> Response:
    upload = Upload(await harness.dial())
    token = harness.token("doll")
    upload.head(
        {
            "Host": "localhost",
            "Authorization": f"Bearer {token}",
            "Content-Type": content_type,
            "Transfer-Encoding": "chunked",
        }
    )
    for start in range(0, len(audio), 4_000):
        upload.chunk(audio[start : start + 4_000])
    return await upload.end()


async def gateway_that_hears(start_gateway: StartGateway) -> Harness:
    harness = await start_gateway(speech="pocketsphinx://", speech_workers=1)
    ready = asyncio.Event()

    async def look() -> None:
        while (await harness.http("GET", "/api/v1/ready")).status != 200:
            await asyncio.sleep(0.1)
        ready.set()

    looking = asyncio.create_task(look())
    await eventually(ready.is_set, PATIENCE_S)
    await looking
    return harness


@pytest.mark.gen_test(timeout=240)
async def test_the_words_of_what_browsers_and_phones_record_are_heard(start_gateway: StartGateway) -> None:
    harness = await gateway_that_hears(start_gateway)
    heard = {}
    for name, (content_type, make) in RECORDINGS.items():
        answer = await post(harness, content_type, make())
        heard[name] = (answer.status, " ".join(spoken(json.loads(answer.body).get("text", ""))))

    assert heard == {name: (200, WORDS) for name in RECORDINGS}


@pytest.mark.gen_test(timeout=120)
async def test_the_words_of_two_wavs_in_one_upload_are_heard(start_gateway: StartGateway) -> None:
    harness = await gateway_that_hears(start_gateway)
    wav = encoded(SPEECH, "wav", "pcm_s16le")
    answer = await post(harness, "audio/wav", wav + wav)
    assert " ".join(spoken(json.loads(answer.body)["text"])) == f"{WORDS} {WORDS}"


@pytest.mark.gen_test(timeout=120)
async def test_what_is_no_audio_is_answered_with_what_it_is(start_gateway: StartGateway) -> None:
    harness = await gateway_that_hears(start_gateway)
    for content_type in ("audio/wav", "application/octet-stream", "audio/webm"):
        answer = await post(harness, content_type, picture())
        assert is_error(answer, 400, "Audio not decodable: this is a PNG picture")
    answer = await post(harness, "audio/mp4", with_video(SPEECH, "mp4", "", "mpeg4"))
    assert is_error(answer, 400, "Audio not decodable: this MP4 holds no audio")
