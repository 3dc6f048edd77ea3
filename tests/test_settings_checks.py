from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.errors import SettingError
from cocoa_tornado.presence.membership import Timing
from cocoa_tornado.presence.redis_settings import PresenceMode, least_fence
from cocoa_tornado.settings import Settings
from cocoa_tornado.settings.checks import advice, check

PASSWORD: dict[str, Any] = {
    "kafka_security_protocol": "SASL_SSL",
    "kafka_sasl_mechanism": "PLAIN",
    "kafka_sasl_username": "user",
    "kafka_sasl_password": "hunter2",
}
GRANT: dict[str, Any] = {
    "kafka_security_protocol": "SASL_PLAINTEXT",
    "kafka_sasl_mechanism": "OAUTHBEARER",
    "kafka_oauth_token_url": "https://identity.example/token",
    "kafka_oauth_client_id": "client",
    "kafka_oauth_client_secret": "hunter2",
}
SHARED: dict[str, Any] = {"presence": "redis://one", "broker": "kafka://k"}
PEM = Path("some.pem")

TOGETHER: list[dict[str, Any]] = [
    {"host": "::1"},
    {"host": "0.0.0.0", "jwt_secret": "s" * 32, "jwt_previous_secrets": ("p" * 32,)},
    {"host": "0.0.0.0", "jwt_secret": "ü" * 16},
    {"host": "127.0.0.1", "jwt_secret": "s", "jwt_previous_secrets": ("p",)},
    {"jwt_lifetime_s": 60.0, "jwt_max_lifetime_s": 60.0},
    {"host": "0.0.0.0", "jwt_key": ("k.pem",)},
    {"jwt_key": ("k.pem",), "jwt_algorithms": ("ES256",)},
    {"jwt_key": ("k.pem",), "jwt_signing_key": PEM},
    {"jwt_secret": "s", "jwt_algorithms": ("HS512",)},
    {"tls_cert": PEM, "tls_key": PEM},
    {"low_water": 1, "high_water": 2},
    {"ping_timeout_s": 5.0, "ping_interval_s": 5.0},
    {"drain_grace_s": 0.0, "drain_delay_s": 0.0},
    {"kafka_security_protocol": "SSL", "kafka_ssl_ca": PEM},
    {"kafka_security_protocol": "SSL", "kafka_ssl_cert": PEM, "kafka_ssl_key": PEM, "kafka_ssl_key_password": "p"},
    PASSWORD,
    PASSWORD | {"kafka_sasl_mechanism": "SCRAM-SHA-512"},
    GRANT,
    GRANT | {"kafka_oauth_scope": "kafka"},
    {"api_credentials": (("a", "1"), ("b", "1"))},
    SHARED,
    SHARED | {"mailbox": "redis://:other@one:6379/0"},
    SHARED | {"presence": "redis+sentinel://a,b/main/1", "mailbox": "redis+sentinel://b/main/1"},
    {"mailbox": "redis://one/0", "broker": "memory://"},
    {"presence_fence_s": 8.0, "presence_freeze_s": 5.0, "presence_cut_s": 5.0},
    {"presence_fence_s": 5.0, "presence_freeze_s": 2.0},
    {"presence_fence_s": 103.8, "presence_freeze_s": 100.0},
    {"presence_mode": "strict"},
    {"presence_mode": "strict", "presence_fence_s": 9.7},
    {"workers": 2, "broker": "kafka://kafka:9092", "presence": "redis://redis:6379/0"},
    SHARED | {"kafka_group_protocol": "consumer"},
    SHARED | {"kafka_group_protocol": "consumer", "kafka_client": "confluent"},
    {"kafka_group_protocol": "consumer"},
    {"jwt_secret": "s", "admin_jwt_secret": "a"},
    {"host": "::", "jwt_secret": "s" * 32, "admin_jwt_secret": "a" * 32},
    {"host": "::", "jwt_key": ("k.pem",), "admin_jwt_key": ("k.pem",), "admin_port": 0, "admin_host": "::"},
    {"admin_port": 0},
    {"admin_port": 9090, "admin_host": "0.0.0.0", "admin_jwt_secret": "a" * 32},
    {"admin_host": "0.0.0.0", "admin_jwt_secret": "a"},
    {"port": 0, "admin_port": 0},
]


@pytest.mark.parametrize("values", TOGETHER)
def test_these_go_together(values: dict[str, Any]) -> None:
    check(Settings(**values))


