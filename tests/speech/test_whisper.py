"""Whisper's recognizer: its decisions, and its results with the base model."""

from __future__ import annotations

import re
import wave
from collections.abc import Callable
from pathlib import Path

import faster_whisper
import numpy as np
import pytest
from numpy.typing import NDArray

from cocoa_tornado.errors import EngineFailed
from cocoa_tornado.speech.engines import engine_of
from cocoa_tornado.speech.recognizer import BYTES_PER_SECOND
from cocoa_tornado.speech.whisper import InterimPace, Speech, WhisperRecognizer, last_pause, threads_each

from .recordings import go_forward
from .whisper_model import whisper_base

GO_FORWARD = go_forward()
SOMEWHERE = Path(__file__).parents[2] / "demo" / "somewhere.wav"
SILENCE = bytes(BYTES_PER_SECOND)


def pcm(samples: NDArray[np.float64]) -> bytes:
    return bytes((np.clip(samples, -1, 1) * 32767).astype("<i2"))


NOISE = pcm(np.random.default_rng(1).normal(0, 0.1, 48_000))
TONE = pcm(0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 16_000))


# When a pass for a interim is made


def test_audio_at_the_speed_of_speech_leaves_time_for_a_pass_every_second_and_a_half() -> None:
    pace = InterimPace()
    assert [pace.received(0.5, now) for now in (0.5, 1.0, 1.5)] == [False, False, True]
    pace.passed(1.5)
    assert [pace.received(0.5, now) for now in (2.0, 2.5, 3.0)] == [False, False, True]


def test_audio_that_comes_faster_than_speech_leaves_no_time() -> None:
    pace = InterimPace()
    assert not any(pace.received(0.5, 0.01 * step) for step in range(100))


def test_audio_that_piled_up_during_a_pass_is_taken_first() -> None:
    pace = InterimPace()
    pace.passed(10.0)
    assert not any(pace.received(0.5, 10.0) for _ in range(4)), "two seconds of it, without waiting"
    assert [pace.received(0.5, now) for now in (10.5, 11.0, 11.5, 12.0)] == [False, False, False, True]


def test_a_pass_that_takes_long_is_followed_by_as_long_a_time_without_one() -> None:
    pace, now, busy_s, pieces = InterimPace(), 0.0, 0.0, 0
    while now < 100.0:
        arrival = 0.1 * (pieces + 1)
        pieces += 1
        now = max(now, arrival)
        if pace.received(0.1, now):
            now += 3.0
            busy_s += 3.0
            pace.passed(now)
    assert 0.3 * now <= busy_s <= 0.51 * now


# Where a long utterance is taken apart


def test_the_last_pause_is_the_one_behind_the_last_speech() -> None:
    assert last_pause([Speech(0, 10), Speech(30, 50)], 60) == 60


def test_with_speech_up_to_the_end_the_last_pause_lies_before_it() -> None:
    assert last_pause([Speech(0, 10), Speech(30, 60)], 60) == 20


def test_speech_without_a_pause_is_not_taken_apart() -> None:
    assert last_pause([Speech(5, 60)], 60) is None


def test_silence_alone_is_one_pause() -> None:
    assert last_pause([], 60) == 60


@pytest.mark.parametrize(("processors", "workers", "threads"), [(8, 2, 4), (8, 7, 1), (2, 4, 1), (1, 0, 1)])
def test_workers_share_the_processors(processors: int, workers: int, threads: int) -> None:
    assert threads_each(processors, workers) == threads


# A model that cannot be had is one clear line


def failure(url: str, language: str = "") -> str:
    with pytest.raises(EngineFailed) as raised:
        WhisperRecognizer(engine_of(url), language=language)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_folder_that_is_not_there_is_named() -> None:
    assert failure("whisper:///no/such/folder") == "whisper: there is no folder /no/such/folder"
    assert failure("whisper://./no-such-folder") == "whisper: there is no folder ./no-such-folder"


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    assert failure(f"whisper://{tmp_path}") == f"whisper: the folder {tmp_path} holds no model.bin"


def test_a_folder_with_something_else_in_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"no model")
    assert failure(f"whisper://{tmp_path}").startswith(
        f"whisper: the model in the folder {tmp_path} cannot be loaded: "
    )


