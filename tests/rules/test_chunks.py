"""What stands around the chunks of a body."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.chunks import MAX_IGNORED_BYTES, ChunkFraming


@pytest.mark.parametrize(
    ("line", "size"),
    [
        (b"1f\r\n", b"1f"),
        (b"A;name\r\n", b"A"),
        (b"0;name=value\r\n", b"0"),
        (b'5 \t; a="b;c"; d\r\n', b"5"),
        (b"5;" + b"\xe9\r\n", b"5"),
    ],
)
def test_a_size_line_is_read_without_its_extensions(line: bytes, size: bytes) -> None:
    assert ChunkFraming().size_line(line) == size + b"\r\n"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\r\n",
        b"5",
        b"5\n",
        b"5 \r\n",
        b";a\r\n",
        b"-1\r\n",
        b"0x5\r\n",
        b"5;a\nb\r\n",
        b"5;a\rb\r\n",
        b"5;\0\r\n",
    ],
)
def test_any_other_line_is_no_size(line: bytes) -> None:
    with pytest.raises(ValueError, match="invalid chunk size"):
        ChunkFraming().size_line(line)


def test_behind_the_last_chunk_trailer_fields_are_skipped_up_to_the_empty_line() -> None:
    framing = ChunkFraming()
    framing.size_line(b"5\r\n")
    assert not framing.is_at_last
    framing.size_line(b"0\r\n")
    assert framing.is_at_last
    assert not framing.ends_with(b"X-Checksum: abc\r\n")
    assert framing.ends_with(b"\r\n")


@pytest.mark.parametrize(
    "line", [b"no colon\r\n", b": no name\r\n", b" folded: x\r\n", b"A: b\nC: d\r\n", b"A: b\0\r\n", b""]
)
def test_any_other_line_is_no_trailer_field(line: bytes) -> None:
    with pytest.raises(ValueError, match="invalid trailer field"):
        ChunkFraming().ends_with(line)


def test_extensions_as_long_as_the_data_go_on_for_ever() -> None:
    framing = ChunkFraming()
    for _ in range(1000):
        framing.size_line(b"64;" + b"x" * 99 + b"\r\n")


@given(
    st.lists(st.sampled_from([b"1;" + b"x" * 500 + b"\r\n", b"100\r\n", b"0;" + b"y" * 900 + b"\r\n"]), max_size=100)
)
def test_what_is_ignored_is_bounded_by_the_data(lines: list[bytes]) -> None:
    framing, ignored, data = ChunkFraming(), 0, 0
    try:
        for line in lines:
            size = framing.size_line(line)
            ignored, data = ignored + len(line) - len(size), data + int(size, 16)
    except ValueError:
        assert ignored + len(line) > MAX_IGNORED_BYTES
    assert ignored <= MAX_IGNORED_BYTES + data


@given(st.binary(max_size=50))
def test_no_bytes_break_it(data: bytes) -> None:
    for read in (ChunkFraming().size_line, ChunkFraming().ends_with):
        try:
            read(data)
        except ValueError:
            continue
