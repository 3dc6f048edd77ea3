"""The development key: a per-user HMAC secret, created on first use, so that development needs no configuration.

``cocoa serve`` and ``cocoa mint-token`` share it. It is not for production: a user who can read it can impersonate any
device.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..errors import KeyMaterialError
from ..plain_files import open_file

FILE_NAME: Final = "development.key"
_WAY_OUT: Final = "or set COCOA_JWT_SECRET"
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43,}")
_MAX_FILE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class DevelopmentKey:
    """The development key of this user.

    :ivar created: whether this call created it
    """

    secret: str = field(repr=False)
    path: Path
    created: bool


def development_secret(data_dir: Path | None = None) -> DevelopmentKey:
    """Return the development key, creating it if it does not exist.

    Concurrent processes get the same key: the file is created atomically.

    :param data_dir: the folder of the key file; None for ``user_data_dir()``. Created with mode 0700 if missing
    :raises KeyMaterialError: the key can't be created or read, belongs to another user, is accessible to others, or is
        damaged
    """
    path = (data_dir or user_data_dir()) / FILE_NAME
    created = False
    try:
        if not path.exists():
            created = _create(path)
        secret = _read(path)
    except OSError as error:
        raise KeyMaterialError(
            f"development key {path}: {error.strerror}; choose another data directory (COCOA_DATA_DIR), {_WAY_OUT}"
        ) from error
    return DevelopmentKey(secret, path, created)


def user_data_dir(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """Return this program's data folder in the user's home, without creating it.

    This is ``cocoa-tornado`` in ``$XDG_DATA_HOME``, by default ``~/.local/share``; on macOS, in
    ``~/Library/Application Support``.

    :param environ: replaces the process's environment
    :raises KeyMaterialError: the user has no home directory
    """
    # The XDG specification: a relative path is invalid and must be ignored.
    configured = Path((os.environ if environ is None else environ).get("XDG_DATA_HOME", ""))
    if configured.is_absolute():
        return configured / "cocoa-tornado"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise KeyMaterialError(
            f"development key: there is no home directory; set a data directory (COCOA_DATA_DIR), {_WAY_OUT}"
        ) from error
    inside = Path("Library", "Application Support") if platform == "darwin" else Path(".local", "share")
    return home / inside / "cocoa-tornado"


def _create(path: Path) -> bool:
    """Create a new key at ``path`` atomically; return False if another process was faster."""
    _make_folder(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, never replaces the key that another process has just put there.
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    return True


def _make_folder(folder: Path) -> None:
    """Create the folder and its missing parents, all with mode 0700.

    ``Path.mkdir(parents=True)`` creates the parents with the default mode.
    """
    for one in (*reversed(folder.parents), folder):
        if not os.path.isdir(one):
            one.mkdir(mode=0o700, exist_ok=True)


def _read(path: Path) -> str:
    with open_file(path) as file:
        status = os.fstat(file.fileno())
        _check_owner(path, status)
        data = file.read(_MAX_FILE_BYTES)
    secret = data.decode("ascii", "replace").strip()
    if not _SECRET.fullmatch(secret):
        state = "damaged" if secret else "empty"
        raise KeyMaterialError(f"development key {path}: is {state}; delete it, and the next start creates a new one")
    return secret


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Check owner and mode of the opened file, which a symbolic link may have led to."""
    if os.name != "posix":
        return
    if status.st_uid != os.geteuid():
        problem = f"belongs to another user (uid {status.st_uid}), who may impersonate devices; delete it, {_WAY_OUT}"
        raise KeyMaterialError(f"development key {path}: {problem}")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(status.st_mode)
        raise KeyMaterialError(f"development key {path}: is open to others (mode {mode:04o}); run: chmod 600 {path}")
