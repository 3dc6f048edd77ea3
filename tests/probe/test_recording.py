"""WAV files, read and cut into pieces."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.probe.recording import PIECE_S, parse_wav
from cocoa_tornado.probe.verdicts import ProbeError

from .recordings import MULAW_8K, chunk, riff, wav


@pytest.mark.parametrize(("rate", "channels", "sample_bytes"), [(16_000, 1, 2), (8_000, 1, 1), (44_100, 2, 3)])
def test_a_recording_lasts_as_long_as_its_samples(rate: int, channels: int, sample_bytes: int) -> None:
    recording = parse_wav(wav(0.5, rate, channels, sample_bytes))

    assert recording.duration_s == pytest.approx(0.5)
    assert recording.bytes_per_s == rate * channels * sample_bytes


def test_the_pieces_are_the_file_and_none_cuts_a_frame_in_two() -> None:
    data = wav(0.3, 11_025, 2, 3)
    recording = parse_wav(data)
    pieces = list(recording.pieces())

    assert b"".join(piece for piece, _ in pieces) == data
    ends = [sum(len(piece) for piece, _ in pieces[: index + 1]) - recording.samples_at for index in range(len(pieces))]
    assert all(end % 6 == 0 for end in ends)


def test_each_piece_is_due_when_a_microphone_would_have_it() -> None:
    due = [due_s for _, due_s in parse_wav(wav(0.1)).pieces()]

    assert due == pytest.approx([PIECE_S, 2 * PIECE_S, 0.1])


def test_other_encodings_and_chunks_do_not_matter() -> None:
    data = riff(chunk(b"LIST", b"INFOx"), MULAW_8K, chunk(b"fact", b"abcd"), chunk(b"data", b"\xff" * 801), b"tail")
    recording = parse_wav(data)

    assert recording.duration_s == pytest.approx(801 / 8000)
    assert b"".join(piece for piece, _ in recording.pieces()) == data


@pytest.mark.parametrize("said", [0, 0xFFFFFFFF, 4000])
def test_a_header_written_before_the_end_of_the_recording_counts_up_to_the_files_end(said: int) -> None:
    assert parse_wav(riff(MULAW_8K, chunk(b"data", b"\xff" * 800, said))).duration_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not a WAV file"),
        (b"OggS" + bytes(100), "is not a WAV file"),
        (b"RIFF", "is not a WAV file"),
        (riff(), "without samples"),
        (riff(MULAW_8K), "without samples"),
        (riff(MULAW_8K, chunk(b"data", b"")), "without samples"),
        (riff(chunk(b"data", b"\xff" * 10)), "without a sample format"),
        (riff(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 0, 0, 0)), chunk(b"data", b"ab")), "impossible header"),
        (riff(chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 1, 2, 8)), chunk(b"data", b"ab")), "impossible header"),
    ],
)
def test_what_is_no_recording_is_refused_with_the_reason(data: bytes, problem: str) -> None:
    with pytest.raises(ProbeError, match=problem):
        parse_wav(data)


@given(st.binary(max_size=200), st.booleans())
def test_any_file_is_a_recording_or_refused(tail: bytes, has_layout: bool) -> None:
    data = riff(MULAW_8K if has_layout else b"", tail)
    try:
        recording = parse_wav(data)
    except ProbeError:
        return
    assert b"".join(piece for piece, _ in recording.pieces()) == data
