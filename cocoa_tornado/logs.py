"""Logging: key=value text for people, JSON for machines, and never a token.

Code logs through the standard library, with the data in ``extra``. The lines of libraries get the same form
(``logs_format``). A queue and a thread write them (``logs_writer``).
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from types import TracebackType
from typing import Final, TextIO

from .logs_format import LogFormat, make_formatter
from .logs_writer import LineStream, QueuedHandler

LINES_A_MINUTE: Final = 10

MAX_MALFORMED: Final = 100
"""Characters kept of Tornado's line about a malformed message: its own words, and little of the message."""

log = logging.getLogger("cocoa.log")


def configure(log_format: LogFormat, level: str, stream: TextIO | None = None, *, worker: str | None = None) -> None:
    """Route every logger of the process to one stream. The command line calls it once.

    Without ``stream``, lines go to standard error without blocking. So does everything else that is printed there:
    warnings, uncaught exceptions, and the output of libraries.

    :param level: ``debug``, ``info``, ``warning`` or ``error``
    :param stream: written synchronously by the logging thread; for tests
    :param worker: the name of this process among the workers that share standard error; each line has it
    """
    handler = _take_over_standard_error(worker) if stream is None else logging.StreamHandler(stream)
    if worker is not None:
        handler.addFilter(Named(worker))
    colors = os.isatty(2) if stream is None else stream.isatty()
    handler.setFormatter(make_formatter(log_format, colors))
    handler.addFilter(TornadoLines())
    # No line shows them, and each record would look them up.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.getLogger().handlers[:] = [handler]
    set_level(level)


def set_level(level: str) -> None:
    root = logging.getLogger()
    root.setLevel(level.upper())
    # asyncio's debug lines are noise at any level, and so is Tornado's access log, which ours replaces.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("tornado.access").setLevel(logging.ERROR)


def show_errors_plainly() -> None:
    """From now on, what is printed to standard error does not name this process: its last words are the parent's."""
    if isinstance(sys.stderr, LineStream):
        sys.stderr.prefix = ""


def lines_lost() -> int:
    """The number of lines lost since the start, because standard error did not accept them."""
    return sum(handler.writer.lost for handler in logging.getLogger().handlers if isinstance(handler, QueuedHandler))


def _take_over_standard_error(worker: str | None) -> QueuedHandler:
    # sys.stderr is None if the process was started without standard error.
    handler = QueuedHandler(None if sys.stderr is None else 2, is_shared=worker is not None)
    sys.stderr = LineStream(handler.writer, "" if worker is None else f"[{worker}] ")
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    return handler


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("uncaught exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = None if args.thread is None else args.thread.name
        exc_info = (args.exc_type, args.exc_value, args.exc_traceback)
        log.critical("uncaught exception", extra={"in_thread": name}, exc_info=exc_info)


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    error = args.exc_value
    exc_info = None if error is None else (type(error), error, args.exc_traceback)
    log.error("exception ignored", extra={"detail": args.err_msg, "object": repr(args.object)}, exc_info=exc_info)


class Named(logging.Filter):
    """Adds the field ``worker`` to each line."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "worker"):
            record.worker = self._worker
        return True


class TornadoLines(logging.Filter):
    """Tornado's lines about invalid input: without the input, and at most ten lines per minute of each kind.

    Any client can send plain HTTP to a TLS port, or half a header, at any rate. The first line of the next minute has
    the number of suppressed lines (``suppressed``).
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[str, _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name != "tornado.general" or record.levelno >= logging.ERROR:
            return True
        text, _, _ = record.getMessage().partition("\n")
        if text.startswith("Malformed HTTP message"):
            # The rest is the malformed header, which may contain a token, quoted or not.
            text = re.split(r"['\"]", text, maxsplit=1)[0].rstrip(" :")
            record.msg, record.args = text[:MAX_MALFORMED], None
        kind = self._kinds.setdefault(text[:9], _Kind(record.created))
        return kind.has_room(record)


class _Kind:
    """The lines of this minute with the same beginning."""

    __slots__ = ("_lines", "_since", "_suppressed")

    def __init__(self, since: float) -> None:
        self._since, self._lines, self._suppressed = since, 0, 0

    def has_room(self, record: logging.LogRecord) -> bool:
        if record.created - self._since >= 60:
            self._since, self._lines = record.created, 0
        self._lines += 1
        if self._lines > LINES_A_MINUTE:
            self._suppressed += 1
            return False
        if self._suppressed:
            record.suppressed, self._suppressed = self._suppressed, 0
        return True
