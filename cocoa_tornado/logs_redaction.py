"""Replaces everything that looks like a token in log lines."""

from __future__ import annotations

import base64
import re
from typing import Final

# Words joined by dots: host names, versions, modules, topics, and tokens. One may directly follow a colour code or, in
# a repr, an escape such as \n. Possessive quantifiers, and no match inside a word, keep the time linear for any text.
_DOTTED: Final = re.compile(r"(?:\x1b\[[\d;]*+m|\\[nrt]|(?<![A-Za-z0-9_-]))[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)++")
_JOINT: Final = re.compile(r"\x1b\[[\d;]*m|\\[nrt]|\.")

# The decoded beginning of each part of a token but the last: a JSON object and the name of its first member.
_OBJECT: Final = re.compile(rb'[ \t\r\n]*+\{[ \t\r\n]*+"[^"\x00-\x1f]*+"')
_OBJECT_IN_BASE64: Final = "eyJ"  # {" and a letter
_FIRST_IN_BASE64: Final = "eCDI"  # { and JSON whitespace
_FIRST_LETTERS: Final = frozenset(_FIRST_IN_BASE64)  # an address or a number has none of them
_GLANCE: Final = 96  # characters to decode where a token may begin in the middle of a word

# The value of a query argument "token", and anything after "Bearer" that is too long to be a word.
_OPAQUE: Final = re.compile(r"(?<=[?&]token=)[^&\s'\"]+|(?<=[Bb]earer )[^\s'\",]{16,}")


class MeantToBeShown(str):
    """Text that the log shows with the token in it: nothing but the development link to the web console."""


def redact(text: str) -> str:
    """Replace everything in ``text`` that looks like a token with ``[token]``.

    That is any JWT or its beginning, in any JSON spelling; the query argument ``token``; and a long word after
    ``Bearer``. This is the last line of defence: the gateway logs no URLs and no headers, but libraries may.
    """
    if isinstance(text, MeantToBeShown):
        return text
    if "." in text and not _FIRST_LETTERS.isdisjoint(text):
        text = _DOTTED.sub(_without_token, text)
    if "token=" in text or "earer " in text:
        text = _OPAQUE.sub("[token]", text)
    return text


def _without_token(dotted: re.Match[str]) -> str:
    text = dotted[0]
    start = 0
    for joint in _JOINT.finditer(text):
        word = text[start : joint.start()]
        begin = _token_in(word)
        if begin is not None:
            return f"{text[: start + begin]}[token]"
        start = joint.end()
    return text


def _token_in(word: str) -> int | None:
    """The index in ``word``, which is followed by a dot, where a part of a token begins; None if there is none."""
    if word and word[0] in _FIRST_IN_BASE64 and _is_object(word):
        return 0
    begin = word.find(_OBJECT_IN_BASE64, 1)
    while begin > 0:
        if _is_object(word[begin : begin + _GLANCE]):
            return begin
        begin = word.find(_OBJECT_IN_BASE64, begin + 1)
    return None


def _is_object(word: str) -> bool:
    # Drop the last, incomplete group of characters: the first member of a header ends before it.
    return _OBJECT.match(base64.urlsafe_b64decode(word[: len(word) & ~3])) is not None
