"""How many fan-outs may be under way at once, and whether one more may begin. Pure.

Each fan-out under way costs memory, and time with every message for one of its members. So what is appended behind too
many of them waits, and the records wait in the broker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..rules.audiences import is_of_user
from .port import Entry, FanOut

FAN_OUTS_UNDER_WAY: Final = 32
"""The most in progress, unless a single call appends more."""


def count(entries: Iterable[Entry | FanOut]) -> int:
    """How many fan-outs may be under way once these have been stored. One to a user is not, as a user has few devices:
    it is complete at once."""
    return sum(isinstance(entry, FanOut) and not is_of_user(entry.audience) for entry in entries)


def may_begin(more: int, under_way: int) -> bool:
    """Whether this many more may begin. Any number may if none is in progress."""
    return not more or not under_way or under_way + more <= FAN_OUTS_UNDER_WAY
