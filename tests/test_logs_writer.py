"""The queue of the log: logging never blocks, and lost lines are counted."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import threading
from collections.abc import Callable, Iterator

import pytest

from cocoa_tornado import logs_writer
from cocoa_tornado.logs_format import make_formatter
from cocoa_tornado.logs_writer import LineStream, LineWriter, QueuedHandler

BOUND = 64 * 1024
LINE = b"x" * 999 + b"\n"
PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_writer, "MAX_QUEUED_BYTES", BOUND)
    monkeypatch.setattr(logs_writer, "_RESUME_BYTES", BOUND // 2)
    monkeypatch.setattr(logs_writer, "RETRY_S", 0.01)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


Make = Callable[[int | None], LineWriter]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[LineWriter] = []

    def new(fd: int | None) -> LineWriter:
        made.append(LineWriter(fd, lambda lost: b"lost %d\n" % lost))
        return made[-1]

    yield new
    for writer in made:
        writer.close()


def read_until(fd: int, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        ready, _, _ = select.select([fd], [], [], PATIENCE_S)
        assert ready, f"nothing more came after {data[-100:]!r}"
        data += os.read(fd, 65536)
    return data


def fill(fd: int) -> int:
    """Write lines to a pipe until it is full; returns their number."""
    written = 0
    while logs_writer.can_write_now(fd):
        assert os.write(fd, LINE) == len(LINE)
        written += 1
    return written


def overflow(writer: LineWriter) -> int:
    """Put lines until some are lost; returns their number."""
    put = 0
    while writer.lost < 5:
        writer.put(LINE)
        put += 1
    return put


def test_lines_are_written_in_the_order_in_which_they_came(pipe: tuple[int, int], make: Make) -> None:
    writer = make(pipe[1])
    for number in range(500):
        writer.put(b"%d\n" % number)
    assert writer.flush(PATIENCE_S)
    assert read_until(pipe[0], b"499\n").split() == [b"%d" % number for number in range(500)]


def test_an_unread_pipe_blocks_no_thread_and_lost_lines_are_counted(pipe: tuple[int, int], make: Make) -> None:
    writer = make(pipe[1])
    put = fill(pipe[1]) + overflow(writer)
    assert not writer.flush(0.01)
    read = read_until(pipe[0], b"lost 5\n")
    assert read == LINE * (put - 5) + b"lost 5\n"
    writer.put(b"after\n")
    assert read_until(pipe[0], b"after\n") == b"after\n"
    assert writer.lost == 5


def test_a_reader_that_is_slow_gets_one_report_for_many_lines_lost(pipe: tuple[int, int], make: Make) -> None:
    writer = make(pipe[1])
    put = fill(pipe[1]) + overflow(writer)
    data = b""
    for _ in range(500):
        data += os.read(pipe[0], 2_000)
        writer.put(LINE)
        writer.put(LINE)
        put += 2
    data += read_until(pipe[0], b"\n")
    while select.select([pipe[0]], [], [], 0.2)[0]:
        data += os.read(pipe[0], 65536)
    reports = [int(number) for number in re.findall(rb"^lost (\d+)$", data, re.MULTILINE)]
    assert sum(reports) == writer.lost
    assert data.count(b"x\n") + writer.lost == put
    # At least half of the queue's lines come between two reports.
    assert len(reports) <= 2 + data.count(b"x\n") // (BOUND // 2 // len(LINE))


def test_a_full_disk_blocks_no_thread(make: Make) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    writer = make(full)
    os.close(full)
    overflow(writer)
    assert not writer.flush(0.05)


def test_a_pipe_without_a_reader_gets_what_waits_when_there_is_one_again(
    tmp_path_factory: pytest.TempPathFactory, make: Make
) -> None:
    path = tmp_path_factory.mktemp("fifo") / "log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fd = os.open(path, os.O_WRONLY)
    writer = make(fd)
    os.close(reader)
    writer.put(b"kept\n")
    assert not writer.flush(0.05)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert writer.flush(PATIENCE_S)
    assert os.read(reader, 100) == b"kept\n"
    os.close(reader)
    os.close(fd)


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(pipe: tuple[int, int], make: Make) -> None:
    os.set_blocking(pipe[1], False)
    writer = make(pipe[1])
    put = fill(pipe[1]) + overflow(writer)
    assert read_until(pipe[0], b"lost 5\n") == LINE * (put - 5) + b"lost 5\n"


def test_a_lone_line_is_written_at_once_and_a_flush_waits_for_no_pause(
    pipe: tuple[int, int], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs_writer, "GATHER_S", 10 * PATIENCE_S)
    writer = make(pipe[1])
    writer.put(b"one\n")
    assert read_until(pipe[0], b"one\n") == b"one\n"
    for number in range(3):
        writer.put(b"%d\n" % number)
        assert writer.flush(PATIENCE_S)
        assert read_until(pipe[0], b"%d\n" % number) == b"%d\n" % number


def test_lines_that_come_in_the_pause_are_written_together(
    pipe: tuple[int, int], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = threading.Event()

    class Hurry(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            paused.set()
            return super().wait(timeout)

    monkeypatch.setattr(logs_writer, "GATHER_S", 10 * PATIENCE_S)
    writer = make(pipe[1])
    writer._hurry = Hurry()
    writer.put(b"first\n")
    assert paused.wait(PATIENCE_S)
    assert read_until(pipe[0], b"first\n") == b"first\n"
    for number in range(100):
        writer.put(b"%d\n" % number)
    assert not select.select([pipe[0]], [], [], 0)[0]
    writer._hurry.set()
    assert read_until(pipe[0], b"99\n").split() == [b"%d" % number for number in range(100)]


def test_without_a_descriptor_every_line_is_lost_and_counted(make: Make) -> None:
    writer = make(None)
    writer.put(LINE)
    assert writer.flush(0)
    assert writer.lost == 1


def test_a_descriptor_that_others_close_is_written_to_all_the_same(make: Make) -> None:
    reader, fd = os.pipe()
    writer = make(fd)
    os.close(fd)
    writer.put(LINE)
    assert read_until(reader, b"\n") == LINE
    os.close(reader)


def test_after_its_close_lines_are_written_if_they_can_be_written_at_once(pipe: tuple[int, int], make: Make) -> None:
    writer = make(pipe[1])
    writer.close()
    writer.put(b"last words\n")
    assert os.read(pipe[0], 100) == b"last words\n"
    fill(pipe[1])
    writer.put(LINE)  # does not wait


def test_lines_queued_before_a_close_are_written(
    pipe: tuple[int, int], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs_writer, "GATHER_S", 10 * PATIENCE_S)
    writer = make(pipe[1])
    writer.put(b"first\n")
    assert read_until(pipe[0], b"first\n") == b"first\n"
    for number in range(20):
        writer.put(b"%d\n" % number)
    writer.close()
    assert read_until(pipe[0], b"19\n").split() == [b"%d" % number for number in range(20)]


def test_logging_from_within_logging_does_not_block(pipe: tuple[int, int]) -> None:
    # A collection of garbage may log at any moment, and so may a signal.
    log = logging.Logger("cocoa.test")
    handler = QueuedHandler(pipe[1])
    handler.setFormatter(make_formatter("json"))
    log.addHandler(handler)

    class Logs:
        def __repr__(self) -> str:
            log.info("inner")
            return "outer"

    def outer() -> None:
        with handler.writer._lock:
            log.info("outer", extra={"value": Logs()})

    thread = threading.Thread(target=outer, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    handler.flush()
    events = [json.loads(line)["event"] for line in os.read(pipe[0], 65536).splitlines()]
    assert events == ["inner", "outer"]
    handler.close()


def test_the_report_of_lost_lines_does_not_block_on_other_threads(pipe: tuple[int, int]) -> None:
    # A collection of garbage may run a finalizer that logs while the report is made; here the formatter logs itself.
    log = logging.Logger("cocoa.test")
    handler = QueuedHandler(pipe[1])
    reporting, other_formats, done = threading.Event(), threading.Event(), threading.Event()

    class LogsToo(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            if record.msg == "log lines lost":
                reporting.set()
                assert other_formats.wait(PATIENCE_S)
                log.info("finalizer")
            elif record.msg == "other":
                other_formats.set()
            return super().format(record)

    def log_other() -> None:
        log.info("other")
        done.set()

    handler.setFormatter(LogsToo())
    log.addHandler(handler)
    fill(pipe[1])
    overflow(handler.writer)
    reading = threading.Thread(target=read_until, args=(pipe[0], b"other\n"), daemon=True)
    reading.start()
    assert reporting.wait(PATIENCE_S)
    threading.Thread(target=log_other, daemon=True).start()
    assert done.wait(PATIENCE_S)
    reading.join(PATIENCE_S)
    assert not reading.is_alive()
    handler.close()


def test_a_record_is_what_it_was_when_it_was_logged(pipe: tuple[int, int]) -> None:
    log = logging.Logger("cocoa.test")
    handler = QueuedHandler(pipe[1])
    handler.setFormatter(make_formatter("json"))
    log.addHandler(handler)
    values = [1, 2]
    log.info("event", extra={"values": values})
    values.append(3)
    handler.flush()
    assert json.loads(os.read(pipe[0], 65536))["values"] == [1, 2]
    handler.close()


def test_what_is_printed_goes_the_way_of_the_log_in_whole_lines_and_without_tokens(
    pipe: tuple[int, int], make: Make
) -> None:
    writer = make(pipe[1])
    stream = LineStream(writer)
    print("one", "two\nthr", end="", file=stream)
    print("ee", "Bearer s3cret-s3cret-s3cret", "\udc80", file=stream)
    print("rest", end="", file=stream)
    stream.flush()
    assert writer.flush(PATIENCE_S)
    assert os.read(pipe[0], 1000) == b"one two\nthree Bearer [token] \\udc80\nrest"
