"""Finding the users that listen on a port, so that no token is sent to another user."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.listeners import is_of_another_user, listening_users
from cocoa_tornado.identity.devkey import development_secret

from ..admin.operator import fails, invoke

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux tells")
OTHER = 65_534
LISTEN = f"""
import os, socket, sys
os.setuid({OTHER})
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_ones_own_listener_is_no_other_users() -> None:
    for address in ("127.0.0.1", "::1"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            listener = socket.create_server((address, 0), family=family)
        except OSError:
            continue  # no IPv6 here
        with listener:
            port = listener.getsockname()[1]
            assert listening_users(port) == {os.geteuid()}
            assert not is_of_another_user(port)
        assert not listening_users(port)


def test_what_is_no_table_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "tcp"
    monkeypatch.setattr("cli.listeners.TABLES", (tmp_path / "none", table))
    for text in ("", "head\n", "head\n 0: x\n", "head\n 0: 0100007F:zz 0 0A 0 0 0 u\n", "ü"):
        table.write_text(text, encoding="latin-1")
        assert not is_of_another_user(8080)
    row = "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000"
    table.write_text(f"head\n{row} {os.geteuid() + 1} 0 1\n")
    assert is_of_another_user(8080)
    assert not is_of_another_user(8081)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_no_token_of_the_development_key_goes_to_another_user(tmp_path: Path) -> None:
    development_secret(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        env = {"COCOA_DATA_DIR": str(tmp_path), "COCOA_ADMIN_URL": f"http://127.0.0.1:{port}"}
        fails(invoke("devices", env=env), f"Another user of this machine listens on port {port}.", 2)
        other.communicate("")
