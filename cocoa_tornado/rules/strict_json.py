"""Strict parsing of JSON from untrusted senders: unambiguous, or an error. Pure."""

from __future__ import annotations

import json
from typing import Final


class NamedTwice(ValueError):
    """An object, at any depth, has two members of one name: parsers differ on which one counts."""


def read_json(data: str | bytes) -> object:
    """Return the value of a UTF-8 document. RFC 8259 only: no NaN, no byte order mark.

    :raises NamedTwice: a subclass of ValueError
    :raises ValueError: it is not JSON, or nested deeper than Python can parse
    """
    try:
        return _DECODE(data if isinstance(data, str) else data.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NamedTwice("a member is named twice")
    return members


def _refuse_constant(spelling: str) -> object:
    raise ValueError(f"{spelling} is not JSON")


_DECODE: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant).decode
