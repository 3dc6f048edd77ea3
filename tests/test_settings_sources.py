from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.errors import SettingError
from cocoa_tornado.settings import TABLE, Settings, domain
from cocoa_tornado.settings import types as kinds
from cocoa_tornado.settings.checks import Warned
from cocoa_tornado.settings.rows import Setting
from cocoa_tornado.settings.sources import (
    MAX_FILE_BYTES,
    OTHER_VARIABLES,
    Loaded,
    changes,
    check_files,
    check_named_files,
    load,
    reloaded,
)

from .each import assert_each

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a configuration file and return its path."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "x.toml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def refused(
    config: Path | None = None, environ: dict[str, str] | None = None, options: dict[str, object] | None = None
) -> SettingError:
    with pytest.raises(SettingError) as caught:
        load(config, environ or {}, options or {})
    assert str(caught.value).isprintable()
    return caught.value


# Precedence and names


def test_without_any_source_there_are_the_defaults() -> None:
    loaded = load(None, {}, {})
    assert loaded.settings == Settings()
    assert (loaded.warnings, loaded.config) == ((), None)
    assert set(loaded.sources) == set(TABLE)
    assert set(loaded.sources.values()) == {"default"}


def test_a_file_is_outranked_by_the_environment_and_that_by_the_command_line(write: Write) -> None:
    path = write("port = 1\nlog_level = 'debug'\nhigh_water = 3000")
    loaded = load(path, {"COCOA_PORT": "2", "COCOA_LOG_LEVEL": "error"}, {"port": "3"})
    settings = loaded.settings
    assert (settings.port, settings.log_level, settings.high_water, settings.host) == (3, "error", 3000, "127.0.0.1")
    assert loaded.sources["port"] == "option --port"
    assert loaded.sources["log_level"] == "environment COCOA_LOG_LEVEL"
    assert loaded.sources["high_water"] == f"file {path}"
    assert loaded.sources["host"] == "default"
    assert loaded.config == path


SAMPLES: dict[str, str | tuple[str, ...]] = {
    "jwt_algorithms": ("HS512",),
    "trusted_proxies": ("10.0.0.0/8",),
    "api_credentials": ("a:b",),
    "mailbox": "none://",
    "presence": "local://",
    "speech": "none://",
    "broker": "kafka://a",
    "speech_workers": "3",
    "workers": "3",
    "speech_language": "en-GB",
    "audio_rate": "8000",
    "audio_channels": "2",
    "audio_streams_per_device": "2",
    "kafka_security_protocol": "SASL_SSL",
    "connections_per_device": "2",
}


def sample(row: Setting) -> str | tuple[str, ...]:
    """A valid value other than the default, as text."""
    if row.key in SAMPLES:
        return SAMPLES[row.key]
    kind: object = row.kind
    if isinstance(kind, kinds.ListOf):
        return ("x",)
    if isinstance(kind, kinds.Choice):
        return str(next(word for word in reversed(kind.words) if word != row.default))
    if isinstance(kind, kinds.Flag):
        return "no"
    if isinstance(kind, domain.Duration):
        return "15s"
    if isinstance(kind, kinds.Whole | kinds.OptionalWhole | kinds.Number):
        return "2500"
    if isinstance(kind, domain.Size):
        return str(max(1048577, int(kind.bounds.ge or 0) + 1))
    return "https://a" if isinstance(kind, domain.Url) else "x"


