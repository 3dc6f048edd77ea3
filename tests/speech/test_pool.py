"""The pool, with workers that do what they are told: what makes one be replaced, and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cocoa_tornado.errors import EngineFailed, SpeechBusy
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.speech.pool import PoolOptions, WorkerPool
from cocoa_tornado.speech.port import SpeechState
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


async def said(pool: WorkerPool, words: bytes) -> str:
    stream = pool.open(RAW, 60.0)
    await stream.feed(words)
    return (await stream.finish()).text


async def test_an_engine_that_is_slow_and_says_so_is_not_stuck() -> None:
    async with pool_of(stall_s=1.5) as pool:
        assert await said(pool, b"slow") == "slow"
        assert pool.counters.lost == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_that_is_for_the_gateway_ends_no_worker(number: signal.Signals) -> None:
    # A service manager signals all processes of a service.
    async with pool_of() as pool:
        (pid,) = pool.worker_pids()
        os.kill(pid, number)
        assert await said(pool, b"word") == "word"
        assert pool.worker_pids() == (pid,)


async def test_cancelling_frees_a_worker_that_is_slow() -> None:
    async with pool_of() as pool:
        stream = pool.open(RAW, 60.0)
        await stream.feed(b"endless!")
        finishing = asyncio.ensure_future(stream.finish())
        await eventually(lambda: pool.status().busy == 1)
        await asyncio.sleep(0.2)
        stream.cancel()
        since = time.monotonic()
        assert await said(pool, b"next") == "next"
        assert time.monotonic() - since < 20.0  # of the minute that was left
        with pytest.raises(EngineFailed):
            await finishing
        assert pool.counters.lost == {}


async def test_a_loop_that_was_held_up_condemns_nobody_who_has_answered() -> None:
    async with pool_of(stall_s=1.5) as pool:
        stream = pool.open(RAW, 60.0)
        await stream.feed(b"word")
        finishing = asyncio.ensure_future(stream.finish())
        await asyncio.sleep(0)
        time.sleep(2.5)  # as SIGSTOP, or a machine that is moved, would do
        assert (await finishing).text == "word"
        assert pool.counters.lost == {}


@pytest.mark.logs("cocoa.speech", "^worker (lost|says)$")
async def test_an_engine_that_fails_again_and_again_is_loaded_anew() -> None:
    async with pool_of() as pool:
        (before,) = pool.worker_pids()
        for _ in range(3):
            with pytest.raises(EngineFailed):
                await said(pool, b"fail")
        await eventually(lambda: pool.worker_pids() not in ((), (before,)) and pool.status().workers == 1, 10)
        assert await said(pool, b"well") == "well"
        assert pool.counters.lost == {"crashed": 1}


async def test_an_engine_that_fails_now_and_then_goes_on() -> None:
    async with pool_of() as pool:
        before = pool.worker_pids()
        for words in (b"fail", b"fail", b"good", b"fail", b"fail", b"good"):
            with contextlib.suppress(EngineFailed):
                await said(pool, words)
        assert pool.worker_pids() == before


@pytest.mark.logs("cocoa.speech", "^worker (lost|says)$")
async def test_a_fault_of_ours_costs_one_utterance_and_the_worker() -> None:
    async with pool_of() as pool:
        (before,) = pool.worker_pids()
        with pytest.raises(EngineFailed, match="ZeroDivisionError"):
            await said(pool, b"faults")
        await eventually(lambda: pool.worker_pids() not in ((), (before,)) and pool.status().workers == 1, 10)
        assert await said(pool, b"well") == "well"


@pytest.mark.logs("cocoa.speech", "^(worker lost|speech failed)$")
async def test_workers_that_crash_with_every_stream_are_not_started_without_end() -> None:
    async with pool_of() as pool:
        since = time.monotonic()
        while time.monotonic() - since < 3.0:
            with contextlib.suppress(EngineFailed):
                await said(pool, b"crash!")
            await asyncio.sleep(0.01)
        assert pool.counters.started <= 10  # without a pause it would be some thirty


async def test_a_stream_takes_a_worker_when_it_has_something_to_say() -> None:
    async with pool_of() as pool:
        silent = pool.open(RAW, 60.0)
        assert (pool.status().busy, pool.status().queued) == (0, 1)
        assert await said(pool, b"quick!") == "quick!"
        await silent.feed(b"atlast")
        assert (await silent.finish()).text == "atlast"


async def test_a_silent_stream_holds_its_place_in_the_queue() -> None:
    async with pool_of(queue=1) as pool:
        waiting = [pool.open(RAW, 60.0) for _ in range(2)]
        with pytest.raises(SpeechBusy):
            pool.open(RAW, 60.0)
        for stream in waiting:
            stream.cancel()
        assert await said(pool, b"room") == "room"


@pytest.mark.logs("cocoa.speech", "hypothesis lost")
async def test_a_fault_in_whoever_hears_hypotheses_repeats_none_and_loses_nothing_else() -> None:
    async with pool_of() as pool:
        heard: list[str] = []

        def hear(text: str) -> None:
            heard.append(text)
            if len(heard) == 1:
                raise ZeroDivisionError("boom")

        stream = pool.open(RAW, 60.0, hear)
        await stream.feed(b"word" * 5000)
        assert len((await stream.finish()).text) == 20_000
        assert len(heard) == len(set(heard)) > 1


@pytest.mark.logs("cocoa.speech", "^(worker (lost|says)|speech failed)$")
async def test_a_worker_that_speaks_nonsense_says_what_is_wrong_with_it() -> None:
    async with pool_of(("/bin/sh", "-c", "echo hello there you; sleep 5")) as pool:
        await eventually(lambda: pool.status().state is SpeechState.FAILED, 20)
        assert "hello there" in pool.status().detail
