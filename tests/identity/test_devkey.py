"""The development key: created once, shared by all processes of a user, readable by no other user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cocoa_tornado.errors import KeyMaterialError
from cocoa_tornado.identity.devkey import FILE_NAME, development_secret, user_data_dir
from cocoa_tornado.identity.keys import secret_key


def test_the_key_is_made_on_first_use_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    first = development_secret(folder)
    second = development_secret(folder)
    assert (first.created, second.created) == (True, False)
    assert first.secret == second.secret
    assert first.path == folder / FILE_NAME
    assert list(folder.iterdir()) == [first.path]


def test_the_key_is_a_strong_secret_and_different_elsewhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = development_secret(tmp_path / "a")
    assert secret_key(key.secret, "test")
    assert not caplog.records
    assert key.secret != development_secret(tmp_path / "b").secret


def test_only_the_user_can_read_the_key_with_any_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        key = development_secret(tmp_path / "data")
    finally:
        os.umask(previous)
    assert key.path.stat().st_mode & 0o777 == 0o600
    assert key.path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_folders_created_for_the_key_are_private_with_any_umask(tmp_path: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        key = development_secret(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(previous)
    for folder in (tmp_path / "a", tmp_path / "a" / "b", key.path.parent):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    development_secret(tmp_path / "shared" / "mine")
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("kind", "problem"), [("pipe", "is a pipe, not a file"), ("device", "is a device, not a file")]
)
def test_a_key_that_is_no_file_is_an_error_and_does_not_hang_the_start(tmp_path: Path, kind: str, problem: str) -> None:
    path = tmp_path / FILE_NAME
    if kind == "pipe":
        os.mkfifo(path, 0o600)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(KeyMaterialError, match=f"development key {path}: {problem}; .*COCOA_JWT_SECRET"):
        development_secret(tmp_path)


def test_a_key_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = development_secret(tmp_path).path
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(KeyMaterialError, match=r"belongs to another user .*COCOA_JWT_SECRET"):
        development_secret(tmp_path)


def test_a_link_leads_to_a_key_that_is_judged_like_any_other(tmp_path: Path) -> None:
    key = development_secret(tmp_path / "kept")
    (tmp_path / FILE_NAME).symlink_to(key.path)
    assert development_secret(tmp_path).secret == key.secret
    key.path.chmod(0o644)
    with pytest.raises(KeyMaterialError, match="chmod 600"):
        development_secret(tmp_path)


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).symlink_to(tmp_path / "nowhere")
    with pytest.raises(KeyMaterialError, match="No such file"):
        development_secret(tmp_path)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o610])
def test_a_key_that_others_may_use_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    key = development_secret(tmp_path)
    key.path.chmod(mode)
    with pytest.raises(KeyMaterialError, match=f"chmod 600 {key.path}") as caught:
        development_secret(tmp_path)
    assert key.secret not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "empty"), (b"\n", "empty"), (b"short\n", "damaged"), (b"\xff" * 43, "damaged"), (b"a b" * 20, "damaged")],
)
def test_a_damaged_key_is_refused_with_the_remedy(tmp_path: Path, content: bytes, problem: str) -> None:
    path = development_secret(tmp_path).path
    path.write_bytes(content)
    with pytest.raises(KeyMaterialError, match=f"{path}: is {problem}; delete it"):
        development_secret(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/dev/null/x")):
        with pytest.raises(KeyMaterialError, match="COCOA_JWT_SECRET"):
            development_secret(folder)


def test_a_directory_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(KeyMaterialError, match=FILE_NAME):
        development_secret(tmp_path)


def test_processes_that_race_get_the_same_key(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from cocoa_tornado.identity.devkey import development_secret; sys.stdin.read();"
        "key = development_secret(pathlib.Path(sys.argv[1])); print(key.secret, key.created)"
    )
    folder = tmp_path / "data"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    answers = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
        racer.stdin = None  # communicate() would flush it
    for racer in racers:
        output, _ = racer.communicate(timeout=30)
        answers.append(output.split())
    assert len({secret for secret, _ in answers}) == 1
    assert sorted(created for _, created in answers) == ["False", "False", "False", "True"]
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]


def test_the_loser_of_a_race_takes_the_winners_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    winner = development_secret(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    loser = development_secret(tmp_path)
    assert (loser.secret, loser.created) == (winner.secret, False)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_the_secret_does_not_show_in_a_repr(tmp_path: Path) -> None:
    key = development_secret(tmp_path)
    assert key.secret not in repr(key)


@pytest.mark.parametrize(
    ("environ", "platform", "folder"),
    [
        ({"XDG_DATA_HOME": "/data"}, "linux", "/data/cocoa-tornado"),
        ({"XDG_DATA_HOME": "/data"}, "darwin", "/data/cocoa-tornado"),
        ({"XDG_DATA_HOME": "relative"}, "linux", "/home/u/.local/share/cocoa-tornado"),
        ({"XDG_DATA_HOME": ""}, "linux", "/home/u/.local/share/cocoa-tornado"),
        ({}, "darwin", "/home/u/Library/Application Support/cocoa-tornado"),
    ],
)
def test_the_data_directory_is_the_platforms(
    environ: dict[str, str], platform: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    assert user_data_dir(environ, platform) == Path(folder)


def test_without_a_home_the_error_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(KeyMaterialError, match="COCOA_DATA_DIR"):
        user_data_dir({}, "linux")


def test_the_users_data_directory_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert development_secret().path == tmp_path / "cocoa-tornado" / FILE_NAME