APART: list[tuple[dict[str, Any], str, str]] = [
    (SHARED | {"broker": "memory://"}, "presence", "cannot share the broker memory://"),
    (SHARED | {"mailbox": "memory://"}, "presence", "cannot share the mailbox memory://"),
    (SHARED | {"mailbox": "sqlite:///box.db"}, "presence", "cannot share the mailbox sqlite://"),
    (SHARED | {"mailbox": "redis://two"}, "presence", "different Redis databases"),
    (SHARED | {"mailbox": "redis://one/1"}, "presence", "different Redis databases"),
    (SHARED | {"mailbox": "redis+sentinel://one/one"}, "presence", "different Redis databases"),
    ({"presence_fence_s": 7.0}, "presence_fence", "presence_fence 7s is too short for presence_freeze 5s"),
    (
        {"presence_fence_s": 103.0, "presence_freeze_s": 100.0},
        "presence_fence",
        "presence_fence 103s is too short for presence_freeze 100s",
    ),
    (
        {"presence_mode": "strict", "presence_fence_s": 9.6},
        "presence_fence",
        "presence_fence 9.6s is too short for presence_freeze 5s and presence_mode strict",
    ),
    ({"presence_cut_s": 4.0}, "presence_cut", "presence_cut 4s is shorter than presence_freeze 5s"),
    ({"workers": 2}, "workers", "2 workers cannot share the broker memory://"),
    ({"workers": 3, "broker": "kafka://kafka:9092"}, "workers", "3 workers cannot share the presence local://"),
    (
        {"kafka_group_protocol": "consumer", "broker": "kafka://kafka:9092"},
        "kafka_group_protocol",
        "kafka_group_protocol consumer is for several servers, and presence is local://",
    ),
    (
        SHARED | {"kafka_group_protocol": "consumer", "kafka_client": "kafka-python"},
        "kafka_group_protocol",
        "kafka-python lacks kafka_group_protocol consumer",
    ),
    ({"host": "0.0.0.0"}, "host", "0.0.0.0 is not a loopback address"),
    ({"host": "gateway"}, "host", "gateway is not a loopback address"),
    ({"host": "::", "jwt_previous_secrets": ("s",)}, "host", "development key"),
    ({"host": "0.0.0.0", "jwt_secret": "hunter2" * 4}, "jwt_secret", "28 bytes long, too short"),
    (
        {"host": "::", "jwt_secret": "s" * 32, "jwt_previous_secrets": ("p" * 32, "hunter2")},
        "jwt_previous_secrets",
        "7 bytes long, too short",
    ),
    ({"host": "::", "jwt_key": ("k.pem",), "jwt_previous_secrets": ("p",)}, "jwt_previous_secrets", "too short"),
    ({"jwt_secret": "s", "admin_jwt_secret": "s"}, "admin_jwt_secret", "it equals jwt_secret"),
    (
        {"jwt_secret": "s" * 32, "jwt_previous_secrets": ("p" * 32,), "admin_jwt_secret": "p" * 32},
        "admin_jwt_secret",
        "it equals jwt_previous_secrets",
    ),
    (
        {"host": "0.0.0.0", "jwt_secret": "s" * 32, "admin_jwt_secret": "hunter2" * 4},
        "admin_jwt_secret",
        "28 bytes long, too short for a gateway that listens on 0.0.0.0",
    ),
    (
        {"admin_host": "10.0.0.1", "admin_port": 0, "admin_jwt_secret": "hunter2"},
        "admin_jwt_secret",
        "7 bytes long, too short for a gateway that listens on 10.0.0.1",
    ),
    ({"admin_host": "::", "admin_port": 0}, "admin_host", ":: is not a loopback address; the development key"),
    ({"port": 9090, "admin_port": 9090}, "admin_port", "9090 is the port of the devices"),
    (SHARED | {"workers": 2, "admin_port": 0}, "admin_port", "each of 2 workers would pick a port of its own"),
    ({"jwt_audience": "cocoa-admin"}, "jwt_audience", "the audience of admin tokens"),
    ({"jwt_max_lifetime_s": 3600.0}, "jwt_max_lifetime", "jwt_lifetime 24h is longer than jwt_max_lifetime 1h"),
    ({"jwt_algorithms": ()}, "jwt_algorithms", "it is empty"),
    ({"jwt_algorithms": ("ES256",)}, "jwt_algorithms", "none of them works with the development key"),
    ({"jwt_algorithms": ("ES256",), "jwt_secret": "s"}, "jwt_algorithms", "none of them works with jwt_secret"),
    ({"jwt_algorithms": ("HS256",), "jwt_key": ("k",)}, "jwt_algorithms", "none of them works with jwt_key"),
    ({"jwt_signing_key": PEM, "jwt_secret": "s"}, "jwt_signing_key", "jwt_key is not set"),
    ({"api_credentials": (("a", "1"), ("a", "2"))}, "api_credentials", "the same key"),
    ({"tls_cert": PEM}, "tls_cert", "tls_key is missing"),
    ({"tls_key": PEM}, "tls_key", "tls_cert is missing"),
    ({"low_water": 10_000}, "low_water", "low_water 10000 is not below high_water 10000"),
    ({"high_water": 2_000}, "high_water", "low_water 2000 is not below high_water 2000"),
    ({"ping_timeout_s": 31.0}, "ping_timeout", "ping_timeout 31s is longer than ping_interval 30s"),
    ({"ping_interval_s": 10.0}, "ping_interval", "ping_timeout 30s is longer than ping_interval 10s"),
    ({"drain_delay_s": 26.0}, "drain_delay", "drain_delay 26s is longer than drain_grace 25s"),
    ({"max_message_bytes": 2**26}, "max_message_bytes", "publish_queue_bytes 16MiB is below max_message_bytes 64MiB"),
    ({"kafka_quarantine_topic": "transcription.results"}, "kafka_quarantine_topic", "kafka_results_topic is"),
    ({"kafka_messages_topic": "transcription.results"}, "kafka_messages_topic", "kafka_results_topic is"),
    ({"kafka_ssl_ca": PEM}, "kafka_ssl_ca", "no effect with kafka_security_protocol PLAINTEXT"),
    ({"kafka_security_protocol": "SSL", "kafka_ssl_cert": PEM}, "kafka_ssl_cert", "kafka_ssl_key is missing"),
    ({"kafka_security_protocol": "SSL", "kafka_ssl_key_password": "p"}, "kafka_ssl_key_password", "is missing"),
    ({"kafka_security_protocol": "SASL_SSL"}, "kafka_security_protocol", "SASL_SSL needs a SASL mechanism"),
    (PASSWORD | {"kafka_security_protocol": "SSL"}, "kafka_sasl_mechanism", "PLAIN has no effect"),
    (PASSWORD | {"kafka_sasl_username": ""}, "kafka_sasl_mechanism", "needs kafka_sasl_username"),
    (PASSWORD | {"kafka_sasl_password": ""}, "kafka_sasl_mechanism", "needs kafka_sasl_password"),
    (PASSWORD | {"kafka_oauth_scope": "s"}, "kafka_oauth_scope", "no effect with PLAIN"),
    (GRANT | {"kafka_oauth_client_secret": ""}, "kafka_sasl_mechanism", "needs kafka_oauth_client_secret"),
    (GRANT | {"kafka_sasl_username": "u"}, "kafka_sasl_username", "no effect with OAUTHBEARER"),
    ({"kafka_sasl_username": "u"}, "kafka_sasl_username", "no effect with no kafka_sasl_mechanism"),
]


