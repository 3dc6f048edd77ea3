"""Durations as people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.durations import parse_duration_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("2s", 2.0),
        ("90s", 90.0),
        ("15m", 900.0),
        ("24h", 86400.0),
        ("7d", 604800.0),
        ("1h30m", 5400.0),
        ("1d2h3m4s5ms", 93784.005),
        ("1.5h", 5400.0),
        ("10", 10.0),
        ("0.5", 0.5),
        ("0s", 0.0),
        (" 2s ", 2.0),
    ],
)
def test_a_duration_is_read_as_seconds(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        "1x",
        "1h 2m",
        "30m1h",
        "1s1s",
        "1e3",
        "nan",
        "inf",
        "-1h",
        "+1h",
        "1H",
        "1mm",
        "٣s",
        ".5s",
        "9" * 400,
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="1h30m") as caught:
        parse_duration_s(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_minus_is_read_only_where_it_is_asked_for() -> None:
    assert parse_duration_s("-1h30m", negative=True) == -5400
    assert math.copysign(1, parse_duration_s("-0s", negative=True)) == 1
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration_s("--1h", negative=True)


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        seconds = parse_duration_s(text, negative=True)
    except ValueError:
        return
    assert math.isfinite(seconds)


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_the_units_add_up(d: int, h: int, m: int, s: int, ms: int) -> None:
    assert parse_duration_s(f"{d}d{h}h{m}m{s}s{ms}ms") == pytest.approx(86400 * d + 3600 * h + 60 * m + s + ms / 1000)
