"""Standard streams that are closed, full or unread: the gateway serves, and no command loses its output silently."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import pytest
from websockets.sync.client import connect

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.rules.identity import TokenPolicy

from .test_serve import COCOA, PATIENCE_S, SECRET, environment, eventually

JSON = ("--log-format", "json", "--jwt-secret", SECRET)
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``cocoa serve`` on a free port with any streams; stopped after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def new(*options: str, redirections: str = "", **streams: Any) -> subprocess.Popen[bytes]:
        variables = streams.pop("variables", {})
        command = [COCOA, "serve", "--port", "0", *JSON, *options]
        if redirections:
            command = ["sh", "-c", f'exec "$@" {redirections}', "sh", *command]
        started.append(subprocess.Popen(command, env=environment(tmp_path) | variables, **streams))
        return started[-1]

    yield new
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def port_in(text: str) -> int:
    found = re.search(r"http://127\.0\.0\.1:(\d+)", text)
    return int(found[1]) if found else 0


def announced_port(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return port_in(process.stdout.readline().decode())


def logged_port(log: Path) -> int:
    eventually(lambda: port_in(log.read_text()) != 0)
    return port_in(log.read_text())


def refused(port: int, times: int) -> None:
    """Send anonymous requests, which are logged with one line each."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as client:
        for _ in range(times):
            client.request("GET", "/nowhere/" + "x" * 200)
            with client.getresponse() as answer:
                assert answer.status == 404
                answer.read()


def metric(port: int, name: str) -> float:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as client:
        client.request("GET", "/metrics")
        lines = client.getresponse().read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def read_lines(stream: IO[bytes], last_event: str) -> list[dict[str, Any]]:
    """JSON lines, up to one with this event."""
    data = b""
    while True:
        ready, _, _ = select.select([stream], [], [], PATIENCE_S)
        assert ready, data[-500:]
        data += os.read(stream.fileno(), 65536)
        lines = data.split(b"\n")[:-1]
        if lines and json.loads(lines[-1])["event"] == last_event:
            return [json.loads(line) for line in lines]


# -- serve


def test_an_unread_log_stops_neither_the_gateway_nor_its_exit(start: Start) -> None:
    process = start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    port = announced_port(process)
    # Several times what a pipe takes.
    refused(port, 1_000)
    assert metric(port, "cocoa_log_lines_lost_total") == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


def test_a_log_that_is_read_late_has_every_line(start: Start) -> None:
    process = start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    refused(announced_port(process), 1_000)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    lines = read_lines(process.stderr, "stopped")
    assert process.wait(PATIENCE_S) == 0
    assert sum(line["event"] == "request" for line in lines) == 1_000