@pytest.mark.parametrize(("values", "name", "problem"), APART)
def test_these_do_not_go_together(values: dict[str, Any], name: str, problem: str) -> None:
    with pytest.raises(SettingError) as caught:
        check(Settings(**values))
    assert caught.value.name == name
    assert problem in caught.value.problem
    assert caught.value.allowed
    assert caught.value.source == "code"
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("mode", "margin_s"), [("freeze", 0.5), ("strict", 3.3)])
@given(freeze_s=st.floats(2, 3000))
def test_the_least_fence_leaves_the_margin_though_clocks_differ(
    mode: PresenceMode, margin_s: float, freeze_s: float
) -> None:
    """Another server may fence this one, with a clock that is 1 % fast, only after the lease has ended here, by a clock
    that is 1 % slow."""
    timing = Timing(fence_s=least_fence(mode, freeze_s), freeze_s=freeze_s)
    assert 0.99 * timing.watch_s - 1.01 * freeze_s >= margin_s - 1e-6
    assert timing.fence_s >= freeze_s + 3.0


def test_short_secrets_of_api_credentials_are_advised_against_off_loopback() -> None:
    pairs = (("good", "s" * 16), ("weak", "hunter2"))
    (warned,) = advice(Settings(host="0.0.0.0", jwt_secret="s" * 32, api_credentials=pairs))
    assert (warned.event, warned.fields["keys"]) == ("weak api secrets", "weak")
    assert "hunter2" not in str(warned)
    assert not list(advice(Settings(api_credentials=pairs)))


def test_an_admin_port_without_a_key_for_admin_tokens_is_advised_against() -> None:
    (warned,) = advice(Settings(admin_port=9090, jwt_secret="s"))
    assert (warned.event, warned.fields["settings"]) == ("admin api disabled", "admin_port")
    for settings in (
        Settings(admin_port=9090),
        Settings(jwt_secret="s"),
        Settings(admin_port=0, jwt_secret="s", admin_jwt_secret="a"),
        Settings(admin_port=0, jwt_secret="s", admin_jwt_key=("k.pem",)),
    ):
        assert not list(advice(settings))


def test_the_setting_from_the_highest_source_is_blamed() -> None:
    settings = Settings(low_water=500, high_water=400)
    low, high = "file conf/x.toml", "option --high-water"
    with pytest.raises(SettingError) as caught:
        check(settings, {"low_water": low, "high_water": high})
    assert (caught.value.name, caught.value.source) == ("high_water", high)
    with pytest.raises(SettingError) as caught:
        check(settings, {"low_water": "environment COCOA_LOW_WATER", "high_water": low})
    assert (caught.value.name, caught.value.source) == ("low_water", "environment COCOA_LOW_WATER")
