"""The format and length of an upload by its first bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.errors import AudioNotDecodable, AudioTooLong
from cocoa_tornado.rules import upload_head
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.rules.upload_head import MAX_HEAD_BYTES, UploadHead

from ..speech.recordings import encoded, go_forward

SPEECH = go_forward()
MIB = 1 << 20
SECOND = 32_000
UNDECLARED = AudioFormat(eight_bit_rate_hz=8_000)
WAV = AudioFormat("wav", eight_bit_rate_hz=8_000)


def head_of(
    data: bytes, declared: AudioFormat = UNDECLARED, body_bytes: int | None = None, sizes: tuple[int, ...] = (1 << 20,)
) -> UploadHead:
    head = UploadHead(declared, body_bytes, max_bytes=10 * MIB, max_audio_s=60.0)
    at = turn = 0
    while at < len(data):
        head.add(data[at : at + sizes[turn % len(sizes)]])
        at += sizes[turn % len(sizes)]
        turn += 1
    return head


def wav(data_bytes: int, rate_hz: int = 16_000) -> bytes:
    """With a header that claims this many bytes of samples."""
    whole = bytearray(encoded(SPEECH, "wav", "pcm_s16le", rate_hz))
    at = whole.index(b"data") + 4
    whole[at : at + 4] = data_bytes.to_bytes(4, "little")
    return bytes(whole)


@pytest.mark.parametrize("sizes", [(1 << 20,), (1,), (100, 3)])
@pytest.mark.parametrize(
    ("declared", "bytes_per_second"),
    [
        (UNDECLARED, SECOND),
        (WAV, SECOND),
        (AudioFormat("raw", "l16", 8_000), 16_000),
        (AudioFormat("raw", "mulaw", 8_000), 8_000),
    ],
)
def test_raw_samples_are_too_long_by_their_content_length(
    declared: AudioFormat, bytes_per_second: int, sizes: tuple[int, ...]
) -> None:
    data, longest = SPEECH[20_000:22_000], 60 * bytes_per_second

    assert head_of(data, declared, longest, sizes).is_known
    with pytest.raises(AudioTooLong):
        head_of(data, declared, longest + bytes_per_second // 20, sizes)


def test_samples_of_eight_bits_are_as_long_as_such_samples_are() -> None:
    firmware = encoded(SPEECH, "u8", "pcm_u8", 8_000)

    head = head_of(firmware, WAV, 60 * 8_000)
    assert head.settled == AudioFormat("raw", "u8", 8_000)
    assert head.has_eight_bits
    with pytest.raises(AudioTooLong):
        head_of(firmware, WAV, 61 * 8_000)


def test_samples_of_sixteen_bits_are_no_news() -> None:
    assert not head_of(SPEECH).has_eight_bits


@pytest.mark.parametrize("sizes", [(1 << 20,), (1,), (45,)])
def test_a_wav_is_too_long_by_its_header(sizes: tuple[int, ...]) -> None:
    assert head_of(wav(60 * SECOND), sizes=sizes).is_known
    with pytest.raises(AudioTooLong):
        head_of(wav(61 * SECOND), sizes=sizes)
    with pytest.raises(AudioTooLong):
        head_of(wav(61 * SECOND), body_bytes=61 * SECOND + 100, sizes=sizes)


@pytest.mark.parametrize("claim", [0, 0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0x7FFFF000, 11 * MIB])
def test_what_a_streaming_writer_claims_is_no_length(claim: int) -> None:
    assert head_of(wav(claim)).is_known


@pytest.mark.parametrize("claim", [0, 0xFFFFFFFF, 0x7FFFFFFF, 61 * SECOND])
def test_a_wav_is_no_longer_than_its_upload(claim: int) -> None:
    assert head_of(wav(claim), body_bytes=60 * SECOND).is_known
    with pytest.raises(AudioTooLong):
        head_of(wav(claim), body_bytes=61 * SECOND + 1_000)


def test_a_short_wav_in_a_long_upload_is_judged_by_its_samples() -> None:
    assert head_of(wav(10 * SECOND), body_bytes=9 * MIB).is_known


@pytest.mark.parametrize(("muxer", "codec", "rate_hz"), [("webm", "libopus", 48_000), ("mp4", "aac", 16_000)])
def test_nothing_is_known_of_the_length_of_other_containers(muxer: str, codec: str, rate_hz: int) -> None:
    head = head_of(encoded(SPEECH, muxer, codec, rate_hz), body_bytes=9 * MIB)

    assert head.is_known
    assert not head.has_eight_bits


def test_what_is_no_audio_is_refused_by_its_name() -> None:
    with pytest.raises(AudioNotDecodable, match="this is a PDF document"):
        head_of(b"%PDF-1.7\n" + bytes(100), WAV)
    with pytest.raises(AudioNotDecodable, match="format 0x0011"):
        head_of(encoded(SPEECH, "wav", "adpcm_ima_wav"), WAV)


@pytest.mark.parametrize("start", [b"", b"\xff\xfb\x90\x00", b"RIFF\xff\xff\xff\x00WAVE" + b"abcd\0\0\0\0" * 1_024])
def test_a_beginning_that_comes_byte_by_byte_is_not_looked_at_with_every_byte(
    start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[None] = []
    for name in ("settle", "read_wav_header"):
        monkeypatch.setattr(upload_head, name, counted(getattr(upload_head, name), looks))

    assert head_of(start + bytes(MAX_HEAD_BYTES), WAV, sizes=(1,)).is_known
    assert len(looks) < 80


def counted(function: Callable[..., Any], calls: list[None]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return function(*args, **kwargs)

    return call


@given(st.binary(max_size=200), st.integers(0, 1 << 30) | st.none(), st.lists(st.integers(1, 999), min_size=1))
def test_any_beginning_is_known_after_a_few_bytes(start: bytes, body_bytes: int | None, sizes: list[int]) -> None:
    try:
        head = head_of(start + bytes(MAX_HEAD_BYTES), WAV, body_bytes, tuple(sizes))
    except (AudioNotDecodable, AudioTooLong):
        return
    assert head.is_known
    assert head._head == b""
