from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from cocoa_tornado.plain_text import MAX_LINE, MAX_QUOTED, has_no_controls, is_encodable, one_line, quoted, strip_blanks

from .any_text import any_text


def test_only_spaces_tabs_and_line_ends_are_stripped() -> None:
    assert strip_blanks(" \t\r\n 1 2\n") == "1 2"
    for kept in ("\x1f", "\x0b", "\x85", "\xa0", "\u2028", "\u3000"):
        assert strip_blanks(f"1{kept}") == f"1{kept}"


@given(st.from_regex(r"-?[0-9]{1,18}", fullmatch=True), any_text, any_text)
@example("0", "", "\x1f")
@example("0", "\x1c", "")
def test_what_matches_without_its_blanks_is_what_int_takes(digits: str, before: str, after: str) -> None:
    stripped = strip_blanks(before + digits + after)
    if re.fullmatch(r"-?[0-9]{1,18}", stripped):
        assert isinstance(int(stripped), int)


def test_one_line_escapes_what_cannot_be_printed_and_keeps_the_rest() -> None:
    assert one_line("caf\u00e9 na\u00efve") == "caf\u00e9 na\u00efve"
    assert one_line("a\nb\x1b[2J\udcff\u2028") == r"a\nb\x1b[2J\udcff\u2028"
    assert one_line("a" * 1000) == "a" * (MAX_LINE - 3) + "..."
    assert one_line("") == ""


def test_quoted_is_what_a_person_would_look_for() -> None:
    assert quoted("a b") == "'a b'"
    assert quoted("a\x1f") == r"'a\x1f'"
    assert quoted("a" * 1000) == "'" + "a" * (MAX_QUOTED - 1) + "..."


@given(any_text)
@example("\udcff" * 1000)
@example("a" * MAX_LINE)
@example("a" * (MAX_LINE + 1))
@example("\U000e0001" * 40)
def test_any_text_is_shown_in_one_printable_line_of_bounded_length(text: str) -> None:
    assert one_line(text).isprintable()
    assert len(one_line(text)) <= MAX_LINE
    assert one_line(one_line(text)) == one_line(text)
    assert quoted(text).isprintable()
    assert len(quoted(text)) <= MAX_QUOTED + 3


@given(any_text)
@example("\ud800")
@example("caf\u00e9")
def test_what_is_encodable_can_be_encoded(text: str) -> None:
    assert is_encodable(text) == (text.encode("utf-8", "ignore").decode("utf-8") == text)


def test_blanks_and_joiners_of_every_script_are_no_controls() -> None:
    for text in ("a b", "\xa0", "\u3000", "\u200d", "\U0001f469\u200d\U0001f680", "\xad", "\u202e", ""):
        assert has_no_controls(text)
    for text in ("\0", "\n", "\x1f", "\x7f", "\x85", "\u2028", "\u2029", "\udcff"):
        assert not has_no_controls(f"a{text}")
