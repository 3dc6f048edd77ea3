"""Decompress Kafka batches with a limit on the output size. Pure, apart from the codec libraries.

A few kilobytes can expand to gigabytes, and the decoders in client libraries produce all of them. These stop one byte
past the limit; for snappy, which states its length up front, they stop before the first byte.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

GZIP_WINDOW: Final = 31  # zlib's value for the format with a gzip header
MAX_MEMBERS: Final = 1024
"""gzip members in a batch; a producer writes one. Each costs a copy of everything after it."""

PIECE_BYTES: Final = 256 * 1024
XERIAL_MAGIC: Final = b"\x82SNAPPY\x00"
XERIAL_HEADER_BYTES: Final = 16
XERIAL_MIN_BLOCK_BYTES: Final = 1024
"""The smallest block size that the Java library allows, except for the last block. Each block costs microseconds."""


class Oversized(ValueError):
    """The decompressed data would exceed the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"decompresses to more than {limit} bytes")


class NoCodec(Exception):
    """The library of this codec is not installed."""


def gunzip(data: bytes | memoryview, limit: int) -> bytes:
    """Raises Oversized; zlib.error or EOFError for data that is not gzip, or is truncated."""
    found: list[bytes] = []
    left = limit
    rest = bytes(data)
    while rest:
        if len(found) == MAX_MEMBERS:
            raise ValueError(f"more than {MAX_MEMBERS} streams of gzip")
        member = zlib.decompressobj(GZIP_WINDOW)
        found.append(member.decompress(rest, left + 1))
        left -= len(found[-1])
        if left < 0:
            raise Oversized(limit)
        if not member.eof:
            raise EOFError("the gzip stream ends before its end")
        rest = member.unused_data.lstrip(b"\0")  # padding, as in files
    return found[0] if len(found) == 1 else b"".join(found)


def unsnap(data: bytes | memoryview, limit: int) -> bytes:
    """Decompress raw snappy, or the block format of the Java library.

    Raises Oversized; ValueError for anything else."""
    whole = bytes(data)
    if not (whole.startswith(XERIAL_MAGIC) and len(whole) >= XERIAL_HEADER_BYTES):
        return _unsnap_block(whole, limit, limit)
    found, left, at = [], limit, XERIAL_HEADER_BYTES
    most = limit // XERIAL_MIN_BLOCK_BYTES + 1
    while at < len(whole):
        if at + 4 > len(whole):
            raise ValueError("a block of snappy is cut off")
        [size] = struct.unpack_from("!i", whole, at)
        at += 4
        if not 0 <= size <= len(whole) - at:
            raise ValueError("a block of snappy is cut off")
        found.append(_unsnap_block(whole[at : at + size], left, limit))
        left -= len(found[-1])
        at += size
        if len(found) > most:
            raise ValueError("far more blocks of snappy than bytes for them")
    return b"".join(found)


def _unsnap_block(block: bytes, left: int, limit: int) -> bytes:
    try:
        import snappy
    except ImportError as error:
        raise NoCodec("snappy") from error
    size = _snappy_size(block)
    if size > left:
        raise Oversized(limit)
    try:
        plain: bytes = snappy.decompress(block)
    except Exception as error:  # the exception class depends on the library's version
        raise ValueError(f"snappy: {error}") from error
    return plain


def _snappy_size(block: bytes) -> int:
    """The length in the block's preamble: a varint of 32 bits, least significant group first."""
    size = 0
    for at, byte in enumerate(block[:5]):
        size |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            return size
    raise ValueError("a block of snappy has no length")


def unlz4(data: bytes | memoryview, limit: int) -> bytes:
    """Decompress one LZ4 frame. Raises Oversized; ValueError for invalid or truncated data."""
    try:
        import lz4.frame
    except ImportError as error:
        raise NoCodec("lz4") from error
    decoder = lz4.frame.LZ4FrameDecompressor()
    found, left, rest = [], limit, bytes(data)
    try:
        while not decoder.eof:
            # The library allocates max_length up front.
            piece = decoder.decompress(rest, max_length=min(PIECE_BYTES, left + 1))
            rest = b""
            found.append(piece)
            left -= len(piece)
            if left < 0:
                raise Oversized(limit)
            if not piece and not decoder.eof:
                raise ValueError("the LZ4 frame ends before its end")
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"lz4: {error}") from error
    return b"".join(found)


def unzstd(data: bytes | memoryview, limit: int) -> bytes:
    """Decompress concatenated Zstandard frames. Raises Oversized; ValueError for invalid data."""
    try:
        import zstandard
    except ImportError as error:
        raise NoCodec("zstd") from error
    found, left = [], limit
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
            while piece := reader.read(min(PIECE_BYTES, left + 1)):
                found.append(piece)
                left -= len(piece)
                if left < 0:
                    raise Oversized(limit)
    except zstandard.ZstdError as error:
        raise ValueError(f"zstd: {error}") from error
    return found[0] if len(found) == 1 else b"".join(found)


Decoder = Callable[[Any, int], bytes]

DECODERS: Final[Mapping[int, Decoder]] = MappingProxyType({1: gunzip, 2: unsnap, 3: unlz4, 4: unzstd})
"""By the codec number in a batch's attributes."""
