"""Converts raw samples of any supported encoding to 16-bit little-endian mono. Pure; the loops are in C."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping
from functools import cache
from typing import Final, Literal, TypeAlias, get_args

Encoding: TypeAlias = Literal[
    "s16le", "s16be", "u8", "mulaw", "alaw", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be", "f64le", "f64be"
]

_BIAS: Final = 0x84
_SAMPLE_BYTES: Final[Mapping[str, int]] = {
    encoding: int(encoding[1:3]) // 8 if encoding[0] in "sf" else 1 for encoding in get_args(Encoding)
}


def to_s16le_mono(data: bytes, encoding: Encoding, channels: int) -> bytes:
    """Convert whole frames (one sample of every channel). Channels are mixed equally.

    :param data: its length is a multiple of the frame length
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


def sample_bytes(encoding: Encoding) -> int:
    """Length of one sample of one channel."""
    return _SAMPLE_BYTES[encoding]


def _samples(data: bytes, encoding: Encoding) -> array[int]:
    """Convert to the machine's byte order."""
    if encoding in ("u8", "mulaw", "alaw"):
        low, high = _tables(encoding)
        return _native(data.translate(low), data.translate(high))
    if encoding[0] == "f":
        return _from_floats(data, encoding)
    size = sample_bytes(encoding)
    # The two most significant bytes; speech recognition does not need the others.
    if encoding.endswith("le"):
        return _native(data[size - 2 :: size], data[size - 1 :: size])
    return _native(data[1::size], data[0::size])


def _native(low: bytes, high: bytes) -> array[int]:
    both = bytearray(2 * len(low))
    both[0::2], both[1::2] = (low, high) if sys.byteorder == "little" else (high, low)
    return array("h", bytes(both))


def _from_floats(data: bytes, encoding: Encoding) -> array[int]:
    floats = array("f" if sample_bytes(encoding) == 4 else "d", data)
    if encoding.endswith("le") != (sys.byteorder == "little"):
        floats.byteswap()
    return array("h", map(_from_float, floats))


def _from_float(value: float) -> int:
    """Clip to -1.0 and 1.0; NaN becomes silence."""
    if -1.0 < value < 1.0:
        return int(value * 32767)
    return 32767 if value >= 1.0 else -32767 if value <= -1.0 else 0


@cache
def _tables(encoding: Encoding) -> tuple[bytes, bytes]:
    """The low and the high byte for each input byte. Cached, constant."""
    decode = {"u8": lambda byte: (byte - 128) << 8, "mulaw": _from_mulaw, "alaw": _from_alaw}[encoding]
    values = [decode(byte) & 0xFFFF for byte in range(256)]
    return bytes(value & 0xFF for value in values), bytes(value >> 8 for value in values)


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
