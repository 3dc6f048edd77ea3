"""Where a head ends, and how much of it is looked at for that."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cocoa_tornado.rules.request_head import (
    MAX_FIELD_LINES,
    MAX_HEAD_BYTES,
    HeadScan,
    HeadTooLarge,
    body_bytes,
)

LINE = b"GET / HTTP/1.1\r\n"


def too_large(received: bytes) -> bool:
    """At the first call, and at any later one: Tornado asks once more while it closes."""
    scan, verdicts = HeadScan(), []
    for _ in range(3):
        try:
            scan.end(received)
            verdicts.append(False)
        except HeadTooLarge:
            verdicts.append(True)
    assert len(set(verdicts)) == 1
    return verdicts[0]


@given(st.lists(st.sampled_from([b"a", b"b: c", b"\r", b"\n", b"\r\n", b"\r\n\r\n"]), max_size=30), st.data())
@example([b"a", b"\r\n", b"\r"], None)
@example([b"a", b"\n", b"\n"], None)
def test_a_head_in_whatever_pieces_ends_where_tornado_says(parts: list[bytes], data: st.DataObject | None) -> None:
    received = b"".join(parts)
    found = re.search(b"\r?\n\r?\n", received)
    assert HeadScan().end(received) == (found and found.end())
    scan, until, end = HeadScan(), 0, None
    while end is None and until < len(received):
        until += 1 if data is None else data.draw(st.integers(1, len(received) - until))
        end = scan.end(bytearray(received[:until]))
    assert end == (found and found.end())


def test_a_head_may_have_just_so_many_lines_whatever_ends_them() -> None:
    for end in (b"\n", b"\r\n"):
        assert HeadScan().end(LINE + (b"a:" + end) * MAX_FIELD_LINES + end) is not None
        assert too_large(LINE + (b"a:" + end) * (MAX_FIELD_LINES + 1) + end)


def test_folded_lines_and_lines_without_a_name_count_as_lines() -> None:
    for line in (b" folded\r\n", b"\tfolded\r\n", b":\r\n", b"x\n"):
        assert too_large(LINE + line * (MAX_FIELD_LINES + 1))


def test_a_head_may_have_just_so_many_bytes() -> None:
    rest = LINE + b"a:\r\n\r\n"
    fitting = LINE + b"a:" + b"x" * (MAX_HEAD_BYTES - len(rest)) + b"\r\n\r\n"
    assert HeadScan().end(fitting + b"the next") == MAX_HEAD_BYTES
    assert too_large(LINE + b"a:x" + fitting[len(LINE) + 2 :])
    assert too_large(b"x" * MAX_HEAD_BYTES)
    assert not too_large(b"x" * (MAX_HEAD_BYTES - 1))


def test_a_head_that_drips_in_is_looked_at_once() -> None:
    """Counted in bytes that are searched; a search that began anew each time would take 134 million."""
    searched = 0

    class Counting(bytearray):
        def find(self, what: bytes, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
            nonlocal searched
            found = super().find(what, start, len(self) if end is None else end)
            searched += (found if found >= 0 else min(len(self), MAX_HEAD_BYTES)) - start + 1
            return found

    scan, received = HeadScan(), Counting()
    for byte in b"GET /" + b"x" * (MAX_HEAD_BYTES - 6):
        received.append(byte)
        assert scan.end(received) is None
    assert searched <= 3 * MAX_HEAD_BYTES


@pytest.mark.parametrize(
    ("lengths", "encodings", "expected"),
    [
        ([], [], 0),
        (["0"], [], 0),
        (["17"], [], 17),
        (["0017"], [], 17),
        (["5", "5"], [], 5),
        (["5, 5,5"], [], 5),
        ([], ["chunked"], None),
        ([], ["Chunked"], None),
    ],
)
def test_the_framing_says_how_long_a_body_is(lengths: list[str], encodings: list[str], expected: int | None) -> None:
    assert body_bytes(lengths, encodings) == expected


@pytest.mark.parametrize(
    ("lengths", "encodings"),
    [
        (["5", "6"], []),
        (["5,6"], []),
        ([""], []),
        (["-1"], []),
        (["0x10"], []),
        (["1_0"], []),
        (["\u0661"], []),
        (["9" * 30], []),
        (["9" * 5000], []),
        ([], ["gzip"]),
        ([], ["gzip, chunked"]),
        ([], ["chunked", "chunked"]),
        ([], ["chunked,"]),
        (["5"], ["chunked"]),
    ],
)
def test_a_body_whose_end_nobody_can_tell_is_refused(lengths: list[str], encodings: list[str]) -> None:
    with pytest.raises(ValueError, match="length"):
        body_bytes(lengths, encodings)
