"""Parses server-sent events, as far as the gateway sends them: blocks of ``data:`` lines, and comments."""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_BLOCK_BYTES: Final = 16 * 1024 * 1024


class Event(NamedTuple):
    """:ivar data: the lines of the event's data, joined"""

    data: str


class Comment(NamedTuple):
    """:ivar text: without the colon and the blanks around it; often empty"""

    text: str


class TooLong(ValueError):
    """An event does not end."""


class EventParser:
    """Takes the bytes of a stream in any pieces, and returns what is complete."""

    def __init__(self) -> None:
        self._unread = b""

    def feed(self, data: bytes) -> list[Event | Comment]:
        """Raises TooLong for an event of more than ``MAX_BLOCK_BYTES``."""
        # A line end may be split between two pieces: of "\r\n" the second half would be an empty line.
        *blocks, self._unread = (self._unread + data).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(self._unread) > MAX_BLOCK_BYTES:
            raise TooLong("an event does not end")
        return [each for block in blocks for each in _read(block)]


def _read(block: bytes) -> list[Event | Comment]:
    found: list[Event | Comment] = []
    data: list[str] = []
    for line in block.decode("utf-8", "replace").split("\n"):
        name, _, value = line.partition(":")
        if line.startswith(":"):
            found.append(Comment(value.strip()))
        elif name == "data":
            data.append(value.removeprefix(" "))
    return [*found, Event("\n".join(data))] if data else found
