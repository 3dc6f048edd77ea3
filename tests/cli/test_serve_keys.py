"""Keys and secrets at the start of ``cocoa serve``, and the files that they are read from."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

import cli.gateway
from cocoa_tornado.errors import SettingError
from cocoa_tornado.settings import Settings
from cocoa_tornado.systemd import Notifier
from testing.certificates import write_certificate

from .test_serve import PATIENCE_S, SECRET, Served, eventually, fails, run, token


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    served = Served(folder, *options)
    try:
        yield served
    finally:
        served.end()


def test_a_short_secret_is_refused_on_a_network_with_status_2(tmp_path: Path) -> None:
    serve = ("serve", "--port", "0", "--host", "0.0.0.0")
    fails(run(tmp_path, *serve, COCOA_JWT_SECRET="s" * 31), 2, "jwt_secret", "COCOA_JWT_SECRET", "31 bytes", "32 bytes")
    result = run(tmp_path, *serve, COCOA_JWT_SECRET=SECRET, COCOA_JWT_PREVIOUS_SECRETS="hunter2")
    fails(result, 2, "jwt_previous_secrets", "7 bytes")
    assert "hunter2" not in result.stderr


def test_a_short_secret_serves_on_loopback_with_a_warning(tmp_path: Path) -> None:
    with serving(tmp_path, "--jwt-secret", "short") as served:
        assert "weak jwt secret" in served.log
        with served.device(token(secret="short")):
            pass


def test_a_path_that_is_no_file_ends_the_start_with_one_line_and_hangs_nothing(tmp_path: Path) -> None:
    pipe, data = tmp_path / "pipe", tmp_path / "data"
    os.mkfifo(pipe)
    data.mkdir()
    os.mkfifo(data / "development.key")
    fails(run(tmp_path, "serve", "--jwt-key", str(pipe)), 2, "jwt_key", "is a pipe, not a file")
    fails(run(tmp_path, "serve", "--tls-cert", str(pipe), "--tls-key", "k"), 2, "tls_cert", "is a pipe, not a file")
    fails(run(tmp_path, "serve", "--data-dir", str(data)), 1, "development.key", "is a pipe, not a file")
    fails(run(tmp_path, "serve", "--config", str(tmp_path)), 2, "config", "directory")


def test_a_certificate_that_has_become_a_pipe_is_a_refused_reload_and_not_the_end(tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    client = certificate.client_context()
    options = ("--jwt-secret", SECRET, "--tls-cert", str(certificate.cert), "--tls-key", str(certificate.key))
    with serving(tmp_path, *options) as served:
        Path(certificate.cert).unlink()
        os.mkfifo(certificate.cert)
        served.signal(signal.SIGHUP)
        eventually(lambda: "reload refused" in served.log)
        assert "is a pipe, not a file" in served.log
        with served.device(token(), ssl=client):
            pass


def test_a_stop_does_not_wait_for_a_reload_that_reads_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, goes_on = threading.Event(), threading.Event()

    def load(*_: object) -> NoReturn:
        reading.set()
        goes_on.wait(2 * PATIENCE_S)
        raise SettingError("jwt_secret", "file", "did not end in time", "a secret")

    async def serve_and_stop() -> None:
        hang_up = asyncio.Event()
        hang_up.set()
        launch = cli.gateway.Launch(Settings(), None, {}, Notifier({}))
        # No gateway is needed: the settings are refused before it is used.
        reloading = asyncio.create_task(cli.gateway._reload_on(hang_up, None, launch, lambda: None))  # type: ignore[arg-type]
        while not reading.is_set():
            await asyncio.sleep(0)
        reloading.cancel()
        await asyncio.wait({reloading})

    monkeypatch.setattr(cli.gateway, "load", load)
    stopped = threading.Thread(target=asyncio.run, args=(serve_and_stop(),), daemon=True)
    stopped.start()
    stopped.join(PATIENCE_S)
    assert not stopped.is_alive()
    goes_on.set()


def test_a_secret_on_the_command_line_is_named_loudly_and_serves(tmp_path: Path) -> None:
    with serving(tmp_path, "--jwt-secret", SECRET) as served:
        (line,) = [line for line in served.log.splitlines() if "secrets on command line" in line]
        assert "[warning" in line
        assert "settings=jwt_secret " in line
        assert SECRET not in served.log


def test_an_admin_secret_that_a_key_file_of_devices_has_is_refused_with_status_2(tmp_path: Path) -> None:
    admin = "the operators' secret of thirty-two bytes"
    keys = tmp_path / "keys.json"
    encoded = base64.urlsafe_b64encode(admin.encode()).decode().rstrip("=")
    keys.write_text(json.dumps({"keys": [{"kty": "oct", "kid": "a", "k": encoded}]}))
    serve = ("serve", "--port", "0", "--jwt-key", str(keys))
    for more in ((), ("--check",)):
        result = run(tmp_path, *serve, *more, COCOA_ADMIN_JWT_SECRET=admin)
        problem = "it has a secret that verifies device tokens; allowed: a secret of its own"
        fails(result, 2, f"setting admin_jwt_secret (environment COCOA_ADMIN_JWT_SECRET): {problem}")
        assert admin not in result.stderr
    result = run(tmp_path, *serve, "--admin-jwt-key", str(keys))
    fails(result, 2, "setting admin_jwt_key (option --admin-jwt-key): it has a secret")
