"""The URL of the SQLite mailbox. Pure: opens no file."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from ..adapters import Scheme
from ..plain_text import has_no_controls


def sqlite_path(url: str) -> str:
    """The path in ``sqlite:///relative/path`` or ``sqlite:////absolute/path``.

    :raises ValueError: the URL has no valid path
    """
    _, _, rest = url.partition("://")
    if not rest.startswith("/"):
        raise ValueError("a relative path follows three slashes, an absolute path four")
    path = unquote(rest[1:])
    if not path or path.endswith("/"):
        raise ValueError("it names no file")
    if "?" in rest or "#" in rest:
        raise ValueError("write ? and # in its path as %3F and %23")
    if not has_no_controls(path):
        raise ValueError("its path contains a control character")
    return path


def _check(url: str) -> str:
    if not has_no_controls(url):
        raise ValueError("it contains a character that is invalid in URLs")
    return f"sqlite:///{quote(sqlite_path(url))}"


def _rebase(url: str, folder: Path) -> str:
    return f"sqlite:///{quote(str(folder / sqlite_path(url)))}"


SQLITE: Final = Scheme(
    names=("sqlite",), form="sqlite:///relative/path, sqlite:////absolute/path", check=_check, rebase=_rebase
)
