"""Normalizes texts to spoken words, to compare a transcript with what was said."""

from __future__ import annotations

import re
from typing import Final

_SMALL: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SHORT: Final = {"mr": ["mister"], "mrs": ["missus"], "dr": ["doctor"], "oh": ["zero"], "o": ["zero"]}


def spoken(text: str, *, digit_by_digit: bool = False) -> list[str]:
    """The words of a text as they are spoken, independent of spelling.

    Removes case and punctuation, splits words at hyphens, expands a few abbreviations and all numbers, and reads ``oh``
    as zero.

    >>> spoken("Mr. Dashwood, 42: ill-disposed!")
    ['mister', 'dashwood', 'forty', 'two', 'ill', 'disposed']

    :param digit_by_digit: read numbers digit by digit, like telephone numbers
    """
    words: list[str] = []
    for token in re.findall(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*|\d+", text.lower()):
        if token.isdecimal():
            words += [_SMALL[int(digit)] for digit in token] if digit_by_digit or len(token) > 2 else _number(token)
        else:
            words += _SHORT.get(token, [token.replace("\u2019", "'")])
    return words


def _number(digits: str) -> list[str]:
    value = int(digits)
    if value < len(_SMALL):
        return [_SMALL[value]]
    return [_TENS[value // 10 - 2], *([_SMALL[value % 10]] if value % 10 else [])]
