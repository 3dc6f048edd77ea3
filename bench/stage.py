"""The environment of the benchmark: a broker, and per trial one contender on its core, with the load on the others."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testing.kafka_admin import create_topic, delete_topic
from testing.kafka_server import KafkaServer
from testing.ports import ReservedPort

from .contenders import Contender, Run
from .load_generator import Floor, Load, Unfinished
from .proc import Cores, cpu_s, idle_s, on_cores
from .survival_faults import pythonpath

PARTITIONS = 6
READY_PATIENCE_S = 60.0
# Of the gateway, and of the other contenders.
READY_PATHS = ("/api/v1/ready", "/ready")


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading of clocks in seconds: CPU time of the server and of the load (generator, broker and harness), and the
    idle times of their cores.
    """

    at: float
    server_s: float
    load_s: float
    server_idle_s: float
    load_idle_s: float

    def __sub__(self, other: Reading) -> Reading:
        return Reading(
            self.at - other.at,
            self.server_s - other.server_s,
            self.load_s - other.load_s,
            self.server_idle_s - other.server_idle_s,
            self.load_idle_s - other.load_idle_s,
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """A ready server, and devices that can connect to it."""

    pid: int
    load: Load
    cores: Cores

    def read(self) -> Reading:
        server_s, all_s = cpu_s(self.pid), cpu_s(os.getpid())
        idle = idle_s(self.cores.server), idle_s(self.cores.load)
        return Reading(time.monotonic(), server_s, all_s - server_s, *idle)


@dataclass(slots=True)
class Stage:
    """:ivar binary: the load generator
    :ivar folder: for the servers' logs
    :ivar text_bytes: length of the text in each record
    :ivar broker_pid: the process of the broker
    """

    binary: Path
    bootstrap: str
    folder: Path
    cores: Cores
    text_bytes: int
    broker_pid: int
    _trials: int = field(default=0)

    @contextlib.contextmanager
    def trial(self, contender: Contender) -> Iterator[Trial]:
        """A started and ready contender, with a new topic, so that it gets no records of another trial.

        It is killed at the end. Raises Unfinished if it does not become ready.
        """
        self._trials += 1
        name = f"bench.{contender.name}.{self._trials}"
        secret = secrets.token_hex(32)
        reserved = ReservedPort()
        run = Run(reserved.number, self.bootstrap, name, name)
        create_topic(self.bootstrap, name, PARTITIONS)
        environ = os.environ | pythonpath() | {"COCOA_JWT_SECRET": secret, "GOMAXPROCS": str(len(self.cores.server))}
        log = self.folder / f"{name}.log"
        try:
            with running(contender.command(run), environ, log, run.port, self.cores.server) as process:
                spoken = (self.bootstrap, name, self.text_bytes, contender.dialect)
                with _explained(process, log), Load(self.binary, secret, run.port, *spoken) as load:
                    yield Trial(process.pid, load, self.cores)
        finally:
            reserved.close()
            delete_topic(self.bootstrap, name)

    @contextlib.contextmanager
    def floor(self) -> Iterator[tuple[Floor, Trial]]:
        """The server that only sends, instead of a contender."""
        with contextlib.closing(ReservedPort()) as reserved, on_cores(self.cores.server):
            floor = Floor(self.binary, reserved.number)
        with floor, Load(self.binary, "floor", reserved.number, "", "", self.text_bytes) as load:
            yield floor, Trial(floor.pid, load, self.cores)


@contextlib.contextmanager
def running(
    command: Sequence[str], environ: Mapping[str, str], log: Path, port: int, cores: frozenset[int]
) -> Iterator[subprocess.Popen[bytes]]:
    """A ready server on these cores. It is killed at the end. Raises Unfinished if it does not become ready."""
    with log.open("wb") as errors, on_cores(cores):
        process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
    try:
        _await_ready(port, process, log)
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def staged(binary: Path, cores: Cores, text_bytes: int) -> Iterator[Stage]:
    """A stage with its own Apache Kafka. Within it, this process and its children do not use the server's core."""
    with (
        tempfile.TemporaryDirectory(prefix="cocoa-bench-") as name,
        on_cores(cores.load),
        contextlib.ExitStack() as stack,
    ):
        kafka = KafkaServer(Path(name) / "kafka")
        kafka.start()
        stack.callback(kafka.kill)
        yield Stage(binary, kafka.bootstrap, Path(name), cores, text_bytes, kafka.pid)


@contextlib.contextmanager
def _explained(process: subprocess.Popen[bytes], log: Path) -> Iterator[None]:
    """Raise Unfinished, instead of a consequential error, if the server has ended."""
    try:
        yield
    except Unfinished as why:
        if process.poll() is not None:
            raise Unfinished(f"{why}; it ended: {_last_line(log)}") from why
        raise
    if process.poll() is not None:
        raise Unfinished(f"it ended: {_last_line(log)}")


def _await_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + READY_PATIENCE_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Unfinished(f"it ended while it was starting: {_last_line(log)}")
        if any(_is_ready(f"http://127.0.0.1:{port}{path}") for path in READY_PATHS):
            return
        time.sleep(0.1)
    raise Unfinished(f"not ready after {READY_PATIENCE_S:.0f} s")


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else "without a word"
