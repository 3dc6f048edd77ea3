"""A recording: a WAV file, split into pieces with the times at which a microphone would deliver them. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from .verdicts import ProbeError

PIECE_S: Final = 0.04
"""The duration of a piece."""

_HEADER = struct.Struct("<HHIIHH")  # fmt: tag, channels, rate, bytes per second, bytes per frame, bits per sample


@dataclass(frozen=True, slots=True)
class Recording:
    """Speech to send.

    :ivar data: the whole file
    :ivar samples_at: the offset of the samples in bytes
    :ivar samples_end: the offset of their end
    :ivar bytes_per_s: the size of one second of samples
    :ivar frame_bytes: the size of one sample of every channel, which is never split
    """

    data: bytes = field(repr=False)
    samples_at: int
    samples_end: int
    bytes_per_s: int
    frame_bytes: int

    @property
    def duration_s(self) -> float:
        return (self.samples_end - self.samples_at) / self.bytes_per_s

    def pieces(self) -> Iterator[tuple[bytes, float]]:
        """Split the file into pieces, each with the time at which a microphone would have delivered it.

        The first piece includes the header, and the last one everything after the samples.
        """
        size = max(int(self.bytes_per_s * PIECE_S) // self.frame_bytes, 1) * self.frame_bytes
        start, end = 0, self.samples_at
        while end < self.samples_end:
            end = min(end + size, self.samples_end)
            due_s = (end - self.samples_at) / self.bytes_per_s
            yield self.data[start : end if end < self.samples_end else len(self.data)], due_s
            start = end


def parse_wav(data: bytes) -> Recording:
    """Parse a WAV file's header. Any sample format is accepted, as the gateway gets the unchanged file.

    A header that was written before the end of the recording has no length or too large a one. Then the samples extend
    to the end of the file.

    :raises ProbeError: it is not a WAV file, or it is empty; the message follows the file's name
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ProbeError("is not a WAV file")
    layout, at = None, 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if name == b"fmt " and at + _HEADER.size <= len(data):
            layout = _HEADER.unpack_from(data, at)
        elif name == b"data":
            return _recording(data, layout, at, min(at + size, len(data)) if size else len(data))
        at += size + size % 2
    raise ProbeError("is a WAV file without samples")


def _recording(data: bytes, layout: tuple[int, ...] | None, at: int, end: int) -> Recording:
    if layout is None:
        raise ProbeError("is a WAV file without a sample format")
    _, channels, rate, bytes_per_s, frame_bytes, _ = layout
    if not (channels and rate and frame_bytes and bytes_per_s >= frame_bytes):
        raise ProbeError("is a WAV file with an impossible header")
    if end <= at:
        raise ProbeError("is a WAV file without samples")
    return Recording(data, at, end, bytes_per_s, frame_bytes)
