"""Raw samples of any of the encodings in the field, as 16-bit little-endian mono. Pure, and in C where it counts."""

from __future__ import annotations

import sys
from array import array
from functools import cache
from typing import Final, Literal, TypeAlias

Encoding: TypeAlias = Literal["s16le", "s16be", "u8", "mulaw", "alaw"]

_BIAS: Final = 0x84


def to_s16le_mono(data: bytes, encoding: Encoding, channels: int) -> bytes:
    """Convert whole frames: a sample of every channel each. Channels are mixed equally.

    :param data: its length is a multiple of the frame's
    """
    if encoding == "s16le" and channels == 1:
        return data
    samples = _samples(data, encoding)
    if channels > 1:
        tracks = [samples[channel::channels] for channel in range(channels)]
        samples = array("h", (sum(frame) // channels for frame in zip(*tracks, strict=True)))
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tobytes()


def _samples(data: bytes, encoding: Encoding) -> array[int]:
    """In the machine's own byte order."""
    if encoding in ("s16le", "s16be"):
        samples = array("h", data)
        if (encoding == "s16be") == (sys.byteorder == "little"):
            samples.byteswap()
        return samples
    table = _table(encoding)
    return array("h", map(table.__getitem__, data))


@cache
def _table(encoding: Encoding) -> tuple[int, ...]:
    """What each byte stands for. Constant."""
    decode = {"u8": lambda byte: (byte - 128) << 8, "mulaw": _from_mulaw, "alaw": _from_alaw}[encoding]
    return tuple(map(decode, range(256)))


def _from_mulaw(byte: int) -> int:
    """ITU-T G.711, mu-law."""
    byte = ~byte & 0xFF
    magnitude = (((byte & 0x0F) << 3) + _BIAS << ((byte & 0x70) >> 4)) - _BIAS
    return -magnitude if byte & 0x80 else magnitude


def _from_alaw(byte: int) -> int:
    """ITU-T G.711, A-law."""
    byte ^= 0x55
    segment, magnitude = (byte & 0x70) >> 4, (byte & 0x0F) << 4
    magnitude = magnitude + 8 if segment == 0 else magnitude + 0x108 << segment - 1
    return magnitude if byte & 0x80 else -magnitude
