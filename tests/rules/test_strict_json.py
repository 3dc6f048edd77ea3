"""JSON from untrusted senders."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.strict_json import NamedTwice, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@given(VALUES)
def test_what_was_written_is_read(value: object) -> None:
    assert read_json(json.dumps(value)) == value
    assert read_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    "text", ['{"a":1,"a":1}', '[{"a":{"b":1,"b":2}}]', '{"a":[{"x":1,"\\u0078":2}]}', '{"":1,"b":2,"":3}']
)
def test_a_member_that_is_named_twice_is_refused_at_any_depth(text: str) -> None:
    with pytest.raises(NamedTwice):
        read_json(text)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"NaN", b"[Infinity]", b"\xff", b"\xef\xbb\xbf{}", b"{}{}", b"[" * 100_000, b"9" * 10_000]
)
def test_what_is_no_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are json's
        read_json(data)
    assert not isinstance(caught.value, NamedTwice)
