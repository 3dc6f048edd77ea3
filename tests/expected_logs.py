"""An unexpected log line fails a test, and so does a missing expected one.

A line is unexpected at level WARNING and above, whatever its logger, unless the test announces it::

    @pytest.mark.logs("cocoa.service", "reload refused")
    def test_a_wrong_setting_keeps_the_old_ones() -> None: ...

The first argument is the logger's name and covers the loggers below it; the second is a regular expression, to be found
in the message. One mark covers any number of such lines. ``optional=True`` is for a line that a race may prevent.
Marks add up; a whole file announces with ``pytestmark``, a case with ``pytest.param(..., marks=...)``, and a fixture
for those who use it with ``request.node.add_marker``.

Three kinds of lines need no announcement: those below WARNING, or below the level set on their logger; those that the
test's own file logs; those from a thread that was there before the test and so isn't its own.

Records are checked when they are created. Handlers, filters and ``propagate`` make no difference, and a test may
configure logging freely: levels and handlers are restored after it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import pytest

MARK = "logs(logger, message, optional=False): the test makes this log line (tests/expected_logs.py)"
ADVICE = "announce what belongs to the test with @pytest.mark.logs (tests/expected_logs.py)"

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@dataclass(frozen=True, slots=True)
class Expected:
    """One announcement.

    :ivar logger: covers its children too
    :ivar message: a regular expression, found anywhere in the message
    """

    logger: str
    message: str
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.logger}: {self.message}"

    def covers(self, record: logging.LogRecord) -> bool:
        is_logger = record.name == self.logger or record.name.startswith(f"{self.logger}.")
        return is_logger and re.search(self.message, record.getMessage()) is not None


class Watch:
    """The records of one test. :meth:`record` may be called by any thread, the other methods by the test's alone.

    :param own_file: lines logged by this file are expected
    """

    def __init__(self, own_file: str, make: Callable[..., logging.LogRecord]) -> None:
        self._own_file, self._make = own_file, make
        self._before = {thread for thread in threading.enumerate() if thread is not threading.current_thread()}
        self._records: list[logging.LogRecord] = []
        self._judged = 0

    def record(self, *args: object, **kwargs: object) -> logging.LogRecord:
        """The process's log record factory: create a record, and keep it if it counts."""
        record = self._make(*args, **kwargs)
        # There is no level in a copy that a formatter makes for itself, with logging.makeLogRecord.
        if (record.levelno or logging.NOTSET) >= logging.WARNING and threading.current_thread() not in self._before:
            self._records.append(record)
        return record

    def unexpected(self, announced: Iterable[Expected]) -> list[logging.LogRecord]:
        """The unannounced records since the last call."""
        announced = tuple(announced)
        news = self._records[self._judged :]
        self._judged += len(news)
        return [
            record
            for record in news
            if record.pathname != self._own_file and not any(line.covers(record) for line in announced)
        ]

    def missing(self, announced: Iterable[Expected]) -> list[Expected]:
        """The announced records that are missing."""
        return [line for line in announced if not line.optional and not any(map(line.covers, self._records))]


def shown(record: logging.LogRecord) -> str:
    """A record as a failing test quotes it: level, logger, message, the fields of ``extra``, and the traceback."""
    extra = "".join(f" {key}={value!r}" for key, value in vars(record).items() if key not in _STANDARD)
    return logging.Formatter("%(levelname)s %(name)s: %(message)s" + extra.replace("%", "%%")).format(record)


_WATCH = pytest.StashKey[Watch]()
_PASSED = pytest.StashKey[bool]()


class ExpectedLogs:
    """The plugin; ``conftest.py`` registers it.

    An unexpected line fails its phase: the test itself, or the setup or teardown of its fixtures.
    """

    def __init__(self) -> None:
        self._sockets_made = False

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", MARK)
        sys.addaudithook(self._on_audit)

    def _on_audit(self, event: str, _: tuple[object, ...]) -> None:
        """A permanent audit hook of the interpreter."""
        if event == "socket.__new__":
            self._sockets_made = True

    def pytest_collection_finish(self) -> None:
        """All current objects are permanent, so exclude them from garbage collection."""
        gc.collect()
        gc.freeze()

    def pytest_unconfigure(self) -> None:
        gc.unfreeze()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._sockets_made = False
        make = logging.getLogRecordFactory()
        watch = item.stash[_WATCH] = Watch(str(item.path), make)
        with _logging_restored():
            logging.setLogRecordFactory(watch.record)
            try:
                return (yield)
            finally:
                logging.setLogRecordFactory(make)
                del item.stash[_WATCH]

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield
        _fail_on_strays(item)
        return result

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield
        _fail_on_strays(item)
        item.stash[_PASSED] = True
        return result

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield
        # A task whose exception was never retrieved logs that when it is collected: collect now. This takes some
        # milliseconds, so it is skipped for tests that made no event loop, which would have made sockets. If such a
        # test leaves a file open in a reference cycle, a later test finds it.
        if self._sockets_made:
            gc.collect()
        _fail_on_strays(item)
        if item.stash.get(_PASSED, False):
            missing = item.stash[_WATCH].missing(_announced(item))
            if missing:
                pytest.fail("announced log lines did not come:\n" + "\n".join(map(str, missing)), pytrace=False)
        return result


def _announced(item: pytest.Item) -> list[Expected]:
    return [Expected(*mark.args, **mark.kwargs) for mark in item.iter_markers("logs")]


def _fail_on_strays(item: pytest.Item) -> None:
    strays = item.stash[_WATCH].unexpected(_announced(item))
    if strays:
        pytest.fail(f"unexpected log lines; {ADVICE}:\n" + "\n".join(map(shown, strays)), pytrace=False)


@contextlib.contextmanager
def _logging_restored() -> Iterator[None]:
    """Restore levels, handlers and propagation. A new logger keeps its handlers only."""
    before = {logger: (logger.level, logger.propagate, logger.disabled, logger.handlers[:]) for logger in _loggers()}
    try:
        yield
    finally:
        for logger in _loggers():
            default = (logging.NOTSET, True, False, logger.handlers[:])
            level, logger.propagate, logger.disabled, logger.handlers[:] = before.get(logger, default)
            if logger.level != level:
                logger.setLevel(level)


def _loggers() -> list[logging.Logger]:
    named = list(logging.Logger.manager.loggerDict.values())
    return [logging.getLogger(), *(logger for logger in named if isinstance(logger, logging.Logger))]
