"""A worker process: decodes and recognizes one utterance after another.

The gateway starts it as ``python -m cocoa_tornado.speech.worker URL [--language TAG] [--workers N]``. Frames
(``wire.py``) arrive on standard input and leave on standard output.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..errors import AudioNotDecodable, AudioTooLong, EngineFailed
from . import wire
from .engines import engine_of
from .loading import make_recognizer
from .recognizer import BYTES_PER_SECOND, Recognizer
from .wire import Kind

NICE: Final = 10

MAX_FAILURES: Final = 3
"""After this many utterances in a row in which the engine failed, it counts as broken."""

MEMORY_TO_WORK_WITH: Final = 1 << 30

OOM_SCORE: Final = 500
"""Added to the kernel's score for choosing a process to kill when memory runs out: half of the limit's bytes. A gateway
with many devices may well be larger than a worker."""

PROGRESS_S: Final = 0.25
PROGRESS_BYTES: Final = wire.WINDOW_BYTES // 4
"""Progress is reported once this many bytes are consumed, or a quarter of a second later."""

MAX_QUEUED_BYTES: Final = 2 * wire.WINDOW_BYTES
"""More than the gateway ever has in flight. The thread reads no further until some of it is used."""

_LINUX_PR_SET_PDEATHSIG: Final = 1


class Cancelled(BaseException):
    """The current utterance was cancelled. Not an Exception, so that code which translates library errors ignores
    it."""


class Inbox:
    """Frames from the gateway that are not used yet. Filled by its own thread, emptied by the main thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._frames: deque[wire.Frame] = deque()
        self._queued_bytes = 0
        self._changed = threading.Condition()

    def start(self) -> None:
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def take(self, timeout_s: float | None = None) -> wire.Frame | None:
        """Return the next frame; None if none arrived in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._frames, timeout_s):
                return None
            frame = self._frames.popleft()
            self._queued_bytes -= len(frame.payload)
            self._changed.notify_all()
            return frame

    def check_cancelled(self) -> None:
        """:raises Cancelled: the current utterance was cancelled"""
        with self._changed:
            if self._frames and self._frames[0].kind is Kind.CANCEL:
                self._frames.popleft()
                raise Cancelled

    def _read(self) -> None:
        status = 1
        try:
            reader = wire.PipeReader(wire.TO_WORKER)
            with suppress(OSError, EngineFailed):
                while data := os.read(self._fd, wire.WINDOW_BYTES):
                    for frame in reader.feed(data):
                        self._put(frame)
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            # The gateway is gone, and the main thread may be in C code for seconds to come. Exit also if this fails for
            # lack of memory, which in a container may be used up entirely: the main thread would wait indefinitely for
            # audio that is never read, and for a CANCEL.
            os._exit(status)

    def _put(self, frame: wire.Frame) -> None:
        with self._changed:
            if frame.kind is Kind.CANCEL:
                # The gateway begins no utterance before the last one has settled: these belong to the cancelled one.
                begun = [queued for queued in self._frames if queued.kind is Kind.BEGIN]
                self._frames = deque(begun)
                self._queued_bytes = sum(len(queued.payload) for queued in begun)
            self._frames.append(frame)
            self._queued_bytes += len(frame.payload)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._queued_bytes <= MAX_QUEUED_BYTES)


class Outbox:
    """Frames to the gateway. A gateway that does not read is gone, or about to be."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def send(self, frame: bytes) -> None:
        view = memoryview(frame)
        while len(view):
            view = view[os.write(self._fd, view) :]


