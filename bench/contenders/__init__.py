"""What else one could have built: gateways of the same contract, each as its ecosystem would write it.

Every contender is a program of its own. It takes ``--port --bootstrap --topic --group`` and the HS256 secret in
COCOA_JWT_SECRET, prints "listening on PORT" when it accepts connections, and serves GET /ws?token=... and GET /ready.
Centrifugo is a product instead, with a protocol of its own (``centrifugo.py``).
What each has to do is tried by ``python -m bench.contenders.check``.
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
BUILD_PATIENCE_S = 1_800.0  # Centrifugo's thousand packages take two cores three minutes
GATEWAY_DIALECT = "gateway"
CENTRIFUGO_VERSION = "v6.9.1"


class LeftOut(Exception):
    """This machine cannot run a contender; the text says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one start of a contender is told on its command line."""

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
    """:ivar description: for a report: language and libraries
    :ivar prepare: builds or installs what the command needs, and takes no time where that is done already; raises
        LeftOut where it can't
    :ivar command: the program and its arguments, one process; COCOA_JWT_SECRET is the caller's to set
    :ivar dialect: how devices and publishers speak to it, see bench/load/dialect.go
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
        raise LeftOut("aiokafka is not installed: pip install 'cocoa-tornado[bench]'")


def _node_folder() -> Path:
    """Named after what is in it: a change of the program or of a version never meets an old installation."""
    digest = hashlib.sha256()
    for path in sorted((HERE / "node").glob("*.js*")):
        digest.update(path.read_bytes())
    return cache_folder() / f"node-{digest.hexdigest()[:16]}"


def _install_node() -> None:
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise LeftOut(f"there is no {program}")
    folder = _node_folder()
    if (folder / "complete").exists():
        return
    shutil.copytree(HERE / "node", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    _build(["npm", "ci", "--no-audit", "--no-fund"], folder)
    (folder / "complete").touch()


def _node_command(run: Run) -> list[str]:
    return ["node", str(_node_folder() / "server.js"), *run.options]


def build_go(folder: Path, binary: Path) -> None:
    """Build the program in a folder. Raises LeftOut where that can't be."""
    if shutil.which("go") is None:
        raise LeftOut("there is no go")
    # Each time: the compiler's own cache knows best what has changed.
    _build(["go", "build", "-trimpath", "-o", str(binary), "."], folder)


def _build_go_contender() -> None:
    build_go(HERE / "go", _go_binary())


def _go_binary() -> Path:
    return cache_folder() / "go" / "contender"


def _go(hub: str, description: str) -> Contender:
    # With the 256 places for a device that its chat example has, it disconnects devices in a burst.
    own = ["--hub", hub, "--send-buffer", "8192"]
    return Contender(f"go_{hub}", description, _build_go_contender, lambda run: [str(_go_binary()), *own, *run.options])


def _centrifugo_binary() -> Path:
    return cache_folder() / f"centrifugo-{CENTRIFUGO_VERSION}" / "centrifugo"


def _install_centrifugo() -> None:
    if shutil.which("go") is None:
        raise LeftOut("there is no go")
    folder = _centrifugo_binary().parent
    folder.mkdir(parents=True, exist_ok=True)
    module = f"github.com/centrifugal/centrifugo/v6@{CENTRIFUGO_VERSION}"
    _build(["go", "install", "-trimpath", module], folder, {"GOBIN": str(folder)})


def _centrifugo_command(run: Run) -> list[str]:
    return [sys.executable, str(HERE / "centrifugo.py"), "--binary", str(_centrifugo_binary()), *run.options]


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
        raise LeftOut(f"{command[0]} failed: {error}") from error
    if done.returncode:
        raise LeftOut(f"{' '.join(command[:2])} failed:\n{done.stdout[-2000:]}")


ALL = [
    _python("plain_tornado", "Python: Tornado's WebSocketHandler, aiokafka"),
    _python("websockets_aiokafka", "Python: websockets, aiokafka"),
    Contender("node", "Node: ws, KafkaJS", _install_node, _node_command),
    _go("scan", "Go: echo, gorilla/websocket, a hub that scans its clients, segmentio/kafka-go"),
    _go("map", "Go: echo, gorilla/websocket, a hub with a map by device, franz-go"),
    Contender(
        "centrifugo", f"Go: Centrifugo {CENTRIFUGO_VERSION}", _install_centrifugo, _centrifugo_command, "centrifugo"
    ),
]
