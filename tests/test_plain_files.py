"""Small files that people write, and anything else that a path may name."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.plain_files import NotText, is_utf16, read_file, text_of, without_line_end

LIMIT = 1000


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


@pytest.fixture
def writer(pipe: Path) -> Iterator[int]:
    """The writing end of the pipe. A reader of the test lets it be opened."""
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY)
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("size", [0, 1, LIMIT, LIMIT + 1, LIMIT + 2])
def test_a_file_is_read_up_to_one_byte_more_than_the_limit(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    for streams in (False, True):
        assert read_file(tmp_path / "file", LIMIT, streams=streams) == b"x" * min(size, LIMIT + 1)


@pytest.mark.parametrize("streams", [False, True])
def test_a_folder_is_no_file(tmp_path: Path, streams: bool) -> None:
    with pytest.raises(OSError, match=r"(?i)is a directory"):
        read_file(tmp_path, LIMIT, streams=streams)


def test_a_pipe_is_read_only_where_streams_are_allowed(pipe: Path) -> None:
    with pytest.raises(OSError, match="is a pipe, not a file"):
        read_file(pipe, LIMIT)


def test_a_device_is_read_up_to_the_limit() -> None:
    with pytest.raises(OSError, match="is a device, not a file"):
        read_file("/dev/zero", LIMIT)
    assert read_file("/dev/zero", LIMIT, streams=True) == bytes(LIMIT + 1)
    assert read_file("/dev/null", LIMIT, streams=True) == b""


def test_a_pipe_is_read_to_its_end_however_it_comes(pipe: Path) -> None:
    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            for part in (b"one ", b"two ", b"three"):
                file.write(part)

    thread = threading.Thread(target=write)
    thread.start()
    assert read_file(pipe, LIMIT, streams=True) == b"one two three"
    thread.join()


def test_a_pipe_without_end_is_read_up_to_the_limit(pipe: Path, writer: int) -> None:
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # keeps what is written
    os.write(writer, b"x" * 2 * LIMIT)
    assert read_file(pipe, LIMIT, streams=True) == b"x" * (LIMIT + 1)
    os.close(reader)


def test_a_pipe_without_a_writer_or_without_an_end_times_out(pipe: Path) -> None:
    with pytest.raises(TimeoutError, match="did not end in time"):
        read_file(pipe, LIMIT, streams=True, patience_s=0.05)
    reader, writer = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), os.open(pipe, os.O_WRONLY)
    for written in (b"", b"half"):
        os.write(writer, written)
        with pytest.raises(TimeoutError):
            read_file(pipe, LIMIT, streams=True, patience_s=0.05)
    os.close(writer)
    os.close(reader)


def test_a_path_with_a_nul_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="null"):
        read_file("a\0b", LIMIT)


# -- text


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["secret", "port = 1\n", "-----BEGIN PUBLIC KEY-----" * 10])
def test_utf_16_is_named(encoding: str, text: str) -> None:
    assert is_utf16(text.encode(encoding))
    with pytest.raises(NotText, match="is text in UTF-16, not UTF-8; save it as UTF-8"):
        text_of(text.encode(encoding))


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_utf_8_is_its_text_without_a_byte_order_mark(text: str) -> None:
    assert text_of(b"\xef\xbb\xbf" + text.encode()) == text
    assert text_of(text.encode()) == text.removeprefix("\ufeff")


@given(st.binary())
def test_any_bytes_are_text_or_an_error_of_ours(data: bytes) -> None:
    with contextlib.suppress(NotText):
        assert text_of(data).encode() in (data, data[3:])


@pytest.mark.parametrize(
    ("text", "kept"), [("s\n", "s"), ("s\r\n", "s"), ("s\n\n", "s\n"), ("s\r", "s\r"), ("s", "s"), ("", "")]
)
def test_one_line_end_is_dropped(text: str, kept: str) -> None:
    assert without_line_end(text) == kept
