"""A stream of samples, cut into utterances by voice activity."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoa_tornado.errors import AudioNotDecodable
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.rules.endpointing import End, Segment, Speech
from cocoa_tornado.speech.segmenter import MAX_HEADER_BYTES, Segmenter

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
    heard = utterances(segments(Segmenter(AudioFormat(), 60.0), stream))
    assert len(heard) == 2
    assert all(2.0 < len(samples) / SECOND < 3.8 for samples in heard)


def test_silence_is_no_utterance() -> None:
    assert segments(Segmenter(AudioFormat(), 60.0), bytes(5 * SECOND)) == []


@settings(deadline=None, max_examples=10)
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
    heard = utterances(segments(Segmenter(AudioFormat(), 1.0), go_forward() + bytes(SECOND)))
    assert len(heard) >= 2
    assert all(len(samples) <= SECOND for samples in heard)


@pytest.mark.parametrize(("encoding", "muxer", "rate"), [("mulaw", "mulaw", 8000), ("u8", "u8", 8000)])
def test_old_encodings_are_heard_too(encoding: str, muxer: str, rate: int) -> None:
    stream = encoded(go_forward() + bytes(SECOND), muxer, f"pcm_{encoding}", rate)
    segmenter = Segmenter(AudioFormat("raw", encoding, rate, 1), 60.0)  # type: ignore[arg-type]  # one of them
    assert len(utterances(segments(segmenter, stream))) == 1
    assert segmenter.out_format == AudioFormat("raw", "s16le", rate, 1)


def test_the_byte_order_is_judged_where_it_is_not_known() -> None:
    stream = encoded(go_forward() + bytes(SECOND), "s16be", "pcm_s16be")
    (heard,) = utterances(segments(Segmenter(AudioFormat("raw", "l16", 16_000, 1), 60.0), stream))
    (expected,) = utterances(segments(Segmenter(AudioFormat(), 60.0), go_forward() + bytes(SECOND)))
    assert heard == expected


def test_a_wav_header_says_what_the_samples_are() -> None:
    stream = encoded(go_forward() + bytes(SECOND), "wav", "pcm_s16le", 8000, "stereo")
    segmenter = Segmenter(AudioFormat(), 60.0)
    assert len(utterances(segments(segmenter, stream, 100))) == 1
    assert segmenter.out_format == AudioFormat("raw", "s16le", 8000, 1)


@pytest.mark.parametrize(
    "data",
    [b"RIFF" + bytes(100), b"RIFF\0\0\0\0WAVELIST" + b"\xff\xff\xff\x7f" + bytes(MAX_HEADER_BYTES), b"RIFF"],
    ids=["no WAV", "a header without end", "cut short"],
)
def test_a_header_that_is_none_is_an_error(data: bytes) -> None:
    with pytest.raises(AudioNotDecodable):
        segments(Segmenter(AudioFormat(), 60.0), data)
