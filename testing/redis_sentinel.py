"""Redis Sentinels for the tests, each on a free port of 127.0.0.1, and the servers that they watch."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import redis

from .ports import ReservedPort
from .processes import end
from .redis_server import RedisServer

PATIENCE_S = 20.0
MASTER = "cocoa"


class RedisSentinel:
    """A Sentinel that fails over by itself: a quorum of one. It declares a master dead after half a second.

    :param password: its own, and that of the servers; empty for none
    """

    def __init__(self, folder: Path, master: RedisServer, password: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._reserved = ReservedPort()
        self.port = self._reserved.number
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self._file = folder / "sentinel.conf"
        self._file.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir {folder}\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds {MASTER} 500\n"
            f"sentinel failover-timeout {MASTER} 3000\n"
            + (f"requirepass {password}\nsentinel auth-pass {MASTER} {password}\n" if password else "")
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with open(self._file.with_suffix(".log"), "ab") as output:
            self._process = subprocess.Popen(
                ["redis-server", str(self._file), "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._await(lambda: bool(self.command("PING")), "answer")

    def close(self) -> None:
        """Kill it and release its port."""
        process, self._process = self._process, None
        if process is not None:
            end(process, signal.SIGKILL)
        self._reserved.close()

    def command(self, *words: object) -> object:
        """Run one command."""
        with redis.Redis(host="127.0.0.1", port=self.port, password=self._password or None) as client:
            return client.execute_command(*words)

    def await_replica(self) -> None:
        """Wait until it knows a replica of the master, which it could promote."""
        self._await(lambda: bool(self.command("SENTINEL", "REPLICAS", MASTER)), "find a replica")

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError):  # not there yet
                if condition():
                    return
            time.sleep(0.02)
        raise RuntimeError(f"the test Sentinel did not {what}:\n{self._file.with_suffix('.log').read_text()[-4000:]}")
