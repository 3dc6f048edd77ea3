"""All cases."""

from __future__ import annotations

from functools import cache

from .case import Case
from .closing import CLOSES
from .compression import COMPRESSION
from .framing import AUTO_FRAGMENTATION, FRAGMENTS, FRAMES, OPCODES, PINGS, RESERVED_BITS
from .limits import limits
from .utf8 import SEQUENCES, TEXTS

CHAPTERS = ("1", "2", "3", "4", "5", "6", "7", "9", "10", "12", "13")


@cache
def cases() -> tuple[Case, ...]:
    """In the order of the chapters."""
    found = (
        *(FRAMES + PINGS + RESERVED_BITS + OPCODES + FRAGMENTS + TEXTS + SEQUENCES + CLOSES),
        *limits(),
        *(AUTO_FRAGMENTATION + COMPRESSION),
    )
    return tuple(sorted(found, key=lambda case: CHAPTERS.index(case.chapter)))