def toml(row: Setting, value: str | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f"{row.key} = {json.dumps(list(value))}"
    if isinstance(row.kind, kinds.Flag):
        return f"{row.key} = false"
    is_bare = isinstance(row.kind, kinds.Whole | kinds.OptionalWhole | kinds.Number) and not isinstance(
        row.kind, domain.Duration
    )
    return f"{row.key} = {value if is_bare else json.dumps(value)}"


def test_a_setting_has_the_same_value_by_each_of_its_three_names(write: Write) -> None:
    # Those of Kafka's security need each other: they have the next test.
    others = ("kafka_ssl_", "kafka_sasl_", "kafka_oauth_")
    rows = [row for row in TABLE.values() if not row.key.startswith(others)]
    assert_each(rows, lambda row: check_three_names(row, write))


def check_three_names(row: Setting, write: Write) -> None:
    value = sample(row)
    # Settings that a rule requires as well come from the environment, which neither name of the setting affects.
    beside = {
        "tls_cert": {"COCOA_TLS_KEY": "k"},
        "tls_key": {"COCOA_TLS_CERT": "c"},
        "jwt_signing_key": {"COCOA_JWT_KEY": "k"},
        "host": {"COCOA_JWT_SECRET": "s" * 32},
        "jwt_max_lifetime": {"COCOA_JWT_LIFETIME": "1s"},
        "high_water": {"COCOA_LOW_WATER": "1"},
        "ping_interval": {"COCOA_PING_TIMEOUT": "1s"},
        "workers": {"COCOA_BROKER": "kafka://a", "COCOA_PRESENCE": "redis://a"},
        "presence_freeze": {"COCOA_PRESENCE_FENCE": "1h"},
        "kafka_security_protocol": {
            "COCOA_KAFKA_SASL_MECHANISM": "PLAIN",
            "COCOA_KAFKA_SASL_USERNAME": "u",
            "COCOA_KAFKA_SASL_PASSWORD": "p",
        },
    }.get(row.key, {})
    listed = ",".join(value) if isinstance(value, tuple) else value
    from_environment = load(None, {**beside, row.environment: listed}, {})
    from_options = load(None, beside, {row.key: value})
    assert from_environment.settings == from_options.settings
    assert from_environment.sources[row.key] == f"environment {row.environment}"
    assert from_options.sources[row.key] == f"option {row.option}"
    if not row.attribute.startswith(("tls_", "data_", "jwt_key", "jwt_signing", "admin_jwt_key")):
        # A path in a file is another path: it is taken from the file's folder.
        assert load(write(toml(row, value)), beside, {}).settings == from_options.settings
    if row.key not in ("mailbox", "presence"):
        assert getattr(from_options.settings, row.attribute) != row.default


@pytest.mark.parametrize(
    "values",
    [
        {
            "kafka_security_protocol": "SASL_SSL",
            "kafka_ssl_check_hostname": "no",
            "kafka_ssl_ca": "/ca.pem",
            "kafka_ssl_cert": "/c.pem",
            "kafka_ssl_key": "/k.pem",
            "kafka_ssl_key_password": "p",
            "kafka_sasl_mechanism": "PLAIN",
            "kafka_sasl_username": "u",
            "kafka_sasl_password": "p",
        },
        {
            "kafka_security_protocol": "SASL_SSL",
            "kafka_sasl_mechanism": "OAUTHBEARER",
            "kafka_oauth_token_url": "https://a",
            "kafka_oauth_client_id": "c",
            "kafka_oauth_client_secret": "s",
            "kafka_oauth_scope": "x",
        },
    ],
)
def test_the_settings_of_kafka_security_have_three_names_too(values: dict[str, str], write: Write) -> None:
    from_environment = load(None, {TABLE[key].environment: text for key, text in values.items()}, {}).settings
    from_options = load(None, {}, dict(values)).settings
    from_file = load(write("\n".join(toml(TABLE[key], text) for key, text in values.items())), {}, {}).settings
    assert from_environment == from_options == from_file
    differ = {row.key for row in TABLE.values() if getattr(from_file, row.attribute) != row.default}
    assert differ == set(values)


def test_cocoa_config_names_the_file_and_the_option_outranks_it(write: Write, tmp_path: Path) -> None:
    path = write("port = 1")
    assert load(None, {"COCOA_CONFIG": str(path)}, {}).settings.port == 1
    assert load(path, {"COCOA_CONFIG": str(tmp_path / "absent.toml")}, {}).settings.port == 1
    assert load(None, {"COCOA_CONFIG": ""}, {}).config is None


def test_tables_join_with_an_underscore(write: Write) -> None:
    settings = load(write("[kafka]\ngroup = 'g'\nclient_id = 'c'\n[kafka.results]\ntopic = 't'"), {}, {}).settings
    assert (settings.kafka_group, settings.kafka_client_id, settings.kafka_results_topic) == ("g", "c", "t")


def test_a_key_and_a_table_that_make_one_name_are_refused(write: Write) -> None:
    error = refused(write("kafka_group = 'a'\n[kafka]\ngroup = 'b'"))
    assert error.name == "kafka_group"
    assert "set twice" in error.problem


def test_only_the_winning_value_is_judged() -> None:
    assert load(None, {"COCOA_PORT": "tcp://10.0.0.1:8080"}, {"port": "1"}).settings.port == 1


# The file


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("port = \n", "line 1"),
        ("port = 1\nhost = x\n", "line 2"),
        ("port = 1\nport = 2\n", "line 2"),
        (b"port = 1\n# caf\xe9\n", "line 2 is not UTF-8"),
        ("# \u2026".encode("utf-16"), "it is text in UTF-16, not UTF-8; save it as UTF-8"),
        ("port = 1".encode("utf-16-be"), "it is text in UTF-16"),
        ("a = " + "[" * 5000, "not"),
        (".".join("a" * 40) + " = 1", "nested too deep"),
        ("a = " + "9" * 5000, "not TOML"),
        (b"#" * (MAX_FILE_BYTES + 1), "larger than 1 MiB"),
    ],
)
def test_a_file_that_is_not_toml_is_one_line(write: Write, content: str | bytes, problem: str) -> None:
    path = write(content)
    error = refused(path)
    assert (error.name, error.source) == ("config", f"file {path}")
    assert problem in error.problem or "nested too deep" in error.problem


