"""Parses the server's frames, which must be unmasked and complete."""

from __future__ import annotations

from typing import NamedTuple

from testing.raw_device import CLOSE


class Sent(NamedTuple):
    opcode: int
    payload: bytes


def sent_frames(data: bytes) -> list[Sent]:
    frames, at = [], 0
    while at < len(data):
        first, length = data[at], data[at + 1]
        assert first & 0xF0 == 0x80, "every frame is final and has no extension"
        assert length < 128, "no frame is masked"
        at += 2
        size = {126: 2, 127: 8}.get(length, 0)
        if size:
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        assert at + length <= len(data), "every frame is whole"
        frames.append(Sent(first & 0x0F, data[at : at + length]))
        at += length
    return frames


def complete_frames(data: bytes, taken: int) -> list[Sent]:
    """The frames that are complete within the first ``taken`` bytes."""
    frames, end = [], 0
    for frame in sent_frames(data):
        end += 2 + {126: 2, 127: 8}.get(data[end + 1], 0) + len(frame.payload)
        if end <= taken:
            frames.append(frame)
    return frames


def close_of(frame: Sent) -> tuple[int | None, str]:
    """Code and text of a close frame."""
    assert frame.opcode == CLOSE
    return (int.from_bytes(frame.payload[:2], "big") if frame.payload else None), frame.payload[2:].decode()
