"""A recording: a WAV file, and how it is cut into what a microphone would have delivered by when. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from .verdicts import ProbeError

PIECE_S: Final = 0.04
"""What a device sends at a time."""

_HEADER = struct.Struct("<HHIIHH")  # fmt: tag, channels, rate, bytes a second, bytes a frame, bits a sample


@dataclass(frozen=True, slots=True)
class Recording:
    """Speech to send.

    :ivar data: the whole file
    :ivar samples_at: where its samples begin, bytes
    :ivar samples_end: and where they end
    :ivar bytes_per_s: of samples, at the speed of speech
    :ivar frame_bytes: a piece never cuts a frame (one sample of every channel) in two
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
        """The file in pieces, each with the second at which a microphone would have delivered the whole of it.

        The header goes with the first piece, and what stands behind the samples with the last.
        """
        size = max(int(self.bytes_per_s * PIECE_S) // self.frame_bytes, 1) * self.frame_bytes
        start, end = 0, self.samples_at
        while end < self.samples_end:
            end = min(end + size, self.samples_end)
            due_s = (end - self.samples_at) / self.bytes_per_s
            yield self.data[start : end if end < self.samples_end else len(self.data)], due_s
            start = end


def parse_wav(data: bytes) -> Recording:
    """Read a WAV file's header. The layout of the samples does not matter: the gateway gets the file as it is.

    A header that was written before the recording was over gives no length, or too much: then all the rest is samples.

    :raises ProbeError: it is no WAV file, or an empty one; the text goes on behind the file's name
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
        raise ProbeError("is a WAV file that says nothing of its samples")
    _, channels, rate, bytes_per_s, frame_bytes, _ = layout
    if not (channels and rate and frame_bytes and bytes_per_s >= frame_bytes):
        raise ProbeError("is a WAV file with an impossible header")
    if end <= at:
        raise ProbeError("is a WAV file without samples")
    return Recording(data, at, end, bytes_per_s, frame_bytes)
