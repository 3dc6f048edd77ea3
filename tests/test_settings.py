"""The table, the kinds of value, and the frozen Settings."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Meta

from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.rules.identity import TokenPolicy
from cocoa_tornado.settings import TABLE, Settings, domain
from cocoa_tornado.settings import types as kinds
from cocoa_tornado.settings.checks import check
from cocoa_tornado.settings.reference import reference
from cocoa_tornado.settings.rows import Setting
from cocoa_tornado.settings.types import Kind, WrongValue

from .each import assert_each

DURATION = kinds.kind_of(Annotated[float, Meta(ge=0, le=domain.YEAR_S), domain.Duration])
ROWS = list(TABLE.values())
PAGE = Path(__file__).parent.parent / "docs" / "settings.rst"


def test_the_defaults_go_together() -> None:
    check(Settings())


def test_the_defaults_of_the_contract() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.broker) == ("127.0.0.1", 8080, "memory://")
    assert (settings.mailbox, settings.presence, settings.speech) == ("none://", "local://", "auto")
    assert (settings.audio_max_bytes, settings.audio_max_duration_s) == (10 * 1024 * 1024, 60)
    assert (settings.audio_idle_timeout_s, settings.audio_streams_per_device) == (30, 1)
    assert settings.raw_audio == AudioFormat("raw", "s16le", 16_000, 1)
    assert (settings.ping_interval_s, settings.ping_timeout_s, settings.write_wait_s) == (30, 30, 10)
    assert (settings.connections_per_device, settings.max_connections) == (1, 0)
    assert (settings.max_message_bytes, settings.duplicate_challenge_s) == (524_288, 2)
    assert (settings.jwt_issuer, settings.jwt_subject) == ("cocoa-fruit-agentic", "audio-streaming")
    assert (settings.jwt_leeway_s, settings.jwt_lifetime_s) == (10, 86_400)


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]  # the assignment that must fail


def test_the_three_names_of_a_setting_are_made_from_its_key() -> None:
    def check_names(row: Setting) -> None:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", row.key)
        assert row.environment == "COCOA_" + row.key.upper()
        assert row.option == "--" + row.key.replace("_", "-")
        assert row.attribute == row.key + ("_s" if isinstance(row.kind, domain.Duration) else "")

    assert_each(ROWS, check_names)


def test_a_default_is_read_back_as_it_is_written() -> None:
    def check_default(row: Setting) -> None:
        assert row.kind.from_text(row.default_text) == row.default

    assert_each([row for row in ROWS if not row.is_list and not row.secret], check_default)


def test_a_summary_is_a_sentence_and_what_is_allowed_is_said() -> None:
    def check_texts(row: Setting) -> None:
        assert row.summary.endswith(".")
        assert len(row.summary) < 100
        assert row.kind.allowed

    assert_each(ROWS, check_texts)


def test_what_holds_a_secret_is_marked_as_one() -> None:
    telling = {key for key in TABLE if re.search(r"secret|password|credential", key)}
    assert telling == {row.key for row in ROWS if row.secret}


def test_a_repr_shows_what_differs_from_the_defaults_and_no_secret() -> None:
    settings = Settings(
        port=0,
        jwt_secret="hunter2",
        jwt_previous_secrets=("hunter3",),
        api_credentials=(("key", "hunter4"),),
        kafka_sasl_password="hunter5",
        jwt_key=("https://user:hunter6@identity.example/jwks.json",),
        jwt_leeway_s=90,
    )
    text = repr(settings)
    assert "hunter" not in text
    assert "port='0'" in text
    assert "jwt_secret='***'" in text
    assert "jwt_leeway_s='90s'" in text
    assert repr(Settings()) == "Settings()"


def test_the_development_key_is_used_where_neither_secret_nor_key_is_set() -> None:
    assert Settings().uses_development_key
    assert not Settings(jwt_secret="s").uses_development_key
    assert not Settings(jwt_key=("k.pem",)).uses_development_key


def test_the_policy_for_tokens_is_what_the_settings_say() -> None:
    assert Settings().token_policy == TokenPolicy()
    settings = Settings(jwt_issuer="i", jwt_subject="s", jwt_audience="a", jwt_leeway_s=1, jwt_lifetime_s=2)
    assert settings.token_policy == TokenPolicy("i", "s", "a", leeway_s=1, lifetime_s=2)


def test_http_publish_is_on_by_itself_with_the_embedded_broker_only() -> None:
    kafka = "kafka://one,two:9093"
    assert Settings().publishes_over_http
    assert not Settings(broker=kafka).publishes_over_http
    assert Settings(broker=kafka, http_publish="on").publishes_over_http
    assert not Settings(http_publish="off").publishes_over_http
    assert Settings(broker=kafka).broker_servers == ("one:9092", "two:9093")
    assert Settings().broker_servers == ()


RIGHT: list[tuple[Kind[object], str, object]] = [
    (TABLE["host"].kind, "[::1]", "::1"),
    (TABLE["host"].kind, " 0.0.0.0 ", "0.0.0.0"),
    (TABLE["port"].kind, "0", 0),
    (TABLE["kafka_partitions"].kind, "-1", -1),
    (TABLE["retry_after"].kind, "1m30s", 90.0),
    (TABLE["retry_after"].kind, "5", 5.0),
    (TABLE["max_message_bytes"].kind, "1MiB", 1_048_576),
    (TABLE["inbound_rate"].kind, "0.5", 0.5),
    (TABLE["access_log"].kind, "OFF", False),
    (TABLE["access_log"].kind, "1", True),
    (TABLE["log_level"].kind, "INFO", "info"),
    (TABLE["kafka_sasl_mechanism"].kind, "scram-sha-256", "SCRAM-SHA-256"),
    (TABLE["tls_cert"].kind, "", None),
    (TABLE["tls_cert"].kind, "a/b.pem", Path("a/b.pem")),
    (TABLE["api_credentials"].kind, "key:a:b", (("key", "a:b"),)),
    (TABLE["api_credentials"].kind, "schlüssel:voilà", (("schlüssel", "voilà"),)),
    (TABLE["allowed_origins"].kind, "https://*.example/", ("https://*.example",)),
    (TABLE["allowed_origins"].kind, "http://[::1]:3000", ("http://[::1]:3000",)),
    (TABLE["allowed_origins"].kind, "file://", ("file://",)),
    (TABLE["allowed_origins"].kind, "app://.", ("app://.",)),
    (TABLE["allowed_origins"].kind, "https://github.com/a/B/", ("https://github.com/a/B",)),
    (TABLE["allowed_hosts"].kind, " Gateway.Example. ", ("Gateway.Example.",)),
    (TABLE["allowed_hosts"].kind, "*.ngrok-free.app", ("*.ngrok-free.app",)),
    (TABLE["allowed_hosts"].kind, "*", ("*",)),
    (TABLE["broker"].kind, "kafka://[::1]:9092,b", "kafka://[::1]:9092,b"),
]


@pytest.mark.parametrize(("kind", "text", "value"), RIGHT)
def test_a_text_is_read_as_its_kind(kind: Kind[object], text: str, value: object) -> None:
    assert kind.from_text(text) == value


WRONG = [
    ("host", ""),
    ("host", "0.0.0.0:80"),
    ("host", "http://a"),
    ("host", "[a]"),
    ("port", "65536"),
    ("port", "-1"),
    ("port", "8_080"),
    ("port", "8080.0"),
    ("port", "٨٠٨٠"),  # digits that int() would take
    ("port", "9" * 5000),
    ("kafka_partitions", "0"),
    ("kafka_partitions", "-2"),
    ("ping_interval", "0"),
    ("ping_interval", "-1s"),
    ("ping_interval", "nan"),
    ("ping_interval", "2 weeks"),
    ("outbox_max_bytes", "1023"),
    ("outbox_max_bytes", "1M"),
    ("inbound_rate", "inf"),
    ("inbound_rate", "-1"),
    ("access_log", "maybe"),
    ("duplicate_policy", "kill"),
    ("jwt_algorithms", "none"),
    ("jwt_key", "-----BEGIN PUBLIC KEY-----"),
    ("jwt_key", '{"keys":[]}'),
    ("jwt_key", "ftp://a/k.pem"),
    ("jwt_secret", "   "),
    ("api_credentials", "keyonly"),
    ("api_credentials", ":secret"),
    ("api_credentials", "key:"),
    ("api_credentials", "key:sec\u0085ret"),
    ("api_credentials", "key:secret "),
    ("allowed_origins", "https://"),
    ("allowed_origins", "a b"),
    ("allowed_origins", "https://user@app.example"),
    ("allowed_origins", "https://app.example?x"),
    ("allowed_origins", "*."),
    ("allowed_hosts", "https://gateway.example"),
    ("allowed_hosts", "gateway.example:8080"),
    ("allowed_hosts", "gateway.*"),
    ("allowed_hosts", "*."),
    ("allowed_hosts", "*.*.example"),
    ("allowed_hosts", "user@gateway.example"),
    ("allowed_hosts", "gateway.example/path"),
    ("allowed_hosts", "dürüm.example"),
    ("trusted_proxies", "10.0.0.1/8"),
    ("trusted_proxies", "proxy"),
    ("broker", "amqp://a"),
    ("broker", "memory"),
    ("broker", "kafka://"),
    ("broker", "kafka://::1"),
    ("mailbox", "file://a"),
    ("kafka_results_topic", ".."),
    ("kafka_results_topic", "a b"),
    ("kafka_results_topic", "a" * 250),
    ("kafka_group", ""),
    ("kafka_group", "a\0"),
    ("kafka_sasl_username", "a\nb"),
    ("kafka_oauth_token_url", "identity.example"),
]


@pytest.mark.parametrize(("key", "text"), WRONG)
def test_a_wrong_text_is_refused_in_one_short_line(key: str, text: str) -> None:
    with pytest.raises(WrongValue) as caught:
        TABLE[key].kind.from_text(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize(
    "url",
    [
        "auto",
        "none://",
        "pocketsphinx://",
        "whisper://base",
        "whisper://./models/base",
        "google://?project=p&model=short",
    ],
)
def test_a_speech_engine_is_kept_as_it_was_given(url: str) -> None:
    assert TABLE["speech"].kind.from_text(f" {url} ") == url


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("vosk://", "is not a supported speech engine"),
        ("pocketsphinx", "is not a supported speech engine"),
        ("whisper://", "names no model"),
        ("google://host", "takes options only"),
        ("google://?key=1", "has an option 'key'"),
        ("google://user:hunter2@host", "credentials never stand in its URL"),
    ],
)
def test_a_wrong_speech_engine_says_what_is_wrong(url: str, problem: str) -> None:
    with pytest.raises(WrongValue, match=problem) as caught:
        TABLE["speech"].kind.from_text(url)
    assert "hunter2" not in str(caught.value)


def test_a_models_relative_folder_is_taken_from_the_file_that_names_it() -> None:
    kind = TABLE["speech"].kind
    assert kind.relative_to("whisper://./base", Path("/etc/cocoa")) == "whisper:///etc/cocoa/base"
    assert kind.relative_to("whisper://../a%20b?beam=2", Path("/etc/cocoa")) == "whisper:///etc/cocoa/../a%20b?beam=2"
    assert kind.relative_to("whisper://base", Path("/etc/cocoa")) == "whisper://base"
    assert kind.relative_to("whisper://./base", Path()) == "whisper://./base"


@pytest.mark.parametrize("blank", ["\xa0", "\u3000", "\u200d"])
def test_a_path_may_hold_any_blank_and_joiner_as_in_the_previous_release(blank: str) -> None:
    folder, escaped = Path(f"/etc/co{blank}coa"), quote(f"co{blank}coa")
    mailbox, speech = TABLE["mailbox"].kind, TABLE["speech"].kind
    assert mailbox.from_text(f"sqlite:///a{quote(blank)}b.db") == f"sqlite:///a{quote(blank)}b.db"
    assert mailbox.relative_to("sqlite:///box.db", folder) == f"sqlite:////etc/{escaped}/box.db"
    assert speech.from_text(f"whisper:///a{quote(blank)}b") == f"whisper:///a{quote(blank)}b"
    assert speech.relative_to("whisper://./base", folder) == f"whisper:///etc/{escaped}/base"
    assert TABLE["data_dir"].kind.from_text(f"{folder}") == folder


@pytest.mark.parametrize("control", ["\n", "\x1b", "\x85", "\u2028", "\u2029"])
def test_a_path_holds_no_control_characters(control: str) -> None:
    for key, text in (
        ("mailbox", f"sqlite:///a{quote(control)}b.db"),
        ("speech", f"whisper:///a{quote(control)}b"),
        ("data_dir", f"/a{control}b"),
    ):
        with pytest.raises(WrongValue):
            TABLE[key].kind.from_text(text)
    for key, text in (("mailbox", "sqlite:///box.db"), ("speech", "whisper://./base")):
        with pytest.raises(WrongValue, match="folder"):
            TABLE[key].kind.relative_to(text, Path(f"/a{control}b"))


@pytest.mark.parametrize("url", ["https:/u:hunter2@h/jwks", "HTTPS:u:hunter2@h", " http:x"])
def test_a_key_whose_url_lacks_slashes_is_not_taken_for_a_path(url: str) -> None:
    with pytest.raises(WrongValue, match="is not such a URL") as caught:
        TABLE["jwt_key"].kind.from_text(url)
    assert "hunter2" not in str(caught.value)
    assert TABLE["jwt_key"].kind.from_text(f"./{url.strip()}")


def test_a_broker_url_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(WrongValue, match="kafka_sasl_password") as caught:
        TABLE["broker"].kind.from_text("kafka://user:hunter2@host")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("port", True, "true is a boolean"),
        ("port", 8080.0, "8080.0 is a float"),
        ("port", "8080", "'8080' is a string"),
        ("port", [1], "it is an array"),
        ("max_message_bytes", 1.5, "1.5 is a float"),
        ("max_message_bytes", True, "true is a boolean"),
        ("ping_interval", True, "true is a boolean"),
        ("ping_interval", float("nan"), "nan is out of range"),
        ("ping_interval", 10**400, "out of range"),
        ("inbound_rate", float("inf"), "is not such a number"),
        ("access_log", 1, "1 is an integer"),
        ("host", 1, "1 is an integer"),
        ("jwt_secret", 12345, "it is an integer"),
        ("jwt_algorithms", "HS256", "it is a string, not an array"),
        ("jwt_previous_secrets", [""], "one of its items is empty"),
        ("api_credentials", [None], "it is null"),
    ],
)
def test_a_typed_value_of_another_type_is_refused(key: str, value: object, problem: str) -> None:
    with pytest.raises(WrongValue, match=re.escape(problem)) as caught:
        TABLE[key].kind.from_value(value)
    assert "12345" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "result"),
    [
        ("port", 0, 0),
        ("ping_interval", 30, 30.0),
        ("ping_interval", 0.5, 0.5),
        ("ping_interval", "500ms", 0.5),
        ("max_message_bytes", 1024, 1024),
        ("max_message_bytes", "1KiB", 1024),
        ("inbound_rate", 100, 100.0),
        ("access_log", False, False),
        ("access_log", "no", False),
        ("jwt_algorithms", ["ES256"], ("ES256",)),
        ("jwt_algorithms", [], ()),
    ],
)
def test_a_typed_value_is_taken(key: str, value: object, result: object) -> None:
    taken = TABLE[key].kind.from_value(value)
    assert taken == result
    assert type(taken) is type(result)


@given(st.floats(0, 366 * 86_400.0))
@example(0.009)
@example(1e-7)
@example(0.6001)
def test_a_duration_is_read_back_as_it_is_written(seconds: float) -> None:
    kind = DURATION
    assert kind.from_text(kind.show(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (0.009, "9ms"),
        (0.071, "71ms"),
        (1e-7, "0.0000001s"),
        (2, "2s"),
        (90, "90s"),
        (300, "5m"),
        (86400, "24h"),
        (604800, "7d"),
    ],
)
def test_a_duration_is_written_as_a_person_would(seconds: float, text: str) -> None:
    assert DURATION.show(seconds) == text


def test_the_reference_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "python -m cocoa_tornado.settings.reference > docs/settings.rst"
    )
