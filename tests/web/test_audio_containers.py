"""Browsers' recordings, over real HTTP and through real speech recognition."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from testing.raw_device import Response
from testing.waiting import eventually
from testing.words import spoken

from ..harness import Harness
from ..speech.recordings import picture, with_video
from .conftest import StartGateway
from .uploads import Upload, is_error

DATA = Path(__file__).parents[1] / "speech" / "data"
SPEECH = (Path(__file__).parents[2] / "demo" / "somewhere.wav").read_bytes()[44:]
WORDS = "go somewhere and do something"
PATIENCE_S = 60.0

# As Chromium's MediaRecorder has written them: demo/somewhere.wav, through its microphone. What encoders make of every
# other container, and two WAVs in one upload, are compared with the speech that they were, sample by sample, in
# tests/speech/test_decoding.py.
RECORDINGS: dict[str, tuple[str, Path]] = {
    "WebM as WAV": ("audio/wav", DATA / "chromium.webm"),
    "MP4": ("audio/mp4", DATA / "chromium.mp4"),
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


@pytest.mark.gen_test(timeout=120)
async def test_the_words_of_what_a_browser_records_are_heard(start_gateway: StartGateway) -> None:
    harness = await gateway_that_hears(start_gateway)
    heard = {}
    for name, (content_type, file) in RECORDINGS.items():
        answer = await post(harness, content_type, file.read_bytes())
        heard[name] = (answer.status, " ".join(spoken(json.loads(answer.body).get("text", ""))))

    assert heard == {name: (200, WORDS) for name in RECORDINGS}


@pytest.mark.gen_test(timeout=120)
async def test_what_is_no_audio_is_answered_with_what_it_is(start_gateway: StartGateway) -> None:
    harness = await gateway_that_hears(start_gateway)
    for content_type in ("audio/wav", "application/octet-stream", "audio/webm"):
        answer = await post(harness, content_type, picture())
        assert is_error(answer, 400, "Audio not decodable: this is a PNG picture")
    answer = await post(harness, "audio/mp4", with_video(SPEECH, "mp4", "", "mpeg4"))
    assert is_error(answer, 400, "Audio not decodable: this MP4 holds no audio")
