"""The link that opens the console signed in, which exists in development only."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import jwt
import pytest

from cli.console_link import admin_url, console_link
from cocoa_tornado.logs_format import LogFormat, make_formatter
from cocoa_tornado.logs_redaction import MeantToBeShown
from cocoa_tornado.settings import Settings

from ..cli.test_serve import Served, environment, eventually

URL = "http://127.0.0.1:8080"


def test_it_has_a_token_of_twelve_hours_with_every_scope_in_its_fragment(tmp_path: Path) -> None:
    link = console_link(Settings(data_dir=tmp_path), URL)
    assert link is not None
    address, _, token = link.partition("#token=")
    assert address == f"{URL}/"
    key = (tmp_path / "development.key").read_text().strip()
    claims = jwt.decode(token, key, algorithms=["HS256"], audience="cocoa-admin")
    assert claims["exp"] - claims["iat"] == 12 * 3600
    assert claims["scope"] == ["admin:read", "admin:write", "admin:text"]


@pytest.mark.parametrize(
    "settings",
    [{"console": "off"}, {"jwt_secret": "s" * 32}, {"jwt_key": ("key.pem",)}, {"admin_jwt_secret": "s" * 32}],
)
def test_there_is_none_with_a_key_of_ones_own_or_without_a_console(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert console_link(Settings(data_dir=tmp_path, **settings), URL) is None
    assert not (tmp_path / "development.key").exists()


def test_it_leads_to_the_admin_port_if_there_is_one() -> None:
    assert admin_url(Settings()) == URL
    assert admin_url(Settings(admin_port=9000, admin_host="::1")) == "http://[::1]:9000"
    assert admin_url(Settings(admin_port=0)) is None


def test_no_other_text_of_the_log_shows_a_token() -> None:
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"
    formats: tuple[LogFormat, ...] = ("text", "json")
    for log_format in formats:
        record = logging.makeLogRecord({"msg": "console", "name": "cocoa", "levelname": "INFO"})
        vars(record).update(plain=f"{URL}/#token={token}", open=MeantToBeShown(f"{URL}/#token={token}"))
        line = make_formatter(log_format).format(record)
        assert line.count(token) == 1
        assert "#token=[token]" in line


def test_serve_logs_it_and_make_run_prints_it(tmp_path: Path) -> None:
    served = Served(tmp_path, "--admin-port", "0", COCOA_JWT_SECRET="")
    try:
        eventually(lambda: "#token=" in served.log)
        (line,) = (line for line in served.log.splitlines() if "#token=" in line)
        assert f"127.0.0.1:{served.port}/" not in line  # but of the admin API's own port
        assert "127.0.0.1:" in line
    finally:
        served.end()
    command = [sys.executable, "-m", "cocoa_tornado_cli.console_link", "9000"]
    run = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.startswith("http://127.0.0.1:9000/#token=")
    assert run.stdout.count("\n") == 1
