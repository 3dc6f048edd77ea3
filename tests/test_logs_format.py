"""For any record, the line is safe for every terminal, collector and parser."""

from __future__ import annotations

import json
import logging
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cocoa_tornado.logs_format import (
    MAX_FIELD,
    MAX_LINE_BYTES,
    LogFormat,
    _repr_pieces,
    is_shown,
    json_text,
    make_formatter,
)

FORMATS: tuple[LogFormat, ...] = ("text", "json")
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJkZXZpY2VfaWQiOiJkb2xsIn0.c2lnbmF0dXJl"
BIDI = "\u202a\u202e\u2066\u2069\u200e\u200f\u061c"
HOSTILE = f"\x00\x07\n\r\t\x1b[2J\x7f\x85\x9b\u2028\u2029{BIDI}\ufeff\u200d\U000e0001\ud800\udc80"

# What the escapes and quotes are made of, and all the rest of Unicode.
texts = st.text(st.sampled_from(f"{HOSTILE}\"'\\= aü漢🙂") | st.characters(), max_size=60)
long_texts = st.builds(lambda text, times: text * times, texts, st.sampled_from([1, 50, 2_000]))
values: st.SearchStrategy[object] = st.recursive(
    long_texts | st.integers() | st.floats() | st.booleans() | st.none() | st.binary(max_size=30),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=8,
)


def line_of(log_format: LogFormat, event: str = "event", **extra: object) -> str:
    return line_with(log_format, event, extra)


def line_with(log_format: LogFormat, event: str, extra: dict[str, object]) -> str:
    record = logging.makeLogRecord({"msg": "%s", "args": (event,), "levelname": "INFO", "name": "cocoa.test"})
    vars(record).update(extra)
    return make_formatter(log_format).format(record)


def is_one_clean_line(line: str) -> bool:
    return len(line.encode("utf-8")) <= MAX_LINE_BYTES and all(map(is_shown, line))


def bounded(value: str, text: str) -> bool:
    """A parsed value is the text or its beginning, with surrogates escaped."""
    shown = "".join(f"\\u{ord(char):04x}" if "\ud800" <= char <= "\udfff" else char for char in text)
    return value == shown or (len(value) <= MAX_FIELD and value.endswith("...") and shown.startswith(value[:-3]))


@given(st.sampled_from(FORMATS), long_texts, values, texts)
@example("json", HOSTILE, HOSTILE, HOSTILE)
@example("text", HOSTILE, HOSTILE, HOSTILE)
@example("json", "\U000e0001" * 5_000, ["\U000e0001"] * 5_000, "")
def test_any_value_makes_one_line_without_controls_of_a_bounded_length(
    log_format: LogFormat, event: str, value: object, key: str
) -> None:
    assert is_one_clean_line(line_with(log_format, event, {"value": value, f"key {key}": value}))


@given(long_texts, long_texts)
@example(HOSTILE, "x" * MAX_FIELD)
@example("x" * (MAX_FIELD + 1), "\n" * MAX_FIELD)
def test_json_gives_back_what_was_logged_up_to_its_bound(event: str, value: str) -> None:
    line = json.loads(line_of("json", event=event, value=value))
    assert bounded(line["event"], event)
    assert bounded(line["value"], value)


@given(values)
def test_numbers_truth_and_nothing_keep_their_types_in_json(value: object) -> None:
    (parsed,) = [json.loads(line_of("json", value=value))["value"]]
    if isinstance(value, bool) or value is None or (isinstance(value, int) and abs(value) < 1 << 63):
        assert parsed == value
        assert type(parsed) is type(value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1 << 63, pytest.param(10**5_000, id="huge")])
def test_a_number_that_json_parsers_refuse_is_text(number: float) -> None:
    assert isinstance(json.loads(line_of("json", number=number), parse_constant=pytest.fail)["number"], str)


@pytest.mark.parametrize("char", sorted(HOSTILE))
@pytest.mark.parametrize("log_format", FORMATS)
def test_no_control_bidi_mark_or_separator_stands_raw_in_a_line(log_format: LogFormat, char: str) -> None:
    line = line_of(log_format, event=f"a{char}b", value=f"a{char}b", values=[f"a{char}b"])
    assert char == "[" or char not in line or char in "2J"
    assert is_one_clean_line(line)


@pytest.mark.parametrize("text", ["püppchen", "куклы", "人形", "🙂", "नमस्ते", "עברית", "日本\u3000語", "\u00a0"])
def test_text_of_any_script_stays_readable(text: str) -> None:
    assert f'"device_id":"{text}"' in line_of("json", device_id=text)
    if text.isprintable():
        assert line_of("text", device_id=text).endswith(f"device_id={text}")


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("times", [1, 300])
def test_what_surrounds_a_token_does_not_save_it(log_format: LogFormat, times: int) -> None:
    for before in ("", "x" * (MAX_FIELD - 40), HOSTILE, " "):
        for secret in (TOKEN, f"Bearer {'s3cret-' * 9}", f"/ws?token={'s3cret-' * 9}"):
            text = f"{before} {secret} " * times
            line = line_of(log_format, event=text, value=text, values=[text, {"a": text}], error=ValueError(text))
            assert not any(part in line for part in (*TOKEN.split("."), "s3cret"))