class AudioSource:
    """The bytes of one utterance, for the decoder to read. Reports progress to the gateway.

    :ivar decoded_bytes: of samples; updated by the code that decodes
    """

    def __init__(self, inbox: Inbox, outbox: Outbox) -> None:
        self._inbox, self._outbox = inbox, outbox
        self._piece = b""
        self._ended = False
        self.decoded_bytes = self._consumed = 0
        self._waited_s = 0.0
        self._reported = wire.Progress(0, is_waiting=True)  # the gateway's initial assumption
        self._reported_at = time.monotonic()

    def read(self, max_bytes: int, /) -> bytes:
        """Return at least one byte, as soon as there is one; b'' at the end.

        :raises Cancelled: the utterance was cancelled
        """
        self._inbox.check_cancelled()
        if self.is_empty():
            return b""
        data, self._piece = self._piece[:max_bytes], self._piece[max_bytes:]
        self._consumed += len(data)
        self.report()
        return data

    def is_empty(self) -> bool:
        """Wait for the first byte; return True if the utterance ends without one.

        :raises Cancelled: the utterance was cancelled
        """
        while not self._piece and not self._ended:
            self._on_frame(self._next_frame())
        return not self._piece

    def report(self, *, alive: bool = False) -> None:
        """Send a progress report if it is due.

        :param alive: also if nothing was consumed since the last one
        """
        news = self._consumed - self._reported.consumed
        due = time.monotonic() - self._reported_at >= PROGRESS_S
        if news >= PROGRESS_BYTES or (due and (news or alive)):
            self._say()

    def _next_frame(self) -> wire.Frame:
        """Wait for a frame. Before a long wait, report what was consumed: the gateway may be holding back audio, or
        about to take this utterance away, because it does not know."""
        since = time.monotonic()
        frame = None
        reported = self._reported
        if not reported.is_waiting or (self._consumed, self._audio_s) != (reported.consumed, reported.audio_s):
            frame = self._inbox.take(max(0.0, self._reported_at + PROGRESS_S - since))
            if frame is None:
                since = self._wait_ends(since)
                self._say(is_waiting=True)
        while frame is None:
            frame = self._inbox.take()
        self._wait_ends(since)
        return frame

    def _wait_ends(self, since: float) -> float:
        now = time.monotonic()
        self._waited_s += now - since
        return now

    def _on_frame(self, frame: wire.Frame) -> None:
        if frame.kind is Kind.AUDIO:
            self._piece = frame.payload
        elif frame.kind is Kind.END:
            self._ended = True
        else:
            raise Cancelled

    @property
    def _audio_s(self) -> float:
        return self.decoded_bytes / BYTES_PER_SECOND

    def _say(self, *, is_waiting: bool = False) -> None:
        self._reported = wire.Progress(self._consumed, self._audio_s, self._waited_s, is_waiting)
        self._reported_at = time.monotonic()
        self._outbox.send(wire.progress_frame(self._reported))


