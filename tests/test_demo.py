"""The demonstration: what it takes for a success, and the whole of it with real speech."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cocoa_tornado.probe.judge_speech import Received
from demo.__main__ import HERE, LINES, Part, load, shortcomings

ROOT = Path(__file__).parents[1]
FIRST, SECOND = LINES


def received(part: str, text: str, final: bool = True) -> Received:
    fields = {"type": "transcription", "session_id": f"session of {part}", "text": text, "final": final}
    return Received(0.0, json.dumps(fields))


def parts(first: list[Received], text: str = FIRST.words) -> list[Part]:
    return [
        Part(FIRST, "session of first", text, first),
        Part(SECOND, "session of second", SECOND.words, [received("second", SECOND.words)]),
    ]


def test_own_words_and_nothing_else_are_a_success() -> None:
    assert shortcomings(parts([received("first", "go", final=False), received("first", FIRST.words)])) == []


def test_a_misheard_word_is_the_engines_own_affair() -> None:
    heard = "go somewhere and to something"
    assert shortcomings(parts([received("first", heard)], heard)) == []


@pytest.mark.parametrize(
    ("got", "text", "problem"),
    [
        ([], FIRST.words, "got 0 final messages"),
        ([received("first", FIRST.words, final=False)], FIRST.words, "got 0 final messages"),
        ([received("first", FIRST.words)] * 2, FIRST.words, "got 2 final messages"),
        ([received("first", FIRST.words), received("second", "two")], FIRST.words, "of other streams"),
        ([received("first", "two nine")], FIRST.words, "but was answered"),
        ([received("first", SECOND.words)], SECOND.words, "was recognized"),
        ([received("first", "")], "", "was recognized"),
    ],
)
def test_what_is_not_as_it_should_be_is_named(got: list[Received], text: str, problem: str) -> None:
    found = shortcomings(parts(got, text))

    assert len(found) == 1
    assert problem in found[0]
    assert found[0].startswith("doll-1 ")


def test_the_recordings_ship_with_their_licence() -> None:
    licence = (HERE / "LICENSE.rst").read_text(encoding="utf-8")

    for line in LINES:
        assert line.file in licence
        assert line.words in licence
        assert 2 < load(line).duration_s < 4


def test_both_devices_speak_at_once_and_each_gets_its_own_words() -> None:
    finished = subprocess.run([sys.executable, "-m", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=180)

    assert finished.stderr == ""
    assert finished.returncode == 0, finished.stdout
    *_, first, second, verdict = finished.stdout.splitlines()
    assert verdict.startswith("Success")
    for line, printed in zip(LINES, (first, second), strict=True):
        message = json.loads(printed.partition("<- ")[2])
        assert (message["device_id"], message["text"], message["final"]) == (line.device_id, line.words, True)