def test_a_model_that_cannot_be_fetched_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Cannot reach the hub.\nCheck your connection.")

    monkeypatch.setattr(faster_whisper, "WhisperModel", offline)
    assert failure("whisper://bass") == (
        "whisper: no folder here, and the model bass cannot be loaded: Cannot reach the hub."
    )


@pytest.mark.parametrize("beam", ["0", "11", "-1", "many", ""])
def test_a_beam_that_is_none_is_refused(beam: str) -> None:
    assert failure(f"whisper://base?beam={beam}") == f"whisper: beam is {beam!r}; allowed: 1 to 10"


# What the model recognizes

Speak = Callable[[bytes, Callable[[str], None]], str]


@pytest.fixture(scope="module")
def whisper_url() -> str:
    return f"whisper://{whisper_base()}"


@pytest.fixture(scope="module")
def english(whisper_url: str) -> WhisperRecognizer:
    return WhisperRecognizer(engine_of(whisper_url), language="en-US")


@pytest.fixture
def at_the_speed_of_speech(whisper_url: str) -> Speak:
    """Feeds audio as if it were being spoken; the passes take no time."""
    now = [0.0]
    recognizer = WhisperRecognizer(engine_of(whisper_url), language="en", clock=lambda: now[0])

    def speak(audio: bytes, on_interim: Callable[[str], None]) -> str:
        recognizer.begin(on_interim)
        for start in range(0, len(audio), 3_200):
            now[0] += 0.1
            recognizer.accept(audio[start : start + 3_200])
        return recognizer.finish()

    return speak


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def recognize(recognizer: WhisperRecognizer, audio: bytes, on_interim: Callable[[str], None] | None = None) -> str:
    recognizer.begin(on_interim)
    for start in range(0, len(audio), 3_200):
        recognizer.accept(audio[start : start + 3_200])
    return recognizer.finish()


def test_known_words_are_recognised(english: WhisperRecognizer) -> None:
    assert words(recognize(english, GO_FORWARD)) in (
        ["go", "forward", "10", "meters"],
        ["go", "forward", "ten", "meters"],
    )


@pytest.mark.parametrize(
    "audio", [b"", SILENCE[:20], SILENCE * 3, NOISE, TONE], ids=["none", "ten", "zero", "noise", "tone"]
)
def test_without_speech_there_are_no_words(english: WhisperRecognizer, audio: bytes) -> None:
    assert recognize(english, audio) == ""


def test_silence_around_the_words_makes_no_difference(english: WhisperRecognizer) -> None:
    assert words(recognize(english, 4 * SILENCE + GO_FORWARD + 4 * SILENCE))[:2] == ["go", "forward"]


def test_beginning_again_drops_what_was_under_way(english: WhisperRecognizer) -> None:
    alone = recognize(english, GO_FORWARD)
    english.begin(None)
    english.accept(GO_FORWARD)
    assert recognize(english, SILENCE) == ""
    assert recognize(english, GO_FORWARD) == alone


def test_interims_come_while_audio_arrives(
    at_the_speed_of_speech: Speak,
) -> None:
    interims: list[str] = []
    text = at_the_speed_of_speech(GO_FORWARD, interims.append)
    assert words(text)[:2] == ["go", "forward"]
    assert interims
    assert all(words(interim)[0] == "go" for interim in interims)
    assert len(interims) == len(set(interims))


def test_audio_faster_than_speech_gets_no_interims(english: WhisperRecognizer) -> None:
    interims: list[str] = []
    recognize(english, GO_FORWARD, interims.append)
    assert interims == []


def test_a_long_utterance_is_whole(english: WhisperRecognizer) -> None:
    with wave.open(str(SOMEWHERE), "rb") as recording:
        somewhere = recording.readframes(recording.getnframes())
    recognized = words(recognize(english, (GO_FORWARD + 2 * SILENCE + somewhere + 2 * SILENCE) * 4))
    assert (recognized.count("forward"), recognized.count("somewhere")) == (4, 4), "39 seconds, so two windows"


def test_the_language_is_found_out_where_none_is_set(whisper_url: str) -> None:
    recognizer = WhisperRecognizer(engine_of(whisper_url), workers=2)
    assert recognizer.detail.endswith("int8, any language")
    assert words(recognize(recognizer, GO_FORWARD))[:2] == ["go", "forward"]


def test_a_language_that_the_model_does_not_know_is_refused(whisper_url: str) -> None:
    assert failure(whisper_url, "xx-YY").endswith("does not know the language 'xx-YY'")
