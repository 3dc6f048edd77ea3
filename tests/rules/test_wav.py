"""The header of a WAV."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.errors import AudioNotDecodable
from cocoa_tornado.rules.wav import WavLayout, read_next_wav, read_wav_header


def fmt(tag: int, channels: int, rate_hz: int, bits: int, *, block: int | None = None, order: str = "<") -> bytes:
    block = channels * ((bits + 7) // 8) if block is None else block
    return struct.pack(f"{order}HHIIHH", tag, channels, rate_hz, rate_hz * block, block, bits)


def extensible(tag: int, channels: int, rate_hz: int, bits: int, *, order: str = "<") -> bytes:
    guid = struct.pack(f"{order}IHH", tag, 0, 0x10) + bytes.fromhex("800000aa00389b71")
    return fmt(0xFFFE, channels, rate_hz, bits, order=order) + struct.pack(f"{order}HHI", 22, bits, 0) + guid


def wav(*chunks: tuple[bytes, bytes], data_bytes: int = 1_000, riff: bytes = b"RIFF", order: str = "<") -> bytes:
    parts = [riff, struct.pack(f"{order}I", 0), b"WAVE"]
    for name, body in chunks:
        parts += [name, struct.pack(f"{order}I", len(body)), body, b"\x00" * (len(body) % 2)]
    return b"".join([*parts, b"data", struct.pack(f"{order}I", data_bytes)])


def read(file: bytes) -> tuple[WavLayout, bytes]:
    """The layout, and the bytes that the header has left alone."""
    header = read_wav_header()
    wanted = next(header)
    while True:
        assert 0 < wanted <= 4_098  # bounded, for any claim of the file
        piece, file = file[:wanted], file[wanted:]
        try:
            wanted = header.send(piece)
        except StopIteration as found:
            layout = found.value
            assert isinstance(layout, WavLayout)
            return layout, file


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        (fmt(1, 1, 16_000, 16), WavLayout("s16le", 16_000, 1, 2, 1_000)),
        (fmt(1, 2, 44_100, 16), WavLayout("s16le", 44_100, 2, 4, 1_000)),
        (fmt(1, 1, 8_000, 8), WavLayout("u8", 8_000, 1, 1, 1_000)),
        (fmt(1, 6, 48_000, 24), WavLayout("s24le", 48_000, 6, 18, 1_000)),
        (fmt(1, 1, 16_000, 32), WavLayout("s32le", 16_000, 1, 4, 1_000)),
        (fmt(1, 1, 16_000, 12), WavLayout("s16le", 16_000, 1, 2, 1_000)),
        (fmt(1, 2, 48_000, 24, block=8), WavLayout("s32le", 48_000, 2, 8, 1_000)),
        (fmt(1, 1, 16_000, 16, block=0), WavLayout("s16le", 16_000, 1, 2, 1_000)),
        (fmt(3, 2, 44_100, 32), WavLayout("f32le", 44_100, 2, 8, 1_000)),
        (fmt(3, 1, 44_100, 64), WavLayout("f64le", 44_100, 1, 8, 1_000)),
        (fmt(6, 2, 8_000, 8), WavLayout("alaw", 8_000, 2, 2, 1_000)),
        (fmt(7, 1, 8_000, 8) + b"\x00\x00", WavLayout("mulaw", 8_000, 1, 1, 1_000)),
        (extensible(1, 8, 96_000, 24), WavLayout("s24le", 96_000, 8, 24, 1_000)),
        (extensible(3, 1, 16_000, 32), WavLayout("f32le", 16_000, 1, 4, 1_000)),
        (extensible(7, 1, 8_000, 8), WavLayout("mulaw", 8_000, 1, 1, 1_000)),
    ],
)
def test_every_common_layout_is_understood(chunk: bytes, expected: WavLayout) -> None:
    assert read(wav((b"fmt ", chunk)) + b"\x01\x02") == (expected, b"\x01\x02")


def test_the_big_endian_kind_is_understood() -> None:
    plain, long = fmt(1, 1, 16_000, 16, order=">"), extensible(1, 2, 48_000, 24, order=">")

    assert read(wav((b"fmt ", plain), riff=b"RIFX", order=">"))[0] == WavLayout("s16be", 16_000, 1, 2, 1_000)
    assert read(wav((b"fmt ", long), riff=b"RIFX", order=">"))[0] == WavLayout("s24be", 48_000, 2, 6, 1_000)


@given(
    st.lists(
        st.tuples(st.sampled_from([b"JUNK", b"LIST", b"fact", b"bext", b"ds64"]), st.binary(max_size=60)), max_size=4
    ),
    st.integers(0, 20_000),
)
def test_other_chunks_before_the_samples_are_passed_over(others: list[tuple[bytes, bytes]], long: int) -> None:
    chunks = [*others, (b"PAD ", bytes(long)), (b"fmt ", fmt(1, 1, 16_000, 16)), *others]

    assert read(wav(*chunks) + b"samples") == (WavLayout("s16le", 16_000, 1, 2, 1_000), b"samples")


@pytest.mark.parametrize("claim", [0, 0xFFFFFFFF])
def test_a_length_that_a_streaming_writer_left_open_means_all_that_follows(claim: int) -> None:
    layout, _ = read(wav((b"fmt ", fmt(1, 1, 16_000, 16)), data_bytes=claim))

    assert layout.data_bytes is None


def test_an_rf64_has_its_length_in_a_chunk_of_its_own() -> None:
    ds64 = struct.pack("<QQQI", 0, 5_000_000_000, 0, 0)
    file = wav((b"ds64", ds64), (b"fmt ", fmt(1, 1, 16_000, 16)), data_bytes=0xFFFFFFFF, riff=b"RF64")

    assert read(file)[0].data_bytes == 5_000_000_000


@pytest.mark.parametrize(
    "chunk",
    [
        fmt(2, 1, 16_000, 4),  # ADPCM
        fmt(0x55, 1, 16_000, 16),  # MP3
        fmt(1, 1, 16_000, 0),
        fmt(1, 1, 16_000, 64),
        fmt(3, 1, 16_000, 16),
        fmt(1, 0, 16_000, 16),
        fmt(1, 9, 16_000, 16),
        fmt(1, 1, 0, 16),
        fmt(1, 1, 3_999, 16),
        fmt(1, 1, 192_001, 16),
        fmt(1, 1, 16_000, 16)[:14],
        fmt(0xFFFE, 1, 16_000, 16),
        extensible(1, 1, 16_000, 16)[:-1] + b"\x00",
        b"",
    ],
)
def test_a_layout_that_cannot_be_decoded_is_refused(chunk: bytes) -> None:
    with pytest.raises(AudioNotDecodable):
        read(wav((b"fmt ", chunk)))


def test_a_wav_without_a_format_is_refused() -> None:
    with pytest.raises(AudioNotDecodable):
        read(wav())


@given(st.data())
def test_a_header_that_ends_early_is_refused_wherever_it_ends(data: st.DataObject) -> None:
    whole = wav((b"LIST", b"abc"), (b"fmt ", extensible(1, 1, 16_000, 16)), (b"fact", bytes(4)))
    cut = data.draw(st.integers(0, len(whole) - 5))  # inside the last four bytes, a length is cut short

    with pytest.raises(AudioNotDecodable):
        read(whole[:cut])


@given(st.binary(max_size=400))
def test_any_bytes_are_a_layout_or_not_decodable(tail: bytes) -> None:
    for file in (tail, wav()[:12] + tail, wav((b"fmt ", fmt(1, 1, 16_000, 16)))[:36] + tail):
        try:
            layout, _ = read(file)
        except AudioNotDecodable:
            continue
        assert layout.frame_bytes % layout.channels == 0


def read_next(file: bytes, last: WavLayout) -> WavLayout | None:
    following = read_next_wav(last)
    wanted = next(following)
    while True:
        assert 0 < wanted <= 4_098
        piece, file = file[:wanted], file[wanted:]
        try:
            wanted = following.send(piece)
        except StopIteration as found:
            layout = found.value
            assert layout is None or isinstance(layout, WavLayout)
            return layout


LAST = WavLayout("s16le", 16_000, 1, 2, 1_000)
NEXT = WavLayout("s16le", 8_000, 1, 2, 500)


@given(st.binary(max_size=60), st.sampled_from([b"LIST", b"cue ", b"id3 "]), st.booleans())
def test_the_next_wav_is_found_behind_other_chunks(body: bytes, name: bytes, is_odd: bool) -> None:
    file = wav((b"fmt ", fmt(1, 1, 8_000, 16)), data_bytes=500)
    chunk = name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    last = LAST._replace(data_bytes=999) if is_odd else LAST

    assert read_next(b"\0" * is_odd + file, last) == NEXT
    assert read_next(b"\0" * is_odd + chunk * 2 + file, last) == NEXT
    assert read_next(file, last) == NEXT  # where the padding was forgotten


@given(st.binary(max_size=100))
def test_what_is_no_next_wav_is_none(tail: bytes) -> None:
    assert read_next(tail.replace(b"R", b"r").replace(b"B", b"b"), LAST) is None
    assert read_next(b"RIFF\x04\0\0\0AVI ", LAST) is None
