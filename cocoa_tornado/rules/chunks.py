"""The framing of a chunked request body: RFC 9112, 7.1. Pure.

A recipient ignores chunk extensions that it does not know (7.1.1) and may discard trailer fields (7.1.2); the gateway
knows none of them. No limit on the body counts these bytes, so they have a limit of their own.
"""

from __future__ import annotations

import re
from typing import Final

MAX_LINE_BYTES: Final = 1024
"""The longest chunk-size line or trailer field. An extension with a signature of 64 hex digits is common."""

MAX_IGNORED_BYTES: Final = 16 * 1024
"""Extensions and trailer fields together, beyond one byte per byte of data: the same limit as for the request head."""

# A bare CR or LF inside a line would end the line for another recipient, and so split one request into two.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n")


class ChunkFraming:
    """The lines of one chunked body, in order. Each method raises ValueError for an invalid line.

    :ivar is_at_last: the chunk of size 0 has been read; only trailer fields and an empty line follow
    """

    __slots__ = ("_room", "is_at_last")

    def __init__(self) -> None:
        self._room = MAX_IGNORED_BYTES
        self.is_at_last = False

    def size_line(self, line: bytes) -> bytes:
        """Return the line before a chunk, without its extensions: hexadecimal digits and CR LF."""
        match = _SIZE.fullmatch(line)
        if match is None:
            raise ValueError("invalid chunk size")
        digits = match[1]
        size = int(digits, 16)
        self._ignore(len(line) - len(digits) - 2, size)
        self.is_at_last = size == 0
        return digits + b"\r\n"

    def ends_with(self, line: bytes) -> bool:
        """Read a line after the last chunk: True for the empty line that ends the body, False for a trailer field."""
        if line == b"\r\n":
            return True
        if _TRAILER.fullmatch(line) is None:
            raise ValueError("invalid trailer field")
        self._ignore(len(line), 0)
        return False

    def _ignore(self, size: int, data: int) -> None:
        self._room = min(MAX_IGNORED_BYTES, self._room + data) - size
        if self._room < 0:
            raise ValueError("chunk extensions and trailer fields too large")
