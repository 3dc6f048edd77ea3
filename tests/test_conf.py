"""The files in conf/ are valid."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from cocoa_tornado.errors import SettingError
from cocoa_tornado.rules.durations import parse_duration_s
from cocoa_tornado.rules.supervision import DRAIN_MARGIN_S, HUNG_S, LEAVE_S
from cocoa_tornado.settings import TABLE, Settings
from cocoa_tornado.settings.sources import load
from cocoa_tornado.settings.types import Flag

CONF = Path(__file__).parent.parent / "conf"
DOCS = CONF.parent / "docs"
SECRET = {"COCOA_JWT_SECRET": "a secret of thirty-two bytes, or more"}


def production() -> Settings:
    return load(CONF / "production.toml", SECRET, {}).settings


def service() -> configparser.SectionProxy:
    """The [Service] section; the last value of a repeated key."""
    unit = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",), comment_prefixes=("#",))
    # systemd tells upper from lower case.
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # configparser's documented way to say so
    unit.read_string((CONF / "cocoa-gateway.service").read_text(encoding="utf-8"))
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    return unit["Service"]


def test_development_loads_with_nothing_else_set() -> None:
    loaded = load(CONF / "development.toml", {}, {})
    assert loaded.warnings == ()
    assert loaded.settings.uses_development_key
    assert loaded.settings.publishes_over_http


def test_production_needs_a_secret_or_a_key() -> None:
    with pytest.raises(SettingError, match="development key"):
        load(CONF / "production.toml", {}, {})
    assert load(CONF / "production.toml", {"COCOA_JWT_KEY": "k.pem"}, {}).warnings == ()


def test_production_is_what_faces_a_network() -> None:
    settings = production()
    assert settings.tls_cert is not None
    assert settings.tls_key is not None
    assert settings.tls_cert.is_absolute()
    assert settings.broker_servers
    assert settings.kafka_security_protocol == "SSL"
    assert settings.log_format == "json"
    assert settings.canary_interval_s == 10.0
    assert settings.drain_delay_s < settings.drain_grace_s
    assert not settings.publishes_over_http
    assert not settings.api_credentials


@pytest.mark.parametrize("name", ["development.toml", "production.toml"])
def test_what_stands_in_a_comment_is_a_setting_too(name: str) -> None:
    text = (CONF / name).read_text(encoding="utf-8")
    table = ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            table = f"{heading[1]}_"
        if example := re.match(r"# (\w+ = \S.*)$", line):
            for key, value in tomllib.loads(example[1]).items():
                row = TABLE[table + key]
                assert str(value).startswith(("@", "['@")) or row.kind.from_value(value) is not None


def test_the_unit_starts_the_gateway_with_options_that_exist() -> None:
    _, command, *arguments = shlex.split(service()["ExecStart"])
    assert command == "serve"
    given = [argument for argument in arguments if argument.startswith("-")]
    known = {row.option for row in TABLE.values()} | {"--config"}
    flags = {f"--no-{row.option[2:]}" for row in TABLE.values() if isinstance(row.kind, Flag)}
    assert given
    assert set(given) <= known | flags


def test_the_unit_names_a_configuration_that_loads() -> None:
    _, _, *arguments = shlex.split(service()["ExecStart"])
    values = dict(zip(arguments[::2], arguments[1::2], strict=True))
    config = CONF / Path(values.pop("--config")).name
    options: dict[str, object] = {option[2:].replace("-", "_"): value for option, value in values.items()}
    assert load(config, SECRET, options).sources["port"] == f"file {config}"


def test_the_unit_reloads_drains_and_waits_for_the_end_of_it() -> None:
    unit, settings = service(), production()
    assert unit["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert unit["KillSignal"] == "SIGTERM"
    assert parse_duration_s(unit["TimeoutStopSec"]) > settings.drain_grace_s
    assert unit["EnvironmentFile"].startswith("-")
    assert "2" in unit["RestartPreventExitStatus"].split()


def test_the_unit_notices_readiness_and_kills_what_hangs_as_a_parent_does() -> None:
    unit = service()
    assert unit["Type"] == "notify"
    assert parse_duration_s(unit["WatchdogSec"]) == HUNG_S
    assert unit["WatchdogSignal"] == "SIGKILL"
    assert parse_duration_s(unit["TimeoutStopSec"]) >= production().drain_grace_s + DRAIN_MARGIN_S + LEAVE_S


def test_the_unit_leaves_room_for_the_connections_of_the_configuration() -> None:
    settings = production()
    assert int(service()["LimitNOFILE"]) > settings.max_connections + settings.max_pending_connections


def test_the_unit_keeps_the_process_in() -> None:
    unit = service()
    for key in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "LockPersonality"):
        assert unit[key] == "yes"
    assert unit["ProtectSystem"] == "strict"
    assert unit["CapabilityBoundingSet"] == ""
    state = load(None, {}, {"data_dir": "/var/lib/" + unit["StateDirectory"]}).settings.data_dir
    assert f"--data-dir {state}" in unit["ExecStart"]


# --- Proxies -------------------------------------------------------------------------------------------------------


def test_the_lines_that_a_proxy_needs_stand_in_the_configuration_that_is_tested() -> None:
    text = (DOCS / "operations.rst").read_text(encoding="utf-8")
    section = text[text.index("Behind a proxy\n---") : text.index("How many connections\n---")]
    lines = re.findall(r"^``(.+?)``  ", section, re.MULTILINE)
    configuration = (CONF / "proxies" / "nginx.conf").read_text(encoding="utf-8")

    assert len(lines) > 10
    assert [line for line in lines if line not in configuration] == []


def test_the_documentation_names_every_configuration_of_a_proxy() -> None:
    text = (DOCS / "operations.rst").read_text(encoding="utf-8")
    assert [path.name for path in (CONF / "proxies").iterdir() if f"../conf/proxies/{path.name}\n" not in text] == []
