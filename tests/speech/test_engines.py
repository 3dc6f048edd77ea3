"""The description of an engine before its library is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from cocoa_tornado.speech.engines import MIB, WORKER_BYTES, engine_of, worker_bytes


@pytest.mark.parametrize(
    ("url", "mib"),
    [
        ("pocketsphinx://", 192),
        ("google://", 192),
        ("whisper://tiny.en", 406),
        ("whisper://base", 546),
        ("whisper://Systran/faster-whisper-small", 1226),
        ("whisper://distil-large-v3", 3296),
        ("whisper://large-v3", 6456),
        ("whisper://large-v3-turbo", 3496),
        ("whisper://somebody/something", 3316),
        ("whisper:///no/such/folder/base", 546),
    ],
)
def test_the_memory_of_a_worker_is_known_by_its_engine_and_model(url: str, mib: int) -> None:
    assert worker_bytes(engine_of(url)) == mib * MIB


def test_a_model_on_disk_counts_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "model.bin").open("wb") as file:
        file.truncate(1000 * MIB)
    assert worker_bytes(engine_of(f"whisper://{tmp_path}")) == 2256 * MIB
    assert worker_bytes(engine_of("pocketsphinx://")) == WORKER_BYTES
