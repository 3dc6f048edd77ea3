"""The alternatives to the gateway: programs with the same contract, each idiomatic in its ecosystem.

Every contender is a separate program. It takes ``--port --bootstrap --topic --group`` and the HS256 secret in
COCOA_JWT_SECRET, prints "listening on PORT" when it accepts connections, and serves GET /ws?token=... and GET /ready.
Centrifugo is a product with its own protocol (``centrifugo.py``). ``python -m bench.contenders.check`` tests them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BUILD_PATIENCE_S = 1_800.0  # Centrifugo's thousand packages take three minutes on two cores
GATEWAY_DIALECT = "gateway"
CENTRIFUGO_VERSION = "v6.9.1"


class Unavailable(Exception):
    """A contender cannot run on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """The command-line values of one start of a contender."""

    port: int
    bootstrap: str
    topic: str
    group: str

    @property
    def options(self) -> list[str]:
        return [
            *("--port", str(self.port), "--bootstrap", self.bootstrap),
            *("--topic", self.topic, "--group", self.group),
        ]


@dataclass(frozen=True, slots=True)
class Contender:
    """One contender.

    :ivar description: its language and libraries, for the report
    :ivar prepare: builds or installs what the command needs, unless that is done; raises Unavailable if it can't
    :ivar command: the program and its arguments, for one process; the caller sets COCOA_JWT_SECRET
    :ivar dialect: the protocol of devices and publishers, see bench/load/dialect.go
    """

    name: str
    description: str
    prepare: Callable[[], None]
    command: Callable[[Run], list[str]]
    dialect: str = GATEWAY_DIALECT


def cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "cocoa-tornado" / "contenders"


def _python(name: str, description: str) -> Contender:
    script = HERE / f"{name}.py"
    return Contender(name, description, _find_aiokafka, lambda run: [sys.executable, str(script), *run.options])


def _find_aiokafka() -> None:
    if importlib.util.find_spec("aiokafka") is None:
        raise Unavailable("aiokafka is not installed: pip install 'cocoa-tornado[bench]'")


def node_folder(name: str) -> Path:
    """A folder named by a hash of its contents, so that a changed program or version never uses an old installation."""
    digest = hashlib.sha256()
    for path in sorted((HERE / name).glob("*.js*")):
        digest.update(path.read_bytes())
    return cache_folder() / f"{name}-{digest.hexdigest()[:16]}"


def install_node(name: str) -> None:
    """Install the Node program of this folder. Raises Unavailable if that fails."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is not installed")
    folder = node_folder(name)
    if (folder / "complete").exists():
        return
    shutil.copytree(HERE / name, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    _build(["npm", "ci", "--no-audit", "--no-fund"], folder)
    (folder / "complete").touch()


def _node_command(run: Run) -> list[str]:
    return ["node", str(node_folder("node") / "server.js"), *run.options]


def build_go(folder: Path, binary: Path) -> None:
    """Build the program in a folder. Raises Unavailable if that fails."""
    if shutil.which("go") is None:
        raise Unavailable("go is not installed")
    # Always build, as the compiler's cache detects changes.
    _build(["go", "build", "-trimpath", "-o", str(binary), "."], folder)


def _build_go_contender() -> None:
    build_go(HERE / "go", _go_binary())


def _go_binary() -> Path:
    return cache_folder() / "go" / "contender"


def _go(hub: str, description: str) -> Contender:
    # With a queue of 256 per device, as in its chat example, it would disconnect devices in a burst.
    own = ["--hub", hub, "--send-buffer", "8192"]
    return Contender(f"go_{hub}", description, _build_go_contender, lambda run: [str(_go_binary()), *own, *run.options])


def centrifugo_binary() -> Path:
    return cache_folder() / f"centrifugo-{CENTRIFUGO_VERSION}" / "centrifugo"


def install_centrifugo() -> None:
    """Build it with Go from its module. Raises Unavailable if that fails."""
    if shutil.which("go") is None:
        raise Unavailable("go is not installed")
    folder = centrifugo_binary().parent
    folder.mkdir(parents=True, exist_ok=True)
    module = f"github.com/centrifugal/centrifugo/v6@{CENTRIFUGO_VERSION}"
    _build(["go", "install", "-trimpath", module], folder, {"GOBIN": str(folder)})


def _centrifugo_command(run: Run) -> list[str]:
    return [sys.executable, str(HERE / "centrifugo.py"), "--binary", str(centrifugo_binary()), *run.options]


def _build(command: list[str], folder: Path, environ: Mapping[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | (environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=BUILD_PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]} failed: {error}") from error
    if done.returncode:
        raise Unavailable(f"{' '.join(command[:2])} failed:\n{done.stdout[-2000:]}")


ALL = [
    _python("plain_tornado", "Python: Tornado's WebSocketHandler, aiokafka"),
    _python("websockets_aiokafka", "Python: websockets, aiokafka"),
    Contender("node", "Node: ws, KafkaJS", lambda: install_node("node"), _node_command),
    _go("scan", "Go: echo, gorilla/websocket, a hub that scans its clients, segmentio/kafka-go"),
    _go("map", "Go: echo, gorilla/websocket, a hub with a map by device, franz-go"),
    Contender(
        "centrifugo", f"Go: Centrifugo {CENTRIFUGO_VERSION}", install_centrifugo, _centrifugo_command, "centrifugo"
    ),
]
