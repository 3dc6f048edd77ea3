"""A thread that runs one job after another, for SQLite, whose calls block on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class JobThread:
    """Call its methods on the IOLoop thread. It is a daemon thread, so a disk that hangs does not block the exit.

    :param last: runs on the thread when it ends, also after an error
    """

    def __init__(self, name: str, last: Callable[[], None]) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._last = last
        self._is_abandoned = False
        self._ended: asyncio.Future[None] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Idempotent.

        :raises RuntimeError: the system has no thread to spare; another call may find one
        """
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
            try:
                self._thread.start()
            except BaseException:
                self._ended = None
                raise

    def submit(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """Run a job; the future gets its result or exception, a StopIteration as the cause of a RuntimeError.
        Cancelling the future does not stop the job."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put((job, future))
        return future

    async def stop(self, timeout_s: float) -> None:
        """End the thread after the queued jobs, and wait for it. A thread that hangs longer than ``timeout_s`` is left
        to end by itself."""
        if self._ended is not None:
            self._jobs.put(None)
            await asyncio.wait([self._ended], timeout=timeout_s)
            if self._ended.done():
                self._thread.join()

    def abandon(self) -> None:
        """End as if the process were killed, without starting queued jobs. Blocks until the thread has ended."""
        self._is_abandoned = True
        self._jobs.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        assert self._ended is not None
        loop = self._ended.get_loop()
        while (work := self._jobs.get()) is not None and not self._is_abandoned:
            job, future = work
            try:
                result, error = job(), None
            except BaseException as problem:
                result, error = None, problem
            _on_loop(loop, future, result, error)
            del work, job, future, result, error
        self._last()
        _on_loop(loop, self._ended, None, None)


def _on_loop(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], result: object, error: BaseException | None
) -> None:
    # RuntimeError: the loop is closed, so nothing waits for the future.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_settle, future, result, error)


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        # A future refuses it, and would never be done.
        wrapped = RuntimeError(f"{type(error).__name__} in a job")
        wrapped.__cause__ = error
        future.set_exception(wrapped)
    else:
        future.set_exception(error)
