"""The URLs of Redis."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.redis_store.redis_url import SentinelUrl, redis_scheme, sentinel_url

check = redis_scheme(instead="none://").check


@pytest.mark.parametrize(
    ("url", "meaning"),
    [
        ("redis+sentinel://one/main", SentinelUrl((("one", 26379),), "main")),
        (
            "redis+sentinel://one:1,[::1]:2,three/main/4",
            SentinelUrl((("one", 1), ("::1", 2), ("three", 26379)), "main", 4),
        ),
        ("redis+sentinel://:p%40ss@one/main/0", SentinelUrl((("one", 26379),), "main", 0, None, "p@ss")),
        (
            "redis+sentinel://gate:word@one,two/a%20b",
            SentinelUrl((("one", 26379), ("two", 26379)), "a b", 0, "gate", "word"),
        ),
    ],
)
def test_a_url_of_sentinels_names_them_and_their_master(url: str, meaning: SentinelUrl) -> None:
    assert check(url) == url
    assert sentinel_url(url) == meaning


def test_a_url_of_one_server_names_no_sentinel() -> None:
    assert sentinel_url("redis://host:6379/0") is None


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://",
        "redis+sentinel://one",
        "redis+sentinel:///main",
        "redis+sentinel://one,/main",
        "redis+sentinel://one:0/main",
        "redis+sentinel://one:x/main",
        "redis+sentinel://one/main/x",
        "redis+sentinel://one/main/0/1",
        "redis+sentinel://one/main?db=1",
        "redis+sentinel://one/main#1",
        "redis://one,two/0",
    ],
)
def test_anything_else_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^[a-z]"):
        check(url)


def test_neither_a_repr_nor_an_error_shows_the_password() -> None:
    assert "hunter2" not in repr(sentinel_url("redis+sentinel://me:hunter2@one/main"))
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        check("redis+sentinel://me:hunter2@one:x/main")
    assert "hunter2" not in str(raised.value)


@given(st.text(max_size=60))
def test_no_text_breaks_the_check(text: str) -> None:
    for url in (text, f"redis://{text}", f"redis+sentinel://{text}", f"redis+sentinel://one/{text}"):
        with contextlib.suppress(ValueError):
            assert check(check(url)) == check(url)
