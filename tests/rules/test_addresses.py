from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.addresses import (
    is_authority,
    is_every_address,
    is_host,
    is_loopback,
    is_web_url,
    kafka_servers,
    masked,
    without_user_info,
)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "localhost", "LOCALHOST."])
def test_loopback_is_what_only_this_machine_can_reach(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "gateway", "localhost.example", "127.0.0.1.example", ""]
)
def test_a_name_other_than_localhost_is_not_believed_to_be_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("text", ["0.0.0.0", "::", "fe80::1%eth0", "gateway", "a-b.example", "host_1", "example."])
def test_a_host_is_an_address_or_a_name(text: str) -> None:
    assert is_host(text)


@pytest.mark.parametrize(
    "text", ["", "1.2.3.400", "1.2.3", "a b", "-a", "a..b", "host:80", "http://host", "[::1]", "a" * 254]
)
def test_a_mistyped_address_is_no_host(text: str) -> None:
    assert not is_host(text)


@pytest.mark.parametrize("text", ["host", "host:80", "1.2.3.4:80", "[::1]", "[::1]:80"])
def test_an_authority_is_a_host_with_or_without_a_port(text: str) -> None:
    assert is_authority(text)


@pytest.mark.parametrize("text", ["", ":80", "host:", "host:0", "host:65536", "::1", "[host]:80", "host:80:80"])
def test_an_authority_with_a_wrong_port_or_without_brackets_is_none(text: str) -> None:
    assert not is_authority(text)


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("kafka://one", ("one:9092",)),
        ("kafka://one:9093/", ("one:9093",)),
        ("KAFKA://one, two:1", ("one:9092", "two:1")),
        ("kafka://[::1],[fd00::2]:9093", ("[::1]:9092", "[fd00::2]:9093")),
    ],
)
def test_kafka_servers_get_the_default_port(url: str, servers: tuple[str, ...]) -> None:
    assert kafka_servers(url) == servers


@pytest.mark.parametrize(
    "url", ["kafka://", "kafka:one", "kafka://one,", "kafka://::1", "kafka://a:x", "amqp://one", ""]
)
def test_a_url_that_names_no_kafka_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"is not a supported broker|invalid host or port"):
        kafka_servers(url)


@pytest.mark.parametrize("url", ["http://a", "https://a.example:8443/x?y", "http://[::1]:80/"])
def test_a_web_url_is_http_or_https_with_a_host(url: str) -> None:
    assert is_web_url(url)


@pytest.mark.parametrize("url", ["", "a.example", "ftp://a", "http://", "http://a:99999", "http://[::1", "http://a\n"])
def test_other_urls_are_no_web_urls(url: str) -> None:
    assert not is_web_url(url)


def test_the_password_of_a_url_is_replaced() -> None:
    assert without_user_info("redis://user:pa@ss@host:1/0") == "redis://***@host:1/0"
    assert without_user_info("https://host/@path") == "https://host/@path"


@given(st.text())
def test_any_text_is_judged_without_another_error(text: str) -> None:
    is_host(text), is_authority(text), is_web_url(text), is_loopback(text)
    try:
        servers = kafka_servers(f"kafka://{text}")
    except ValueError:
        return
    assert kafka_servers(f"kafka://{','.join(servers)}") == servers


@pytest.mark.parametrize(
    "text",
    [
        *("redis://:hun/ter2@host/0", "redis://u:hun#ter2@w@h/0", "redis:/u:hunter2@h/0", "redis:u:hunter2@h/0"),
        *("https://u:hun/ter2@h/", "u:hunter2@h", "kafka://u:hunter2@h:1\n,g:2", "wss://u:hunter2@h:99999/ws"),
    ],
)
def test_what_was_meant_as_a_url_shows_no_password(text: str) -> None:
    assert "ter2" not in masked(text)
    assert "***@" in masked(text)


@pytest.mark.parametrize(
    "text", ["https://u:hunter2", "redis://:hunter2/0", "redis://u:hunter2%40h/0", "redis://u:hunter2\uff20h/0"]
)
def test_a_password_without_its_at_sign_is_not_shown_as_the_port(text: str) -> None:
    assert "ter2" not in masked(text)
    assert "//" in masked(text)


def test_what_has_no_user_is_shown_as_it_is() -> None:
    texts = ("redis://host:1/0", "redis://h:99999?x", "kafka://a:1,b:2", "http://[::1]:x/", "ws://h:", "http://a b/")
    for text in (*texts, "/etc/keys/a@b.pem", "a@b", ""):
        assert masked(text) == text


@pytest.mark.parametrize("host", ["::", "0:0:0:0:0:0:0:0", "0::0", ""])
def test_every_address_is_meant_and_that_is_not_loopback(host: str) -> None:
    assert is_every_address(host)
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::1", "::ffff:0.0.0.0", "localhost", "gateway.example"])
def test_an_address_is_not_every_address(host: str) -> None:
    assert not is_every_address(host)
