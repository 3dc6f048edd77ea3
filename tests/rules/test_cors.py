"""Which web pages may read an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.cors import ROUTES, cors_headers

PAGE = "https://app.example"
ORIGIN = "Access-Control-Allow-Origin"


@pytest.mark.parametrize("path", ROUTES)
def test_a_listed_origin_is_echoed_and_may_read_why_it_was_refused(path: str) -> None:
    headers = cors_headers(path, "POST", PAGE, [PAGE])
    assert headers == {
        "Vary": "Origin",
        ORIGIN: PAGE,
        "Access-Control-Expose-Headers": "Retry-After, WWW-Authenticate",
    }


@pytest.mark.parametrize("path", ROUTES)
def test_a_preflight_lists_what_may_be_sent(path: str) -> None:
    headers = cors_headers(path, "OPTIONS", PAGE, [PAGE])
    assert headers[ORIGIN] == PAGE
    assert ("GET" if path == "/ws" else "POST") in headers["Access-Control-Allow-Methods"].split(", ")
    assert {"Authorization", "Content-Type", "X-API-Key", "X-API-Secret"} == set(
        headers["Access-Control-Allow-Headers"].split(", ")
    )
    assert headers["Access-Control-Max-Age"] == "600"


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/v1/health", "/api/v1/ready", "/api/v1/admin/devices", "/ws/"])
def test_no_other_path_has_cors_headers(path: str) -> None:
    assert cors_headers(path, "GET", PAGE, ["*", PAGE]) == {}


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, [PAGE, "*"]),
        ("null", ["null", "*"]),
        ("file://", ["file://", "*"]),
        ("chrome-extension://abc", ["*"]),
        ("app.example", ["app.example", "*"]),  # no scheme: firmware
        ("https://app.example/path", ["https://app.example/path", "*"]),
        ("https://app.example, https://app.example", [PAGE, "*"]),
        ("https://evil.example", [PAGE]),
        ("http://app.example", [PAGE]),
        ("https://app.example", []),
        ("", ["*"]),
    ],
)
def test_nothing_else_is_ever_echoed_and_vary_is_always_sent(origin: str | None, allowed: list[str]) -> None:
    for method in ("GET", "OPTIONS"):
        assert cors_headers("/ws", method, origin, allowed) == {"Vary": "Origin"}


@pytest.mark.parametrize("entry", ["*", "app.example", "https://*.example", "HTTPS://APP.example/"])
def test_every_kind_of_entry_lists_an_origin_and_a_star_lists_all(entry: str) -> None:
    assert cors_headers("/ws", "GET", PAGE, [entry])[ORIGIN] == PAGE


@given(st.text(), st.lists(st.one_of(st.text(), st.just("*"))), st.sampled_from(["GET", "OPTIONS", "POST"]))
def test_no_header_is_ever_a_star_null_or_broken_in_two(origin: str, allowed: list[str], method: str) -> None:
    headers = cors_headers("/ws", method, origin, allowed)
    assert not any(value in ("*", "null") or not value.isprintable() for value in headers.values())
    assert "Access-Control-Allow-Credentials" not in headers
