"""Browser origins, and clients behind proxies."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.origins import (
    Caller,
    client_address,
    find_caller,
    host_name,
    origin_allowed,
    read_origin,
)

from ..profiles import examples

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


@pytest.mark.parametrize(
    "origin",
    [
        "file://",  # arduinoWebSockets (Links2004), unless the firmware sets another
        "FILE:///",
        " file:// ",
        "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb",
        "moz-extension://6c2e3a4e-6c2e-4a4e-9c2e-3a4e6c2e3a4e",
        "capacitor://localhost",
        "app://.",
        "ws://192.168.4.1",
        "android-app://com.example.doll/main",
    ],
)
def test_an_origin_of_a_scheme_that_is_no_web_pages_passes(origin: str) -> None:
    assert origin_allowed(origin, HOST, ())


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "NULL",
        "https://github.com/gilmaimon/TinyWebsockets",
        "HTTPS://evil.example",
        " https://evil.example",
        "\thttp://evil.example",
        "http:evil.example",
        "http:/evil.example",
        "https:\\\\evil.example",
        "httpx://evil.example",
        "http+unix://evil.example",
        "evil.example",
        "evil.example:443",
        "//evil.example",
        "data:text/html,x",
        "file:",
    ],
)
def test_what_begins_like_a_web_pages_origin_or_has_no_scheme_is_judged_as_a_web_pages(origin: str) -> None:
    assert not origin_allowed(origin, HOST, ())


@pytest.mark.parametrize("allowed", [(), ("*",), ("null", "*")])
@pytest.mark.parametrize(
    "origin",
    [
        "",
        " ",
        "file://,file://",  # two headers, as they are joined
        "file://, https://evil.example",
        "http://gateway.example,http://gateway.example",
        "http://gateway.example http://evil.example",
        "http://evil.example@gateway.example",
        "http://gateway.example\\@evil.example",
        "http://gateway.example#@evil.example",
        "http://gateway.example?x",
        "http://gateway.example:port",
        "http://gateway.example\x00",
        "\xa0http://gateway.example",
        "file://\r\n",
        "://",
        "1x://a",
        "http://",
        "https:///path",
    ],
)
def test_what_cannot_be_parsed_is_refused_whatever_is_listed(origin: str, allowed: tuple[str, ...]) -> None:
    assert not origin_allowed(origin, HOST, allowed)


def test_a_web_pages_origin_may_have_a_path_and_is_judged_by_its_host() -> None:
    assert origin_allowed("https://gateway.example/firmware", HOST, ())
    assert not origin_allowed("https://evil.example/gateway.example", HOST, ())


@pytest.mark.parametrize(
    ("entry", "origin", "passes"),
    [
        ("https://github.com/gilmaimon/TinyWebsockets", "https://github.com/gilmaimon/TinyWebsockets", True),
        ("https://github.com/gilmaimon/TinyWebsockets", "https://github.com", False),
        ("https://github.com", "https://github.com/gilmaimon/TinyWebsockets", False),
        ("file://", "http://evil.example", False),
        ("null", "http://null", False),
        ("null", "null:80", False),
    ],
)
def test_an_entry_may_have_a_path_or_any_scheme_and_is_compared_whole(entry: str, origin: str, passes: bool) -> None:
    assert origin_allowed(origin, HOST, [entry]) is passes


@examples(300)
@given(st.sampled_from(["http", "HTTPS", "https:", "http://", " http", "https://x"]), st.text(max_size=30))
def test_nothing_that_begins_with_http_passes_unlisted_but_the_servers_own_host(start: str, rest: str) -> None:
    origin = start + rest
    if origin_allowed(origin, HOST, ()):
        read = read_origin(origin)
        assert read is not None
        assert read.host == "gateway.example"


@given(st.from_regex(r"[a-z][a-z0-9+.-]{0,8}://[a-z0-9.-]{1,20}(:[0-9]{1,5})?(/[a-z]{0,5})?", fullmatch=True))
def test_reading_a_result_again_gives_the_same(text: str) -> None:
    read = read_origin(text)
    if read is not None:
        spelled = f"{read.scheme}://{read.host}{':' if read.port else ''}{read.port}{read.path}"
        assert read_origin(f" {spelled.upper()} ") == read


@given(st.text(max_size=30), st.lists(st.sampled_from(["*", "null", "app.example", "file://"])))
def test_a_comma_is_refused(text: str, allowed: list[str]) -> None:
    assert not origin_allowed(f"{text},file://", HOST, allowed)


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


FORWARDED = {
    "x-forwarded-for": "192.0.2.1, 192.0.2.2",
    "x-forwarded-proto": "http, HTTPS",
    "x-forwarded-host": "a.example, b.example ",
}


def test_the_header_of_a_trusted_proxy_counts() -> None:
    trusted = [ip_network("10.0.0.0/8")]
    assert find_caller("10.0.0.1", HOST, FORWARDED, trusted) == Caller("192.0.2.2", "b.example", "https")
    assert find_caller("10.0.0.1", HOST, {}, trusted) == Caller("10.0.0.1", HOST)
    assert find_caller("10.0.0.1", HOST, {"x-forwarded-proto": "ws"}, trusted) == Caller("10.0.0.1", HOST)


def test_the_header_of_any_other_peer_does_not() -> None:
    assert find_caller("192.0.2.9", HOST, FORWARDED, [ip_network("10.0.0.0/8")]) == Caller("192.0.2.9", HOST)
    assert find_caller("10.0.0.1", HOST, FORWARDED, ()) == Caller("10.0.0.1", HOST)
