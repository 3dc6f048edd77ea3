"""Helpers for text that people or programs have entered: stripping blanks, and showing it in messages. Pure.

At the bottom of the layers: it imports nothing of the package, and any module may import it.
"""

from __future__ import annotations

import unicodedata
from typing import Final

BLANKS: Final = " \t\r\n"
MAX_LINE: Final = 300
MAX_QUOTED: Final = 60
_MORE: Final = "..."
_CONTROLS: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


def strip_blanks(text: str) -> str:
    """Return ``text`` without the spaces, tabs and line ends around it.

    Parsers use this rather than :meth:`str.strip`, which also removes separators (U+001C to U+001F) that ``int`` and
    ``float`` reject: they would raise ValueError for text that a pattern has accepted after ``strip``.
    """
    return text.strip(BLANKS)


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Return ``text`` as one line that is safe for terminals and logs.

    Unprintable characters (control characters, line separators, lone surrogates) are escaped as in a Python literal,
    and the line is cut at ``limit`` characters.
    """
    shown = text[: limit + 1]
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else _escaped(char) for char in shown)
    return shown if len(shown) <= limit else shown[: limit - len(_MORE)] + _MORE


def quoted(text: str, limit: int = MAX_QUOTED) -> str:
    """Return ``text`` in quotes, as :func:`one_line` shows it, cut at ``limit`` characters."""
    shown = repr(text[: limit + 1])
    return shown if len(shown) <= limit else shown[:limit] + _MORE


def has_no_controls(text: str) -> bool:
    """Return False if ``text`` contains a control character, a line or paragraph separator, or a lone surrogate.

    Unlike :meth:`str.isprintable` it accepts every blank and joiner, which file names may contain.
    """
    return text.isprintable() or not any(unicodedata.category(char) in _CONTROLS for char in text)


def is_encodable(text: str) -> bool:
    """Return False if ``text`` contains a lone surrogate, which UTF-8 cannot encode.

    Python represents bytes that are not UTF-8 as such surrogates, in arguments, variables and file names.
    """
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
