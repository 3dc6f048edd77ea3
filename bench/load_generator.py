"""Controls the compiled processes of the benchmark, which are built from bench/load.

:class:`Load` runs the devices and the publisher of records; :class:`Floor` is a server that only sends.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .contenders import GATEWAY_DIALECT, build_go, cache_folder

HERE = Path(__file__).parent
SPARE_PATIENCE_S = 60.0


class Unfinished(Exception):
    """A contender did not complete an operation in time; the message names it."""


def build() -> Path:
    """The program. Takes no time where nothing has changed. Raises Unavailable where it cannot be built."""
    binary = cache_folder() / "load"
    build_go(HERE / "load", binary)
    return binary


def message_bytes(text_bytes: int) -> int:
    """The approximate size of a message to a device for the records of bench/load."""
    record = {
        "type": "transcription",
        "session_id": "a1b2c3d4e5f6g7h8",
        "user_id": 99,
        "device_id": "device-1000",
        "text": "x" * text_bytes,
        "timestamp": "2024-01-15T10:30:00Z",
        "success": True,
        "seq": 10_000,
        "sent_us": time.time_ns() // 1000,
    }
    return len(json.dumps(record, separators=(",", ":")))


class Conversation:
    """A process that answers commands, one JSON line each. As a context manager, it ends the process."""

    def __init__(self, arguments: list[str], secret: str) -> None:
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"COCOA_JWT_SECRET": secret},
        )
        self._rest = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, patience_s: float = SPARE_PATIENCE_S, **details: Any) -> dict[str, Any]:
        """Send a command. Raises Unfinished if the answer is late or an error."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **details}).encode() + b"\n")
        self._process.stdin.flush()
        answer = json.loads(self._line(patience_s, do))
        if isinstance(answer, dict) and "error" in answer:
            raise Unfinished(f"{do}: {answer['error']}")
        assert isinstance(answer, dict)
        return answer

    def _line(self, patience_s: float, what: str) -> bytes:
        assert self._process.stdout is not None
        end = time.monotonic() + patience_s
        while b"\n" not in self._rest:
            readable = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]
            if not readable:
                raise Unfinished(f"{what}: no answer within {patience_s:.0f} s")
            read = os.read(self._process.stdout.fileno(), 1 << 16)
            if not read:
                raise Unfinished(f"{what}: the process has ended")
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@dataclass(frozen=True, slots=True)
class Flow:
    """Records for some of the devices, in a reproducible random order.

    :ivar each: the number of successive records for the same device
    :ivar rate: records per second
    :ivar messages: the total number; 0: until :meth:`Load.settle`
    :ivar ping_every_s: the interval at which each of these devices pings the server; 0: never
    :ivar to_group: each record is for the group of all devices, which must be those of the flow; ``rate`` and
        ``messages`` still count records
    :ivar linger_ms: how long the producer waits for a batch to fill; 5 ms is the default of Kafka's own
    """

    count: int
    each: int
    rate: float
    messages: int
    ping_every_s: float = 0.0
    to_group: bool = False
    linger_ms: int = 5


class Load(Conversation):
    """The devices and the publisher. Device n is named ``device-n``.

    :param dialect: the protocol of the server, see bench/load/dialect.go
    :ivar port: of the server
    :ivar topic: of the records
    """

    def __init__(
        self,
        binary: Path,
        secret: str,
        port: int,
        bootstrap: str,
        topic: str,
        text_bytes: int,
        dialect: str = GATEWAY_DIALECT,
    ) -> None:
        super().__init__([str(binary), dialect], secret)
        self.port, self.topic = port, topic
        self._bootstrap, self._text_bytes = bootstrap, text_bytes

    def connect(
        self, first: int, count: int, at_once: int, patience_s: float, grouped: bool = False, rate: float = 0.0
    ) -> dict[str, Any]:
        """Connect devices until all are connected or time is up. Refused ones retry after Retry-After or a second.

        :param grouped: the tokens of devices that connect for the first time name the group of all
        :param rate: devices that begin to connect in a second, 0: as many as ``at_once`` allows. With a rate, their
            times count from the moment at which each was to begin
        """
        wanted = {"port": self.port, "first": first, "count": count, "at_once": at_once, "within_s": patience_s}
        wanted["connect_rate"] = rate
        return self.ask("connect", patience_s + SPARE_PATIENCE_S, grouped=grouped, **wanted)

    def connect_all(self, count: int, at_once: int, patience_s: float, grouped: bool = False) -> dict[str, Any]:
        """Connect devices. Raises Unfinished unless all are connected."""
        found = self.connect(0, count, at_once, patience_s, grouped)
        if found["in"] < count:
            refused, errors = found["refused"] or "", found["errors"] or ""
            raise Unfinished(f"{found['in']:,} of {count:,} devices are in after {patience_s:.0f} s {refused} {errors}")
        return found

    def vanish(self, first: int, count: int) -> int:
        """Reset the connections of these devices, 40,000 a second; returns how many there were."""
        return int(self.ask("vanish", first=first, count=count)["gone"])

    def start(self, flow: Flow, settle_patience_s: float) -> None:
        """Start a flow.

        :param settle_patience_s: the time without a message at the end after which missing ones count as lost
        """
        self.ask(
            "flow",
            bootstrap=self._bootstrap,
            topic=self.topic,
            text_bytes=self._text_bytes,
            flow_first=0,
            flow_count=flow.count,
            each=flow.each,
            rate=flow.rate,
            messages=flow.messages,
            ping_every_s=flow.ping_every_s,
            settle_patience_s=settle_patience_s,
            to_group=flow.to_group,
            linger_ms=flow.linger_ms,
        )

    def settle(self, patience_s: float) -> dict[str, Any]:
        """End the flow; returns what was sent and received, and when."""
        return self.ask("settle", patience_s)

    def forget(self) -> None:
        """Reset the counts."""
        self.ask("expect")

    def heard(self, messages: int = 0, patience_s: float = 0.0) -> dict[str, Any]:
        """The messages received since; waits for this many, until none arrives within ``patience_s``."""
        return self.ask("await", patience_s + SPARE_PATIENCE_S * 2, messages=messages, within_s=patience_s)


class Floor(Conversation):
    """A server that only sends. It accepts any connection as a device."""

    def __init__(self, binary: Path, port: int) -> None:
        super().__init__([str(binary), "floor", str(port)], "")
        self._line(SPARE_PATIENCE_S, "start")  # "listening on ..."

    def flood(self, messages: int, each: int, rate: float, size: int) -> dict[str, Any]:
        """Make one send() call per message; CPU is that of the calls only."""
        patience_s = SPARE_PATIENCE_S + (2 * messages / rate if rate else 0)
        return self.ask("flood", patience_s, messages=messages, each=each, rate=rate, bytes=size)
