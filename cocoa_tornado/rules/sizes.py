"""Sizes as people write them: ``512KiB``, ``1MiB``, ``10MB``."""

from __future__ import annotations

import re
from typing import Final

from ..plain_text import quoted, strip_blanks

_UNIT_BYTES: Final = {
    "": 1,
    "b": 1,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
}
_SIZE: Final = re.compile(r"([0-9]{1,18})([a-z]*)", re.ASCII | re.IGNORECASE)


def parse_size_bytes(text: str) -> int:
    """Return the bytes that ``text`` stands for.

    A whole number with ``KiB``, ``MiB`` or ``GiB`` (1024), ``kB``, ``MB`` or ``GB`` (1000), ``B`` or no unit (bytes),
    in upper or lower case. A bare ``K`` or ``M`` is ambiguous and refused.

    :raises ValueError: for anything else; the message is one line with the allowed forms
    """
    match = _SIZE.fullmatch(strip_blanks(text))
    unit_bytes = _UNIT_BYTES.get(match[2].lower()) if match else None
    if match is None or unit_bytes is None:
        raise ValueError(f"{quoted(text)} is not a size; write it like 512KiB, 1MiB, 10MB or plain bytes")
    return int(match[1]) * unit_bytes


def format_size(size_bytes: int) -> str:
    """Return the shortest exact spelling that :func:`parse_size_bytes` reads back; ``size_bytes`` is not negative.

    >>> format_size(524288), format_size(1500), format_size(0)
    ('512KiB', '1500', '0')
    """
    for unit, unit_bytes in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size_bytes and size_bytes % unit_bytes == 0:
            return f"{size_bytes // unit_bytes}{unit}"
    return str(size_bytes)
