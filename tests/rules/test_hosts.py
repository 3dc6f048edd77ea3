"""By which names the gateway may be asked."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cocoa_tornado.rules.hosts import AllowedHosts, allowed_hosts

LOCAL = allowed_hosts((), ("127.0.0.1", "::1"), is_development=True)
LISTED = allowed_hosts(("Gateway.Example.", "*.tunnel.example"), ("box.lan", "127.0.0.1"), is_development=False)


def passes(hosts: AllowedHosts, host: str | None, **headers: str) -> bool:
    return hosts.refused(host, {name.replace("_", "-"): value for name, value in headers.items()}) is None


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "localhost",
        "localhost:8080",
        "LocalHost.",
        "localhost.:8080",
        "app.localhost:3000",
        "127.0.0.1",
        "127.0.0.1:8080",
        "127.0.0.1.",
        "192.168.4.1:80",
        "0.0.0.0:8080",
        "[::1]",
        "[::1]:8080",
        "[FE80::1]:65535",
        "[::ffff:127.0.0.1]",
        "localhost:",
    ],
)
def test_local_names_and_addresses_pass_on_any_port(host: str | None) -> None:
    assert passes(LOCAL, host)
    assert passes(LISTED, host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "gateway.example.evil.example",
        "xgateway.example",
        "tunnel.example",
        "127.0.0.1.nip.io",
        "127.0.0.1.evil.example:8080",
        "localhost.evil.example",
        "localhost..",
        "evil.example.",
        "xlocalhost",
        "-.localhost.evil",
        ".localhost",
        "..localhost",
        "localhost@evil.example",
        "evil.example@localhost",
        "user:localhost@evil.example",
        "localhost,evil.example",
        "evil.example,localhost",
        "localhost evil.example",
        " localhost",
        "localhost\t",
        "localhost\n",
        "localhost/",
        "localhost\\@evil.example",
        "localhost#evil.example",
        "localhost?",
        "%6cocalhost",
        "localhost%00",
        "ⓛocalhost",
        "loca\u017fhost",
        "localhost:80:80",
        "localhost:http",
        "localhost:123456",
        "localhost:٨٠",
        ":8080",
        "[::1",
        "::1",
        "[::1]x",
        "[::1]evil.example",
        "[::1%25eth0]",
        "[127.0.0.1]",
        "[localhost]",
        "[]",
        # Browsers send these as 127.0.0.1, so that no client needs them.
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "127.1",
        "0177.0.0.1",
        "127.0.0.01",
        "127.0.0.256",
        "127.0.0.1.1",
        "*",
        "*.localhost",
    ],
)
def test_any_other_name_is_refused(host: str) -> None:
    assert LOCAL.refused(host, {}) == host
    assert LISTED.refused(host, {}) == host


@pytest.mark.parametrize(
    "host", ["gateway.example", "GATEWAY.example.:8443", "a.tunnel.example", "a.B.tunnel.example:1", "box.lan:8080"]
)
def test_listed_names_and_the_configured_ones_pass(host: str) -> None:
    assert passes(LISTED, host)
    assert not passes(LOCAL, host)


def test_without_a_list_every_name_passes_except_with_the_development_key() -> None:
    every = allowed_hosts((), ("0.0.0.0",), is_development=False)
    for host in (None, "gateway.example", "localhost", "[::1", "a b"):
        assert passes(every, host, x_forwarded_host="evil.example, [")
    assert not passes(LOCAL, "gateway.example")


def test_an_asterisk_turns_the_check_off() -> None:
    assert passes(allowed_hosts(("*",), (), is_development=True), "anything.example", forwarded="host=evil.example")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-host", "localhost, evil.example"),
        ("x-forwarded-host", "evil.example, localhost"),
        ("x-forwarded-host", ", evil.example:80"),
        ("forwarded", "host=evil.example"),
        ("forwarded", "for=127.0.0.1; Host = evil.example ;proto=http"),
        ("forwarded", 'for=_a;host="evil.example:8080", for=_b;host=localhost'),
        ("forwarded", "for=_b;host=localhost,host=evil.example"),
        ("forwarded", 'for="unclosed, host=evil.example'),
        ("forwarded", 'host="evil.example'),
        ("forwarded", 'host="local\\host"'),
    ],
)
def test_a_foreign_name_that_a_proxy_reports_is_refused_whatever_stands_beside_it(name: str, value: str) -> None:
    refused = LOCAL.refused("localhost", {name: value})
    assert refused is not None
    assert "evil.example" in refused or "\\" in refused


def test_a_forged_local_name_does_not_help_a_foreign_one() -> None:
    local = {"x-forwarded-host": "localhost", "forwarded": "host=127.0.0.1;for=127.0.0.1"}
    assert LOCAL.refused("evil.example", local) == "evil.example"
    assert LOCAL.refused("localhost:8080", local) is None
    assert LOCAL.refused(None, {"x-forwarded-host": "evil.example"}) == "evil.example"


def test_forwarded_without_a_name_changes_nothing() -> None:
    for value in ("", "for=192.0.2.1;proto=https", 'host=""', "ghost=evil.example"):
        assert passes(LOCAL, "localhost", forwarded=value, x_forwarded_host=" , ")


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_address_as_browsers_write_it_passes(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    if "%" not in host:
        assert passes(LOCAL, f"{host}:{port}")


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)


@given(
    st.lists(LABEL, min_size=1, max_size=4), LABEL.filter(lambda label: label != "localhost" and not label.isdigit())
)
@example(["127", "0", "0", "1"], "io")
@example(["localhost"], "example")
def test_no_name_below_another_top_level_domain_passes(labels: list[str], top: str) -> None:
    assert not passes(LOCAL, ".".join([*labels, top]))


PIECES = st.sampled_from(
    ["localhost", ".", ":", "[", "]", "::1", "127.0.0.1", "evil.example", "@", ",", "/", "\\", "%", " ", "80", "x", "é"]
)


@given(st.lists(PIECES, min_size=1, max_size=6).map("".join) | st.text(min_size=1))
@example("localhost@evil.example")
@example("[::1]:80.evil.example")
def test_what_passes_is_local_to_another_parser_too(host: str) -> None:
    if not passes(LOCAL, host):
        return
    name = (urlsplit(f"http://{host}/").hostname or "").removesuffix(".")
    assert name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name)
