"""A message is logged once."""

from __future__ import annotations

from cocoa_tornado.rules.once import Once


def test_a_key_is_first_once() -> None:
    once = Once(10)

    assert [once.is_first(key) for key in "abacb"] == [True, True, False, True, False]


def test_no_more_keys_are_remembered_than_allowed_and_the_oldest_go() -> None:
    once = Once(2)

    assert [once.is_first(key) for key in "abacab"] == [True, True, False, True, False, True]
    assert len(once._seen) == 2
