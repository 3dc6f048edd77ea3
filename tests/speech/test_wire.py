"""Frames between the gateway and its speech workers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.errors import EngineFailed
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.speech import wire
from cocoa_tornado.speech.wire import Frame, Kind, PipeReader


@given(st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=200))), st.data())
def test_frames_are_read_whole_however_the_stream_is_cut(frames: list[tuple[Kind, bytes]], data: st.DataObject) -> None:
    stream = b"".join(wire.frame(kind, payload) for kind, payload in frames)
    cuts = sorted({0, len(stream), *data.draw(st.lists(st.integers(0, len(stream)), max_size=20))})
    reader = PipeReader(frozenset(Kind))
    read = [frame for start, end in pairwise(cuts) for frame in reader.feed(stream[start:end])]
    assert read == [Frame(kind, payload) for kind, payload in frames]


@given(st.binary(max_size=100))
def test_any_other_bytes_are_invalid_or_an_incomplete_frame(data: bytes) -> None:
    reader = PipeReader(wire.FROM_WORKER)
    try:
        frames = list(reader.feed(data))
    except EngineFailed:
        return
    assert all(frame.kind in wire.FROM_WORKER for frame in frames)


@pytest.mark.parametrize(
    "data",
    [
        (wire.MAX_PAYLOAD_BYTES + 1).to_bytes(4, "big") + bytes([Kind.INTERIM]),
        b"\xff\xff\xff\xff" + bytes([Kind.DONE]),
        wire.frame(Kind.AUDIO, b"x"),
        b"Traceback (most recent call last):",
    ],
    ids=["too large", "far too large", "of the other direction", "a line of text"],
)
def test_a_worker_gone_mad_cannot_make_the_gateway_collect_without_end(data: bytes) -> None:
    with pytest.raises(EngineFailed, match="invalid frame"):
        list(PipeReader(wire.FROM_WORKER).feed(data))


def test_a_payload_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(ValueError, match="a payload of"):
        wire.frame(Kind.AUDIO, bytes(wire.MAX_PAYLOAD_BYTES + 1))


def test_messages_come_through_as_they_were() -> None:
    reader = PipeReader(frozenset(Kind))
    begin = wire.Begin(AudioFormat("raw", "mulaw", 8000, 2), True, 60.0)
    failed = wire.Failed("too_long", "more than 60 s")
    progress = wire.Progress(2**40, 59.25, 0.5, is_waiting=True)
    first, second, third = reader.feed(
        wire.json_frame(Kind.BEGIN, begin) + wire.json_frame(Kind.FAILED, failed) + wire.progress_frame(progress)
    )
    assert wire.message_of(first, wire.Begin) == begin
    assert wire.message_of(second, wire.Failed) == failed
    assert wire.progress_of(third) == progress


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b'{"detail":5}', b"[]"])
def test_json_of_another_type_is_invalid(payload: bytes) -> None:
    with pytest.raises(EngineFailed, match="invalid frame"):
        wire.message_of(Frame(Kind.READY, payload), wire.Ready)
    with pytest.raises(EngineFailed, match="invalid frame"):
        wire.progress_of(Frame(Kind.PROGRESS, payload))


@pytest.mark.parametrize("wrong", [-1.0, float("inf"), float("nan")])
def test_progress_of_no_length_is_invalid(wrong: float) -> None:
    for progress in (wire.Progress(1, wrong, 0.0), wire.Progress(1, 0.0, wrong)):
        (frame,) = PipeReader(wire.FROM_WORKER).feed(wire.progress_frame(progress))
        with pytest.raises(EngineFailed, match="invalid frame"):
            wire.progress_of(frame)
