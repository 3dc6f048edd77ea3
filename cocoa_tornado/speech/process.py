"""One worker process on the IOLoop: starting it, exchanging frames, and its exit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, cast

from ..errors import EngineFailed
from . import wire

LAST_WORDS_S: Final = 1.0
"""How long the pipes may stay open after the process's exit: a subprocess that it left behind may hold them."""

MAX_LINE_BYTES: Final = 1024

STDIN, STDOUT, STDERR = 0, 1, 2


class Overseer(Protocol):
    """Receives a worker's events. Called on the IOLoop."""

    def on_frame(self, worker: int, frame: wire.Frame) -> None: ...

    def on_invalid(self, worker: int, error: EngineFailed) -> None:
        """The worker has sent something that is not a frame. No further frames are delivered."""

    def on_line(self, worker: int, line: str) -> None:
        """The worker has written a line to standard error."""

    def on_gone(self, worker: int, how: str, *, by_sigkill: bool) -> None:
        """The process has exited and all of its output was delivered. The last call."""


class WorkerProcess(asyncio.SubprocessProtocol):
    """A worker, once :func:`start_worker` has started it.

    :ivar gone: set when the process has exited and was reaped, and its pipes are closed
    """

    def __init__(self, number: int, overseer: Overseer) -> None:
        self.number = number
        self.gone = asyncio.Event()
        self._overseer = overseer
        self._transport: asyncio.SubprocessTransport | None = None
        self._stdin: asyncio.WriteTransport | None = None
        self._frames: wire.PipeReader | None = wire.PipeReader(wire.FROM_WORKER)
        self._line = b""
        self._farewell: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<WorkerProcess #{self.number} pid={self.pid}>"

    @property
    def pid(self) -> int | None:
        return self._transport.get_pid() if self._transport else None

    def write(self, data: bytes) -> None:
        """Send a frame. Never waits: the pool bounds what is in flight. Has no effect if the worker is gone."""
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.write(data)

    def kill(self) -> None:
        """SIGKILL. Safe at any time."""
        self._frames = None
        if self._transport is not None:
            with contextlib.suppress(ProcessLookupError):
                self._transport.kill()

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self._stdin = cast(asyncio.WriteTransport, self._transport.get_pipe_transport(STDIN))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == STDERR:
            self._on_stderr(data)
        elif self._frames is not None:
            try:
                for frame in self._frames.feed(data):
                    self._overseer.on_frame(self.number, frame)
            except EngineFailed as error:
                self._frames = None
                self._overseer.on_invalid(self.number, error)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == STDERR and self._line:
            self._on_stderr(b"\n")

    def process_exited(self) -> None:
        if self._transport is not None:
            self._farewell = asyncio.get_running_loop().call_later(LAST_WORDS_S, self._transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._farewell is not None:
            self._farewell.cancel()
        status = None
        if self._transport is not None:
            status = self._transport.get_returncode()
            self._transport.close()
        self._frames = None
        self.gone.set()
        self._overseer.on_gone(self.number, _how(status), by_sigkill=status == -signal.SIGKILL)

    def _on_stderr(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > MAX_LINE_BYTES:
            lines.append(self._line)
            self._line = b""
        for line in lines:
            text = line[:MAX_LINE_BYTES].decode("utf-8", "replace").rstrip()
            if text:
                self._overseer.on_line(self.number, text)


async def start_worker(process: WorkerProcess, command: Sequence[str]) -> None:
    """Start ``process``. Its first frames may arrive before this returns.

    :raises OSError: it can't be started
    """
    await asyncio.get_running_loop().subprocess_exec(
        lambda: process,
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=worker_environment(os.environ),
        # Ctrl-C in a terminal is for the gateway, which ends its workers.
        start_new_session=True,
    )


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The gateway's environment without its settings, and with the path of this package.

    A worker runs large C libraries on untrusted bytes and must not have the keys that sign tokens.
    """
    kept = {name: value for name, value in environment.items() if not name.upper().startswith("COCOA_")}
    here = Path(__file__).resolve().parents[2]
    # An installed package is found without this. Naming its folder first would put the other installed packages before
    # the standard library.
    if here not in {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}:
        kept["PYTHONPATH"] = os.pathsep.join([str(here), *filter(None, [kept.get("PYTHONPATH")])])
    return kept


def _how(status: int | None) -> str:
    if status is None:
        return "lost"
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
