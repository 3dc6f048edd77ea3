"""Apache Kafka from Maven, prepared once per version and user, so that a server starts within a second."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .locking import alone

POM = Path(__file__).parent / "kafka" / "pom.xml"
SCRAM_USER, SCRAM_PASSWORD = "scram-gateway", "scram-password-for-tests"

_MAVEN_PATIENCE_S = 600.0
_JAVA_PATIENCE_S = 60.0

# Sufficient to format a folder, which depends on the node id only. No server runs with it.
_FORMAT_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:1
controller.listener.names=CONTROLLER
listeners=PLAIN://127.0.0.1:2,CONTROLLER://127.0.0.1:1
listener.security.protocol.map=PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAIN
log.dirs={data}
"""


@dataclass(frozen=True)
class Installation:
    """The paths of an installation.

    :ivar jars: the server and its dependencies
    :ivar formatted: a template of a data folder, with the SCRAM user and without topics
    :ivar classes: the archive of loaded classes (AppCDS)
    :ivar lock: locked by processes that add to the installation
    """

    jars: Path
    formatted: Path
    classes: Path
    lock: Path


def kafka_version() -> str:
    found = re.search(r"<kafka.version>(.+)</kafka.version>", POM.read_text())
    assert found is not None
    return found.group(1)


@functools.cache
def install() -> Installation:
    """Prepare the missing parts in the user's cache. Concurrent processes wait for each other."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cocoa-tornado"
    folder = cache / f"kafka-{kafka_version()}"
    installation = Installation(folder / "jars", folder / "formatted", folder / "classes.jsa", folder / "lock")
    folder.mkdir(parents=True, exist_ok=True)
    with alone(installation.lock):
        if not installation.jars.exists():
            with _then_renamed(installation.jars) as made:
                _fetch(made)
        if not installation.formatted.exists():
            with _then_renamed(installation.formatted) as made:
                _format(installation, made)
    return installation


def java(jars: Path, *options: str) -> list[str]:
    """The first arguments of a command that runs a Kafka class."""
    quick = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Djava.awt.headless=true"]
    log_level = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
    return ["java", *options, *quick, log_level, "-cp", f"{jars}/*"]


def _fetch(folder: Path) -> None:
    _run(
        ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={folder}"],
        _MAVEN_PATIENCE_S,
    )


def _format(installation: Installation, data: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        properties = Path(name) / "server.properties"
        properties.write_text(_FORMAT_PROPERTIES.format(data=data))
        scram = f"SCRAM-SHA-256=[name={SCRAM_USER},password={SCRAM_PASSWORD}]"
        tool = [*java(installation.jars, "-Xmx128m"), "kafka.tools.StorageTool", "format"]
        options = ["--cluster-id", "Y29jb2EtdG9ybmFkby0wMA", "--config", str(properties), "--add-scram", scram]
        _run([*tool, *options], _JAVA_PATIENCE_S)


def _run(command: list[str], patience_s: float) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=patience_s)


@contextmanager
def _then_renamed(folder: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to ``folder`` once it is complete."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    yield unfinished
    unfinished.rename(folder)
