"""JSON read without loss: numbers keep their spelling, and repeated names are known. Pure."""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec

MAX_NESTING: Final = 64


class Repeating(dict[str, object]):
    """An object in which a name occurs more than once; as a dict it has the last value.

    :ivar pairs: all names and values, in their order
    """

    pairs: list[tuple[str, object]]

    def values_of(self, name: str) -> list[object]:
        return [value for other, value in self.pairs if other == name]


def is_too_deep(text: str) -> bool:
    """True if arrays and objects are nested more than ``MAX_NESTING`` deep. Linear in time for any text."""
    if text.count("{") + text.count("[") <= MAX_NESTING:
        return False
    depth = 0
    for token in _STRINGS_AND_BRACKETS(text):
        first = token[0][0]
        if first in "{[":
            depth += 1
            if depth > MAX_NESTING:
                return True
        elif first in "}]":
            depth -= 1
    return False


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    repeating = Repeating(fields)
    repeating.pairs = pairs
    return repeating


def _refuse_constant(spelling: str) -> object:
    raise ValueError(f"{spelling} is not JSON")


# Compiled once and stateless.
# A string may lack its closing quote. Without possessive matching, retrying at each later quote would take quadratic
# time.
_STRINGS_AND_BRACKETS = re.compile(r'"(?:[^"\\]+|\\.)*+"?|[{}\[\]]', re.DOTALL).finditer
parse: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=msgspec.Raw, parse_float=msgspec.Raw, parse_constant=_refuse_constant
).decode
"""``parse(text)`` is the value. RFC 8259 only: no NaN, no byte order mark. Numbers are ``msgspec.Raw``: 1.0 stays 1.0,
and 1e400 is not infinite.

:raises ValueError: it is not JSON
:raises RecursionError: see :func:`is_too_deep`
"""
