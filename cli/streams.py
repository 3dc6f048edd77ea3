"""Handles failures of standard output and standard error: a full disk, a pipe without a reader, a closed stream.

If standard output fails, the command ends with one plain line and status 1. If it is a pipe whose reader has ended, as
in ``cocoa admin devices | head``, the command ends without a message, killed by SIGPIPE like git, grep or cat. Output
to a failing standard error is dropped.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, TextIO

import click

from cocoa_tornado.logs_writer import wait_writable

STDOUT, STDERR = 1, 2
_LOOK_AGAIN_S = 60.0


class OutputLost(click.ClickException):
    """A write to standard output failed."""

    exit_code: ClassVar[int] = 1


class ReaderGone(OutputLost):
    """Standard output is a pipe whose reader has ended."""


def die_of_sigpipe() -> NoReturn:
    """End the process by SIGPIPE, as other Unix tools do whose reader has ended. Shells show status 141."""
    logging.shutdown()
    # Python ignores the signal, so that the write fails instead.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPIPE])
    os.kill(os.getpid(), signal.SIGPIPE)
    os._exit(128 + signal.SIGPIPE)


def guard_standard_streams() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr``. The console script calls it once, before it opens any file."""
    no_stdout, no_stderr = sys.stdout is None, sys.stderr is None
    _occupy_free_descriptors()
    sys.stdout = _guarded(sys.stdout, _Descriptor(STDOUT, _output_lost, is_closed=no_stdout))
    if not no_stderr:  # else keep None, which the log checks
        sys.stderr = _guarded(sys.stderr, _Descriptor(STDERR, _drop))


def _occupy_free_descriptors() -> None:
    """Open /dev/null on free descriptors below 3. The next file or socket would get one, and with it the output of
    libraries."""
    while True:
        number = os.open(os.devnull, os.O_RDWR)
        if number > STDERR:
            os.close(number)
            return
        os.set_inheritable(number, True)


def _guarded(original: TextIO | None, raw: io.RawIOBase) -> TextIO:
    encoding = "utf-8" if original is None else original.encoding
    errors = "strict" if original is None else original.errors
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace" if errors == "strict" else errors,
        line_buffering=raw.isatty(),
    )


class _Descriptor(io.RawIOBase):
    """A raw stream that reports its first failure and discards all later output.

    Otherwise Python would retry the buffered output at exit, and print an error.
    """

    def __init__(self, number: int, on_failure: Callable[[OSError], None], is_closed: bool = False) -> None:
        self._number, self._on_failure, self._is_closed = number, on_failure, is_closed
        self._has_failed = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any, /) -> int:
        if self._has_failed:
            return len(data)
        try:
            if self._is_closed:
                return self._fail(OSError(errno.EBADF, "it is closed"), len(data))
            return self._write(data)
        except OSError as error:
            return self._fail(error, len(data))

    def _write(self, data: Any) -> int:
        while True:
            try:
                return os.write(self._number, data)
            except BlockingIOError:
                # Another process that shares the pipe has made it non-blocking.
                wait_writable(self._number, _LOOK_AGAIN_S)

    def _fail(self, error: OSError, size: int) -> int:
        self._has_failed = True
        self._on_failure(error)
        return size


def _output_lost(error: OSError) -> NoReturn:
    kind = ReaderGone if error.errno == errno.EPIPE else OutputLost
    raise kind(f"cannot write to standard output: {error.strerror or error}") from error


def _drop(error: OSError) -> None:
    """Do nothing, as standard error itself has failed."""
