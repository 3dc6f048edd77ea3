"""The pool, with scripted workers: when one is replaced or taken back, and when it is not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cocoa_tornado.errors import EngineFailed, SpeechBusy
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.rules.kept_audio import MIN_TO_RESUME
from cocoa_tornado.speech.pool import PoolOptions, WorkerPool
from cocoa_tornado.speech.pooled_stream import PooledStream
from cocoa_tornado.speech.port import SpeechState
from cocoa_tornado.speech.worker import OOM_SCORE, PROGRESS_BYTES
from testing.waiting import eventually

RAW = AudioFormat()
COMMAND = (sys.executable, "-m", "tests.speech.scripted_worker")

pytestmark = pytest.mark.gen_test(timeout=30)


@contextlib.asynccontextmanager
async def pool_of(command: tuple[str, ...] = COMMAND, **options: Any) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(PoolOptions("scripted://", command=command, **{"workers": 1, "queue": 4, **options}))
    pool.start()
    try:
        await eventually(lambda: pool.status().state is not SpeechState.LOADING, 10)
        yield pool
    finally:
        await pool.close()


async def transcribed(pool: WorkerPool, words: bytes) -> str:
    stream = pool.open(RAW, 60.0)
    await stream.feed(words)
    return (await stream.finish()).text


async def test_an_engine_that_is_slow_and_reports_progress_is_not_stuck() -> None:
    async with pool_of(stall_s=1.5) as pool:
        assert await transcribed(pool, b"slow") == "slow"
        assert pool.counters.lost == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_that_is_for_the_gateway_ends_no_worker(number: signal.Signals) -> None:
    # A service manager signals all processes of a service.
    async with pool_of() as pool:
        (pid,) = pool.worker_pids()
        os.kill(pid, number)
        assert await transcribed(pool, b"word") == "word"
        assert pool.worker_pids() == (pid,)


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="Linux has it")
async def test_the_kernel_kills_a_worker_before_the_gateway() -> None:
    async with pool_of() as pool:
        (pid,) = pool.worker_pids()
        own, workers = (int(Path(f"/proc/{who}/oom_score_adj").read_text(encoding="ascii")) for who in ("self", pid))
        assert workers == min(1000, own + OOM_SCORE)


async def test_cancelling_frees_a_worker_that_is_slow() -> None:
    async with pool_of() as pool:
        stream = pool.open(RAW, 60.0)
        await stream.feed(b"endless!")
        finishing = asyncio.ensure_future(stream.finish())
        await eventually(lambda: pool.status().busy == 1)
        await asyncio.sleep(0.2)
        stream.cancel()
        since = time.monotonic()
        assert await transcribed(pool, b"next") == "next"
        assert time.monotonic() - since < 20.0  # of the minute that was left
        with pytest.raises(EngineFailed):
            await finishing
        assert pool.counters.lost == {}


async def test_after_a_blocked_loop_no_worker_that_has_answered_is_condemned() -> None:
    async with pool_of(stall_s=1.5) as pool:
        stream = pool.open(RAW, 60.0)
        await stream.feed(b"word")
        finishing = asyncio.ensure_future(stream.finish())
        await asyncio.sleep(0)
        time.sleep(2.5)  # as SIGSTOP, or a machine that is moved, would do
        assert (await finishing).text == "word"
        assert pool.counters.lost == {}


@pytest.mark.logs("cocoa.speech", "^worker (lost|output)$")
async def test_an_engine_that_fails_again_and_again_is_loaded_anew() -> None:
    async with pool_of() as pool:
        (before,) = pool.worker_pids()
        for _ in range(3):
            with pytest.raises(EngineFailed):
                await transcribed(pool, b"fail")
        await eventually(lambda: pool.worker_pids() not in ((), (before,)) and pool.status().workers == 1, 10)
        assert await transcribed(pool, b"well") == "well"
        assert pool.counters.lost == {"crashed": 1}


async def test_an_engine_that_fails_now_and_then_goes_on() -> None:
    async with pool_of() as pool:
        before = pool.worker_pids()
        for words in (b"fail", b"fail", b"good", b"fail", b"fail", b"good"):
            with contextlib.suppress(EngineFailed):
                await transcribed(pool, words)
        assert pool.worker_pids() == before


@pytest.mark.logs("cocoa.speech", "^worker (lost|output)$")
async def test_an_internal_error_costs_one_utterance_and_the_worker() -> None:
    async with pool_of() as pool:
        (before,) = pool.worker_pids()
        with pytest.raises(EngineFailed, match="ZeroDivisionError"):
            await transcribed(pool, b"faults")
        await eventually(lambda: pool.worker_pids() not in ((), (before,)) and pool.status().workers == 1, 10)
        assert await transcribed(pool, b"well") == "well"


@pytest.mark.logs("cocoa.speech", "^(worker lost|speech failed)$")
async def test_workers_that_crash_with_every_stream_are_not_started_without_end() -> None:
    async with pool_of() as pool:
        since = time.monotonic()
        while time.monotonic() - since < 3.0:
            with contextlib.suppress(EngineFailed):
                await transcribed(pool, b"crash!")
            await asyncio.sleep(0.01)
        assert pool.counters.started <= 10  # without a pause it would be some thirty


async def test_a_stream_takes_a_worker_when_it_has_something_to_say() -> None:
    async with pool_of() as pool:
        silent = pool.open(RAW, 60.0)
        assert (pool.status().busy, pool.status().queued) == (0, 1)
        assert await transcribed(pool, b"quick!") == "quick!"
        await silent.feed(b"atlast")
        assert (await silent.finish()).text == "atlast"


async def test_a_silent_stream_holds_its_place_in_the_queue() -> None:
    async with pool_of(queue=1) as pool:
        waiting = [pool.open(RAW, 60.0) for _ in range(2)]
        with pytest.raises(SpeechBusy):
            pool.open(RAW, 60.0)
        for stream in waiting:
            stream.cancel()
        assert await transcribed(pool, b"room") == "room"


@pytest.mark.logs("cocoa.speech", "interim callback failed")
async def test_a_failing_interim_callback_repeats_none_and_loses_nothing_else() -> None:
    async with pool_of() as pool:
        interims: list[str] = []

        def receive(text: str) -> None:
            interims.append(text)
            if len(interims) == 1:
                raise ZeroDivisionError("boom")

        stream = pool.open(RAW, 60.0, receive)
        await stream.feed(b"word" * 5000)
        assert len((await stream.finish()).text) == 20_000
        assert len(interims) == len(set(interims)) > 1


@pytest.mark.logs("cocoa.speech", "^(worker (lost|output)|speech failed)$")
async def test_a_worker_that_sends_an_invalid_frame_is_replaced_with_the_reason() -> None:
    async with pool_of(("/bin/sh", "-c", "echo hello there you; sleep 5")) as pool:
        await eventually(lambda: pool.status().state is SpeechState.FAILED, 20)
        assert "hello there" in pool.status().detail


# Workers are for audio that is there


@pytest.fixture
def soon_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoa_tornado.rules.pace.BEHIND_S", 0.05)


async def beginning(pool: WorkerPool, words: bytes, interims: list[str] | None = None) -> PooledStream:
    """A stream whose beginning a worker has processed."""
    stream = pool.open(RAW, 60.0, None if interims is None else interims.append)
    await stream.feed(words)
    await eventually(lambda: stream.worker is not None)
    return stream


@pytest.mark.usefixtures("soon_behind")
async def test_a_stream_that_is_behind_gives_its_worker_back_and_loses_nothing() -> None:
    async with pool_of() as pool:
        drip = await beginning(pool, b"drip")
        assert await transcribed(pool, b"quick!") == "quick!"
        status = pool.status()
        assert (status.parked, status.kept_bytes, status.taken_back) == (1, 4, 1)
        await drip.feed(b"ping")
        assert pool.status().busy == 0, "so little is not worth a worker"
        assert (await drip.finish()).text == "dripping"
        assert (pool.status().parked, pool.status().kept_bytes) == (0, 0)
        assert pool.counters.lost == {}


@pytest.mark.usefixtures("soon_behind")
async def test_a_stream_that_is_behind_keeps_a_worker_that_no_other_wants() -> None:
    async with pool_of(workers=2) as pool:
        await eventually(lambda: pool.status().workers == 2, 10)
        drip = await beginning(pool, b"drip")
        silent = pool.open(RAW, 60.0)
        for _ in range(3):
            assert await transcribed(pool, b"quick!") == "quick!"
        assert (drip.worker is not None, pool.status().parked) == (True, 0)
        silent.cancel()
        assert (await drip.finish()).text == "drip"
        assert pool.counters.taken_back == 0


@pytest.mark.usefixtures("soon_behind")
async def test_a_parked_stream_gets_a_worker_when_it_has_enough_audio_or_has_ended() -> None:
    async with pool_of() as pool:
        first, second = await beginning(pool, b"a" * 8), pool.open(RAW, 60.0)
        await second.feed(b"b" * 8)
        await eventually(lambda: second.worker is not None)
        assert first.worker is None
        await first.feed(b"a" * MIN_TO_RESUME)
        await eventually(lambda: first.worker is not None)
        assert (second.worker, pool.status().parked) == (None, 1)
        assert (await second.finish()).text == "b" * 8
        assert (await first.finish()).text == "a" * (8 + MIN_TO_RESUME)


@pytest.mark.usefixtures("soon_behind")
async def test_a_worker_that_is_at_work_on_all_that_came_is_not_taken_from_its_stream() -> None:
    async with pool_of() as pool:
        stream = await beginning(pool, b"busy".rjust(PROGRESS_BYTES, b"y"))
        other = asyncio.ensure_future(transcribed(pool, b"waits!"))
        worker = stream.worker
        assert worker is not None
        await eventually(lambda: pool._roster.unconsumed(worker) == 0)
        await asyncio.sleep(0.3)  # of the second for which it is at work
        assert (stream.worker is not None, pool.status().parked) == (True, 0)
        assert await other == "waits!"
        assert pool.counters.taken_back == 1
        assert (await stream.finish()).text.endswith("busy")


@pytest.mark.usefixtures("soon_behind")
async def test_interims_of_a_stream_that_is_processed_again_do_not_begin_again() -> None:
    async with pool_of() as pool:
        interims: list[str] = []
        stream = await beginning(pool, b"word" * 5000, interims)
        await eventually(lambda: interims[-1:] == ["word" * 5000])
        assert await transcribed(pool, b"quick!") == "quick!"
        assert pool.status().parked == 1
        await stream.feed(b"more" * 5000)
        await eventually(lambda: interims[-1] == "word" * 5000 + "more" * 5000)
        assert (await stream.finish()).text == interims[-1]
        assert interims == sorted(set(interims), key=len)


@pytest.mark.usefixtures("soon_behind")
async def test_a_parked_stream_that_is_cancelled_leaves_nothing_behind() -> None:
    async with pool_of() as pool:
        drip = await beginning(pool, b"drip")
        assert await transcribed(pool, b"quick!") == "quick!"
        drip.cancel()
        assert (pool.status().parked, pool.status().kept_bytes, pool.status().queued) == (0, 0, 0)
        with pytest.raises(EngineFailed):
            await drip.feed(b"ping")


@pytest.mark.usefixtures("soon_behind")
async def test_a_stream_that_cannot_be_kept_has_its_worker_until_its_end() -> None:
    async with pool_of(kept_bytes=6) as pool:
        drip = await beginning(pool, b"dripping")
        other = asyncio.ensure_future(transcribed(pool, b"waits!"))
        await drip.feed(b"on")
        await eventually(lambda: pool.status().queued == 1)
        assert (drip.worker is not None, pool.status().kept_bytes) == (True, 6)
        assert (await drip.finish()).text == "drippingon"
        assert await other == "waits!"
        assert pool.counters.taken_back == 0


@pytest.mark.usefixtures("soon_behind")
async def test_many_slow_streams_share_few_workers_and_each_has_its_own_words_whole() -> None:
    async with pool_of(workers=2, queue=16) as pool:
        streams = {letter: pool.open(RAW, 60.0) for letter in "abcdefgh"}

        async def feed(size: int) -> None:
            await asyncio.gather(*(stream.feed(letter.encode() * size) for letter, stream in streams.items()))

        await feed(2)
        await eventually(lambda: pool.counters.taken_back >= 6)  # by each that comes after the first two
        await feed(MIN_TO_RESUME)
        await eventually(lambda: pool.counters.taken_back >= 12)
        await feed(400)
        await feed(30_000)
        texts = await asyncio.gather(*(stream.finish() for stream in streams.values()))
        for letter, transcript in zip(streams, texts, strict=True):
            assert transcript.text == letter * (2 + MIN_TO_RESUME + 400 + 30_000)
        assert pool.counters.lost == {}
        assert (pool.status().parked, pool.status().kept_bytes, pool.status().queued) == (0, 0, 0)


async def test_streams_that_have_not_begun_keep_others_out_for_two_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pool_of(queue=1) as pool:
        silent = [pool.open(RAW, 60.0) for _ in range(2)]
        with pytest.raises(SpeechBusy):
            pool.open(RAW, 60.0)
        monkeypatch.setattr("cocoa_tornado.rules.speech_pool.SILENT_S", 0.0)
        assert await transcribed(pool, b"room") == "room"
        for stream, words in zip(silent, (b"first.", b"second"), strict=True):
            await stream.feed(words)
            assert (await stream.finish()).text == words.decode()
