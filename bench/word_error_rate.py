"""Measures the accuracy and speed of engines: ``python -m bench.word_error_rate FOLDER... [--engine URL ...]``.

A folder contains recordings and their transcripts: ``NAME.wav``, or ``NAME.raw`` (16 kHz, mono, signed 16-bit,
little-endian), with ``NAME.txt`` beside it or a line ``<s> the words </s> (NAME)`` in any file whose name ends in
``transcription``, the format of the CMU Sphinx tools. Recordings without a transcript are skipped.

Every engine recognizes every recording once, in pieces of a tenth of a second, in this process. The time is CPU time
divided by the length of the audio. :func:`testing.words.spoken` defines words.
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from cocoa_tornado.errors import SpeechError
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.speech.decoding import decode
from cocoa_tornado.speech.engines import engine_of
from cocoa_tornado.speech.loading import make_recognizer
from cocoa_tornado.speech.recognizer import BYTES_PER_SECOND, Recognizer
from testing.words import spoken

PIECE_BYTES: Final = BYTES_PER_SECOND // 10
LONGEST_S: Final = 600.0

_TRANSCRIPTION: Final = re.compile(r"\s*<s>(.*)</s>\s*\(([^\s()]+)\)\s*")


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording.

    :ivar words: its transcript
    """

    name: str
    path: Path
    words: str


@dataclass(frozen=True, slots=True)
class Errors:
    """The fewest changes that turn the spoken words into the recognized ones.

    :ivar said: the number of spoken words
    """

    substituted: int
    deleted: int
    inserted: int
    said: int

    @property
    def total(self) -> int:
        return self.substituted + self.deleted + self.inserted


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one recording and one engine."""

    recording: Recording
    heard: str
    errors: Errors
    audio_s: float
    busy_s: float


def word_errors(said: str, heard: str) -> Errors:
    """Compare two texts word by word. For numbers in digits, the reading that fits better counts."""
    reference = spoken(said)
    return min((_fewest(reference, spoken(heard, digit_by_digit=way)) for way in (False, True)), key=lambda e: e.total)


def error_rate(errors: Iterable[Errors]) -> float:
    """The total word error rate: 0.0 is perfect; it may exceed 1.0.

    :raises ValueError: there are no spoken words
    """
    counted = list(errors)
    said = sum(each.said for each in counted)
    if not said:
        raise ValueError("there is no rate where nothing is said")
    return sum(each.total for each in counted) / said


def recordings_in(folder: Path) -> list[Recording]:
    """All recordings below the folder that have a transcript, by name."""
    known: dict[tuple[Path, str], str] = {}
    for path in folder.rglob("*transcription"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if match := _TRANSCRIPTION.fullmatch(line):
                known[path.parent, match[2]] = match[1].strip()
    found = []
    for path in sorted(folder.rglob("*")):
        beside = path.with_suffix(".txt")
        if path.suffix not in (".wav", ".raw"):
            continue
        words = beside.read_text(encoding="utf-8").strip() if beside.is_file() else known.get((path.parent, path.stem))
        if words:
            found.append(Recording(path.stem, path, words))
    return found


def hear(recognizer: Recognizer, recording: Recording) -> Row:
    """Recognize a recording.

    :raises SpeechError: it is not a recording, or the engine failed
    """
    samples = _samples(recording.path)
    before_s = time.process_time()
    recognizer.begin(None)
    for start in range(0, len(samples), PIECE_BYTES):
        recognizer.accept(samples[start : start + PIECE_BYTES])
    heard = recognizer.finish()
    busy_s = time.process_time() - before_s
    return Row(recording, heard, word_errors(recording.words, heard), len(samples) / BYTES_PER_SECOND, busy_s)


def table(rows: Sequence[Row]) -> str:
    """One line per recording, and a total."""
    width = max([len(row.recording.name) for row in rows] + [len("recording")])
    lines = [f"{'recording':{width}}  audio  said  sub  del  ins     WER    RTF  heard"]
    for row in rows:
        lines.append(_line(row.recording.name, [row], width) + f"  {row.heard}")
    return "\n".join([*lines, _line("all", rows, width)])


def _line(name: str, rows: Sequence[Row], width: int) -> str:
    audio_s = sum(row.audio_s for row in rows)
    said, substituted, deleted, inserted = (
        sum(getattr(row.errors, kind) for row in rows) for kind in ("said", "substituted", "deleted", "inserted")
    )
    rate, factor = error_rate(row.errors for row in rows), sum(row.busy_s for row in rows) / audio_s
    counts = f"{said:4}  {substituted:3}  {deleted:3}  {inserted:3}"
    return f"{name:{width}}  {audio_s:4.1f}s  {counts}  {rate:6.1%}  {factor:5.2f}"


def _fewest(said: Sequence[str], heard: Sequence[str]) -> Errors:
    """The Levenshtein distance, with counts of each kind of change."""
    # (all changes, substituted, deleted, inserted) from the spoken words so far to the recognized words so far
    above = [(number, 0, 0, number) for number in range(len(heard) + 1)]
    for row, word in enumerate(said, start=1):
        line = [(row, 0, row, 0)]
        for column, other in enumerate(heard, start=1):
            total, substituted, deleted, inserted = above[column - 1]
            wrong = int(word != other)
            candidates = [(total + wrong, substituted + wrong, deleted, inserted)]
            total, substituted, deleted, inserted = above[column]
            candidates.append((total + 1, substituted, deleted + 1, inserted))
            total, substituted, deleted, inserted = line[column - 1]
            candidates.append((total + 1, substituted, deleted, inserted + 1))
            line.append(min(candidates))
        above = line
    _, substituted, deleted, inserted = above[-1]
    return Errors(substituted, deleted, inserted, len(said))


def _samples(path: Path) -> bytes:
    declared = AudioFormat(container="raw" if path.suffix == ".raw" else "wav")
    return b"".join(decode(declared, io.BytesIO(path.read_bytes()), LONGEST_S))


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--engine", "engines", multiple=True, default=["pocketsphinx://"], help="As for COCOA_SPEECH; repeatable."
)
@click.option("--language", default="en", show_default=True, help="Language of the recordings.")
def main(folders: Sequence[Path], engines: Sequence[str], language: str) -> None:
    """Print the word error rate and the real time factor of each engine on the recordings below FOLDERS."""
    recordings = [recording for folder in folders for recording in recordings_in(folder)]
    if not recordings:
        raise click.UsageError(f"no recording with known words below {', '.join(map(str, folders))}")
    try:
        for url in engines:
            recognizer = make_recognizer(engine_of(url), language=language, workers=1)
            click.echo(f"{recognizer.detail}\n\n{table([hear(recognizer, each) for each in recordings])}\n")
    except (SpeechError, ValueError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
