"""The sides of the roaming test: how two servers of each contender run on one Redis, and how messages are published.

- This project: Kafka, and presence in Redis with the default settings, in both modes. Messages are records in Kafka. A
  second connection is refused while the first one answers.
- Centrifugo: the Redis engine, and ``single_connection`` in ``client.subscribe_to_user_personal_channel``. Its
  documentation (centrifugal.dev, docs/server/server_subs.md, "Maintain single user connection") says that it *tries* to
  maintain a single connection, cannot guarantee that others are closed, and that no critical logic should be based on
  it. Each newcomer looks whether the user is present, and then has the others disconnected (centrifugal/centrifugo,
  internal/client/handler.go). Publications go through its HTTP API.
- Socket.IO: the Redis streams adapter with the version of node-redis that it is tested with, and a room for each
  device, see ``contenders/socketio/server.js``. Its documentation ("How to disconnect a specific client", and
  docs/server-api.md, ``disconnectSockets``) shows how to disconnect a user, and promises nothing about one socket for
  each. Publications go through an HTTP endpoint that calls ``io.to(room).emit()``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from testing.ports import ReservedPort
from testing.tcp_proxy import TcpProxy

from .contenders import CENTRIFUGO_VERSION, HERE, centrifugo_binary, install_centrifugo, install_node, node_folder
from .contenders.centrifugo import variables
from .roaming_fleet import Centrifugo, Dialect, Gateway, SocketIO
from .soak_gateway import http_connection
from .survival_faults import pythonpath

TOPIC: Final = "transcription.results"
PATIENCE_S: Final = 60.0
STOP_S: Final = 10.0


class Place(NamedTuple):
    """Where one server runs. :ivar redis: the address of its link to Redis"""

    name: str
    port: int
    redis: str
    bootstrap: str
    secret: str


Publication = Callable[[str, Mapping[str, Any]], tuple[str, Any]]
"""The HTTP request that publishes a message to a device: path and body."""


@dataclass(frozen=True, slots=True)
class Side:
    """One contender.

    :ivar version: how to get what its version is
    :ivar ready: the path that is answered with 200 when the server is ready
    :ivar publication: None: a record in Kafka
    """

    name: str
    dialect: Dialect
    prepare: Callable[[], None]
    version: Callable[[], str]
    command: Callable[[Place], list[str]]
    environ: Callable[[Place], Mapping[str, str]]
    ready: str = "/"
    publication: Publication | None = None


class Failed(Exception):
    """A server did not become ready; the message has its log."""


class Server:
    """One of two. It keeps its port and its link to Redis through all its lives."""

    def __init__(self, side: Side, number: int, folder: Path, redis_port: int, bootstrap: str, secret: str) -> None:
        self.link = TcpProxy(f"127.0.0.1:{redis_port}")
        self._side, self._reserved = side, ReservedPort()
        self._log = folder / f"{side.name}-{number}.log"
        self.port = self._reserved.number
        self._place = Place(f"server-{number}", self.port, self.link.address, bootstrap, secret)
        self._answer = b""
        self._process: asyncio.subprocess.Process | None = None

    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._side.command(self._place),
                env={"PATH": os.environ["PATH"], "HOME": str(self._log.parent), **self._side.environ(self._place)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def await_ready(self) -> None:
        """Raises Failed if it is not in time."""
        end = time.monotonic() + PATIENCE_S
        while not await self._is_ready():
            if time.monotonic() > end:
                log = self._log.read_text(errors="replace")[-2000:]
                raise Failed(f"{self._side.name} is not ready: {self._answer!r}\n{log}")
            await asyncio.sleep(0.1)

    async def _is_ready(self) -> bool:
        try:
            async with asyncio.timeout(2.0), http_connection(self.port) as call:
                status, self._answer = await call("GET", self._side.ready)
        except (OSError, EOFError, TimeoutError):
            return False
        return status == 200

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process is not None:
            self.send_signal(signal.SIGKILL)
            await self._process.wait()

    async def close(self) -> None:
        await self.kill()
        await self.link.close()
        self._reserved.close()


def _cocoa(mode: str) -> Side:
    def command(place: Place) -> list[str]:
        return [
            *(str(Path(sys.executable).parent / "cocoa"), "serve", "--port", str(place.port)),
            *("--broker", f"kafka://{place.bootstrap}", "--kafka-results-topic", TOPIC),
            *("--presence", f"redis://{place.redis}/0", "--presence-mode", mode, "--server-name", place.name),
            *("--speech", "none://", "--no-access-log", "--log-level", "warning"),
        ]

    return Side(
        f"cocoa, {mode}",
        Gateway(),
        lambda: None,
        _cocoa_version,
        command,
        lambda place: {"COCOA_JWT_SECRET": place.secret, **pythonpath()},
        ready="/api/v1/ready",
    )


def _cocoa_version() -> str:
    from importlib.metadata import version

    return f"cocoa-tornado {version('cocoa-tornado')}"


def _centrifugo(place: Place) -> Mapping[str, str]:
    settings = {
        "http_server": {"address": "127.0.0.1", "port": place.port},
        "log": {"level": "warn"},
        "node": {"name": place.name},
        "health": {"enabled": True, "handler_prefix": "/ready"},
        "usage_stats": {"disabled": True},
        "engine": {"type": "redis", "redis": {"address": f"redis://{place.redis}"}},
        "client": {
            "token": {"hmac_secret_key": place.secret, "user_id_claim": "device_id"},
            "subscribe_to_user_personal_channel": {"enabled": True, "single_connection": True},
        },
        "channel": {"without_namespace": {"presence": True}},  # single_connection needs it
        "uni_websocket": {"enabled": True, "handler_prefix": "/ws"},
        "http_api": {"insecure": True},
    }
    return dict(variables(settings))


def _socketio(*options: str) -> Side:
    def command(place: Place) -> list[str]:
        program = str(node_folder("socketio") / "server.js")
        return ["node", program, "--port", str(place.port), "--redis", f"redis://{place.redis}", *options]

    return Side(
        f"Socket.IO{', acknowledged' if options else ''}",
        SocketIO(),
        lambda: install_node("socketio"),
        _socketio_version,
        command,
        lambda place: {"COCOA_JWT_SECRET": place.secret},
        publication=lambda device, message: ("/publish", {"device": device, "message": message}),
    )


def _socketio_version() -> str:
    packages = json.loads((HERE / "socketio" / "package.json").read_text())["dependencies"]
    return ", ".join(f"{name} {packages[name]}" for name in ("socket.io", "@socket.io/redis-streams-adapter"))


SIDES: Final = [
    _cocoa("freeze"),
    _cocoa("strict"),
    Side(
        "Centrifugo",
        Centrifugo(),
        install_centrifugo,
        lambda: f"Centrifugo {CENTRIFUGO_VERSION}",
        lambda place: [str(centrifugo_binary())],
        _centrifugo,
        ready="/ready",
        publication=lambda device, message: ("/api/publish", {"channel": f"#{device}", "data": message}),
    ),
    _socketio(),
    _socketio("--acknowledged"),
]
