"""The click options generated from the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cli.options import SettingsCommand, load_settings, settings_options
from cocoa_tornado.settings import TABLE, Settings
from cocoa_tornado.settings.sources import Loaded
from cocoa_tornado.settings.types import Flag


def run(*arguments: str, only: tuple[str, ...] | None = None) -> tuple[Result, list[Loaded]]:
    """Run a command that takes settings, in an empty environment."""
    got: list[Loaded] = []

    @click.command(cls=SettingsCommand)
    @settings_options(only)
    @click.option("--times", default=1, help="Some option of the command's own.")
    def command(config: Path | None, times: int, **options: object) -> None:
        got.append(load_settings(config, options, {}))

    return CliRunner().invoke(command, arguments, terminal_width=100), got


def settings_of(*arguments: str) -> Settings:
    result, got = run(*arguments)
    assert (result.exit_code, result.output) == (0, "")
    return got[0].settings


def test_no_option_changes_nothing() -> None:
    assert settings_of() == Settings()


def test_options_of_every_kind_arrive() -> None:
    settings = settings_of(
        "--port=0",
        *("--no-access-log", "--kafka-create-topics", "--ping-timeout", "500ms", "--max-message-bytes", "1KiB"),
        *("--allowed-origins", "a.example", "--allowed-origins", "b.example", "--jwt-secret", "s,t"),
        *("--kafka-partitions", "-1"),
    )
    assert (settings.port, settings.access_log, settings.kafka_create_topics) == (0, False, True)
    assert (settings.ping_timeout_s, settings.max_message_bytes) == (0.5, 1024)
    assert settings.allowed_origins == ("a.example", "b.example")
    assert (settings.jwt_secret, settings.kafka_partitions) == ("s,t", -1)


def test_config_names_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("port = 1\nhigh_water = 3000")
    settings = settings_of("--config", str(path), "--port", "2")
    assert (settings.port, settings.high_water) == (2, 3000)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--port", "x"), "setting port (option --port): 'x' is not a whole number; allowed: a whole number from 0 to"),
        (("--host", "0.0.0.0"), "setting host (option --host): 0.0.0.0 is not a loopback address"),
        (("--config", "/absent.toml"), "setting config (option --config): cannot read /absent.toml"),
        (
            ("--speech", "vosk://base"),
            "setting speech (option --speech): 'vosk://base' is not a supported speech engine",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_on_standard_error_and_exit_status_2(arguments: tuple[str, ...], line: str) -> None:
    result, _ = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {line}")
    assert result.stderr.count("\n") == 1


def test_the_help_has_every_option_once_under_the_heading_of_its_section() -> None:
    result, _ = run("--help")
    assert result.exit_code == 0
    heading, seen = "", {}
    for line in result.output.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            heading = line.removesuffix(":")
        elif line.startswith("  --"):
            option = line.split()[0]
            assert option not in seen
            seen[option] = heading
    assert {option for option, under in seen.items() if under == "Options"} == {"--config", "--times", "--help"}
    for row in TABLE.values():
        assert seen[row.option] == row.section
    assert max(len(line) for line in result.output.splitlines()) <= 100


def test_the_help_shows_defaults_and_that_an_option_may_be_repeated() -> None:
    text = " ".join(run("--help")[0].output.split())
    assert "Port to listen on; 0 picks a free port and prints it. [default: 8080]" in text
    assert "[default: HS256,RS256,ES256,EdDSA; repeatable]" in text
    assert "--access-log / --no-access-log" in text


def test_only_some_settings_can_be_asked_for() -> None:
    result, _ = run("--help", only=("jwt_secret", "data_dir"))
    assert "--jwt-secret" in result.output
    assert "--port" not in result.output
    with pytest.raises(ValueError, match="no such settings: prot"):
        settings_options(("prot",))


def test_no_option_name_stands_in_the_way_of_another() -> None:
    names = [row.option for row in TABLE.values()]
    names += [f"--no-{row.option[2:]}" for row in TABLE.values() if isinstance(row.kind, Flag)]
    reserved = ["--config", "--help"]
    assert len({*names, *reserved}) == len(names) + len(reserved)


def test_the_process_environment_is_read_where_none_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [row.environment for row in TABLE.values()] + ["COCOA_CONFIG"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COCOA_PORT", "7")
    options: dict[str, Any] = {}
    assert load_settings(None, options).settings.port == 7
