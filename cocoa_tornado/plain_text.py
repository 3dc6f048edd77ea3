"""Text that a person or a program has typed: the blanks around it, and how it looks in a message. Pure.

The lowest module of all: it imports nothing of the package, and everything may import it.
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
    ``float`` refuse: what a pattern has accepted after ``strip`` they would still raise ValueError for.
    """
    return text.strip(BLANKS)


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Return ``text`` as one line that every terminal and log can take.

    What is not printable (control characters, line separators, lone surrogates) is escaped as in a Python literal,
    and what is longer than ``limit`` characters is cut there.
    """
    shown = text[: limit + 1]
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else _escaped(char) for char in shown)
    return shown if len(shown) <= limit else shown[: limit - len(_MORE)] + _MORE


def quoted(text: str, limit: int = MAX_QUOTED) -> str:
    """Return ``text`` in quotes, as :func:`one_line` would show it; what is longer than ``limit`` is cut."""
    shown = repr(text[: limit + 1])
    return shown if len(shown) <= limit else shown[:limit] + _MORE


def has_no_controls(text: str) -> bool:
    """Return False where ``text`` holds a control character, a line or paragraph separator, or a lone surrogate.

    Unlike :meth:`str.isprintable` it accepts every blank and joiner, which names of files may hold.
    """
    return text.isprintable() or not any(unicodedata.category(char) in _CONTROLS for char in text)


def is_encodable(text: str) -> bool:
    """Return False where ``text`` holds a lone surrogate, which no UTF-8 encoder takes.

    The system hands over bytes that are not UTF-8 as such surrogates, in arguments, variables and file names.
    """
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
