"""JSON from strangers: read in only one way, or not at all. Pure."""

from __future__ import annotations

import json
from typing import Final


class NamedTwice(ValueError):
    """An object names a member twice, at whatever depth: which of the two counts depends on who reads it."""


def read_json(data: str | bytes) -> object:
    """The value. UTF-8; RFC 8259 only: no NaN, no byte order mark.

    :raises NamedTwice: a kind of ValueError
    :raises ValueError: it is no JSON, or nested deeper than Python reads
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
