"""The folder for the workers' sockets: its permissions, and removing one whose parent was killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoa_tornado.workers.folder import MAX_FOLDER_BYTES, SocketFolder


def test_no_other_user_may_enter_the_folder_of_the_workers_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as parent:
        monkeypatch.setenv("XDG_RUNTIME_DIR", parent)
        folder = Path(SocketFolder().path)
        assert folder.parent == Path(parent)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("foreign", ["mode", "owner", "file", "missing"])
def test_a_runtime_folder_that_is_not_this_user_s_alone_is_not_used(
    foreign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After sudo, for example, the variable is that of another user."""
    with tempfile.TemporaryDirectory() as parent:
        runtime, temporary = Path(parent, "runtime"), Path(parent, "t")
        temporary.mkdir()
        if foreign == "file":
            runtime.touch(0o700)
        elif foreign != "missing":
            runtime.mkdir(0o755 if foreign == "mode" else 0o700)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        if foreign == "owner":
            user = os.geteuid() + 1
            monkeypatch.setattr(os, "geteuid", lambda: user)
        assert Path(SocketFolder().path).parent == temporary


@pytest.mark.logs("cocoa.workers", "no folder for sockets")
def test_a_path_that_is_too_long_for_a_unix_socket_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * MAX_FOLDER_BYTES)
    deep.mkdir(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert SocketFolder().path == ""
    assert [*deep.iterdir()] == []


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as parent:
        monkeypatch.setenv("XDG_RUNTIME_DIR", parent)
        monkeypatch.setattr(tempfile, "tempdir", parent)
        yield Path(parent)


def make_old(folder: Path) -> None:
    os.utime(folder, (1.0, 1.0))


def test_the_folder_of_a_parent_that_was_killed_is_removed_and_no_other(runtime: Path) -> None:
    """Its workers, which end later, don't hold it."""
    code = """
import subprocess, sys
from cocoa_tornado.workers.folder import SocketFolder
folder = SocketFolder()
worker = subprocess.Popen(["sleep", "60"])
print(folder.path, worker.pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        path, worker = parent.stdout.readline().decode().split()
        killed = Path(path)
        killed.joinpath("1.sock").touch()
        make_old(killed)
        try:
            living = SocketFolder()
            assert killed.exists()
            make_old(Path(living.path))
            parent.kill()
            parent.wait()
            new = SocketFolder()
        finally:
            os.kill(int(worker), signal.SIGKILL)
    assert sorted(runtime.iterdir()) == sorted([Path(living.path), Path(new.path)])
    living.remove()
    new.remove()
    assert [*runtime.iterdir()] == []


@pytest.mark.parametrize("kind", ["young", "mode", "link", "file", "name"])
def test_what_is_not_an_old_folder_of_a_parent_is_not_removed(runtime: Path, kind: str, tmp_path: Path) -> None:
    found = runtime / ("cocoa-workers-x" if kind != "name" else "cocoa-x")
    tmp_path.chmod(0o700)
    if kind == "link":
        found.symlink_to(tmp_path)
    elif kind == "file":
        found.touch(0o700)
    else:
        found.mkdir(0o755 if kind == "mode" else 0o700)
    if kind != "young":
        make_old(found)
    SocketFolder().remove()
    assert [*runtime.iterdir()] == [found]
    assert tmp_path.exists()


def test_a_folder_of_another_user_is_not_removed(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = runtime / "cocoa-workers-x"
    found.mkdir(0o700)
    make_old(found)
    user = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: user)
    SocketFolder().remove()
    assert found.exists()


def test_an_old_folder_that_is_not_locked_is_removed(runtime: Path) -> None:
    found = runtime / "cocoa-workers-x"
    found.mkdir(0o700)
    make_old(found)
    SocketFolder().remove()
    assert not found.exists()