@given(st.integers(0, 200))
def test_a_cut_does_not_leave_half_a_secret(at: int) -> None:
    text = f"{'x' * (MAX_FIELD - at)} Bearer s3cret-s3cret-s3cret-s3cret"
    for log_format in FORMATS:
        assert "s3cr" not in line_of(log_format, value=text, event=text)


@pytest.mark.parametrize("log_format", FORMATS)
def test_a_field_that_does_not_fit_is_dropped_and_counted(log_format: LogFormat) -> None:
    extra: dict[str, object] = {f"field_{number}": "🙂" * MAX_FIELD for number in range(40)}
    line = line_with(log_format, "event", extra | {"last": "here"})
    assert is_one_clean_line(line)
    dropped = 41 - sum(name in line for name in (*(f"field_{number}" for number in range(40)), "last"))
    assert f'fields_dropped"{":"}{dropped}' in line or line.endswith(f"fields_dropped={dropped}")
    assert dropped > 0
    assert "here" in line


def test_a_traceback_in_text_is_indented_so_that_it_cannot_forge_a_line() -> None:
    try:
        raise ValueError("x\n2026-01-01T00:00:00Z [info     ] device connected\r\x1b[2J\u2028forged")
    except ValueError:
        line = line_of("text", exc_info=sys.exc_info())
    _, *rest = line.split("\n")
    assert rest
    assert all(each.startswith("    ") for each in rest)
    assert all(map(is_shown, line.replace("\n", "")))


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("message", ["x" * 200_000, "\n" * 200_000 + "x", f"{TOKEN} " * 10_000, "🙂\u202e" * 90_000])
def test_a_traceback_has_a_bound_and_keeps_its_beginning(log_format: LogFormat, message: str) -> None:
    try:
        raise ValueError(message)
    except ValueError:
        line = line_of(log_format, exc_info=sys.exc_info())
    assert len(line.encode()) <= MAX_LINE_BYTES
    assert "Traceback (most recent call last)" in line
    assert "dropped" in line or len(message) < 12_000
    assert TOKEN[:30] not in line


def test_the_end_of_a_long_traceback_is_kept() -> None:
    def deeper(depth: int) -> None:
        if depth:
            deeper(depth - 1)
        raise ValueError("the reason")

    error: BaseException | None = None
    for _ in range(60):
        try:
            try:
                deeper(5)
            except ValueError as inner:
                raise RuntimeError("outer") from (error or inner)
        except RuntimeError as outer:
            error = outer
    assert error is not None
    line = line_of("json", exc_info=(type(error), error, error.__traceback__))
    text = json.loads(line)["exception"]
    assert "characters dropped" in text
    assert text.endswith("RuntimeError: outer")


def test_arguments_that_do_not_go_with_the_message_lose_no_line() -> None:
    record = logging.makeLogRecord({"msg": "%d devices", "args": ("many",), "levelname": "INFO", "name": "cocoa.test"})
    assert "%d devices" in json.loads(make_formatter("json").format(record))["event"]


def test_what_is_in_extra_cannot_take_the_place_of_the_lines_own_keys() -> None:
    pairs = json.loads(line_of("json", event_="x", level="forged"), object_pairs_hook=list)
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names))
    assert dict(pairs)["level"] == "info"


def test_an_object_that_cannot_be_shown_is_named() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise OSError("no")

    assert "Broken" in json.loads(line_of("json", value=Broken()))["value"]


def test_of_a_container_no_more_is_looked_at_than_is_shown() -> None:
    looked_at = 0

    class Item:
        def __repr__(self) -> str:
            nonlocal looked_at
            looked_at += 1
            return "item"

    for log_format in FORMATS:
        for value in ([[Item()] * 10_000], {Item(): [[[[(Item(),) * 10_000]]]]}, {1: {2: {3: {4: [Item()] * 10_000}}}}):
            looked_at = 0
            assert len(line_of(log_format, value=value)) < 2 * MAX_FIELD
            assert looked_at <= 5 * MAX_FIELD  # a list that is too long is looked at once at each level


@given(values.filter(lambda value: len(repr(value)) <= MAX_FIELD))
@example([(), (1,), [], {}, set(), {2}, {3: b"\xff"}, None])
def test_a_container_that_fits_is_shown_as_python_shows_it(value: object) -> None:
    assert "".join(_repr_pieces(value, 0)) == repr(value)


@given(st.characters())
def test_every_character_is_shown_or_escaped(char: str) -> None:
    raw = char in json_text(char)[1:-1]
    assert not (raw and unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"})
