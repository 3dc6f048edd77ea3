"""The README's commands do what it says, as they are printed: but for the port, which a test cannot rely on."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from testing.ports import ReservedPort

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text(encoding="utf-8")
PATIENCE_S = 60.0
COMMAND = re.compile(r"(make|python3|pip|cocoa|curl|openssl|COCOA_\w+=\S+|\.venv/bin/\w+) ")

NOT_RUN = [
    "make demo",  # tests/test_demo.py runs it
    "make test",  # it would run this test
    "python3 -m venv .venv",  # an installation, which .ci/run does in its own way; and so the next one
    ".venv/bin/pip install '.[speech]'",
    ".venv/bin/cocoa serve",  # it does not end, and listens on port 8080: tests/cli/test_serve.py
    "pip install '.[all]'",
    # What these name does not exist here: tests/test_conf.py and tests/probe/test_command.py
    "COCOA_JWT_SECRET=@/run/secrets/jwt cocoa serve --config /etc/cocoa-gateway/production.toml --check",
    "COCOA_JWT_SECRET=@/run/secrets/jwt cocoa serve --config /etc/cocoa-gateway/production.toml",
    ".venv/bin/cocoa probe-device wss://gateway.example/ws --device-id probe-1 --secret @secret.txt"
    " --broker kafka://kafka-1:9092 --require delivery",
]
ON_KAFKA = [
    "make kafka",
    ".venv/bin/cocoa serve --broker kafka://127.0.0.1:9092",
    ".venv/bin/python examples/backends/python/produce.py doll-1 Hello",
]


def commands() -> list[str]:
    """Each command of the literal blocks, its continuation lines joined, without its comment."""
    found = []
    for block in re.findall(r"::\n\n((?:(?: +.*)?\n)+)", README):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            command = re.sub(r"\s+# .*", "", line).strip()
            if COMMAND.match(f"{command} "):
                found.append(command)
    return found


class Terminal:
    """Where a reader types: a folder that looks like a checkout, and a home of its own."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self._folder = folder
        # The tests' Kafka is installed in the cache, once for all.
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CACHE_HOME": cache, "COCOA_JWT_SECRET": ""}
        self._environ = os.environ | home | environ
        (folder / ".venv").symlink_to(sys.prefix)
        for name in ("demo", "conf", "examples", "testing", "Makefile", "setup.py", "pyproject.toml"):
            (folder / name).symlink_to(ROOT / name)

    def run(self, command: str) -> str:
        """Run a command to its end, which must be a good one, and return what it printed."""
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self._folder,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def wait_until(self, command: str) -> None:
        """Return once the command succeeds."""
        self.run(f"for _ in $(seq 300); do {command} && exit; sleep 0.1; done; exit 1")

    @contextmanager
    def running(self, command: str, ends_with: signal.Signals) -> Iterator[subprocess.Popen[str]]:
        """A command that a signal ends, with status 0."""
        with subprocess.Popen(
            shlex.split(command),
            cwd=self._folder,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # A shell that runs the tests in the background has them, and so their children, ignore Ctrl-C.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        ) as process:
            try:
                yield process
                process.send_signal(ends_with)
                assert process.wait(PATIENCE_S) == 0
            finally:
                process.kill()


@contextmanager
def listening(terminal: Terminal, address: str) -> Iterator[subprocess.Popen[str]]:
    """The device that prints what it receives, connected."""
    command = next(command for command in commands() if "--listen 0" in command)
    with terminal.running(command.replace("127.0.0.1:8080", address), signal.SIGINT) as device:
        terminal.wait_until(f"curl -s http://{address}/metrics | grep '^cocoa_connections 1'")
        yield device


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_what_is_not_run_stands_in_the_readme() -> None:
    assert {*NOT_RUN, *ON_KAFKA} <= set(commands())


@pytest.mark.slow
def test_every_command_of_the_readme_does_its_work(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    with closing(ReservedPort()) as reserved:
        type_them_all(terminal, reserved.number)
    assert "<testsuites>" in (tmp_path / "probe.xml").read_text(encoding="utf-8")
    assert "PRIVATE KEY" in (tmp_path / "signing.pem").read_text(encoding="utf-8")


def type_them_all(terminal: Terminal, port: int) -> None:
    typed = [command.replace("127.0.0.1:8080", f"127.0.0.1:{port}") for command in commands()]
    serve = f".venv/bin/cocoa serve --port {port}"
    with terminal.running(serve, signal.SIGTERM) as gateway:
        assert "listening on" in line_of(gateway)
        publish = next(command for command in typed if command.startswith("curl "))
        with listening(terminal, f"127.0.0.1:{port}") as device:
            assert terminal.run(publish) == '{"success":true}'
            assert line_of(device) == '{"type":"transcription","device_id":"doll-1","text":"Hello"}\n'
        # The probe fails while the speech engine loads its model, which takes seconds on a loaded machine.
        terminal.wait_until(f"curl -sf http://127.0.0.1:{port}/api/v1/ready")
        for command in typed:
            if command not in {*NOT_RUN, *ON_KAFKA, publish} and "--listen 0" not in command:
                terminal.run(f"make --dry-run {command[5:]}" if command.startswith("make ") else command)


@pytest.mark.slow
@pytest.mark.kafka
def test_the_commands_with_kafka_bring_a_record_to_a_device(tmp_path: Path) -> None:
    with closing(ReservedPort()) as of_kafka, closing(ReservedPort()) as of_gateway:
        address = f"127.0.0.1:{of_gateway.number}"
        terminal = Terminal(tmp_path, KAFKA_BOOTSTRAP=f"127.0.0.1:{of_kafka.number}", COCOA_SPEECH="none://")
        make_kafka, serve, produce = ON_KAFKA
        # Only the recipe: make would install what the tests need.
        recipe = terminal.run(
            f"{make_kafka.replace('make', 'make --dry-run --no-print-directory')} KAFKA_PORT={of_kafka.number}"
        )
        kafka = recipe.splitlines()[-1].removeprefix("exec ")
        serve = f"{serve.replace('127.0.0.1:9092', f'127.0.0.1:{of_kafka.number}')} --port {of_gateway.number}"
        with terminal.running(kafka, signal.SIGINT) as broker:
            assert f" on 127.0.0.1:{of_kafka.number}" in line_of(broker)
            with terminal.running(serve, signal.SIGTERM) as gateway:
                assert "listening on" in line_of(gateway)
                terminal.wait_until(f"curl -sf http://{address}/api/v1/ready")
                with listening(terminal, address) as device:
                    assert re.fullmatch(r"sent: \d+ 0\n", terminal.run(produce))
                    assert '"device_id":"doll-1","text":"Hello"' in line_of(device)
