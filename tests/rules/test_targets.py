"""Targets of request lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.targets import RequestTarget, split_target


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        ("http://gateway:8080/ws?token=a", "/ws?token=a", "gateway:8080"),
        ("HTTPS://gateway/ws", "/ws", "gateway"),
        ("http://[::1]:8080/ws", "/ws", "[::1]:8080"),
        ("http://gateway", "/", "gateway"),
        ("http://gateway?token=a", "/?token=a", "gateway"),
        ("http://gateway/ws?to=http://elsewhere/", "/ws?to=http://elsewhere/", "gateway"),
        ("http://gateway/ws#part", "/ws", "gateway"),
    ],
)
def test_a_target_in_absolute_form_is_a_path_and_a_host(target: str, path: str, host: str) -> None:
    assert split_target(target) == RequestTarget(path, host)


@pytest.mark.parametrize(
    "target", ["/ws", "/http://gateway/ws", "*", "gateway:443", "ftp://gateway/ws", "http:///ws", ""]
)
def test_any_other_target_stays_as_it_is(target: str) -> None:
    assert split_target(target) == RequestTarget(target)


@given(st.text())
def test_no_text_breaks_it_and_a_path_it_makes_begins_with_a_slash(text: str) -> None:
    target = split_target(text)
    assert target == RequestTarget(text) or target.path.startswith("/")
