"""URLs as people type them."""

from __future__ import annotations

import socket
import ssl
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.probe.target import Target, connect_problem, parse_target, tls_context
from cocoa_tornado.probe.verdicts import ProbeError


@pytest.mark.parametrize(
    ("url", "ws_url"),
    [
        ("ws://host", "ws://host/ws"),
        ("ws://host:8080/ws", "ws://host:8080/ws"),
        ("http://host:80/", "ws://host/ws"),
        ("https://host:443", "wss://host/ws"),
        ("wss://host:80/ws/", "wss://host:80/ws"),
        ("HTTPS://Host/gateway/", "wss://host/gateway/ws"),
        ("https://host/gateway/ws", "wss://host/gateway/ws"),
        ("https://host/laws", "wss://host/laws/ws"),
        ("localhost:8080", "ws://localhost:8080/ws"),
        ("ws://[::1]:8080", "ws://[::1]:8080/ws"),
        ("ws://host/a%20b", "ws://host/a%20b/ws"),
        ("ws://b\u00fccher.example", "ws://xn--bcher-kva.example/ws"),
    ],
)
def test_a_url_leads_to_the_websocket_route(url: str, ws_url: str) -> None:
    target, token = parse_target(url)

    assert target.ws_url == ws_url
    assert token is None


def test_routes_stand_below_the_base_of_the_url() -> None:
    target, _ = parse_target("https://host/gateway/ws")
    assert target.path("/api/v1/health") == "/gateway/api/v1/health"


def test_a_token_in_the_url_is_taken_out_of_it() -> None:
    target, token = parse_target("ws://host/ws?token=a.b.c")

    assert token == "a.b.c"
    assert "a.b.c" not in repr(target) + target.ws_url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ws://",
        "ftp://host",
        "ws://host:99999",
        "ws://host:x",
        "ws://[::1",
        "ws://user:pw@host",
        "ws://host/#top",
        "ws://host?after=1",
        "ws://host?token=a&token=b",
        "ws://ho st",
        "ws://host/\x7f",
    ],
)
def test_what_is_no_url_of_a_gateway_is_refused(url: str) -> None:
    with pytest.raises(ProbeError):
        parse_target(url)


@pytest.mark.parametrize(
    "url",
    [
        *("wss://user:hunter2@h:99999/ws", "ws://h:99999/?token=hunter2", "ftp://u:hunter2@h/?token=hunter2"),
        *("ws://h h/?token=hunter2", "ws://u:hun/hunter2@h:x/", "user:hunter2@h:port"),
        *("ws://user:hunter2/x@h:1/", "ws://user:hunter2?x@h", "ws://user:hunter2#x@h", "ws://h:99999/#token=hunter2"),
        *("ws://u:x?token=hunter2@h", "ws://u:hunter2\uff20h/", "http://u:hunter2@[::1/", "ws://u:hunter2@a..b"),
    ],
)
def test_a_url_that_is_none_shows_neither_password_nor_token(url: str) -> None:
    with pytest.raises(ProbeError) as caught:
        parse_target(url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_refused_url_does_not_show_its_password() -> None:
    with pytest.raises(ProbeError) as caught:
        parse_target("ws://user:hunter2@host")
    assert "hunter2" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_target_or_refused(text: str) -> None:
    try:
        target, _ = parse_target(text)
    except ProbeError:
        return
    assert (target.ws_url + target.path("/api")).isascii()
    assert not any(char in target.ws_url for char in " \r\n")


def test_a_file_without_certificates_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    with pytest.raises(ProbeError, match=r"ca\.pem: cannot read certificates"):
        tls_context(file, insecure=False)


def test_only_insecure_believes_anybody() -> None:
    assert tls_context(None, insecure=False).verify_mode is ssl.CERT_REQUIRED
    assert tls_context(None, insecure=True).verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (TimeoutError(), "no answer in time"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "ws://"),
        (ssl.SSLCertVerificationError(1, "self-signed certificate"), "--insecure"),
        (OSError("Multiple exceptions: [Errno 111] Connect (1), [Errno 111] Connect (2)"), ": Connection refused"),
        (OSError("Multiple exceptions: [Errno 111] Connect (1), [Errno 101] Connect (2)"), "Multiple exceptions"),
        (OSError(113, "No route to host"), "No route to host"),
    ],
)
def test_a_failed_connection_is_explained_in_one_line(error: OSError, words: str) -> None:
    line = connect_problem(Target("host", 8080, secure=False), error)

    assert words in line
    assert "host:8080" in line
    assert "\n" not in line
