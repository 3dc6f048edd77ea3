"""The word error rate: what counts as a word, and as an error; and how the recordings are found."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench.word_error_rate import Errors, Recording, Row, error_rate, main, recordings_in, table, word_errors
from testing.words import spoken

WORDS = st.lists(st.sampled_from(["go", "forward", "ten", "meters", "stop"]), max_size=8)


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("go forward ten meters", "go forward ten meters", Errors(0, 0, 0, 4)),
        ("go forward ten meters", "go forward then meters", Errors(1, 0, 0, 4)),
        ("go forward ten meters", "forward ten", Errors(0, 2, 0, 4)),
        ("go forward", "please go forward now", Errors(0, 0, 2, 2)),
        ("go forward", "", Errors(0, 2, 0, 2)),
        ("go forward", "stop it there", Errors(2, 0, 1, 2)),
    ],
)
def test_errors_are_the_fewest_changes_from_the_words_said_to_those_heard(
    said: str, heard: str, errors: Errors
) -> None:
    assert word_errors(said, heard) == errors


@given(WORDS, WORDS)
def test_errors_add_up(said: list[str], heard: list[str]) -> None:
    errors = word_errors(" ".join(said), " ".join(heard))
    assert len(said) - errors.deleted + errors.inserted == len(heard)
    assert abs(len(said) - len(heard)) <= errors.total <= max(len(said), len(heard))
    assert (errors.total == 0) == (said == heard)


@given(WORDS, WORDS)
def test_the_other_way_round_there_are_as_many(said: list[str], heard: list[str]) -> None:
    there, back = word_errors(" ".join(said), " ".join(heard)), word_errors(" ".join(heard), " ".join(said))
    assert there.total == back.total


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("he was not an ill disposed young man", "He was not an ill-disposed young man."),
        ("mister john dashwood", "Mr. John Dashwood,"),
        ("go forward ten meters", "Go forward 10 meters"),
        ("forty two", "42"),
        ("two nine three four zero", "293-4-0"),
        ("three five oh", "350"),
        ("don't stop", "Don\u2019t stop!"),
    ],
)
def test_the_same_words_spelt_otherwise_are_no_error(said: str, heard: str) -> None:
    assert word_errors(said, heard).total == 0


def test_numbers_are_read_one_way_throughout_a_text() -> None:
    assert spoken("20 and 340") == ["twenty", "and", "three", "four", "zero"]
    assert spoken("20 and 340", digit_by_digit=True) == ["two", "zero", "and", "three", "four", "zero"]


def test_the_rate_of_several_recordings_weighs_each_by_its_words() -> None:
    assert error_rate([Errors(1, 0, 0, 1), Errors(0, 0, 0, 9)]) == 0.1


def test_there_is_no_rate_where_nothing_is_said() -> None:
    with pytest.raises(ValueError, match="nothing is said"):
        error_rate([])


def test_recordings_are_those_whose_words_stand_beside_them_or_in_a_transcription(tmp_path: Path) -> None:
    cards = tmp_path / "cards"
    cards.mkdir()
    (cards / "cards.transcription").write_text("<s> ten of clubs  </s> (001)\nno such line\n", encoding="utf-8")
    for path in (tmp_path / "go.raw", tmp_path / "unknown.wav", cards / "001.wav", cards / "002.wav"):
        path.touch()
    (tmp_path / "go.txt").write_text(" go forward\n", encoding="utf-8")
    assert recordings_in(tmp_path) == [
        Recording("001", cards / "001.wav", "ten of clubs"),
        Recording("go", tmp_path / "go.raw", "go forward"),
    ]


def test_the_table_has_a_line_for_each_recording_and_one_for_all() -> None:
    rows = [
        Row(Recording("go", Path("go.raw"), "go forward"), "go forward", Errors(0, 0, 0, 2), audio_s=2.0, busy_s=0.5),
        Row(Recording("stop", Path("stop.raw"), "stop now"), "stop", Errors(0, 1, 0, 2), audio_s=2.0, busy_s=1.5),
    ]
    assert table(rows).splitlines() == [
        "recording  audio  said  sub  del  ins     WER    RTF  heard",
        "go          2.0s     2    0    0    0    0.0%   0.25  go forward",
        "stop        2.0s     2    0    1    0   50.0%   0.75  stop",
        "all         4.0s     4    0    1    0   25.0%   0.50",
    ]


def test_a_folder_without_recordings_is_wrong_usage(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 2
    assert "no recording with known words" in result.output
