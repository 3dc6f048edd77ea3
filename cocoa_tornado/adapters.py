"""What an adapter says about itself before it is imported: its URL scheme, and the library and extra that it needs.

Each adapter has a :class:`Scheme` in a light module of its own, which imports no optional library. The settings list
the schemes of a port; the composition root imports the adapter that one of them names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import util
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """What is not part of a plain installation.

    :ivar needed_by: the value of a setting, or its scheme, for a message
    :ivar modules: must all be importable
    :ivar extra: the extra of this package that installs them
    :ivar instead: a value of the same setting that does without
    :ivar name: for messages, where it is not the missing module's
    """

    needed_by: str
    modules: tuple[str, ...]
    extra: str
    instead: str
    name: str = ""

    def missing(self) -> str | None:
        """What is not installed, by name; None if everything is. Imports nothing but the packages above a dotted
        name."""
        return next((self.name or module for module in self.modules if not _is_installed(module)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """The URLs of one adapter.

    :ivar names: the scheme, and its variants: ``("redis", "rediss")``
    :ivar form: how such a URL is written, for messages and the reference; empty: it is not mentioned
    :ivar check: returns the URL in its usual spelling. Pure; raises ValueError with what is wrong, to follow on the URL
        in a sentence, and with no password in it
    :ivar no_user: why the URL holds no user and no password; empty: it may
    :ivar folder: the folder that the URL names and that must exist; "" for none
    :ivar rebase: the URL with a relative path in it taken from a folder
    """

    names: tuple[str, ...]
    form: str
    check: Callable[[str], str]
    library: Library | None = None
    no_user: str = ""
    folder: Callable[[str], str] = lambda url: ""
    rebase: Callable[[str, Path], str] = lambda url, folder: url


def bare(name: str, refusal: str) -> Scheme:
    """The scheme of an adapter whose URL is ``name://`` and nothing more.

    :param refusal: what :attr:`Scheme.check` says about a longer one
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
