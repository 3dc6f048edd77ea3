"""JSON that is read so that it can be written again as it was."""

from __future__ import annotations

import msgspec
import pytest

from cocoa_tornado.rules.lossless_json import MAX_NESTING, Repeating, is_too_deep, parse


def test_a_number_keeps_its_spelling() -> None:
    for spelling in ("1.0", "1e400", "-0", "9" * 5_000):
        assert msgspec.json.encode(parse(f"[{spelling}]")) == f"[{spelling}]".encode()


def test_an_object_that_repeats_a_name_is_marked_at_any_depth() -> None:
    outer = parse('{"a":{"b":1},"c":{"b":"x","d":null,"b":"y"}}')
    assert isinstance(outer, dict)
    assert not isinstance(outer, Repeating)
    assert not isinstance(outer["a"], Repeating)
    assert isinstance(outer["c"], Repeating)
    assert (outer["c"], outer["c"].values_of("b"), outer["c"].values_of("e")) == ({"b": "y", "d": None}, ["x", "y"], [])


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "\ufeff1", "1 2", "", "01", "'a'"])
def test_what_rfc_8259_does_not_allow_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(Expecting|Extra|\S+ is not JSON)"):
        parse(text)


def test_it_is_too_deep_beyond_64_levels_and_brackets_in_strings_are_none() -> None:
    assert not is_too_deep("[" * MAX_NESTING + "]" * MAX_NESTING)
    assert is_too_deep("[" * (MAX_NESTING + 1))
    assert not is_too_deep("[]" * 1_000)
    assert not is_too_deep('"' + "[" * 1_000 + '"')
