"""The option ``--audio``: its output and its exit status."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cli import probe_device
from cocoa_tornado.probe.run import AUDIO_CHECKS, CHECKS

from .broken_gateways import SECRET, running
from .broken_speech import WORDS, SpeechFault
from .recordings import wav
from .test_command import TOKEN, invoke


@pytest.fixture
def recording(tmp_path: Path) -> str:
    file = tmp_path / "hello.wav"
    file.write_bytes(wav())
    return str(file)


def test_speech_adds_its_checks_and_the_transcript_and_no_bar_without_a_terminal(recording: str) -> None:
    with running(speech=[]) as gateway:
        result = invoke(f"127.0.0.1:{gateway.port}", "--secret", SECRET, "--audio", recording)

    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert result.stderr == ""
    assert f'"{WORDS}", ' in next(line for line in lines if line.split()[1] == "audio")
    assert len(lines) == len(CHECKS) + len(AUDIO_CHECKS) + 2


def test_json_has_the_checks_of_speech_with_their_details(recording: str) -> None:
    with running(speech=[SpeechFault.NO_FINAL]) as gateway:
        result = invoke(f"127.0.0.1:{gateway.port}", "--secret", SECRET, "--audio", recording, "--format", "json")

    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert result.exit_code == 1
    assert WORDS in checks["audio"]["detail"]
    assert [name for name, check in checks.items() if check["status"] == "failed"] == ["audio-final"]


def test_a_given_token_is_enough(recording: str) -> None:
    with running(speech=[]) as gateway:
        result = invoke(f"127.0.0.1:{gateway.port}", "--token", TOKEN, "--audio", recording)

    assert result.exit_code == 0
    assert gateway.speech is not None
    assert list(gateway.speech.binary) == ["doll"]


def test_a_gateway_without_speech_is_no_failure(recording: str) -> None:
    with running() as gateway:
        result = invoke(f"127.0.0.1:{gateway.port}", "--secret", SECRET, "--audio", recording)

    assert result.exit_code == 0
    assert "speech is off" in result.stdout


def test_what_is_no_recording_is_wrong_usage(tmp_path: Path) -> None:
    file = tmp_path / "hello.wav"
    file.write_bytes(b"OggS and more")
    result = invoke("ws://host", "--audio", str(file))

    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"Error: --audio: {file} is not a WAV file."


def test_a_recording_over_10_mib_is_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_device, "MAX_AUDIO_BYTES", 1000)
    file = tmp_path / "hello.wav"
    file.write_bytes(wav())
    result = invoke("ws://host", "--audio", str(file))

    assert result.exit_code == 2
    assert "larger than 10 MiB" in result.stderr


def test_on_a_terminal_a_bar_shows_the_progress_and_disappears(recording: str) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", "from cli.probe_device import probe_device; probe_device()"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm"}
    try:
        with running(speech=[]) as gateway:
            arguments = [f"127.0.0.1:{gateway.port}", "--secret", SECRET, "--audio", recording, "--format", "json"]
            finished = subprocess.run(
                [*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=follower, timeout=60
            )
        shown = os.read(leader, 65536).decode()
    finally:
        os.close(leader)
        os.close(follower)

    assert finished.returncode == 0
    assert json.loads(finished.stdout)["ok"]
    assert "speaking [########" in shown
    assert "] 0.2 of 0.2 s" in shown
    assert shown.endswith("\r\x1b[K")
