"""Centrifugo's settings in the environment."""

from __future__ import annotations

import json

from bench.contenders.centrifugo import configuration, variables

SETTINGS = configuration(8443, "127.0.0.1:9092", "results", "group", "a secret")


def test_the_environment_has_each_setting_under_its_full_name() -> None:
    found = dict(variables({"log": {"level": "error"}, "client": {"token": {"audience": "a b"}, "insecure": False}}))
    assert found == {
        "CENTRIFUGO_LOG_LEVEL": "error",
        "CENTRIFUGO_CLIENT_TOKEN_AUDIENCE": "a b",
        "CENTRIFUGO_CLIENT_INSECURE": "false",
    }


def test_consumers_are_one_variable_of_json() -> None:
    (consumer,) = json.loads(dict(variables(SETTINGS))["CENTRIFUGO_CONSUMERS"])
    kafka = consumer["kafka"]
    assert (kafka["brokers"], kafka["topics"], kafka["consumer_group"]) == (["127.0.0.1:9092"], ["results"], "group")
    assert kafka["publication_data_mode"]["enabled"]


def test_it_listens_on_the_given_port_and_verifies_with_the_secret() -> None:
    found = dict(variables(SETTINGS))
    assert found["CENTRIFUGO_HTTP_SERVER_PORT"] == "8443"
    assert found["CENTRIFUGO_CLIENT_TOKEN_HMAC_SECRET_KEY"] == "a secret"


def test_it_logs_errors_only_and_has_neither_admin_page_nor_metrics() -> None:
    assert SETTINGS["log"] == {"level": "error"}
    assert SETTINGS.keys().isdisjoint({"admin", "prometheus", "swagger", "debug"})


def test_devices_get_one_kind_of_ping_and_no_frame_with_several_messages() -> None:
    interval, timeout = (SETTINGS["client"][name] for name in ("ping_interval", "pong_timeout"))
    assert interval.startswith("-")
    assert timeout.startswith("-")
    assert "join_push_messages" not in SETTINGS["uni_websocket"]
