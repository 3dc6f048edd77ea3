"""Writes log lines to a file descriptor: a bounded queue, and a thread.

Logging never blocks on the log's reader: a pipe that nothing reads, a full disk, a suspended terminal.
"""

from __future__ import annotations

import io
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Final

from .logs_redaction import redact

MAX_QUEUED_BYTES: Final = 4 * 1024 * 1024
"""About 15,000 lines, more than a second of a busy gateway: enough for a collector to restart."""

FLUSH_S: Final = 1.0
"""How long the exit of the process may wait for the log's reader."""

RETRY_S: Final = 1.0
"""The delay between attempts when writing fails: the disk may have space again, the pipe a reader."""

GATHER_S: Final = 0.005
"""The pause of the thread after it has written all lines. Each wake-up takes the GIL from the threads that log, which
costs them more than a line's formatting. A thread that is ready may wait as long for the GIL, so a kill of the process
loses a few lines without the pause too; with it, about twice as many. A line after a quiet spell is written
immediately."""

_BATCH_BYTES: Final = 64 * 1024
_RESUME_BYTES: Final = MAX_QUEUED_BYTES // 2


class LineWriter:
    """Writes lines in order. Thread-safe; only :meth:`flush` blocks.

    When ``MAX_QUEUED_BYTES`` are queued, further lines are lost until half of them are written. A line in their place
    has their number. The lock is reentrant, because a signal handler or a finalizer may log at any point.

    :param fd: duplicated, so that other code cannot close it. None loses every line
    :param lost_line: makes the line about lost lines
    :param is_shared: other processes write to the same pipe; no line is torn by theirs, if it is not very long
    :ivar lost: lines lost since the start
    """

    def __init__(self, fd: int | None, lost_line: Callable[[int], bytes], *, is_shared: bool = False) -> None:
        self.lost = 0
        self._is_shared = is_shared
        self._fd = None if fd is None else os.dup(fd)
        self._lost_line = lost_line
        self._lock = threading.RLock()
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._put_bytes = self._written_bytes = 0  # in total; only the thread writes the second
        self._reported = 0  # lost lines that have been reported
        self._is_closed = False
        self._hurry = threading.Event()  # ends the thread's pause
        self._end = threading.Event()  # the last item of the queue
        if self._fd is not None:
            threading.Thread(target=self._run, args=(self._fd,), name="log-writer", daemon=True).start()

    def put(self, line: bytes) -> None:
        """Queue a line, which includes its line end."""
        with self._lock:
            if self._is_closed:
                self._write_if_possible(line)
                return
            waiting = self._put_bytes - self._written_bytes
            room = MAX_QUEUED_BYTES if self.lost == self._reported else _RESUME_BYTES
            if self._fd is None or waiting + len(line) > room:
                self.lost += 1
                return
            self._report()
            self._enqueue(line)

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until the lines queued so far are written. Returns False after ``timeout_s``."""
        if self._fd is None or self._is_closed:
            return True
        done = threading.Event()
        self._hurry.set()  # the thread clears it when it has come to the event
        self._queue.put(done)
        return done.wait(timeout_s)

    def close(self) -> None:
        """At process exit, when threads may have ended: from now on, write synchronously, and only without blocking.
        The thread still writes the lines that are queued, if it gets the time."""
        self._is_closed = True
        self._hurry.set()
        self._queue.put(self._end)

    def _enqueue(self, line: bytes) -> None:
        self._put_bytes += len(line)
        self._queue.put(line)

    def _report(self) -> None:
        lost = self.lost - self._reported
        if lost:
            self._reported = self.lost
            self._enqueue(self._lost_line(lost))

    def _write_if_possible(self, line: bytes) -> None:
        if self._fd is not None and can_write_now(self._fd):
            try:
                os.write(self._fd, line)
            except OSError:
                self.lost += 1

    # the thread

    def _run(self, fd: int) -> None:
        done: threading.Event | None = None
        while done is not self._end:
            if self._queue.empty():
                with self._lock:
                    self._report()
            lines, done = self._batch()
            for batch in in_batches(lines, select.PIPE_BUF) if self._is_shared else (b"".join(lines),):
                self._write(fd, batch)
            self._written_bytes += sum(map(len, lines))
            if done is not None:
                self._hurry.clear()
                done.set()
            elif self._queue.empty():
                self._hurry.wait(GATHER_S)

    def _write(self, fd: int, data: bytes) -> None:
        """Write everything, retrying until :meth:`close`."""
        view = memoryview(data)
        while len(view):
            try:
                view = view[os.write(fd, view) :]
            except OSError as error:
                if self._is_closed:
                    return
                if isinstance(error, BlockingIOError):
                    # Another process that shares the pipe has made it non-blocking.
                    wait_writable(fd, RETRY_S)
                else:
                    time.sleep(RETRY_S)

    def _batch(self) -> tuple[list[bytes], threading.Event | None]:
        """Wait for a line; return the queued lines, and the event of a :meth:`flush` after them, if any."""
        lines: list[bytes] = []
        size = 0
        item = self._queue.get()
        while not isinstance(item, threading.Event):
            lines.append(item)
            size += len(item)
            if size >= _BATCH_BYTES:
                return lines, None
            try:
                item = self._queue.get_nowait()
            except Empty:
                return lines, None
        return lines, item


def in_batches(lines: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Whole lines, joined up to ``limit`` bytes; a longer line by itself. The kernel writes up to ``PIPE_BUF`` bytes to
    a pipe in one piece."""
    batch = b""
    for line in lines:
        if batch and len(batch) + len(line) > limit:
            yield batch
            batch = b""
        batch += line
    if batch:
        yield batch


