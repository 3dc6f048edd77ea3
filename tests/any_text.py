"""Texts from untrusted sources: arbitrary, undecodable, and valid ones with a small error."""

from __future__ import annotations

import os
from collections.abc import Sequence

from click.testing import Result
from hypothesis import strategies as st

MAX_WRONG_VALUE = 250
MAX_PROBLEM = 1200
"""Characters of the longest line of error that is still one: of a value by itself, and with its setting and source."""
MAX_COMMAND_LINE = 2100
"""The same for a command, whose parser repeats what was typed."""

SLIPS = (
    # What str.strip() removes and int() refuses; what only looks blank; what ends a line; what a terminal obeys.
    *("\x1c", "\x1d", "\x1e", "\x1f", "\x0b", "\x0c", "\x85", "\xa0", "\u2028", "\u3000", "\u200b", "\ufeff"),
    *("\n", "\r", "\t", " ", "\0", "\x1b", "\x7f"),
    # Bytes that are no UTF-8, as the system hands them over; digits and letters that only some functions know.
    *("\udcff", "\ud800", "\u0663", "\uff11", "\u212a", "\u0130", "\u2100", "\uff0f"),
    # What means something in numbers, paths, URLs and TOML.
    *(
        "-",
        "+",
        "_",
        ".",
        ",",
        ":",
        "/",
        "//",
        "%",
        "%00",
        "%0A",
        "%ff",
        "@",
        "[",
        "]",
        "{",
        "~",
        '"',
        "?",
        "#",
        "&",
        "=",
    ),
    *("e", "0x", "inf", "nan", "://", "http://[", "xn--", "9" * 400, "9" * 5000, "a" * 300),
)

any_text = st.text() | st.text(st.characters(exclude_categories=()))


def slips_in(valid: Sequence[str]) -> st.SearchStrategy[str]:
    """One of ``valid`` with up to three insertions, deletions or replacements."""
    piece = st.sampled_from(SLIPS) | st.characters(exclude_categories=())
    slip = st.tuples(st.integers(0, 100), st.integers(0, 1), piece | st.just(""))

    def slipped(text: str, slips: list[tuple[int, int, str]]) -> str:
        for position, length, put in slips:
            at = position % (len(text) + 1)
            text = text[:at] + put + text[at + length :]
        return text

    return st.builds(slipped, st.sampled_from(valid), st.lists(slip, max_size=3))


def argument(text: str) -> str:
    """``text`` as an argument or variable reaches a process: without NUL, with undecodable bytes as surrogates."""
    return os.fsdecode(text.replace("\0", "").encode("utf-8", "surrogatepass"))


def assert_plain_line(text: str, limit: int = MAX_PROBLEM) -> None:
    """Fail unless ``text`` is one line of at most ``limit`` characters that every terminal and log can take."""
    assert text.isprintable(), ascii(text)
    assert 0 < len(text) <= limit, f"{len(text)} characters: {text[:80]}"


def assert_done_or_plain_line(result: Result, *statuses: int) -> None:
    """Fail unless a command has ended with status 0, or with one of ``statuses`` and one plain line of error alone."""
    assert result.exit_code in (0, *statuses), (result.exception, result.stderr)
    if result.exit_code:
        assert result.stdout == ""
        assert result.stderr.endswith("\n")
        assert_plain_line(result.stderr.removesuffix("\n"), MAX_COMMAND_LINE)
