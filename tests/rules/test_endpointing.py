"""Where an utterance begins and ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.endpointing import BEGIN_FRAMES, END_FRAMES, LEAD_FRAMES, Endpointer, FrameVerdict


def verdicts(frames: str) -> list[FrameVerdict]:
    """One letter a frame: ``s`` for speech."""
    endpointer = Endpointer()
    return [endpointer.judge(letter.encode(), letter == "s") for letter in frames]


def test_a_click_is_no_beginning() -> None:
    assert set(verdicts("." * 20 + "s" * (BEGIN_FRAMES - 1) + "." * 20)) == {FrameVerdict.NOTHING}


def test_an_utterance_begins_with_what_came_just_before_it() -> None:
    endpointer = Endpointer()
    frames = [b"%d" % number for number in range(20)]
    seen = [endpointer.judge(frame, number >= 10) for number, frame in enumerate(frames)]
    begin = seen.index(FrameVerdict.BEGIN)
    assert begin == 10 + BEGIN_FRAMES - 1
    endpointer = Endpointer()
    for number in range(begin + 1):
        endpointer.judge(frames[number], number >= 10)
    assert endpointer.take_lead() == b"".join(frames[begin + 1 - LEAD_FRAMES : begin + 1])


def test_a_pause_between_two_words_is_no_end_and_silence_is() -> None:
    frames = "s" * 10 + "." * (END_FRAMES - 1) + "s" * 5 + "." * END_FRAMES + "."
    seen = verdicts(frames)
    assert seen.count(FrameVerdict.BEGIN) == 1
    assert seen.index(FrameVerdict.END) == len(frames) - 2
    assert seen[-1] is FrameVerdict.NOTHING


@given(st.text("s.", max_size=300))
def test_beginnings_and_ends_take_verdicts(frames: str) -> None:
    marks = [verdict for verdict in verdicts(frames) if verdict in (FrameVerdict.BEGIN, FrameVerdict.END)]
    assert marks == [FrameVerdict.BEGIN, FrameVerdict.END] * (len(marks) // 2) + [FrameVerdict.BEGIN] * (len(marks) % 2)