class QueuedHandler(logging.Handler):
    """Formats a record in the logging thread, so that its values can't change, and queues the line for writing.

    Formatting takes tens of microseconds. In another thread it would take the same time from the event loop, as only
    one thread holds the GIL, and in longer stretches.

    The handler has no lock of its own: a thread with the writer's lock may run a finalizer that logs, and would then
    wait for the handler's lock, whose owner waits for the writer's.
    """

    def __init__(self, fd: int | None, *, is_shared: bool = False) -> None:
        super().__init__()
        self.writer = LineWriter(fd, self._lost_line, is_shared=is_shared)

    def handle(self, record: logging.LogRecord) -> bool:
        """Like the base class, without the handler's lock: formatters are stateless, and the writer has a lock."""
        kept = self.filter(record)
        if kept:  # since Python 3.12 a filter may return another record
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.writer.put(encoded(self.format(record)))
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
        super().close()

    def _lost_line(self, lost: int) -> bytes:
        record = logging.makeLogRecord({"name": "cocoa.log", "levelno": logging.WARNING, "levelname": "WARNING"})
        record.msg, record.lines = "log lines lost", lost
        return encoded(self.format(record))


class LineStream(io.TextIOBase):
    """Replaces ``sys.stderr``, so that the output of Python and of libraries goes through the log's queue."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, writer: LineWriter, prefix: str = "") -> None:
        """:ivar prefix: of each line"""
        self._writer, self.prefix = writer, prefix
        self._begun = ""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def isatty(self) -> bool:
        return os.isatty(2)

    def write(self, text: str) -> int:
        whole, end, self._begun = (self._begun + text).rpartition("\n")
        if end:
            self._put(f"{whole}\n")
        return len(text)

    def flush(self) -> None:
        begun, self._begun = self._begun, ""
        if begun:
            self._put(begun)

    def _put(self, text: str) -> None:
        if self.prefix:
            text = "".join(f"{self.prefix}{line}" for line in text.splitlines(keepends=True))
        self._writer.put(redact(text).encode("utf-8", "backslashreplace"))


def encoded(line: str) -> bytes:
    return f"{line}\n".encode("utf-8", "backslashreplace")


def can_write_now(fd: int) -> bool:
    """Whether a write of a few hundred bytes would not block. True if it would fail immediately."""
    return wait_writable(fd, 0)


def wait_writable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(timeout_s * 1000))
