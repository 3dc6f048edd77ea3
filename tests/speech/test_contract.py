"""What every speech engine promises (``speech/port.py``), each with its own worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from cocoa_tornado.errors import AudioNotDecodable, AudioTooLong, EngineFailed, SpeechBusy
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.speech.pool import PoolOptions, WorkerPool
from cocoa_tornado.speech.port import SpeechState, SpeechStream
from testing.waiting import eventually
from testing.words import spoken

from .google_server import SpeechService
from .whisper_model import whisper_base

pytestmark = pytest.mark.gen_test(timeout=120)

DEMO = Path(__file__).parents[2] / "demo"
SOMEWHERE, DIGITS = "go somewhere and do something", "two nine three four zero"
LOADING_PATIENCE_S = 60.0
RAW = AudioFormat()
SECOND = 32_000


def samples(name: str) -> bytes:
    return (DEMO / name).read_bytes()[44:]


@contextmanager
def google() -> Iterator[str]:
    with SpeechService({SOMEWHERE: samples("somewhere.wav"), DIGITS: samples("digits.wav")}) as service:
        yield service.url


@contextmanager
def whisper() -> Iterator[str]:
    yield f"whisper://{whisper_base()}"


@contextmanager
def pocketsphinx() -> Iterator[str]:
    yield "pocketsphinx://"


ENGINES = {"pocketsphinx": pocketsphinx, "whisper": whisper, "google": google}


@pytest.fixture(scope="module", params=["pocketsphinx", pytest.param("whisper", marks=pytest.mark.slow), "google"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with ENGINES[request.param]() as url:
        yield url


@asynccontextmanager
async def pool_of(url: str, workers: int = 1, queue: int = 4, stall_s: float = 30.0) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(PoolOptions(url, language="en", workers=workers, queue=queue, stall_s=stall_s))
    pool.start()
    try:
        await eventually(lambda: pool.status().workers == workers, LOADING_PATIENCE_S)
        yield pool
    finally:
        await pool.close()


async def transcribed(stream: SpeechStream, audio: bytes, piece: int = 6400) -> str:
    for start in range(0, len(audio), piece):
        await stream.feed(audio[start : start + piece])
    return " ".join(spoken((await stream.finish()).text))


async def test_known_words_are_recognised_however_they_are_cut_and_silence_is_no_words(url: str) -> None:
    async with pool_of(url) as pool:
        assert pool.status().state is SpeechState.READY
        for piece in (640, 100_000):
            assert await transcribed(pool.open(RAW, 60.0), samples("somewhere.wav"), piece) == " ".join(
                spoken(SOMEWHERE)
            )
        assert await transcribed(pool.open(RAW, 60.0), bytes(2 * SECOND)) == ""
        assert await transcribed(pool.open(AudioFormat("wav"), 60.0), (DEMO / "digits.wav").read_bytes()) == " ".join(
            spoken(DIGITS)
        )


async def test_streams_at_once_get_their_own_words_and_none_of_another(url: str) -> None:
    async with pool_of(url, workers=2, queue=8) as pool:
        recordings_used = [("somewhere.wav", SOMEWHERE), ("digits.wav", DIGITS)] * 2
        texts = await asyncio.gather(*(transcribed(pool.open(RAW, 60.0), samples(name)) for name, _ in recordings_used))
        assert texts == [" ".join(spoken(words)) for _, words in recordings_used]


async def test_interims_grow_and_end_before_the_result(url: str) -> None:
    async with pool_of(url) as pool:
        interims: list[str] = []
        stream = pool.open(RAW, 60.0, interims.append)
        audio = samples("somewhere.wav")
        for start in range(0, len(audio), 3200):
            await stream.feed(audio[start : start + 3200])
            await asyncio.sleep(0.08)
        await stream.finish()
        count = len(interims)
        assert count >= 1
        assert all(interims)
        await transcribed(pool.open(RAW, 60.0), bytes(SECOND))
        assert len(interims) == count


@pytest.mark.parametrize("cut", [20_001, 60_000])
async def test_a_stream_that_lost_its_worker_on_the_way_has_the_same_words(
    url: str, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoa_tornado.rules.pace.BEHIND_S", 0.05)
    async with pool_of(url) as pool:
        audio = samples("somewhere.wav")
        stream = pool.open(RAW, 60.0)
        await stream.feed(audio[:cut])
        assert await transcribed(pool.open(RAW, 60.0), samples("digits.wav")) == " ".join(spoken(DIGITS))
        assert (pool.status().parked, pool.status().taken_back) == (1, 1)
        assert await transcribed(stream, audio[cut:]) == " ".join(spoken(SOMEWHERE))
        assert pool.counters.lost == {}


async def test_undecodable_and_too_long_audio_are_distinguished_and_the_worker_goes_on(url: str) -> None:
    async with pool_of(url) as pool:
        with pytest.raises(AudioNotDecodable):
            await transcribed(pool.open(AudioFormat("flac"), 60.0), os.urandom(20_000))
        with pytest.raises(AudioTooLong):
            await transcribed(pool.open(RAW, 1.0), bytes(5 * SECOND))
        assert await transcribed(pool.open(RAW, 60.0), samples("digits.wav")) == " ".join(spoken(DIGITS))
        assert pool.counters.lost == {}


async def test_a_stream_that_is_cancelled_frees_its_worker(url: str) -> None:
    async with pool_of(url) as pool:
        stream = pool.open(RAW, 60.0)
        await stream.feed(samples("somewhere.wav"))
        stream.cancel()
        with pytest.raises(EngineFailed):
            await stream.finish()
        assert await transcribed(pool.open(RAW, 60.0), samples("digits.wav")) == " ".join(spoken(DIGITS))
        assert pool.counters.lost == {}


@pytest.mark.logs("cocoa.speech", "^worker lost$")
@pytest.mark.parametrize(
    ("blow", "reason", "stall_s"),
    # One that hangs is to be found out soon, and one that waits for the machine is not to be taken for it.
    [(signal.SIGKILL, "crashed", 30.0), (signal.SIGSTOP, "stuck", 4.0)],
    ids=["crashed", "stuck"],
)
async def test_a_worker_that_dies_or_hangs_costs_its_stream_and_is_replaced(
    blow: signal.Signals, reason: str, stall_s: float
) -> None:
    async with pool_of("pocketsphinx://", workers=2, stall_s=stall_s) as pool:
        before = set(pool.worker_pids())
        victim, other = pool.open(RAW, 60.0), pool.open(RAW, 60.0)
        await victim.feed(samples("somewhere.wav")[:SECOND])
        await other.feed(samples("digits.wav")[:SECOND])
        # The first stream has the first worker.
        os.kill(min(before), blow)
        with pytest.raises(EngineFailed):
            await transcribed(victim, samples("somewhere.wav")[SECOND:])
        assert await transcribed(other, samples("digits.wav")[SECOND:]) == DIGITS
        await eventually(lambda: pool.status().workers == 2, LOADING_PATIENCE_S)
        assert min(before) not in pool.worker_pids()
        assert pool.counters.lost == {reason: 1}
        assert await transcribed(pool.open(RAW, 60.0), samples("somewhere.wav")) == SOMEWHERE


async def test_a_worker_that_waits_for_a_slow_device_is_not_stuck() -> None:
    async with pool_of("pocketsphinx://", stall_s=2.0) as pool:
        stream = pool.open(RAW, 60.0)
        await stream.feed(samples("digits.wav")[:SECOND])
        await asyncio.sleep(3.0)
        assert await transcribed(stream, samples("digits.wav")[SECOND:]) == DIGITS
        assert pool.counters.lost == {}


async def test_one_stream_too_many_is_busy_at_once_and_those_who_wait_have_their_turn_in_order() -> None:
    async with pool_of("pocketsphinx://", queue=2) as pool:
        first, *waiting = (pool.open(RAW, 60.0) for _ in range(3))
        with pytest.raises(SpeechBusy) as busy:
            pool.open(RAW, 60.0)
        assert busy.value.retry_after_s >= 1
        order: list[int] = []

        async def speak(number: int, stream: SpeechStream) -> None:
            assert await transcribed(stream, samples("digits.wav")) == DIGITS
            order.append(number)

        speaking = [asyncio.ensure_future(speak(number, stream)) for number, stream in enumerate(waiting, start=1)]
        await speak(0, first)
        await asyncio.gather(*speaking)
        assert order == [0, 1, 2]


async def test_closing_ends_every_stream_and_every_process() -> None:
    async with pool_of("pocketsphinx://", workers=2) as pool:
        pids = pool.worker_pids()
        streams = [pool.open(RAW, 60.0) for _ in range(3)]
        ends = [asyncio.ensure_future(stream.finish()) for stream in streams[1:]]
        await streams[0].feed(bytes(SECOND))
        await pool.close()
        for end in ends:
            with pytest.raises(EngineFailed):
                await end
        assert not any(map(is_alive, pids))
        assert pool.status().state is SpeechState.CLOSED


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.logs("cocoa.speech", "^speech failed$")
@pytest.mark.logs("cocoa.speech", "^worker (lost|output)$")
async def test_workers_that_never_start_are_reported_and_waiting_streams_fail() -> None:
    pool = WorkerPool(PoolOptions("pocketsphinx:///no/such/model", workers=1))
    pool.start()
    try:
        stream = pool.open(RAW, 60.0)
        with pytest.raises(EngineFailed):
            await stream.finish()
        await eventually(lambda: pool.status().state is SpeechState.FAILED, 30)
        assert "/no/such/model" in pool.status().detail
    finally:
        await pool.close()
