"""The folder for the sockets of the workers of one parent, which no other user may enter."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from typing import Final

PREFIX: Final = "cocoa-workers-"
MAX_FOLDER_BYTES: Final = 90
"""The path of a Unix socket may have 103 bytes on some systems."""
UNLOCKED_S: Final = 60.0
"""A folder that is younger may belong to a parent that has not locked it yet."""

log = logging.getLogger("cocoa.workers")


class SocketFolder:
    """A new folder. It is locked as long as this process lives, however it ends: an unlocked one was left by a parent
    that was killed, and the next parent of the same user removes it. Workers don't inherit the lock.

    :ivar path: '' if none can be created
    """

    def __init__(self) -> None:
        self.path, self._lock = "", -1
        for parent in filter(None, (_runtime_folder(), _temporary_folder())):
            _remove_left(parent)
            try:
                folder = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
            except OSError as error:
                log.debug("no folder for sockets", extra={"error": str(error)})
                continue
            if len(os.fsencode(folder)) <= MAX_FOLDER_BYTES:
                self.path = folder
                break
            os.rmdir(folder)
        if not self.path:
            log.warning("no folder for sockets", extra={"instead": "workers reach each other through Redis"})
            return
        with contextlib.suppress(OSError):  # a file system without locks: then no folder on it is removed, either
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __repr__(self) -> str:
        return f"<SocketFolder {self.path!r}>"

    def remove(self) -> None:
        """Remove it with the sockets in it. Idempotent, never raises."""
        if self.path:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
        self.path, self._lock = "", -1


def _runtime_folder() -> str | None:
    """The folder of ``XDG_RUNTIME_DIR``, if it is this user's own: the variable may be another user's, for example
    after sudo."""
    path = os.environ.get("XDG_RUNTIME_DIR")
    if not path:
        return None
    try:
        return path if _is_private(os.stat(path)) else None
    except OSError:
        return None


def _temporary_folder() -> str | None:
    try:
        return tempfile.gettempdir()
    except OSError as error:
        log.debug("no folder for sockets", extra={"error": str(error)})
        return None


def _is_private(found: os.stat_result) -> bool:
    """Whether it is a folder that belongs to this user alone."""
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700


def _remove_left(parent: str) -> None:
    """Remove the folders that killed parents of this user have left behind."""
    try:
        names = [name for name in os.listdir(parent) if name.startswith(PREFIX)]
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):  # it is in use, or another user's
            _remove_unlocked(os.path.join(parent, name))


def _remove_unlocked(path: str) -> None:
    """:raises OSError: it is locked, no folder, or not accessible"""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(folder)
        if _is_private(found) and time.time() - found.st_mtime > UNLOCKED_S:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
            log.info("folder for sockets removed", extra={"path": path})
    finally:
        os.close(folder)
