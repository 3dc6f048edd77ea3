"""A stream of samples, cut into utterances by voice activity."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.errors import AudioNotDecodable
from cocoa_tornado.rules.audio import SETTLED_BYTES, AudioFormat, settle, undeclared
from cocoa_tornado.rules.endpointing import End, Segment, Speech
from cocoa_tornado.speech import segmenter as segmenter_module
from cocoa_tornado.speech.segmenter import MAX_HEADER_BYTES, Segmenter

from ..profiles import examples
from .recordings import encoded, go_forward

SECOND = 32_000
DEMO = Path(__file__).parents[2] / "demo"


def segments(segmenter: Segmenter, data: bytes, piece: int = 640) -> list[Segment]:
    found: list[Segment] = []
    for start in range(0, len(data), piece):
        found += segmenter.feed(data[start : start + piece])
    return [*found, *segmenter.end()]


def utterances(found: list[Segment]) -> list[bytes]:
    """The samples of each."""
    whole, current = [], b""
    for segment in found:
        if isinstance(segment, Speech):
            current += segment.samples
        else:
            whole.append(current)
            current = b""
    assert not current, "an utterance does not end"
    return whole


def test_two_sentences_with_silence_between_are_two_utterances() -> None:
    stream = bytes(SECOND) + go_forward() + bytes(2 * SECOND) + go_forward() + bytes(2 * SECOND)
    found = utterances(segments(Segmenter(AudioFormat(), 60.0), stream))
    assert len(found) == 2
    assert all(2.0 < len(samples) / SECOND < 3.8 for samples in found)


def test_silence_is_no_utterance() -> None:
    assert segments(Segmenter(AudioFormat(), 60.0), bytes(5 * SECOND)) == []


def test_silence_that_comes_byte_by_byte_is_not_judged_with_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def look(declared: AudioFormat, head: bytes, *, complete: bool = False) -> AudioFormat | None:
        looks.append(len(head))
        return settle(declared, head, complete=complete)

    monkeypatch.setattr(segmenter_module, "settle", look)
    assert segments(Segmenter(undeclared(AudioFormat()), 60.0), bytes(SETTLED_BYTES * 2), piece=1) == []
    assert len(looks) < 50


@examples(10)
@given(st.integers(1, 5000))
def test_how_the_stream_is_cut_makes_no_difference(piece: int) -> None:
    stream = go_forward() + bytes(SECOND)
    assert utterances(segments(Segmenter(AudioFormat(), 60.0), stream, piece)) == utterances(
        segments(Segmenter(AudioFormat(), 60.0), stream)
    )


def test_an_utterance_that_is_cut_short_is_ended() -> None:
    found = segments(Segmenter(AudioFormat(), 60.0), go_forward()[:SECOND])
    assert isinstance(found[-1], End)


def test_a_long_utterance_is_ended_and_a_new_one_begun() -> None:
    found = utterances(segments(Segmenter(AudioFormat(), 1.0), go_forward() + bytes(SECOND)))
    assert len(found) >= 2
    assert all(len(samples) <= SECOND for samples in found)


@pytest.mark.parametrize(("encoding", "muxer", "rate"), [("mulaw", "mulaw", 8000), ("u8", "u8", 8000)])
def test_old_encodings_are_recognized_too(encoding: str, muxer: str, rate: int) -> None:
    stream = encoded(go_forward() + bytes(SECOND), muxer, f"pcm_{encoding}", rate)
    segmenter = Segmenter(AudioFormat("raw", encoding, rate, 1), 60.0)  # type: ignore[arg-type]  # one of them
    assert len(utterances(segments(segmenter, stream))) == 1
    assert segmenter.out_format == AudioFormat("raw", "s16le", rate, 1)


@pytest.mark.parametrize("piece", [1, 640, 100_000])
def test_undeclared_samples_of_eight_bits_are_recognized(piece: int) -> None:
    stream = encoded(go_forward() + bytes(SECOND), "u8", "pcm_u8", 8_000)
    segmenter = Segmenter(undeclared(AudioFormat()), 60.0)
    assert len(utterances(segments(segmenter, stream, piece))) == 1
    assert (segmenter.out_format, segmenter.has_eight_bits) == (AudioFormat("raw", "s16le", 8_000, 1), True)


def test_samples_of_sixteen_bits_are_recognized_as_before() -> None:
    segmenter = Segmenter(undeclared(AudioFormat()), 60.0)
    found = utterances(segments(segmenter, go_forward() + bytes(SECOND)))
    assert found == utterances(segments(Segmenter(AudioFormat(), 60.0), go_forward() + bytes(SECOND)))
    assert not segmenter.has_eight_bits


def test_the_byte_order_is_judged_where_it_is_not_known() -> None:
    stream = encoded(go_forward() + bytes(SECOND), "s16be", "pcm_s16be")
    (found,) = utterances(segments(Segmenter(AudioFormat("raw", "l16", 16_000, 1), 60.0), stream))
    (expected,) = utterances(segments(Segmenter(AudioFormat(), 60.0), go_forward() + bytes(SECOND)))
    assert found == expected


def test_a_wav_header_defines_the_samples() -> None:
    stream = encoded(go_forward() + bytes(SECOND), "wav", "pcm_s16le", 8000, "stereo")
    segmenter = Segmenter(AudioFormat(), 60.0)
    assert len(utterances(segments(segmenter, stream, 100))) == 1
    assert segmenter.out_format == AudioFormat("raw", "s16le", 8000, 1)


@pytest.mark.parametrize("codec", ["pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_alaw"])
def test_a_wav_of_any_layout_is_recognized(codec: str) -> None:
    stream = encoded(go_forward() + bytes(SECOND), "wav", codec, 16_000)
    (found,) = utterances(segments(Segmenter(AudioFormat(), 60.0), stream))
    (expected,) = utterances(segments(Segmenter(AudioFormat(), 60.0), go_forward() + bytes(SECOND)))
    assert abs(len(found) - len(expected)) <= SECOND / 4


def wav(samples: bytes, behind: bytes = b"") -> bytes:
    head = b"RIFF" + (36 + len(samples) + len(behind)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    layout = struct.pack("<HHIIHH", 1, 1, 16_000, SECOND, 2, 16)
    return head + layout + b"data" + len(samples).to_bytes(4, "little") + samples + behind


@examples(10)
@given(st.integers(44, 5000))
def test_a_wav_ends_with_its_samples_and_another_may_follow(piece: int) -> None:
    spoken = wav(go_forward(), b"LIST" + (60_000).to_bytes(4, "little") + go_forward()[:60_000])
    segmenter = Segmenter(AudioFormat(), 60.0)
    found: list[Segment] = []
    for file in (spoken, spoken):
        for start in range(0, len(file), piece):
            found += segmenter.feed(file[start : start + piece])
    both = utterances([*found, *segmenter.end()])
    (expected,) = utterances(segments(Segmenter(AudioFormat(), 60.0), go_forward()))
    assert [len(samples) for samples in both] == [len(expected)] * 2


@examples(10)
@given(st.integers(1, 5000), st.sampled_from([b"", b"LIST\x04\0\0\0INFO"]))
def test_a_wav_that_follows_another_in_the_same_messages_is_recognized(piece: int, between: bytes) -> None:
    """As in an upload, and wherever a message ends."""
    spoken = wav(go_forward())
    found = utterances(segments(Segmenter(AudioFormat(), 60.0), spoken + between + spoken, piece))
    (expected,) = utterances(segments(Segmenter(AudioFormat(), 60.0), go_forward()))
    assert [len(samples) for samples in found] == [len(expected)] * 2


@pytest.mark.parametrize("name", ["chromium.webm", "chromium.mp4"])
def test_a_container_that_only_uploads_may_be_is_an_error_and_no_noise(name: str) -> None:
    data = (Path(__file__).parent / "data" / name).read_bytes()
    with pytest.raises(AudioNotDecodable, match="binary messages are raw samples or WAV, and this is"):
        segments(Segmenter(AudioFormat(), 60.0), data)


def test_a_length_that_a_streaming_writer_has_left_open_is_all_that_follows() -> None:
    stream = wav(b"") + go_forward() + bytes(SECOND)
    assert len(utterances(segments(Segmenter(AudioFormat(), 60.0), stream))) == 1


@pytest.mark.parametrize("rate_hz", [4_000, 5_000, 8_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_voice_is_detected_at_every_rate(rate_hz: int) -> None:
    stream = encoded(go_forward() + bytes(SECOND), "s16le", "pcm_s16le", rate_hz)
    (found,) = utterances(segments(Segmenter(AudioFormat("raw", "s16le", rate_hz, 1), 60.0), stream, 4000))
    assert 1.5 < len(found) / 2 / rate_hz < 3.8


def test_silence_of_unknown_byte_order_takes_no_room() -> None:
    segmenter = Segmenter(AudioFormat("raw", "l16", 16_000, 1), 60.0)
    assert segments(segmenter, bytes(20 * SECOND)) == []
    assert len(segmenter._unread) < SECOND
    spoken = encoded(go_forward() + bytes(SECOND), "s16be", "pcm_s16be")
    assert len(utterances(segments(segmenter, spoken))) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF" + bytes(100),
        b"RIFF\0\0\0\0WAVELIST" + b"\xff\xff\xff\x7f" + bytes(MAX_HEADER_BYTES),
        b"RIFF\0\0\0\0WAVEfmt",
    ],
    ids=["no WAV", "a header without end", "cut short"],
)
def test_a_header_that_is_none_is_an_error(data: bytes) -> None:
    with pytest.raises(AudioNotDecodable):
        segments(Segmenter(AudioFormat(), 60.0), data)