def test_a_byte_order_mark_and_windows_line_ends_are_no_harm(write: Write) -> None:
    assert load(write(b"\xef\xbb\xbfport = 1\r\nlog_level = 'debug'\r\n"), {}, {}).settings.port == 1


def test_an_empty_file_is_a_file(write: Write) -> None:
    assert load(write(""), {}, {}).settings == Settings()


def test_a_file_that_is_not_there_is_named_with_who_named_it(tmp_path: Path) -> None:
    absent = tmp_path / "absent.toml"
    error = refused(absent)
    assert (error.source, error.problem) == ("option --config", f"cannot read {absent}: no such file or directory")
    assert refused(None, {"COCOA_CONFIG": str(absent)}).source == "environment COCOA_CONFIG"
    assert "is a directory" in refused(tmp_path).problem


@pytest.mark.parametrize(
    ("content", "name", "near"),
    [
        ("prot = 1", "prot", "port"),
        ("duplicate-challenge = 1", "duplicate-challenge", "duplicate_challenge"),
        ("duplicate_challenge_s = 1", "duplicate_challenge_s", "duplicate_challenge"),
        ("[kafka]\ngrup = 'x'", "kafka_grup", "kafka_group"),
        ("[[kafka_group]]\nx = 1", "kafka_group", ""),
        ("Port = 1", "Port", "port"),
        ("zzzz = 1", "zzzz", ""),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_name(
    write: Write, content: str, name: str, near: str
) -> None:
    error = refused(write(content))
    assert error.name == name
    assert (f"did you mean {near}?" in error.problem) == bool(near)


@pytest.mark.parametrize(
    ("content", "name", "problem"),
    [
        ("port = true", "port", "true is a boolean"),
        ("port = 80.0", "port", "80.0 is a float"),
        ("port = 99999", "port", "99999 is out of range"),
        ("ping_interval = 2024-01-01", "ping_interval", "it is a date or a time"),
        ("jwt_secret = 12345", "jwt_secret", "it is an integer"),
        ("broker = ['kafka://user:12345@a']", "broker", "it is an array"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused(write: Write, content: str, name: str, problem: str) -> None:
    path = write(content)
    error = refused(path)
    assert (error.name, error.source, error.problem) == (name, f"file {path}", problem)
    assert error.allowed
    assert "12345" not in str(error)


def test_a_relative_path_in_a_file_is_taken_from_its_folder(write: Write, tmp_path: Path) -> None:
    path = write("tls_cert = 'c.pem'\ntls_key = '/k.pem'\njwt_key = ['a.pem', 'https://i.example/jwks.json']")
    settings = load(path, {}, {}).settings
    assert (settings.tls_cert, settings.tls_key) == (tmp_path / "c.pem", Path("/k.pem"))
    assert settings.jwt_key == (str(tmp_path / "a.pem"), "https://i.example/jwks.json")


def test_a_relative_path_elsewhere_is_taken_as_it_is() -> None:
    settings = load(None, {"COCOA_TLS_CERT": "c.pem"}, {"tls_key": "k.pem", "jwt_key": ("a.pem",)}).settings
    assert (settings.tls_cert, settings.tls_key, settings.jwt_key) == (Path("c.pem"), Path("k.pem"), ("a.pem",))


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_any_file_is_settings_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    try:
        load(path, {}, {})
    except SettingError as error:
        text = str(error)
    else:
        return
    assert text.isprintable()


# The environment


def test_an_empty_variable_counts_as_absent() -> None:
    assert load(None, {"COCOA_PORT": "", "COCOA_PROT": ""}, {}) == load(None, {}, {})


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("a.example", ("a.example",)),
        ("a.example, b.example,", ("a.example", "b.example")),
        ('["a.example","b.example"]', ("a.example", "b.example")),
        ("[]", ()),
    ],
)
def test_a_list_is_separated_by_commas_or_a_json_array(text: str, origins: tuple[str, ...]) -> None:
    assert load(None, {"COCOA_ALLOWED_ORIGINS": text}, {}).settings.allowed_origins == origins


def test_a_json_array_holds_what_commas_would_cut() -> None:
    loaded = load(None, {"COCOA_API_CREDENTIALS": '["key:a,b"]'}, {})
    assert loaded.settings.api_credentials == (("key", "a,b"),)


@pytest.mark.parametrize("text", ['["hunter2', "[hunter2]", '["hunter2"', "[1]", '["key:hunter2",null]', "[" * 100_000])
def test_a_broken_json_array_is_refused_without_showing_it(text: str) -> None:
    error = refused(None, {"COCOA_API_CREDENTIALS": text})
    assert error.source == "environment COCOA_API_CREDENTIALS"
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("COCOA_PROT", "COCOA_PORT"),
        ("COCOA_BROKERS", "COCOA_BROKER"),
        ("COCOA_JWTSECRET", "COCOA_JWT_SECRET"),
        ("COCOA_DUPLICATE_CHALLENGE_S", "COCOA_DUPLICATE_CHALLENGE"),
        ("COCOA_CONFIGS", "COCOA_CONFIG"),
    ],
)
def test_a_variable_that_looks_misspelt_is_refused(name: str, near: str) -> None:
    error = refused(None, {name: "hunter2"})
    assert (error.source, error.problem) == (f"environment {name}", f"no such setting; did you mean {near}?")
    assert "hunter2" not in str(error)


def test_every_variable_that_a_command_names_is_known_and_no_other() -> None:
    named = {
        name
        for path in (Path(__file__).parent.parent / "cli").glob("*.py")
        for name in re.findall(r"\bCOCOA_[A-Z_]+\b", path.read_text(encoding="utf-8"))
    }
    assert named - {row.environment for row in TABLE.values()} == OTHER_VARIABLES


@pytest.mark.parametrize("name", sorted(OTHER_VARIABLES))
def test_what_other_commands_read_is_no_warning(name: str, write: Write) -> None:
    assert load(None, {name: str(write(""))}, {}).warnings == ()


def test_what_kubernetes_adds_to_the_environment_is_a_warning() -> None:
    links = {
        "COCOA_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "COCOA_GATEWAY_SERVICE_PORT": "8080",
        "COCOA_GATEWAY_SERVICE_PORT_HTTP": "8080",
        "COCOA_GATEWAY_PORT": "tcp://10.0.0.1:8080",
        "COCOA_GATEWAY_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "COCOA_GATEWAY_PORT_8080_TCP_ADDR": "10.0.0.1",
        "COCOA_SERVICE_HOST": "10.0.0.1",
        "COCOA_KAFKA_PORT": "tcp://10.0.0.2:9092",
        "COCOA_PORT_8080_TCP_PROTO": "tcp",
    }
    loaded = load(None, {**links, "PATH": "/bin", "XCOCOA_PORT": "1"}, {})
    assert loaded.settings == Settings()
    assert loaded.warnings == (Warned("unknown variables ignored", {"variables": ", ".join(sorted(links))}),)


def test_a_kubernetes_service_called_cocoa_is_explained() -> None:
    error = refused(None, {"COCOA_PORT": "tcp://10.0.0.1:8080"})
    assert error.source == "environment COCOA_PORT"
    assert "enableServiceLinks: false" in error.problem


@pytest.mark.parametrize("key", ["jwt_secret", "jwt_issuer", "tls_cert", "allowed_origins"])
def test_bytes_that_are_not_utf_8_are_refused(key: str) -> None:
    error = refused(None, {TABLE[key].environment: os.fsdecode(b"hunter2\xff")})
    assert (error.name, error.problem) == (key, "it is not UTF-8")


# The command line


def test_an_option_that_was_not_given_changes_nothing() -> None:
    options: dict[str, object] = {"port": None, "jwt_key": (), "access_log": None}
    assert load(None, {"COCOA_PORT": "1"}, options).settings == Settings(port=1)


def test_a_list_option_is_given_once_per_item() -> None:
    settings = load(None, {}, {"trusted_proxies": ("10.0.0.0/8", "::1"), "jwt_secret": "a,b"}).settings
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1"))
    assert settings.jwt_secret == "a,b"


def test_an_empty_list_option_overrides_a_lower_source() -> None:
    loaded = load(None, {"COCOA_ALLOWED_ORIGINS": "a.example"}, {"allowed_origins": ("",)})
    assert loaded.settings.allowed_origins == ()


def test_a_program_may_give_typed_values() -> None:
    settings = load(
        None, {}, {"port": 0, "access_log": False, "ping_timeout": 1.5, "jwt_algorithms": ["HS256"]}
    ).settings
    assert (settings.port, settings.access_log, settings.ping_timeout_s) == (0, False, 1.5)


def test_a_wrong_option_is_named_as_it_was_typed() -> None:
    error = refused(None, {}, {"ping_interval": "soon"})
    assert str(error).startswith("setting ping_interval (option --ping-interval): 'soon' is not a duration; allowed: ")
    assert "repeat the option" in refused(None, {}, {"jwt_algorithms": ("HS256,RS256",)}).allowed
    assert "did you mean port?" in refused(None, {}, {"prot": "1"}).problem


# Secrets


def test_a_secret_is_kept_to_the_byte() -> None:
    assert load(None, {"COCOA_JWT_SECRET": " s,\u00e9 "}, {}).settings.jwt_secret == " s,\u00e9 "


@pytest.mark.parametrize(
    ("content", "secret"),
    [("s\n", "s"), ("s", "s"), ("s\n\n", "s\n"), ("s\r\n", "s"), (" s \n", " s "), ("s\r", "s\r"), ("@s\n", "@s")],
)
def test_a_secret_file_loses_one_newline_at_its_end(tmp_path: Path, content: str, secret: str) -> None:
    (tmp_path / "secret").write_bytes(content.encode())
    settings = load(None, {}, {"kafka_ssl_key_password": None, "jwt_secret": f"@{tmp_path}/secret"}).settings
    assert settings.jwt_secret == secret


@pytest.mark.parametrize("key", ["jwt_secret", "api_credentials"])
def test_a_byte_order_mark_is_no_part_of_a_secret(tmp_path: Path, key: str) -> None:
    (tmp_path / "secret").write_bytes(b"\xef\xbb\xbfkey:s\r\n")
    value = getattr(load(None, {TABLE[key].environment: f"@{tmp_path}/secret"}, {}).settings, key)
    assert value == {"jwt_secret": "key:s", "api_credentials": (("key", "s"),)}[key]


def test_a_byte_order_mark_is_no_part_of_a_file_of_settings(write: Write) -> None:
    assert load(write(b"\xef\xbb\xbfport = 1\r\nhost = '::1'\r\n"), {}, {}).settings == Settings(port=1, host="::1")


def test_a_secret_and_a_file_of_settings_may_come_from_a_pipe(tmp_path: Path) -> None:
    with pipe_of(b"hunter2\n") as secret, pipe_of(b"port = 7\n") as config:
        settings = load(Path(config), {"COCOA_JWT_SECRET": f"@{secret}"}, {}).settings
    assert settings == Settings(port=7, jwt_secret="hunter2")


@contextmanager
def pipe_of(data: bytes) -> Iterator[str]:
    """The path of a pipe with ``data``, like a shell's ``<(command)``."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    try:
        yield f"/dev/fd/{reader}"
    finally:
        os.close(reader)


@pytest.mark.parametrize("key", ["jwt_key", "jwt_signing_key", "tls_cert", "kafka_ssl_ca"])
@pytest.mark.parametrize("what", ["pipe", "device", "directory", "huge", "unreadable", "UTF-16"])
def test_a_key_or_a_certificate_is_a_plain_file_of_bounded_size(tmp_path: Path, key: str, what: str) -> None:
    path, problem = odd_file(tmp_path, what)
    if what == "UTF-16" and key == "jwt_key":
        return  # a JWKS is JSON, which is read in UTF-16 too
    if what == "unreadable" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    given: dict[str, Any] = {key: (str(path),) if key == "jwt_key" else path}
    loaded = Loaded(Settings(**given), (), dict.fromkeys(TABLE, "x"), None)
    with pytest.raises(SettingError, match=f"setting {key} .*: cannot read {path}: .*{problem}") as caught:
        check_named_files(loaded)
    assert "\n" not in str(caught.value)


def odd_file(folder: Path, what: str) -> tuple[Path, str]:
    """A path that is invalid for a key, and the expected error."""
    path = folder / "odd"
    match what:
        case "pipe":
            os.mkfifo(path)
            return path, "is a pipe, not a file"
        case "device":
            return Path("/dev/zero"), "is a device, not a file"
        case "directory":
            path.mkdir()
            return path, "directory"
        case "huge":
            with path.open("wb") as file:
                file.truncate(1 << 40)
            return path, "is larger than 16 MiB"
        case "unreadable":
            path.touch(mode=0)
            return path, "permission denied"
        case _:
            path.write_bytes("-----BEGIN PUBLIC KEY-----".encode("utf-16"))
            return path, "is text in UTF-16; save it as UTF-8"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"jwt_secret": "hunter2"}, "jwt_secret"),
        ({"jwt_previous_secrets": ("hunter2", "@file")}, "jwt_previous_secrets"),
        ({"api_credentials": ("a:hunter2",), "kafka_ssl_key_password": ""}, "api_credentials"),
        ({"mailbox": "redis://:hunter2@redis.example/0", "jwt_secret": "hunter2"}, "jwt_secret, mailbox"),
        ({"jwt_key": ("https://user:hunter2@issuer.example/jwks",)}, "jwt_key"),
    ],
)
def test_a_secret_on_the_command_line_is_named_in_a_warning(
    options: dict[str, object], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("s\n")
    (warning,) = load(None, {}, options).warnings
    assert (warning.event, warning.fields["settings"]) == ("secrets on command line", named)
    assert "hunter2" not in str(warning)


def test_a_secret_that_stands_elsewhere_is_no_reason_for_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a:s\n")
    options = {"jwt_secret": f"@{tmp_path}/file", "api_credentials": (f"@{tmp_path}/file",), "mailbox": "memory://"}
    assert load(None, {"COCOA_JWT_PREVIOUS_SECRETS": "hunter2"}, options).warnings == ()


def test_a_secret_file_named_in_a_file_is_taken_from_its_folder(write: Write, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s\n")
    assert load(write("jwt_secret = '@secret'"), {}, {}).settings.jwt_secret == "s"


def test_a_file_for_a_list_of_secrets_has_one_per_line(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a:1\n\nb:2\r\n")
    loaded = load(None, {"COCOA_API_CREDENTIALS": f"c:3,@{tmp_path}/keys"}, {})
    assert loaded.settings.api_credentials == (("c", "3"), ("a", "1"), ("b", "2"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "no such file"), (b"\n", "is empty"), (b"\xff", "is not UTF-8"), (b"x" * 65_537, "larger than 64 KiB")],
)
def test_a_secret_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    error = refused(None, {"COCOA_JWT_SECRET": f"@{path}"})
    assert str(path) in error.problem
    assert problem in error.problem


@pytest.mark.parametrize("text", ["@hunter2", "@hunter2\0", "@hunter2/x", "@~hunter2"])
def test_a_secret_that_happens_to_begin_with_an_at_sign_is_not_shown(text: str) -> None:
    assert "hunter2" not in str(refused(None, {"COCOA_JWT_SECRET": text}))


def test_no_error_shows_a_secret(write: Write) -> None:
    def check_errors(row: Setting) -> None:
        bad = "hunter2\x00\udcff"
        attempts: list[tuple[Path | None, dict[str, str], dict[str, object]]] = [
            (None, {row.environment: bad}, {}),
            (None, {}, {row.key: bad}),
            (write(f"{row.key} = {{hunter2 = 'hunter2'}}"), {}, {}),
        ]
        for config, environ, options in attempts:
            error = refused(config, environ, options)
            assert "hunter2" not in error.problem
            assert "hunter2" not in error.allowed

    assert_each([row for row in TABLE.values() if row.secret], check_errors)


# Files that settings name


def test_a_file_that_a_setting_names_is_looked_for_on_demand(tmp_path: Path) -> None:
    good = tmp_path / "good.pem"
    good.write_text("x")
    environ = {"COCOA_TLS_CERT": str(good), "COCOA_TLS_KEY": str(tmp_path / "absent.pem")}
    loaded = load(None, environ, {})
    with pytest.raises(SettingError, match=r"setting tls_key \(environment COCOA_TLS_KEY\): cannot read .*absent\.pem"):
        check_files(loaded)
    with pytest.raises(SettingError, match=r"setting jwt_key \(option --jwt-key\)"):
        check_files(load(None, {}, {"jwt_key": ("https://i.example/jwks.json", str(tmp_path / "absent.pem"))}))
    check_files(load(None, {}, {"jwt_key": (str(good), "https://i.example/jwks.json"), "data_dir": "/absent"}))


@pytest.mark.parametrize(("url", "extra"), [("whisper://base", "whisper"), ("google://", "google")])
def test_an_engine_that_is_not_installed_is_named_with_the_extra_that_brings_it(
    url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"setting speech \(environment COCOA_SPEECH\): .* not installed") as caught:
        check_files(load(None, {"COCOA_SPEECH": url}, {}))
    assert f"pip install 'cocoa-tornado[{extra}]'" in str(caught.value)
    check_files(load(None, {"COCOA_SPEECH": "none://"}, {}))
    check_files(load(None, {}, {}))


def test_a_kafka_client_that_is_not_installed_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"setting kafka_client \(environment COCOA_KAFKA_CLIENT\)") as caught:
        check_files(load(None, {"COCOA_KAFKA_CLIENT": "confluent"}, {}))
    assert "pip install 'cocoa-tornado[librdkafka]'" in str(caught.value)
    for client in ("auto", "kafka-python"):
        check_files(load(None, {"COCOA_KAFKA_CLIENT": client}, {}))


def test_a_models_folder_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    check_files(load(None, {}, {"speech": f"pocketsphinx://{tmp_path}/model"}))
    with pytest.raises(SettingError, match=r"setting speech \(option --speech\): folder .*/absent does not exist"):
        check_files(load(None, {}, {"speech": f"pocketsphinx://{tmp_path}/absent"}))


# A second reading


def test_a_reload_applies_what_is_reloadable_and_names_the_rest() -> None:
    old = Settings(port=1, jwt_secret="a")
    new = Settings(port=2, jwt_secret="b", log_level="debug", max_connections=7, ping_interval_s=60.0)
    assert changes(old, new) == (("jwt_secret", "max_connections", "log_level"), ("port", "ping_interval"))
    assert changes(old, old) == ((), ())
    assert reloaded(old, new) == Settings(port=1, jwt_secret="b", log_level="debug", max_connections=7)


def test_a_reload_cannot_leave_a_network_to_the_development_key() -> None:
    old = load(None, {"COCOA_HOST": "0.0.0.0", "COCOA_JWT_SECRET": "s" * 32}, {})
    new = load(None, {"COCOA_HOST": "127.0.0.1"}, {})
    with pytest.raises(SettingError, match="development key"):
        reloaded(old.settings, new.settings)


def test_a_reload_cannot_leave_a_network_to_a_short_secret() -> None:
    old = load(None, {"COCOA_HOST": "0.0.0.0", "COCOA_JWT_SECRET": "s" * 32}, {})
    for change in (
        {"COCOA_JWT_SECRET": "short"},
        {"COCOA_JWT_PREVIOUS_SECRETS": "short"},
        {"COCOA_ADMIN_JWT_SECRET": "short"},
    ):
        new = load(None, {"COCOA_JWT_SECRET": "s" * 32, **change}, {})
        with pytest.raises(SettingError, match="5 bytes long, too short"):
            reloaded(old.settings, new.settings)


def test_what_the_contract_lets_a_reload_change_is_reloadable() -> None:
    assert {row.key for row in TABLE.values() if row.reloadable} == {
        *("jwt_secret", "jwt_previous_secrets", "jwt_key", "jwt_signing_key", "api_credentials", "allowed_origins"),
        "allowed_hosts",
        *("connections_per_device", "max_connections", "max_message_bytes", "outbox_max_messages", "outbox_max_bytes"),
        *("audio_max_bytes", "audio_max_duration", "audio_idle_timeout", "audio_streams_per_device", "audio_streams"),
        *("inbound_rate", "inbound_burst", "log_level", "admin_jwt_secret", "admin_jwt_key"),
    }


def test_loaded_says_where_a_rule_between_settings_was_broken(write: Write) -> None:
    path = write("low_water = 5000")
    error = refused(path, {}, {"high_water": "4000"})
    assert (error.name, error.source) == ("high_water", "option --high-water")
    assert refused(write("host = '0.0.0.0'")).source == f"file {path}"


def test_loaded_has_no_secret_in_its_repr() -> None:
    loaded: Loaded = load(None, {"COCOA_JWT_SECRET": "hunter2"}, {})
    assert "hunter2" not in repr(loaded)
