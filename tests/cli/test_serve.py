"""``cocoa serve`` as a process: what it prints, its signals, its exit status. The console script must be installed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import websockets
from websockets.sync.client import ClientConnection, connect

from cocoa_tornado import __version__
from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.rules.identity import TokenPolicy
from cocoa_tornado.settings import TABLE
from testing.certificates import Certificate, served_serial, write_certificate
from testing.raw_device import KEY, PING, PONG, frame

from ..identity.material import public_pem

COCOA = str(Path(sys.executable).parent / "cocoa")
PATIENCE_S = 30.0
SECRET = "a secret of thirty-two bytes, or more"
NEW_SECRET = "the new secret of thirty-two bytes, or more"


def environment(folder: Path) -> dict[str, str]:
    """A clean environment, except for PATH. Speech is off, as workers would load at every start."""
    variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    return variables | {"COCOA_SPEECH": "none://"}


def token(device_id: str = "doll", secret: str = SECRET, lifetime_s: float = 3600) -> str:
    request = TokenRequest(device_id, 99, lifetime_s=lifetime_s)
    return mint(request, Signer.from_secret(secret), TokenPolicy(), time.time())


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class Served:
    """A running ``cocoa serve`` on a free port."""

    def __init__(
        self, folder: Path, *options: str, max_files: int | None = None, starts: bool = True, **variables: str
    ) -> None:
        self._log_path = folder / "log"

        def limit_files() -> None:
            if max_files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files))

        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [COCOA, "serve", "--port", "0", *options],
                # Make Python warn about unclosed resources and coroutines that are never awaited.
                env=environment(folder) | {"PYTHONDEVMODE": "1"} | variables,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=limit_files,
            )
        self.may_log_errors = False
        self._sockets: list[socket.socket] = []
        if starts:
            self._wait_for_announcement()

    def _wait_for_announcement(self) -> None:
        assert self.process.stdout is not None
        self.announcement = self.process.stdout.readline()
        found = re.search(r"listening on (https?)://127\.0\.0\.1:(\d+)", self.announcement)
        assert found is not None, self.log
        self.scheme, self.port = found[1], int(found[2])

    @property
    def log(self) -> str:
        return self._log_path.read_text(encoding="utf-8")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_status(self) -> int:
        return self.process.wait(PATIENCE_S)

    def end(self) -> None:
        for sock in self._sockets:
            sock.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE_S) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error) | {"retry_after": error.headers["Retry-After"]}

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENCE_S) as response:
            lines = (line.rpartition(" ") for line in response.read().decode().splitlines())
            return next((float(value) for key, _, value in lines if key == name), 0.0)

    def device(self, token: str, **options: Any) -> ClientConnection:
        scheme = self.scheme.replace("http", "ws")
        if "ssl" in options:
            # This client reads and writes one TLS object in two threads. With TLS 1.3 some of thousands of handshakes
            # get no answer, also from websockets' own server (18 of 3,000 on a loaded machine; from the gateway 4).
            # With TLS 1.2, or with websockets' asyncio client, all did.
            options["ssl"].maximum_version = ssl.TLSVersion.TLSv1_2
        device: ClientConnection = connect(f"{scheme}://127.0.0.1:{self.port}/ws?token={token}", proxy=None, **options)
        return device

    def refusal(self, token: str, **options: Any) -> int:
        """The status of a refused handshake; 101 if it is admitted."""
        try:
            with self.device(token, **options):
                return 101
        except websockets.InvalidStatus as error:
            return error.response.status_code

    def raw_device(self, token: str) -> socket.socket:
        """A device that does nothing by itself, with a small receive buffer."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(PATIENCE_S)
        sock.connect(("127.0.0.1", self.port))
        self._sockets.append(sock)
        upgrade = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}"
        sock.sendall(f"GET /ws?token={token} HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n\r\n".encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 101 ")
        return sock

    def publish(self, device_id: str, text: str) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/v1/transcriptions",
            data=json.dumps({"device_id": device_id, "text": text}).encode(),
            headers={"Authorization": f"Bearer {token(device_id)}"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            assert response.status == 202


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    started: list[Served] = []

    def start(*options: str, secret: str = SECRET, **how: Any) -> Served:
        served = Served(tmp_path, *(("--jwt-secret", secret) if secret else ()), *options, **how)
        started.append(served)
        return served

    yield start
    for served in started:
        served.end()
        # Nothing that Python, asyncio or Tornado says when something has gone wrong unnoticed.
        assert not re.search(r"Traceback|never retrieved|never awaited|Warning", served.log), served.log
        assert served.may_log_errors or "[error" not in served.log, served.log


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COCOA, *arguments],
        env=environment(folder) | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def fails(result: subprocess.CompletedProcess[str], status: int, *named: str) -> None:
    """It ended with one plain line of error, after any log lines."""
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT", line)]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert all(name in lines[0] for name in named), lines[0]


def config_file(folder: Path, text: str) -> Path:
    path = folder / "cocoa.toml"
    path.write_text(text, encoding="utf-8")
    return path


# -- starting


def test_with_no_option_but_the_port_it_serves_with_a_development_key_that_mint_token_shares(
    serve: Serve, tmp_path: Path
) -> None:
    served = serve(secret="")
    assert served.announcement.startswith(f"cocoa-tornado {__version__} listening on http://127.0.0.1:{served.port} ")
    assert served.get("/api/v1/ready")[0] == 200
    assert "DEVELOPMENT KEY IN USE" in served.log
    minted = run(tmp_path, "mint-token", "--device-id", "doll")
    with served.device(minted.stdout.strip()) as device:
        assert device.response is not None
        assert device.response.status_code == 101
    assert minted.stdout.strip() not in served.log


def test_check_says_whether_it_could_start_and_opens_nothing(tmp_path: Path) -> None:
    good = run(
        tmp_path, "serve", "--check", "--broker", "kafka://nobody.invalid:9092", COCOA_JWT_SECRET=SECRET, COCOA_PORT="1"
    )
    assert (good.returncode, good.stdout) == (
        0,
        "the settings are valid: 127.0.0.1:1, broker 'kafka://nobody.invalid:9092'\n",
    )
    fails(run(tmp_path, "serve", "--check", "--jwt-key", "missing.pem"), 2, "missing.pem")
    (tmp_path / "no.pem").write_text("no key", encoding="utf-8")
    fails(run(tmp_path, "serve", "--check", "--jwt-key", str(tmp_path / "no.pem")), 1, "no.pem")
    (tmp_path / "good.pem").write_bytes(public_pem("EC"))
    keys = ("--jwt-key", str(tmp_path / "good.pem"), "--jwt-signing-key", str(tmp_path / "no.pem"))
    fails(run(tmp_path, "serve", "--check", *keys, COCOA_API_CREDENTIALS="key:secret"), 1, "no.pem")


def test_a_taken_port_is_one_line_and_status_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        fails(run(tmp_path, "serve", "--port", port), 1, "cannot listen", "127.0.0.1", port)


def test_the_development_key_is_refused_on_a_network_with_status_2(tmp_path: Path) -> None:
    fails(run(tmp_path, "serve", "--port", "0", "--host", "0.0.0.0"), 2, "host", "option --host", "0.0.0.0")


def test_a_wrong_setting_is_one_line_that_names_it_its_source_and_what_is_allowed(tmp_path: Path) -> None:
    fails(run(tmp_path, "serve", "--port", "99999"), 2, "port", "option --port", "65535")
    fails(run(tmp_path, "serve", COCOA_PING_INTERVAL="soon"), 2, "ping_interval", "environment COCOA_PING_INTERVAL")
    fails(run(tmp_path, "serve", COCOA_SPEECH="whisper:///absent"), 2, "speech", "environment COCOA_SPEECH")
    path = config_file(tmp_path, "no_such_thing = 1\n")
    fails(run(tmp_path, "serve", "--config", str(path)), 2, "no_such_thing", str(path))
    fails(run(tmp_path, "serve", "--no-such-option"), 2, "--no-such-option")
    fails(run(tmp_path, "serve", "--jwt-secret", "@missing"), 2, "jwt_secret", "option --jwt-secret", "no such file")
    wrong = run(tmp_path, "serve", "--api-credentials", "no-colon-and-secret")
    fails(wrong, 2, "api_credentials")
    assert "no-colon" not in wrong.stderr


@pytest.mark.parametrize("fault", ["missing", "rubbish", "mismatch", "encrypted"])
def test_a_bad_certificate_is_one_line_that_names_the_file(tmp_path: Path, fault: str) -> None:
    certificate = write_certificate(tmp_path, password=b"password" if fault == "encrypted" else None)
    if fault == "missing":
        certificate.cert.unlink()
    elif fault == "rubbish":
        certificate.cert.write_text("rubbish")
    elif fault == "mismatch":
        certificate.key.write_bytes(write_certificate(tmp_path, "other").key.read_bytes())
    files = ("--tls-cert", str(certificate.cert), "--tls-key", str(certificate.key))
    result = run(tmp_path, "serve", "--port", "0", *files)
    fails(result, 2 if fault == "missing" else 1, str(certificate.cert))


@pytest.mark.parametrize("fault", ["corrupt", "no folder", "another gateway's"])
def test_a_mailbox_that_cannot_be_used_is_one_line_and_nothing_of_it_is_changed(
    tmp_path: Path, fault: str, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / ("missing/box.db" if fault == "no folder" else "box.db")
    named = {"corrupt": "is not an SQLite database", "no folder": "folder", "another gateway's": "in use"}[fault]
    if fault == "corrupt":
        path.write_bytes(b"something that somebody wants to keep" * 1000)
    if fault == "another gateway's":
        serve = request.getfixturevalue("serve")
        serve("--mailbox", f"sqlite:///{path}")
    before = path.read_bytes() if path.exists() else b""
    fails(run(tmp_path, "serve", "--port", "0", "--mailbox", f"sqlite:///{path}"), 1, str(path), named)
    if fault == "corrupt":
        assert path.read_bytes() == before
        assert sorted(item.name for item in tmp_path.iterdir() if item.name.startswith("box")) in (
            ["box.db"],
            ["box.db", "box.db.lock"],
        )


def test_a_mailbox_in_a_file_keeps_what_it_was_given(serve: Serve, tmp_path: Path) -> None:
    options = ("--jwt-secret", SECRET, "--mailbox", f"sqlite:///{tmp_path}/box.db")
    served = serve(*options)
    body = json.dumps({"device_id": "doll", "text": "Hello"}).encode()
    headers = {"Authorization": f"Bearer {token()}"}
    url = f"http://127.0.0.1:{served.port}/api/v1/transcriptions"
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=PATIENCE_S) as answer:
        assert answer.status == 202
    eventually(lambda: served.metric("cocoa_mailbox_stored_total") == 1)
    served.signal(signal.SIGKILL)
    served.exit_status()
    served = serve(*options)
    with served.device(token()) as device:
        message = json.loads(device.recv(PATIENCE_S))
    assert (message["text"], list(message)[-1]) == ("Hello", "cursor")
    assert "survive" in served.log


def test_the_help_is_complete(tmp_path: Path) -> None:
    result = run(tmp_path, "serve", "--help")
    assert result.returncode == 0
    words = set(re.findall(r"--[a-z0-9-]+", result.stdout))
    assert {setting.option for setting in TABLE.values()} <= words
    assert "Examples:" in result.stdout
    assert "SIGHUP" in result.stdout


def test_the_version_is_printed(tmp_path: Path) -> None:
    result = run(tmp_path, "--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert __version__ in result.stdout


# -- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(serve: Serve, number: signal.Signals) -> None:
    served = serve("--drain-delay", "500ms")
    with served.device(token("doll")) as device:
        served.signal(number)
        eventually(lambda: served.get("/api/v1/ready")[0] == 503)
        status, body = served.get("/api/v1/ready")
        assert (status, body["retry_after"]) == (503, "5")
        assert "draining" in body["message"]
        assert served.refusal(token("new")) == 503
        served.publish("doll", "still served")
        assert json.loads(device.recv(PATIENCE_S))["text"] == "still served"
        assert json.loads(device.recv(PATIENCE_S)) == {"type": "reconnect", "after_ms": 0}
        with pytest.raises(websockets.ConnectionClosed) as closed:
            device.recv(PATIENCE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
    assert served.exit_status() == 0
    assert f"signal={number.name}" in served.log


def test_devices_that_neither_answer_nor_read_cannot_hold_it_beyond_the_grace(serve: Serve) -> None:
    served = serve("--drain-grace", "1s", "--inbound-rate", "0")  # a device's own records would be too many
    mute, blocked = served.raw_device(token("mute")), served.raw_device(token("blocked"))
    for _ in range(15):
        served.publish("blocked", "x" * 60_000)
    assert "device disconnected" not in served.log
    started = time.monotonic()
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0
    assert time.monotonic() - started < 8  # of the ten seconds that a socket may take no byte
    assert b"server going away" in mute.recv(4096)
    blocked.close()


def test_a_second_signal_leaves_at_once_with_status_1(serve: Serve) -> None:
    served = serve("--drain-delay", "20s")
    served.signal(signal.SIGTERM)
    eventually(lambda: "draining" in served.log)
    started = time.monotonic()

    def has_left() -> bool:
        # Within the first second it repeats the first one.
        served.signal(signal.SIGINT)
        return served.process.poll() is not None

    eventually(has_left)
    assert served.exit_status() == 1
    assert time.monotonic() - started < 15
    assert "forced exit" in served.log


# -- stopping and reloading before it has started


@pytest.fixture
def mute_issuer() -> Iterator[socket.socket]:
    """A key server that accepts connections but never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        yield server


def starting(serve: Serve, issuer: socket.socket) -> tuple[Served, socket.socket]:
    """A gateway that waits for keys during its start, and the other end of its connection to the issuer."""
    served = serve("--jwt-key", f"http://127.0.0.1:{issuer.getsockname()[1]}/keys", secret="", starts=False)
    asking, _ = issuer.accept()
    asking.settimeout(PATIENCE_S)
    assert asking.recv(4096).startswith(b"GET /keys ")
    return served, asking


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_ends_it_with_0(
    serve: Serve, mute_issuer: socket.socket, number: signal.Signals
) -> None:
    served, asking = starting(serve, mute_issuer)
    with asking:
        served.signal(number)
        assert served.exit_status() == 0
    assert served.process.stdout is not None
    assert served.process.stdout.read() == ""
    assert f"signal={number.name}" in served.log
    assert "stopped during start" in served.log
    assert "listening" not in served.log


def test_sighup_during_the_start_is_a_reload_after_it(serve: Serve, mute_issuer: socket.socket) -> None:
    served, asking = starting(serve, mute_issuer)
    served.signal(signal.SIGHUP)
    with asking:
        asking.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    mute_issuer.close()
    eventually(lambda: "reloaded" in served.log)
    assert served.log.index("listening") < served.log.index("reloaded")


# -- file descriptors


def cpu_s(process_id: int) -> float:
    """The CPU time of a process; 0 if unknown."""
    if not sys.platform.startswith("linux"):
        return 0.0
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_out_of_file_descriptors_it_serves_who_is_there_and_others_when_there_is_room_again(serve: Serve) -> None:
    served = serve("--header-timeout", "60s", max_files=64)
    assert "max_open_files=64" in served.log
    with served.device(token("doll")) as device:
        crowd = [socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S) for _ in range(100)]
        eventually(lambda: "out of file descriptors: no new connections for now" in served.log)
        before = cpu_s(served.process.pid)
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            assert device.ping().wait(PATIENCE_S), "the device is not served any more"
            time.sleep(0.25)
        # It tries again each second; a loop that spins takes all the time there is.
        assert cpu_s(served.process.pid) - before < 1.25
        assert served.log.count("out of file descriptors") == 1
        assert "accepting connections again" not in served.log
        for client in crowd:
            client.close()
        assert served.refusal(token("new")) == 101
    assert served.log.count("out of file descriptors") == served.log.count("accepting connections again") == 1


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one(serve: Serve) -> None:
    served = serve()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert f"max_open_files={'none' if hard == resource.RLIM_INFINITY else hard}" in served.log
    if sys.platform.startswith("linux"):
        limits = Path(f"/proc/{served.process.pid}/limits").read_text(encoding="utf-8")
        found = re.search(r"Max open files +(\S+) +(\S+)", limits)
        assert found is not None
        assert found[1] == found[2]


# -- reloading


def test_systemd_is_notified_of_the_start_reloads_life_and_the_stop(serve: Serve, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_S)
        served = serve(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="60000000")

        def wait_for(state: str) -> None:
            while systemd.recv(4096).decode().split("\n")[0] != state:
                pass

        # The queue has room for ten: no sign of life must be in the way of the rest.
        wait_for("WATCHDOG=1")
        wait_for("READY=1")
        served.signal(signal.SIGHUP)
        wait_for("RELOADING=1")
        wait_for("READY=1")
        served.signal(signal.SIGTERM)
        wait_for("STOPPING=1")
        assert served.exit_status() == 0


def test_sighup_takes_over_what_the_file_says_now(serve: Serve, tmp_path: Path) -> None:
    path = config_file(tmp_path, f'jwt_secret = "{SECRET}"\n')
    served = serve("--config", str(path), secret="")
    origin = {"additional_headers": {"Origin": "https://app.example"}}
    assert served.refusal(token(), **origin) == 403
    text = f'jwt_secret = "{NEW_SECRET}"\nallowed_origins = ["https://app.example"]\nmax_connections = 1\n'
    config_file(tmp_path, text)
    served.signal(signal.SIGHUP)
    eventually(lambda: "reloaded" in served.log)
    assert served.refusal(token()) == 401
    with served.device(token("one", NEW_SECRET), **origin):
        assert served.refusal(token("two", NEW_SECRET)) == 503
    assert "applied=jwt_secret,allowed_origins,max_connections" in served.log


def test_a_broken_file_changes_nothing_and_is_one_line_of_the_log(serve: Serve, tmp_path: Path) -> None:
    path = config_file(tmp_path, f'jwt_secret = "{SECRET}"\n')
    served = serve("--config", str(path), secret="")
    served.may_log_errors = True

    def refused(times: int) -> bool:
        return served.log.count("reload refused") == times

    faults = ("max_connections = [", 'max_connections = "many"', 'api_credentials = "no-colon"', "nonsense = 1")
    for number, fault in enumerate(faults, 1):
        config_file(tmp_path, fault)
        served.signal(signal.SIGHUP)
        eventually(partial(refused, number))
    path.unlink()
    served.signal(signal.SIGHUP)
    eventually(partial(refused, len(faults) + 1))
    assert served.refusal(token()) == 101
    lines = served.log.splitlines()
    assert sum("reload" in line for line in lines) == len(faults) + 1
    assert all(re.match(r"\d{4}-\d\d-\d\dT", line) for line in lines)
    assert "no-colon" not in served.log


def test_a_certificate_replaced_on_disk_is_served_after_sighup(serve: Serve, tmp_path: Path) -> None:
    first = write_certificate(tmp_path)
    served = serve("--tls-cert", str(first.cert), "--tls-key", str(first.key))
    assert "(devices: wss://127.0.0.1:" in served.announcement
    with served.device(token("old"), ssl=first.client_context()) as device:
        second: Certificate = write_certificate(tmp_path)
        served.signal(signal.SIGHUP)
        eventually(lambda: served_serial(served.port) == second.serial)
        with served.device(token("new"), ssl=second.client_context()):
            pass
        device.send("the old connection lives on")
        device.ping().wait(PATIENCE_S)


# -- the log


def test_clients_that_speak_no_tls_cannot_flood_the_log(serve: Serve, tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    served = serve("--tls-cert", str(certificate.cert), "--tls-key", str(certificate.key))
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                client.recv(100)
    with served.device(token(), ssl=certificate.client_context()):
        pass
    assert 1 <= served.log.count("SSL Error") <= 10


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_the_json_log_is_one_object_a_line_and_holds_no_token(serve: Serve, log_format: str) -> None:
    served = serve("--log-format", log_format, "--log-level", "debug")
    good, expired, foreign = token(), token(lifetime_s=-60), token(secret=NEW_SECRET)
    for each in (good, expired, foreign):
        served.refusal(each)
    with socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S) as client:
        client.sendall(f"GET /ws?token={good} rubbish\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    served.signal(signal.SIGTERM)
    assert served.exit_status() == 0
    lines = [json.loads(line) for line in served.log.splitlines()]
    connected = [line for line in lines if line["event"] in ("device connected", "device disconnected")]
    assert [(line["device_id"], "conn" in line) for line in connected] == [("doll", True)] * 2
    assert not any(part in served.log for each in (good, expired, foreign) for part in each.split(".")[1:])
    assert SECRET not in served.log
    assert "\x1b" not in served.log


# -- pauses


def pause(served: Served) -> None:
    """Stop the process, and return when it has stopped."""
    served.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, served.process.pid, os.WSTOPPED | os.WNOWAIT)


def read_frame(sock: socket.socket) -> int:
    """The opcode of the server's next frame, which is a short one."""
    head = sock.recv(2, socket.MSG_WAITALL)
    sock.recv(head[1], socket.MSG_WAITALL)
    return head[0] & 0x0F


def test_a_pause_longer_than_the_ping_timeout_closes_no_device_whose_pong_has_come(serve: Serve) -> None:
    # The first pings are spread over two seconds, so that a busy machine has two more for the pongs.
    served = serve("--ping-interval", "4", "--ping-timeout", "4")
    tokens = [token(f"doll-{number}") for number in range(30)]
    devices = [served.raw_device(each) for each in tokens]
    for device in devices:
        assert read_frame(device) == PING
    pause(served)
    for device in devices:
        device.sendall(frame(PONG))
    time.sleep(4.5)  # the pause
    served.signal(signal.SIGCONT)
    assert [read_frame(device) for device in devices] == [PING] * len(devices)


def test_a_pause_of_the_process_is_not_held_against_a_client_that_sends_its_headers(serve: Serve) -> None:
    served = serve("--header-timeout", "3")
    clients = [socket.create_connection(("127.0.0.1", served.port), PATIENCE_S) for _ in range(100)]
    with contextlib.ExitStack() as stack:
        for client in clients:
            stack.enter_context(client).sendall(b"GET /api/v1/health HTTP/1.1\r\n")
        eventually(lambda: served.metric("cocoa_http_connections") > len(clients))
        pause(served)
        for client in clients:
            client.sendall(b"Host: x\r\n\r\n")
        time.sleep(3.5)  # the pause
        served.signal(signal.SIGCONT)
        assert [client.recv(12) for client in clients] == [b"HTTP/1.1 200"] * len(clients)


def test_a_pause_during_a_challenge_evicts_no_device_whose_pong_has_come(serve: Serve) -> None:
    served = serve("--duplicate-challenge", "1")
    device = served.raw_device(token())
    with ThreadPoolExecutor() as pool:
        second = pool.submit(served.refusal, token())
        assert read_frame(device) == PING
        pause(served)
        device.sendall(frame(PONG))
        time.sleep(1.5)  # the pause
        served.signal(signal.SIGCONT)
        assert second.result(PATIENCE_S) == 409
