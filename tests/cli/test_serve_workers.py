"""``cocoa serve --workers`` with real gateways, which share nothing but the port (``unchecked.py``)."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cli.parent import reload_log_level
from cocoa_tornado.settings.sources import load

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    variables |= {"COCOA_SPEECH": "none://", "PYTHONPATH": str(ROOT), "PYTHONDEVMODE": "1"}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.workers.unchecked", "serve", "--workers", "2", *options],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as response:
        text: str = response.read().decode()
        return text


def test_two_gateways_share_one_port_and_a_parent(tmp_path: Path) -> None:
    process = start(tmp_path, "--port", "0", "--drain-grace", "5s")

    def log() -> str:
        return (tmp_path / "log").read_text(encoding="utf-8")

    try:
        assert process.stdout is not None
        (port,) = map(int, re.findall(r"listening on http://127\.0\.0\.1:(\d+) ", process.stdout.readline()))

        # Whichever is asked answers for both.
        for _ in range(8):
            assert json.loads(get(port, "/api/v1/ready"))["parts"]["workers"] == {"ok": True, "state": "ready"}
            metrics = get(port, "/metrics")
            assert "\ncocoa_workers 2.0\n" in metrics
            assert "\ncocoa_workers_missing 0.0\n" in metrics
            assert "\ncocoa_build_info{" in metrics
            assert "\ncocoa_broker_ready 1.0\n" in metrics

        # Each of them refuses a name that is not this machine's (tests/web/test_hosts.py).
        for _ in range(8):
            foreign = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Host": "evil.example"})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(foreign, timeout=PATIENCE_S)
            assert refused.value.code == 421
            refused.value.close()
        assert "\ncocoa_hosts_refused_total 8.0\n" in get(port, "/metrics")

        # The port belongs to this parent alone.
        second = subprocess.run(
            [sys.executable, "-m", "tests.workers.unchecked", "serve", "--workers", "2", "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "COCOA_SPEECH": "none://"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert second.returncode == 1
        assert f"Error: cannot listen on 127.0.0.1 port {port}: Address already in use\n" in second.stderr

        process.send_signal(signal.SIGHUP)
        eventually(lambda: log().count(" reloaded ") == 2)

        # Both serve devices' requests: each new connection is one or the other's.
        name = rf"worker={re.escape(socket.gethostname())}:{port}/"
        eventually(lambda: all(get(port, "/api/v1/health") and re.search(f"{name}{n}", log()) for n in (1, 2)))

        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert process.stdout.read() == ""  # one line in all
        own = [line for line in log().splitlines() if "worker=" not in line]
        assert all("[cocoa.workers]" in line or "[cocoa.service]" in line for line in own), own
        assert log().count(" stopped ") == 3
        assert not re.search(r"Traceback|never retrieved|never awaited|Warning|\[error", log()), log()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_the_parent_reloads_its_log_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers, not the parent, report invalid settings."""
    levels: list[str] = []
    monkeypatch.setattr("cli.parent.set_level", levels.append)
    for variables in ({"COCOA_LOG_LEVEL": "debug"}, {"COCOA_LOG_LEVEL": "loud"}, {}):
        reload_log_level(partial(load, None, variables, {}))
    assert levels == ["debug", "info"]


def test_a_wrong_key_is_reported_once_and_the_parent_has_the_status(tmp_path: Path) -> None:
    """The parent cannot know: a gateway finds out when it reads the keys."""
    (tmp_path / "no.pem").write_text("no key", encoding="utf-8")
    process = start(tmp_path, "--port", "0", "--jwt-key", str(tmp_path / "no.pem"))
    try:
        assert process.wait(PATIENCE_S) == 1
        log = (tmp_path / "log").read_text(encoding="utf-8")
        assert len(re.findall("^Error: .*no.pem", log, re.MULTILINE)) == 1
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
