"""Ids in paths and fields of queries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.admin.requests import (
    Invalid,
    Target,
    argument,
    id_of,
    read_selection,
    read_target,
    user_of,
    user_text,
    whole_number,
)
from cocoa_tornado.admin.rows import Selection


@pytest.mark.parametrize(
    ("text", "user_id"),
    [
        ("99", 99),
        ('"99"', "99"),
        ("-5", -5),
        ("0", 0),
        ("-0", 0),
        ("007", "007"),
        ("1.0", "1.0"),
        ("1e2", "1e2"),
        ("ann", "ann"),
        ('"ann"', "ann"),
        ('"ann', '"ann'),
        ('"a" b', '"a" b'),
        ("true", "true"),
        ("null", "null"),
        ("", ""),
        ('""', ""),
        (" 99", " 99"),
    ],
)
def test_a_user_is_an_integer_or_a_string(text: str, user_id: int | str) -> None:
    assert user_of(text) == user_id
    assert type(user_of(text)) is type(user_id)


@given(st.integers() | st.text(st.characters(exclude_categories=["Cs"])))
def test_a_user_id_is_read_as_it_is_written(user_id: int | str) -> None:
    assert user_of(user_text(user_id)) == user_id
    assert type(user_of(user_text(user_id))) is type(user_id)


def test_the_fields_of_a_selection_are_read() -> None:
    asked = {"user": [b"99"], "group": ["küche".encode()], "prefix": [b"do"], "after": [b"doll"], "limit": [b"1000"]}
    assert read_selection(asked) == Selection(user="99", group="küche", prefix="do", after="doll", limit=1000)
    assert read_selection({}) == Selection(limit=100)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *(("limit", [value]) for value in (b"0", b"1001", b"-1", b"1.5", b"", b"ten", b"1" * 400, "\uff11".encode())),
        *((name, [b"a", b"b"]) for name in ("user", "group", "prefix", "after", "limit")),
        *((name, [b"\xff"]) for name in ("user", "group", "prefix", "after", "limit")),
        ("group", [b""]),
        ("group", [b"g" * 129]),
        ("user", [b'"\\ud800"']),
    ],
)
def test_an_invalid_field_is_named(name: str, values: list[bytes]) -> None:
    with pytest.raises(Invalid) as caught:
        read_selection({name: values})
    assert (caught.value.name, str(caught.value)) == (name, f"Invalid {name}")


def test_a_field_that_is_absent_is_none() -> None:
    assert argument({}, "user") is None
    assert whole_number({}, "limit", 1, 5) is None


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("devices", "doll", "doll"),
        ("devices", "a/b", "a/b"),
        ("groups", "küche", "küche"),
        ("users", "99", "99"),
        ("users", '"99"', '"99"'),
        ("users", "ann", '"ann"'),
    ],
)
def test_a_target_is_read_from_a_path(kind: str, text: str, expected: str) -> None:
    assert read_target(kind, text) == Target(kind, expected)


@pytest.mark.parametrize("text", ["\udcff", "d" * 129, "a\nb", ""])
@pytest.mark.parametrize(("kind", "name"), [("devices", "device"), ("groups", "group")])
def test_what_can_be_no_id_is_invalid(kind: str, name: str, text: str) -> None:
    with pytest.raises(Invalid, match=name):
        read_target(kind, text)


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [("doll", [b"."], "doll"), ("-", [], "-"), ("-", [b".."], ".."), ("-", [b"-"], "-"), ("-", [b""], "")],
)
def test_an_id_that_no_path_can_have_is_in_the_query(text: str, query: list[bytes], expected: str) -> None:
    assert id_of(text, {"id": query} if query else {}) == expected


def test_a_user_that_is_no_text_is_invalid() -> None:
    with pytest.raises(Invalid, match="user"):
        read_target("users", "\udcff")
