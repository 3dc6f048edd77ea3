"""Workers that have lost their parent, and all else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cocoa_tornado.workers.place import Place
from testing.ports import ReservedPort
from testing.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
PATIENCE_S = 90.0


@contextmanager
def child(command: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A worker process, and its parent's end of the channel."""
    ours, theirs = socket.socketpair()
    with ours, closing(ReservedPort()) as reserved:
        place = Place(theirs.fileno(), 1, 1, "here/1", reserved.number)
        variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
        variables |= {"COCOA_SPEECH": "none://", "PYTHONPATH": str(ROOT), **place.variable()}
        with theirs, (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command], env=variables, pass_fds=(place.fd,), stdout=log, stderr=log
            )
        try:
            yield process, ours
        finally:
            process.kill()
            process.wait()


@pytest.mark.redis
def test_a_worker_that_has_lost_its_parent_and_redis_and_kafka_ends(own_redis: RedisServer, tmp_path: Path) -> None:
    """Kafka has never been there; Redis accepts connections and does not answer."""
    own_redis.start()
    with closing(ReservedPort()) as nobody:
        broker = f"kafka://127.0.0.1:{nobody.number}"
        options = ["--broker", broker, "--presence", own_redis.url, "--mailbox", own_redis.url, "--drain-grace", "1s"]
        with child(["-m", "tests.workers.unchecked", "serve", *options], tmp_path) as (process, parent):
            parent.settimeout(PATIENCE_S)
            assert parent.recv(1), (tmp_path / "log").read_text()  # it is up
            own_redis.pause()
            parent.close()
            process.wait(PATIENCE_S)
            log = (tmp_path / "log").read_text(encoding="utf-8")
            assert "Traceback" not in log, log
            own_redis.resume()


@pytest.mark.parametrize("hang", ["time.sleep(600)", "threading.Thread(target=time.sleep, args=(600,)).start()"])
def test_a_worker_that_hangs_without_a_parent_exits(tmp_path: Path, hang: str) -> None:
    """Its event loop, or the end of its interpreter."""
    program = (
        "import os, threading, time\n"
        "from cocoa_tornado.workers.orphans import exit_without_parent\n"
        "from cocoa_tornado.workers.place import take_place\n"
        "sock = take_place(os.environ).channel()\n"
        "exit_without_parent(sock.fileno(), 0.1)\n"
        "sock.send(b'!')\n"
        f"{hang}\n"
    )
    with child(["-c", program], tmp_path) as (process, parent):
        parent.settimeout(PATIENCE_S)
        assert parent.recv(1)
        assert process.poll() is None
        parent.close()
        assert process.wait(PATIENCE_S) == 1
