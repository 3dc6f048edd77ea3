"""The layout of an MP4: whether it can be decoded while it arrives. Pure; nothing here decodes anything."""

from __future__ import annotations

from typing import Final

MAX_HEAD_BYTES: Final = 64 * 1024
"""The index of a fragmented MP4 takes some hundred bytes. If it is not within this many, the file is not fragmented."""


def is_fragmented(head: bytes, *, complete: bool = False) -> bool | None:
    """Return whether an MP4 is fragmented, with an index in each fragment, as live recorders write it; None if more
    bytes are needed.

    Any other MP4 needs its index (``moov``) first, and recorders write it last.

    :param head: the stream from its first byte; :data:`MAX_HEAD_BYTES` always suffice
    :param complete: nothing comes after ``head``
    """
    start, end = 0, min(len(head), MAX_HEAD_BYTES)
    while start + 8 <= end:
        size, kind = _box(head, start)
        if kind == b"moov":
            if start + size > end:
                break
            return _holds(head, start + 8, start + size, b"mvex")
        if kind == b"mdat" or size < 8:
            return False
        start += size
    return False if complete or len(head) >= MAX_HEAD_BYTES or start >= MAX_HEAD_BYTES else None


def _holds(head: bytes, start: int, end: int, wanted: bytes) -> bool:
    """Whether one of the boxes between the two offsets is of the wanted kind."""
    while start + 8 <= end:
        size, kind = _box(head, start)
        if kind == wanted:
            return True
        if size < 8:
            return False
        start += size
    return False


def _box(head: bytes, start: int) -> tuple[int, bytes]:
    """Return the box's size and kind."""
    return int.from_bytes(head[start : start + 4], "big"), head[start + 4 : start + 8]