def test_a_second_signal_exits_even_if_the_log_is_unread(start: Start) -> None:
    process = start("--drain-delay", "60s", "--drain-grace", "90s", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    refused(announced_port(process), 1_000)
    process.send_signal(signal.SIGTERM)

    def has_left() -> bool:
        process.send_signal(signal.SIGTERM)
        return process.poll() is not None

    eventually(has_left)
    assert process.returncode == 1


@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full"])
def test_without_a_usable_standard_error_it_serves(start: Start, redirections: str) -> None:
    process = start(redirections=redirections, stdout=subprocess.PIPE)
    port = announced_port(process)
    refused(port, 10)
    assert (metric(port, "cocoa_log_lines_lost_total") >= 10) is (redirections == "2>&-")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("redirections", [">&-", ">/dev/full", "<&- >&-"])
def test_without_a_usable_standard_output_it_serves(start: Start, tmp_path: Path, redirections: str) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = start(redirections=redirections, stderr=stderr)
    refused(logged_port(log), 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert "banner skipped" in events


@pytest.mark.parametrize("fault", ["no reader", "full"])
def test_a_pipe_that_does_not_take_the_banner_does_not_stop_it(start: Start, tmp_path: Path, fault: str) -> None:
    log = tmp_path / "log"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while fault == "full" and select.select([], [writer], [], 0)[1]:
        os.write(writer, b"x" * 1_000)
    os.set_blocking(writer, True)
    if fault == "no reader":
        os.close(reader)
    with log.open("wb") as stderr:
        process = start(stdout=writer, stderr=stderr)
    os.close(writer)
    refused(logged_port(log), 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0
    if fault == "full":
        os.close(reader)


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_the_log_is_utf_8_in_any_locale(start: Start, log_format: str) -> None:
    variables = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    process = start("--log-format", log_format, stdout=subprocess.PIPE, stderr=subprocess.PIPE, variables=variables)
    port = announced_port(process)
    version = "1.0-пупс\x85\u2028\u202e"
    request = TokenRequest("püppchen", 99, device_version=version, lifetime_s=3600)
    token = mint(request, Signer.from_secret(SECRET), TokenPolicy(), time.time())
    with connect(f"ws://127.0.0.1:{port}/ws?token={token}", proxy=None):
        pass
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    lines = [line for line in stderr.decode("utf-8").splitlines() if "device connected" in line]
    assert len(lines) == 1
    assert "püppchen" in lines[0]
    assert "1.0-пупс" in lines[0]
    if log_format == "json":
        assert json.loads(lines[0])["device_version"] == version


def test_what_python_itself_reports_is_in_the_log(tmp_path: Path) -> None:
    program = """
import sys, threading, warnings
from cocoa_tornado import logs
logs.configure("json", "info")
warnings.warn("look out")
class Broken:
    def __del__(self):
        raise OSError("in a finalizer")
Broken()
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
raise RuntimeError("the reason")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE_S, cwd=tmp_path)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [line["event"] for line in lines[1:]] == ["exception ignored", "uncaught exception", "uncaught exception"]
    assert "look out" in lines[0]["event"]
    assert lines[2]["in_thread"] == "worker"
    assert "RuntimeError: the reason" in lines[3]["exception"]


# -- all commands

COMMANDS = {
    "help": ["--help"],
    "version": ["--version"],
    "serve": ["serve", "--help"],
    "token": ["mint-token", "--device-id", "doll"],
    "claims": ["mint-token", "--device-id", "doll", "--json"],
    "probe-help": ["probe-device", "--help"],
}


def shell(folder: Path, arguments: list[str], redirections: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", COCOA, *arguments],
        env=environment(folder) | {"COCOA_JWT_SECRET": SECRET} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def says_that_output_is_lost(result: subprocess.CompletedProcess[str]) -> bool:
    lines = result.stderr.splitlines()
    return (
        result.returncode == 1 and len(lines) == 1 and lines[0].startswith("Error: cannot write to standard output: ")
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_output_that_a_full_disk_does_not_take_is_one_line_and_status_1(tmp_path: Path, command: str) -> None:
    result = shell(tmp_path, COMMANDS[command], ">/dev/full")
    assert says_that_output_is_lost(result), result.stderr


@pytest.mark.parametrize("command", ["token", "help"])
def test_output_that_a_closed_stream_does_not_take_is_one_line_and_status_1(tmp_path: Path, command: str) -> None:
    result = shell(tmp_path, COMMANDS[command], ">&-")
    assert says_that_output_is_lost(result), result.stderr


@pytest.mark.parametrize("redirections", [">/dev/full", ">&-"])
def test_a_report_of_the_probe_that_is_lost_is_one_line_and_status_1(
    start: Start, tmp_path: Path, redirections: str
) -> None:
    url = f"ws://127.0.0.1:{announced_port(start(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))}/ws"
    result = shell(tmp_path, ["probe-device", url], redirections)
    assert says_that_output_is_lost(result), result.stderr


def unread(folder: Path, arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose standard output is a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [COCOA, *arguments],
            env=environment(folder) | {"COCOA_JWT_SECRET": SECRET} | variables,
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_not_read_any_more_dies_of_sigpipe_without_a_message(tmp_path: Path, command: str) -> None:
    result = unread(tmp_path, COMMANDS[command])
    assert (result.returncode, result.stderr) == (-signal.SIGPIPE, "")


def test_a_pipeline_has_the_status_that_other_tools_have(tmp_path: Path) -> None:
    script = f"{COCOA} --help | true; echo ${{PIPESTATUS[0]}}; {COCOA} --help | head -1"
    done = subprocess.run(["bash", "-c", script], env=environment(tmp_path), capture_output=True, timeout=PATIENCE_S)
    status, usage = done.stdout.decode().splitlines()
    assert status in ("0", "141")  # 0 if it has printed before the other one has ended
    assert (usage.startswith("Usage: cocoa"), done.stderr) == (True, b"")


@pytest.mark.parametrize("signals", ["ignored", "blocked"])
def test_it_dies_of_sigpipe_also_if_its_parent_lets_no_signal_through(tmp_path: Path, signals: str) -> None:
    change = {
        "ignored": "signal.signal(signal.SIGPIPE, signal.SIG_IGN)",
        "blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])",
    }
    program = f"import os, signal, sys; {change[signals]}; os.execv(sys.argv[1], sys.argv[1:])"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program, COCOA, "--version"],
        env=environment(tmp_path),
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=PATIENCE_S,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.parametrize("options", [[], ["--format", "json"], ["--device-id", "doll", "--listen", "0"]])
def test_a_probe_that_is_not_read_any_more_ends_at_once(start: Start, tmp_path: Path, options: list[str]) -> None:
    url = f"ws://127.0.0.1:{announced_port(start(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))}/ws"
    result = unread(tmp_path, ["probe-device", url, *options])
    assert result.returncode == -signal.SIGPIPE
    assert [line for line in result.stderr.splitlines() if not line.startswith("note: ")] == []


@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full"])
def test_a_remark_that_cannot_be_written_costs_no_token(tmp_path: Path, redirections: str) -> None:
    # Without a secret the command says which key it used.
    result = shell(tmp_path, COMMANDS["token"], redirections, COCOA_JWT_SECRET="")
    assert result.returncode == 0
    assert result.stdout.count(".") == 2


@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full", ">/dev/full 2>/dev/full", ">&- 2>&-"])
def test_an_error_that_cannot_be_written_keeps_its_status(tmp_path: Path, redirections: str) -> None:
    assert shell(tmp_path, ["mint-token"], redirections).returncode == 2


def test_reports_for_programs_are_utf_8_in_any_locale(tmp_path: Path) -> None:
    done = subprocess.run(
        [COCOA, "mint-token", "--device-id", "püppchen", "--json"],
        env=environment(tmp_path) | {"COCOA_JWT_SECRET": SECRET, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert json.loads(done.stdout.decode("utf-8"))["claims"]["device_id"] == "püppchen"
