"""Signals to ``cocoa serve``: during the start, twice at once, and after the stop."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .test_serve import COCOA, PATIENCE_S, SECRET, Served, environment, eventually, token

# Stands in for the first large import: sends its own process a signal, and then makes way for the real one.
SIGNAL_AT_IMPORT = """
import importlib, os, signal, sys
os.kill(os.getpid(), signal.{name})
sys.path[:] = [path for path in sys.path if path != os.path.dirname(__file__)]
del sys.modules[__name__]
importlib.import_module(__name__)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``cocoa serve`` on a free port, with the test's modules first on the import path."""
    started: list[subprocess.Popen[str]] = []

    def new(**modules: str) -> subprocess.Popen[str]:
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        started.append(
            subprocess.Popen(
                [COCOA, "serve", "--port", "0", "--jwt-secret", SECRET, "--log-format", "text"],
                env=environment(tmp_path) | {"PYTHONPATH": str(tmp_path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield new
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    gateway = Served(tmp_path, "--jwt-secret", SECRET, "--drain-delay", "1s")
    yield gateway
    gateway.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_order_to_stop_before_the_imports_ends_it_with_0(start: Start, number: signal.Signals) -> None:
    process = start(click=SIGNAL_AT_IMPORT.format(name=number.name))
    assert process.communicate(timeout=PATIENCE_S) == ("", "")
    assert process.returncode == 0


def test_an_order_to_stop_while_settings_are_read_ends_it_with_0_and_the_log_keeps_its_lines(start: Start) -> None:
    process = start(tomllib=SIGNAL_AT_IMPORT.format(name="SIGTERM"))
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


def test_a_hangup_before_the_imports_is_a_reload_after_the_start(start: Start) -> None:
    process = start(click=SIGNAL_AT_IMPORT.format(name="SIGHUP"))
    assert process.stdout is not None
    assert process.stderr is not None
    assert "listening" in process.stdout.readline()
    log = ""
    while "reloaded" not in log:
        line = process.stderr.readline()
        assert line, log
        log += line
    assert log.index("listening") < log.index("reloaded")
    process.terminate()
    assert process.wait(PATIENCE_S) == 0


def test_other_commands_end_by_a_signal_as_any_program_does(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text(SIGNAL_AT_IMPORT.format(name="SIGTERM"))
    variables = environment(tmp_path) | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([COCOA, "mint-token", "--device-id", "d"], env=variables, timeout=PATIENCE_S)
    assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_one_order_that_arrives_twice_still_drains(served: Served, second: signal.Signals) -> None:
    with served.device(token()) as device:
        served.signal(signal.SIGTERM)
        served.signal(second)
        eventually(lambda: "draining" in served.log)
        served.signal(signal.SIGTERM)
        served.publish("doll", "still served")
        assert "still served" in str(device.recv(PATIENCE_S))
    assert served.exit_status() == 0
    assert len(re.findall(r"\] stopping ", served.log)) == 1
    assert "forced exit" not in served.log


def test_a_signal_at_the_very_end_changes_nothing(start: Start) -> None:
    # Registered before anything of the gateway's: the last thing that the interpreter does.
    at_exit = "import atexit, os, signal\n" + "".join(
        f"atexit.register(os.kill, os.getpid(), signal.{name})\n" for name in ("SIGTERM", "SIGINT", "SIGHUP")
    )
    process = start(sitecustomize=at_exit)
    assert process.stdout is not None
    assert "listening" in process.stdout.readline()
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
