"""Log lines on their way to a file descriptor: a bounded queue, and a thread that writes.

A thread that logs never waits for the log's reader: a pipe that is not emptied, a full disk, a terminal that is held.
"""

from __future__ import annotations

import io
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

from .logs_redaction import redact

MAX_QUEUED_BYTES: Final = 4 * 1024 * 1024
"""Some 15,000 lines: more than a second of a busy gateway. Enough for a collector that starts anew."""

FLUSH_S: Final = 1.0
"""How long the end of the process may wait for the log's reader."""

RETRY_S: Final = 1.0
"""Between two attempts to write where writing fails: the disk may have room again, the pipe a reader."""

_BATCH_BYTES: Final = 64 * 1024
_RESUME_BYTES: Final = MAX_QUEUED_BYTES // 2


class LineWriter:
    """Writes lines in the order in which they came. Any thread may call any method; none but :meth:`flush` waits.

    When ``MAX_QUEUED_BYTES`` wait, lines are lost and counted until half of them are written; a line in their place
    says how many they were. A lock that its own thread may take again: a collection of garbage, or a signal, may log in
    the middle of anything.

    :param fd: duplicated, so that nobody else can close it. None: there is nothing to write to, every line is lost
    :param lost_line: makes that line
    :ivar lost: lines lost since the start
    """

    def __init__(self, fd: int | None, lost_line: Callable[[int], bytes]) -> None:
        self.lost = 0
        self._fd = None if fd is None else os.dup(fd)
        self._lost_line = lost_line
        self._lock = threading.RLock()
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._put_bytes = self._written_bytes = 0  # ever; the second belongs to the thread
        self._reported = 0  # of the lost
        self._is_closed = False
        if self._fd is not None:
            threading.Thread(target=self._run, args=(self._fd,), name="log-writer", daemon=True).start()

    def put(self, line: bytes) -> None:
        """:param line: with its line end"""
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
        """Wait until what was put so far is written. False: it is not, within the time."""
        if self._fd is None or self._is_closed:
            return True
        done = threading.Event()
        self._queue.put(done)
        return done.wait(timeout_s)

    def close(self) -> None:
        """At the end of the process, when its threads may be gone: write from now on what can be written at once."""
        self._is_closed = True
        self._queue.put(threading.Event())  # the thread ends

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
        while not self._is_closed:
            if self._queue.empty():
                with self._lock:
                    self._report()
            lines, done = self._batch()
            self._write(fd, b"".join(lines))
            self._written_bytes += sum(map(len, lines))
            if done is not None:
                done.set()

    def _write(self, fd: int, data: bytes) -> None:
        """Write it all, however long it takes; but not beyond the end."""
        view = memoryview(data)
        while len(view):
            try:
                view = view[os.write(fd, view) :]
            except OSError as error:
                if self._is_closed:
                    return
                if isinstance(error, BlockingIOError):
                    # Somebody who shares the pipe has made it non-blocking.
                    wait_writable(fd, RETRY_S)
                else:
                    time.sleep(RETRY_S)

    def _batch(self) -> tuple[list[bytes], threading.Event | None]:
        """Wait for a line, and take what has come by then; or who waits for it all to be written."""
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


class QueuedHandler(logging.Handler):
    """Formats where a record is made, so that nothing in it can change any more, and leaves the writing to a thread.

    To format takes tens of microseconds; in a thread it would take the same time from the event loop, for Python runs
    one thread at a time, and hold it up for longer at a stretch.

    Takes no lock of its own. A thread that holds the writer's lock may run a finalizer that logs: it would wait for the
    handler's lock, and the thread that holds that one for the writer's.
    """

    def __init__(self, fd: int | None) -> None:
        super().__init__()
        self.writer = LineWriter(fd, self._lost_line)

    def handle(self, record: logging.LogRecord) -> bool:
        """As the base class does, without the handler's lock: formatters keep no state, and the writer has a lock."""
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
    """Stands in for ``sys.stderr``: what Python itself and libraries print goes the way of the log's lines."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer
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
        self._writer.put(redact(text).encode("utf-8", "backslashreplace"))


def encoded(line: str) -> bytes:
    return f"{line}\n".encode("utf-8", "backslashreplace")


def can_write_now(fd: int) -> bool:
    """A write of a few hundred bytes would not wait. True of a descriptor whose write fails at once."""
    return wait_writable(fd, 0)


def wait_writable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(timeout_s * 1000))
