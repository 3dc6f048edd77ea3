"""Descriptions of adapters that need no import of the adapter: the URL scheme, the required library and its extra.

Each adapter defines a :class:`Scheme` in a separate module that imports no optional library. The settings list the
schemes of a port, and the composition root imports the adapter that the URL selects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import util
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """A library that a plain installation lacks.

    :ivar needed_by: the setting's value, or its scheme, that needs the library; for messages
    :ivar modules: the modules that must be importable
    :ivar extra: the extra of this package that installs them
    :ivar instead: a value of the same setting that works without them
    :ivar name: the library's name in messages; empty for the name of the missing module
    """

    needed_by: str
    modules: tuple[str, ...]
    extra: str
    instead: str
    name: str = ""

    def missing(self) -> str | None:
        """The name of a missing library; None if everything is installed. Imports only the parents of dotted names."""
        return next((self.name or module for module in self.modules if not _is_installed(module)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """The URLs of one adapter.

    :ivar names: the scheme and its variants: ``("redis", "rediss")``
    :ivar form: the syntax of the URL, for messages and the reference; empty to omit it there
    :ivar check: returns the normalized URL. Pure. Raises ValueError with a text that follows the URL in a message and
        contains no password
    :ivar no_user: why the URL must not contain a user or password; empty if it may
    :ivar folder: returns the folder that the URL names and that must exist; "" for none
    :ivar rebase: returns the URL with its relative path resolved against a folder
    """

    names: tuple[str, ...]
    form: str
    check: Callable[[str], str]
    library: Library | None = None
    no_user: str = ""
    folder: Callable[[str], str] = lambda url: ""
    rebase: Callable[[str, Path], str] = lambda url, folder: url


def bare(name: str, refusal: str) -> Scheme:
    """The scheme of an adapter whose only URL is ``name://``.

    :param refusal: the error text of :attr:`Scheme.check` for any other URL
    """

    def check(url: str) -> str:
        if url.lower() != f"{name}://":
            raise ValueError(refusal)
        return f"{name}://"

    return Scheme(names=(name,), form=f"{name}://", check=check)


def _is_installed(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