class Worker:
    """Serves utterances, one at a time, indefinitely."""

    def __init__(self, inbox: Inbox, outbox: Outbox, recognizer: Recognizer) -> None:
        self._inbox, self._outbox, self._recognizer = inbox, outbox, recognizer
        self._failures = 0  # of the engine, in a row
        self._is_beyond_help = False

    def serve(self) -> None:
        """Return only when the engine counts as broken, so that another worker can replace this one."""
        self._outbox.send(wire.json_frame(Kind.READY, wire.Ready(self._recognizer.detail)))
        while not self._is_beyond_help:
            frame = self._inbox.take()
            # Anything else belongs to an utterance that has failed already.
            if frame is not None and frame.kind is Kind.BEGIN:
                self._outbox.send(self._settle(wire.message_of(frame, wire.Begin)))

    def _settle(self, begin: wire.Begin) -> bytes:
        """Process one utterance; return the frame that ends it."""
        try:
            done = wire.json_frame(Kind.DONE, self._utterance(begin))
            self._failures = 0
            return done
        except Cancelled:
            failed = wire.Failed("cancelled", "cancelled")
        except AudioNotDecodable as error:
            failed = wire.Failed("not_decodable", _one_line(error))
        except AudioTooLong as error:
            failed = wire.Failed("too_long", _one_line(error))
        except EngineFailed as error:
            failed = wire.Failed("engine", _one_line(error))
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                print(f"the engine has failed {self._failures} times in a row: {failed.detail}", file=sys.stderr)
                self._is_beyond_help = True
        except Exception as error:
            traceback.print_exc()
            self._is_beyond_help = True
            failed = wire.Failed("engine", f"unexpected {type(error).__name__} in the speech worker")
        return wire.json_frame(Kind.FAILED, failed)

    def _utterance(self, begin: wire.Begin) -> wire.Done:
        # Imported here so that pool tests with their own recognizer need no decoder, which is large.
        from .decoding import decode

        before_s = time.process_time()
        source = AudioSource(self._inbox, self._outbox)

        def alive() -> None:
            source.report(alive=True)
            self._inbox.check_cancelled()

        self._recognizer.begin(self._report_interim(source) if begin.want_interim else None, alive)
        if not source.is_empty():  # no data at all is no audio, but not an error either
            for piece in decode(begin.format, source, begin.max_audio_s):
                source.decoded_bytes += len(piece)
                self._recognizer.accept(piece)
                alive()
        text = self._recognizer.finish()
        return wire.Done(text, source.decoded_bytes / BYTES_PER_SECOND, time.process_time() - before_s)

    def _report_interim(self, source: AudioSource) -> Callable[[str], None]:
        def send(text: str) -> None:
            self._inbox.check_cancelled()
            self._outbox.send(wire.frame(Kind.INTERIM, text.encode()))

        return send


def run(make: Callable[[], Recognizer]) -> int:
    """Run a worker: take over standard input and output, load the model, serve. Returns when it can't go on.

    :param make: loads the model
    """
    inbox, outbox = _take_over_pipes()
    _live_and_die_with_the_gateway()
    inbox.start()
    try:
        recognizer = make()
    except EngineFailed as error:
        outbox.send(wire.json_frame(Kind.FAILED, wire.Failed("engine", _one_line(error))))
        return 1
    _bound_memory()
    Worker(inbox, outbox, recognizer).serve()
    return 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="cocoa_tornado.speech.worker", description="A worker of the gateway.")
    parser.add_argument("url", type=engine_of, help="the engine")
    parser.add_argument("--language", default="", help="language tag; empty: what the engine takes by itself")
    parser.add_argument("--workers", type=int, default=1, help="workers that share this machine's processors")
    options = parser.parse_args(arguments)
    return run(lambda: make_recognizer(options.url, language=options.language, workers=options.workers))


def _take_over_pipes() -> tuple[Inbox, Outbox]:
    """From here on, anything that a library prints goes to standard error, so it can't be taken for a frame."""
    inbox, outbox = Inbox(os.dup(0)), Outbox(os.dup(1))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return inbox, outbox


def _live_and_die_with_the_gateway() -> None:
    # Ctrl-C, or a service manager's signal to all processes of a service, is for the gateway: it lets the streams in
    # progress finish and then ends its workers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Recognition may use all the CPU time there is. The gateway needs microseconds and every device waits for it, so it
    # gets priority on a shared core.
    os.nice(NICE)
    # And if memory runs out, losing a worker costs only one stream.
    with suppress(OSError, ValueError):
        adjustment = Path("/proc/self/oom_score_adj")
        adjustment.write_text(str(min(1000, int(adjustment.read_text()) + OOM_SCORE)))
    if sys.platform == "linux":
        # The end of standard input also ends the worker, but not while C code holds the GIL.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_LINUX_PR_SET_PDEATHSIG, signal.SIGKILL)


def _bound_memory() -> None:
    """Untrusted audio must not use up the machine's memory: allow as much again as the model takes, plus a gigabyte."""
    with suppress(OSError, ValueError, StopIteration, IndexError):
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        used_kib = int(next(line for line in status if line.startswith("VmData:")).split()[1])
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = 2 * used_kib * 1024 + MEMORY_TO_WORK_WITH
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


if __name__ == "__main__":
    sys.exit(main())
