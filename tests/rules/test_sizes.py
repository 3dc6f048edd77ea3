from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.sizes import format_size, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1024B", 1024),
        ("512KiB", 524_288),
        ("1MiB", 1_048_576),
        ("2GiB", 2_147_483_648),
        ("10kB", 10_000),
        ("10MB", 10_000_000),
        ("1GB", 1_000_000_000),
        (" 1mib ", 1_048_576),
    ],
)
def test_a_size_is_a_whole_number_with_a_unit(text: str, size_bytes: int) -> None:
    assert parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "KiB", "1K", "1M", "-1", "+1", "1.5MiB", "1 MiB", "1_000", "0x10", "1TiB", "\u0661", "9" * 5000]
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write it like 512KiB") as caught:
        parse_size_bytes(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@given(st.integers(0, 2**50))
def test_what_format_size_writes_is_read_back_exactly(size_bytes: int) -> None:
    assert parse_size_bytes(format_size(size_bytes)) == size_bytes


@given(st.text())
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        assert parse_size_bytes(text) >= 0
    except ValueError as error:
        problem = str(error)
    else:
        return
    assert "is not a size" in problem
