"""The URLs that name a mailbox."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.mailboxes.sqlite_url import sqlite_path
from cocoa_tornado.settings import TABLE

read = TABLE["mailbox"].kind.from_text


@pytest.mark.parametrize(
    "url",
    [
        "none://",
        "memory://",
        "sqlite:///box.db",
        "sqlite:///folder/box.db",
        "sqlite:////var/lib/cocoa/box.db",
        "sqlite:////var/lib/a%20blank.db",
        "redis://host",
        "redis://host:6379",
        "redis://host:6379/15",
        "redis://user:hunter2@host:6379/0",
        "rediss://[::1]:6380/0",
    ],
)
def test_a_url_of_a_mailbox_stays_as_it_is(url: str) -> None:
    assert read(url) == url
    assert read(read(url)) == url


def test_a_scheme_may_be_written_in_capitals() -> None:
    assert read(" Memory:// ") == "memory://"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "none",
        "memory",
        "memory://here",
        "sqlite://",
        "sqlite:///",
        "sqlite://box.db",
        "sqlite:///folder/",
        "sqlite:///box.db?mode=ro",
        "redis://",
        "redis://host:0",
        "redis://host:99999",
        "redis://host/db",
        "redis://host/0/1",
        "redis://host?db=1",
        "redis://us er@ho st",
        "file:///box",
        "postgres://host/db",
    ],
)
def test_anything_else_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^'.*': [a-z].*[^.]$"):
        read(url)


def test_three_slashes_are_relative_and_four_absolute() -> None:
    assert sqlite_path("sqlite:///box.db") == "box.db"
    assert sqlite_path("sqlite:////var/box.db") == "/var/box.db"
    assert sqlite_path("sqlite:///a%3Fb.db") == "a?b.db"


@given(st.text(max_size=60))
def test_no_text_breaks_the_check(text: str) -> None:
    for url in (text, f"sqlite:///{text}", f"redis://{text}"):
        with contextlib.suppress(ValueError):
            assert read(read(url))


def test_a_file_that_an_earlier_release_opened_may_have_any_blank_in_its_name() -> None:
    assert sqlite_path("sqlite:///a%E3%80%80b%C2%A0c.db") == "a\u3000b\xa0c.db"
    assert read("sqlite:///a\u3000b.db") == "sqlite:///a%E3%80%80b.db"
