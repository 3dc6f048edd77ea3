"""A real Redis for the tests, on a free port of 127.0.0.1, with its data in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import redis

from .ports import ReservedPort
from .processes import end

START_PATIENCE_S = 20.0


def why_not() -> str:
    """Why Redis cannot run here; empty if it can."""
    return "" if shutil.which("redis-server") else "redis-server is not on the PATH: apt-get install redis-server"


class RedisServer:
    """A server process. Its port and data survive restarts.

    :param settings: of redis.conf, beyond those that a mailbox wants
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = settings
        folder.mkdir(parents=True, exist_ok=True)
        self._reserved = ReservedPort()
        self.port = self._reserved.number

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, **settings: str) -> None:
        """Start it, and wait until it has loaded its data.

        :param settings: of redis.conf, from now on
        """
        self._settings |= settings
        with open(self.folder / "server.log", "ab") as output:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        (self.folder / "pid").write_text(str(self._process.pid))
        self._await_answer(self._process)

    def stop(self) -> None:
        """Stop it gracefully, and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Kill it and release its port."""
        self.kill()
        self._reserved.close()

    def pause(self) -> None:
        """Freeze it: connections stay open, but get no answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def client(self) -> Any:
        """A new client for inspection; the caller closes it."""
        return redis.Redis(host="127.0.0.1", port=self.port, password=self._settings.get("requirepass"))

    def command(self, *words: object) -> Any:
        """Run one command."""
        with self.client() as client:
            return client.execute_command(*words)

    def _command(self) -> list[str]:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "daemonize": "no",
        } | self._settings
        return ["redis-server", *(word for name, value in settings.items() for word in (f"--{_dashed(name)}", value))]

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        end(process, how)
        (self.folder / "pid").unlink(missing_ok=True)

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_PATIENCE_S
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(redis.RedisError):  # not there yet, or loading
                self.command("PING")
                return
            time.sleep(0.02)
        log = (self.folder / "server.log").read_text(errors="replace")[-4000:]
        self.kill()
        raise RuntimeError(f"the test Redis did not start:\n{log}")


def _dashed(name: str) -> str:
    return name.replace("_", "-")
