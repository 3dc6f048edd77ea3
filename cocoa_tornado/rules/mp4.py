"""How an MP4 is laid out: whether it can be decoded while it arrives. Pure; nothing here decodes anything."""

from __future__ import annotations

from typing import Final

LONGEST_HEAD_BYTES: Final = 64 * 1024
"""The index of a fragmented MP4 is some hundred bytes long; one that has not been seen by then is a recording's."""


def is_fragmented(head: bytes, *, complete: bool = False) -> bool | None:
    """Judge whether an MP4 comes in fragments, each with an index of its own, as live recorders write it; None: the
    bytes don't tell yet.

    Of any other the index (``moov``) is needed first, and recorders write it last.

    :param head: the stream from its first byte; :data:`LONGEST_HEAD_BYTES` always suffice
    :param complete: there is nothing after ``head``
    """
    start, end = 0, min(len(head), LONGEST_HEAD_BYTES)
    while start + 8 <= end:
        size, kind = _box(head, start)
        if kind == b"moov":
            if start + size > end:
                break
            return _holds(head, start + 8, start + size, b"mvex")
        if kind == b"mdat" or size < 8:
            return False
        start += size
    return False if complete or len(head) >= LONGEST_HEAD_BYTES or start >= LONGEST_HEAD_BYTES else None


def _holds(head: bytes, start: int, end: int, wanted: bytes) -> bool:
    """Whether a box that begins between the two places is of the kind wanted."""
    while start + 8 <= end:
        size, kind = _box(head, start)
        if kind == wanted:
            return True
        if size < 8:
            return False
        start += size
    return False


def _box(head: bytes, start: int) -> tuple[int, bytes]:
    """Its length, and what it is."""
    return int.from_bytes(head[start : start + 4], "big"), head[start + 4 : start + 8]
