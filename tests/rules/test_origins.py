"""Browser origins, and clients behind proxies."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.origins import client_address, host_name, origin_allowed

HOST = "gateway.example:8080"


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "http://gateway.example",
        "https://gateway.example:9999",
        "gateway.example",
        "gateway.example:1",
        "HTTPS://Gateway.Example",
    ],
)
def test_no_origin_and_the_servers_own_host_pass_whatever_scheme_and_port(origin: str | None) -> None:
    assert origin_allowed(origin, HOST, ())


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        "https://gateway.example.evil.com",
        "https://evil.com/gateway.example",
        "http://[broken",
        "https://xgateway.example",
        "https://gateway.example@evil.com",
    ],
)
def test_a_foreign_origin_does_not_pass(origin: str) -> None:
    assert not origin_allowed(origin, HOST, ())


@pytest.mark.parametrize(
    ("entry", "origin", "passes"),
    [
        ("https://app.example", "https://app.example", True),
        ("https://app.example/", "https://APP.example", True),
        ("https://app.example", "http://app.example", False),
        ("https://app.example", "https://app.example:8443", False),
        ("app.example", "http://app.example:3000", True),
        ("https://*.app.example", "https://a.app.example", True),
        ("https://*.app.example", "https://app.example", False),
        ("https://*.app.example", "http://a.app.example", False),
        ("*", "null", True),
        ("null", "null", True),
    ],
)
def test_the_allow_list(entry: str, origin: str, passes: bool) -> None:
    assert origin_allowed(origin, HOST, [entry]) is passes


def test_host_name_understands_ipv6() -> None:
    assert host_name("http://[::1]:8080") == "::1"
    assert origin_allowed("http://[::1]:3000", "[::1]:8080", ())


@given(st.text(), st.text(), st.lists(st.text(), max_size=3))
def test_no_header_value_raises(origin: str, host: str, allowed: list[str]) -> None:
    origin_allowed(origin, host, allowed)


PROXIES = [ip_network("10.0.0.0/8"), ip_network("::1/128")]


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9, garbage", "10.0.0.1"),
        ("::1", "2001:db8::7", "2001:db8::7"),
        ("::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
    ],
)
def test_forwarded_addresses_count_only_from_a_trusted_proxy(peer: str, header: str | None, client: str) -> None:
    assert client_address(peer, header, PROXIES) == client
