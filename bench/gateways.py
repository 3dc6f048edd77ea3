"""This project as a contender of its own benchmark, once with each Kafka library."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .contenders import Contender, Run, Unavailable
from .survival_faults import pythonpath

# Like the other contenders: queues without a practical limit for a burst, and no access log.
QUIET = [
    *("--log-level", "error", "--no-access-log", "--speech", "none://"),
    *("--outbox-max-messages", "100000", "--outbox-max-bytes", "64MiB"),
]


def _program() -> str:
    return str(Path(sys.executable).parent / "cocoa")


@functools.cache
def options_help() -> str:
    """The output of ``cocoa serve --help``, which lists this version's options."""
    done = subprocess.run(
        [_program(), "serve", "--help"], stdout=subprocess.PIPE, text=True, env=os.environ | pythonpath(), check=True
    )
    return done.stdout


def _has_choice() -> bool:
    return "--kafka-client " in options_help()


def with_mailbox(url: str, client: str) -> Contender:
    """This project with a mailbox."""
    return Contender("cocoa", "this project", lambda: None, _command(client, "--mailbox", url))


def _command(client: str, *options: str) -> Callable[[Run], list[str]]:
    def command(run: Run) -> list[str]:
        chosen = ["--kafka-client", client] if _has_choice() else []
        kafka = ["--broker", f"kafka://{run.bootstrap}", "--kafka-results-topic", run.topic, "--kafka-group", run.group]
        return [_program(), "serve", "--port", str(run.port), *kafka, *chosen, *QUIET, *options]

    return command


def _find_confluent() -> None:
    if not _has_choice():
        raise Unavailable("this version has no option --kafka-client")
    if importlib.util.find_spec("confluent_kafka") is None:
        raise Unavailable("confluent-kafka is not installed: pip install 'cocoa-tornado[librdkafka]'")


GATEWAYS = [
    Contender("cocoa_confluent", "this project, reading with confluent-kafka", _find_confluent, _command("confluent")),
    Contender("cocoa_python", "this project, reading with kafka-python", lambda: None, _command("kafka-python")),
]
