"""A thread that runs one job after another, and reports each to the loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cocoa_tornado.mailboxes.sqlite_thread import JobThread

pytestmark = pytest.mark.gen_test


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [ValueError("bad"), StopIteration(), KeyboardInterrupt(), SystemExit(1)])
async def test_any_exception_ends_its_job_and_no_other(error: BaseException) -> None:
    thread = JobThread("jobs", lambda: None)
    thread.start()
    failed, done = thread.submit(lambda: raising(error)), thread.submit(lambda: "done")
    assert await done == "done"
    problem = failed.exception()
    # A future takes no StopIteration, which would end a coroutine.
    assert problem is error or (isinstance(problem, RuntimeError) and problem.__cause__ is error)
    await thread.stop(5.0)


async def test_a_thread_that_could_not_be_started_is_started_by_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = JobThread("jobs", lambda: None)

    def fails(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        with pytest.raises(RuntimeError):
            thread.start()
    thread.start()
    assert await asyncio.wait_for(thread.submit(lambda: "done"), 10) == "done"
    await thread.stop(5.0)


async def test_a_thread_that_never_started_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = JobThread("jobs", lambda: None)

    def fails(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fails)
    with pytest.raises(RuntimeError):
        thread.start()
    await asyncio.wait_for(thread.stop(3600.0), 10)
    thread.abandon()
