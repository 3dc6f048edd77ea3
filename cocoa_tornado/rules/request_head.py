"""Limits on the head of a request, checked before it is parsed (RFC 9112, sections 2 and 6). Pure.

A parser's work grows with the lines as well as with the bytes, so both are bounded. They are counted while searching
for the end of the head, which looks at each byte once, however the head is split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

MAX_HEAD_BYTES: Final = 16 * 1024
"""Request line and fields together. A token is at most 13 KiB, and the other fields of a browser seldom reach 3."""

MAX_FIELD_LINES: Final = 100
"""Proxies add some fields to the twenty or so of a browser."""

MAX_QUERY_FIELDS: Final = 32
"""No route has more than four."""

MAX_BODY_BYTES: Final = 2**62
"""A length beyond this one is a mistake or an attack, and no limit of ours is anywhere near."""

_LENGTH: Final = re.compile("[0-9]{1,4000}")


class HeadTooLarge(ValueError):
    """More bytes or lines than a head may have."""


class HeadScan:
    """Searches for the end of one head. Like Tornado, it accepts a bare LF as the end of a line."""

    __slots__ = ("_at", "_lines")

    def __init__(self) -> None:
        self._at = self._lines = 0

    def end(self, received: bytes | bytearray) -> int | None:
        """Return where the head ends, behind its empty line; None while it is incomplete.

        :param received: everything received so far, including what earlier calls were given
        :raises HeadTooLarge: the head exceeds a limit already; again at each later call
        """
        while self._lines <= MAX_FIELD_LINES:
            newline = received.find(b"\n", self._at, MAX_HEAD_BYTES)
            if newline < 0:
                self._at = min(len(received), MAX_HEAD_BYTES)
                break
            if received.startswith((b"\n", b"\r\n"), newline + 1):
                end = received.index(b"\n", newline + 1) + 1
                if end > MAX_HEAD_BYTES:
                    break
                return end
            if len(received) == newline + 1 or (received.endswith(b"\r") and len(received) == newline + 2):
                # Only the next byte shows whether this was the last line.
                self._at = newline
                break
            self._at = newline + 1
            self._lines += 1
        if self._lines > MAX_FIELD_LINES:
            raise HeadTooLarge(f"more than {MAX_FIELD_LINES} header lines")
        if len(received) >= MAX_HEAD_BYTES:
            raise HeadTooLarge(f"more than {MAX_HEAD_BYTES} bytes of head")
        return None


def body_bytes(lengths: Sequence[str], encodings: Sequence[str]) -> int | None:
    """Return the length of a request's body: 0 if there is none, None if it is chunked.

    As strict as Tornado, which checks later, when a handler may have answered already.

    :param lengths: the values of all Content-Length fields
    :param encodings: the values of all Transfer-Encoding fields
    :raises ValueError: the end of the body cannot be determined
    """
    if encodings:
        if lengths or ",".join(encodings).lower() != "chunked":
            raise ValueError("unknown transfer encoding, or a length beside it")
        return None
    if not lengths:
        return 0
    values = set(re.split(",[ \t]*", ",".join(lengths)))
    text = values.pop()
    # Longer ones int() does not read.
    if values or not _LENGTH.fullmatch(text) or int(text) > MAX_BODY_BYTES:
        raise ValueError("no length, or several")
    return int(text)
