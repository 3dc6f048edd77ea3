"""What looks like a token is no part of a log line."""

from __future__ import annotations

import base64
import re
from typing import Final

# Words joined by dots: host names, versions, modules, topics, and tokens. One may follow the end of a colour, or (in a
# repr) the letter of an escape such as \n, without a boundary of words between. The quantifiers give nothing back and
# no match begins inside of a word, so that the time is linear in the text, whatever a stranger has put there.
_DOTTED: Final = re.compile(r"(?:\x1b\[[\d;]*+m|\\[nrt]|(?<![A-Za-z0-9_-]))[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)++")
_JOINT: Final = re.compile(r"\x1b\[[\d;]*m|\\[nrt]|\.")

# How each part of a token but the last begins, once it is decoded: a JSON object and the name of its first member.
_OBJECT: Final = re.compile(rb'[ \t\r\n]*+\{[ \t\r\n]*+"[^"\x00-\x1f]*+"')
_OBJECT_IN_BASE64: Final = "eyJ"  # {" and a letter
_FIRST_IN_BASE64: Final = "eCDI"  # { and the blanks of JSON
_GLANCE: Final = 96  # Characters that are decoded where a token may begin in the middle of a word.

# What stands in a query argument "token", or after the word Bearer and is too long for a word.
_OPAQUE: Final = re.compile(r"(?<=[?&]token=)[^&\s'\"]+|(?<=[Bb]earer )[^\s'\",]{16,}")


def redact(text: str) -> str:
    """The text, with ``[token]`` in place of whatever looks like one.

    That is: any JWT or the beginning of one, however its JSON is spelt; the query argument ``token``; what follows the
    word Bearer. The last line of defence: nothing of ours logs a URL or a header, but a library may.
    """
    if "." in text:
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
    """Where in a word, which a dot follows, a part of a token begins."""
    if word and word[0] in _FIRST_IN_BASE64 and _is_object(word):
        return 0
    begin = word.find(_OBJECT_IN_BASE64, 1)
    while begin > 0:
        if _is_object(word[begin : begin + _GLANCE]):
            return begin
        begin = word.find(_OBJECT_IN_BASE64, begin + 1)
    return None


def _is_object(word: str) -> bool:
    # Without the characters that make no whole group: a header's first member is not that near its end.
    return _OBJECT.match(base64.urlsafe_b64decode(word[: len(word) & ~3])) is not None
