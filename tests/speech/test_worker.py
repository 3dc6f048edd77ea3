"""A worker's progress reports: how much of an utterance it has used and decoded, and how long it has waited."""

from __future__ import annotations

import os
from collections import deque

import pytest

from cocoa_tornado.speech import wire, worker
from cocoa_tornado.speech.recognizer import BYTES_PER_SECOND
from cocoa_tornado.speech.wire import Frame, Kind
from cocoa_tornado.speech.worker import PROGRESS_S, AudioSource, Inbox, Outbox


class Clock:
    """Time advances while the worker waits, and under the test's control."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Device(Inbox):
    """Frames that come at their times, in seconds from the beginning."""

    def __init__(self, clock: Clock, *frames: tuple[float, Frame]) -> None:
        self._clock, self._start = clock, clock.now
        self._coming = deque(frames)

    def take(self, timeout_s: float | None = None) -> Frame | None:
        at = self._start + self._coming[0][0]
        if timeout_s is not None and at > self._clock.now + timeout_s:
            self._clock.now += timeout_s
            return None
        self._clock.now = max(self._clock.now, at)
        return self._coming.popleft()[1]

    def check_cancelled(self) -> None:
        pass


class Gateway(Outbox):
    def __init__(self) -> None:
        self.reported: list[wire.Progress] = []

    def send(self, frame: bytes) -> None:
        self.reported += map(wire.progress_of, wire.PipeReader(wire.FROM_WORKER).feed(frame))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(worker, "time", clock)
    return clock


def audio(at: float, count: int) -> tuple[float, Frame]:
    return at, Frame(Kind.AUDIO, bytes(count))


def decode(source: AudioSource, clock: Clock, speed: float = 100.0) -> None:
    """Process samples this many times faster than real time."""
    while piece := source.read(4096):
        source.decoded_bytes += len(piece)
        clock.now += len(piece) / BYTES_PER_SECOND / speed


def test_audio_at_the_speed_of_speech_covers_the_time_that_is_waited_for_it(clock: Clock) -> None:
    pieces = [audio(0.02 * (number + 1), 640) for number in range(500)]
    gateway = Gateway()
    source = AudioSource(Device(clock, *pieces, (10.0, Frame(Kind.END))), gateway)
    decode(source, clock)
    assert len(gateway.reported) > 30
    assert all(progress.waited_s <= progress.audio_s + 0.05 for progress in gateway.reported)
    assert gateway.reported[-1].audio_s > 9.5


def test_a_drip_is_reported_with_the_time_spent_waiting_for_it(clock: Clock) -> None:
    gateway = Gateway()
    source = AudioSource(Device(clock, audio(0.0, 2), audio(20.0, 2), (40.0, Frame(Kind.END))), gateway)
    decode(source, clock)
    assert [progress.consumed for progress in gateway.reported] == [2, 4, 4]
    assert [progress.waited_s for progress in gateway.reported] == pytest.approx([PROGRESS_S, 20.0, 20.25], abs=0.01)
    assert [progress.is_waiting for progress in gateway.reported] == [True, False, True]


def test_a_worker_that_is_slow_has_not_waited(clock: Clock) -> None:
    pieces = [audio(0.02 * (number + 1), 640) for number in range(100)]
    gateway = Gateway()
    source = AudioSource(Device(clock, *pieces, (2.0, Frame(Kind.END))), gateway)
    decode(source, clock, speed=0.5)
    assert gateway.reported[-1].waited_s < 0.1


def test_what_was_decoded_since_the_last_report_is_reported_before_a_long_wait(clock: Clock) -> None:
    gateway = Gateway()
    source = AudioSource(Device(clock, audio(0.5, 100), (60.0, Frame(Kind.END))), gateway)
    source.read(4096)
    assert [progress.audio_s for progress in gateway.reported] == [0.0]
    source.decoded_bytes = 2 * BYTES_PER_SECOND  # of a page of Ogg
    assert source.read(4096) == b""
    assert gateway.reported[1].audio_s == 2.0
    assert gateway.reported[1].waited_s == pytest.approx(0.5 + PROGRESS_S)


def test_a_cancel_that_comes_while_the_worker_waits_ends_the_utterance(clock: Clock) -> None:
    source = AudioSource(Device(clock, audio(0.0, 2), (5.0, Frame(Kind.CANCEL))), Gateway())
    with pytest.raises(worker.Cancelled):
        decode(source, clock)


def test_a_worker_reports_that_it_waits_even_if_all_else_was_reported(clock: Clock) -> None:
    gateway = Gateway()
    source = AudioSource(Device(clock, audio(0.5, 100), (60.0, Frame(Kind.END))), gateway)
    source.read(4096)
    source.decoded_bytes = 100
    clock.now += 5.0  # of work
    source.report(alive=True)
    assert [progress.is_waiting for progress in gateway.reported] == [False, False]
    assert source.read(4096) == b""
    assert gateway.reported[2:] == [wire.Progress(100, 100 / BYTES_PER_SECOND, 0.5 + PROGRESS_S, is_waiting=True)]


def test_a_worker_that_cannot_read_any_more_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def feed(self: wire.PipeReader, data: bytes) -> list[Frame]:
        raise MemoryError

    statuses: list[int] = []
    monkeypatch.setattr(wire.PipeReader, "feed", feed)
    monkeypatch.setattr(os, "_exit", statuses.append)
    reading, writing = os.pipe()
    os.write(writing, b"x")
    Inbox(reading)._read()
    assert statuses == [1]
    assert "MemoryError" in capsys.readouterr().err
    os.close(reading)
    os.close(writing)
