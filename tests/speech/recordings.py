"""A recording of human speech, and the same in every format that the field sends."""

from __future__ import annotations

import io
import math
import random
import zlib
from array import array
from collections.abc import Iterator, Sequence
from fractions import Fraction
from operator import mul
from pathlib import Path

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

GO_FORWARD_PATH = Path(__file__).parent / "data" / "goforward.raw"
"""16 kHz, mono, s16le."""


def go_forward() -> bytes:
    """A person says "go forward ten meters", in 2.8 seconds."""
    return GO_FORWARD_PATH.read_bytes()


def encoded(
    samples: bytes,
    container: str,
    codec: str,
    rate_hz: int = 16_000,
    layout: str = "mono",
    options: dict[str, str] | None = None,
) -> bytes:
    """16 kHz mono s16le samples, put into a container, or into a raw one such as ``s16be`` and ``mulaw``."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, container_options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate_hz, layout=layout)
        assert isinstance(stream, AudioStream)
        for frame in _resampled(samples, stream, rate_hz, layout):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def with_video(
    samples: bytes, container: str, audio_codec: str, video_codec: str, options: dict[str, str] | None = None
) -> bytes:
    """The samples, unless the codec is '', and pictures all along, which come first in the list of streams."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, container_options=options or {}) as output:
        video = output.add_stream(video_codec, rate=5)
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = output.add_stream(audio_codec, rate=48_000, layout="mono") if audio_codec else None
        output.start_encoding()
        for at in range(len(samples) * 5 // 32_000):
            picture = VideoFrame(64, 48, "yuv420p")
            picture.pts, picture.time_base = at, Fraction(1, 5)
            output.mux(video.encode(picture))
        output.mux(video.encode(None))
        if isinstance(audio, AudioStream):
            for frame in _resampled(samples, audio, 48_000, "mono"):
                output.mux(audio.encode(frame))
            output.mux(audio.encode(None))
    return file.getvalue()


def two_in_one(first: bytes, second: bytes, container: str, codec: str) -> bytes:
    """Two recordings of the same length as two streams of one container, one packet of each in turn."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        made = [output.add_stream(codec, rate=48_000, layout="mono") for _ in range(2)]
        streams = [stream for stream in made if isinstance(stream, AudioStream)]
        frames = [
            _resampled(samples, stream, 48_000, "mono")
            for samples, stream in zip((first, second), streams, strict=True)
        ]
        for pair in zip(*frames, strict=False):
            for stream, frame in zip(streams, pair, strict=True):
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode(None))
    return file.getvalue()


def picture() -> bytes:
    """A PNG of 200 kB, about as large as a cover."""
    size = 260

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    rows = b"".join(b"\0" + random.Random(row).randbytes(3 * size) for row in range(size))
    header = size.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def id3_tag(frame: bytes, body: bytes) -> bytes:
    """An ID3v2.3 tag with one frame."""
    inside = frame + len(body).to_bytes(4, "big") + b"\0\0" + body
    size = bytes(len(inside) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + inside


def mp3_with_cover(samples: bytes) -> bytes:
    cover = b"\0image/png\0\x03front\0" + picture()
    return id3_tag(b"APIC", cover) + encoded(samples, "mp3", "libmp3lame", options={"id3v2_version": "0"})


def flac_with_cover(samples: bytes) -> bytes:
    flac = encoded(samples, "flac", "flac")
    fields = (3, b"image/png", b"front", 260, 260, 24, 0, picture())
    block = b"".join(
        field.to_bytes(4, "big") if isinstance(field, int) else len(field).to_bytes(4, "big") + field
        for field in fields
    )
    info_end = 4 + 4 + 34
    return flac[:info_end] + b"\x06" + len(block).to_bytes(3, "big") + block + flac[info_end:]


def _resampled(samples: bytes, stream: AudioStream, rate_hz: int, layout: str) -> Iterator[AudioFrame]:
    whole = AudioFrame("s16", "mono", len(samples) // 2)
    whole.sample_rate = 16_000
    whole.planes[0].update(samples)
    resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate_hz)
    position = 0
    for frame in [*resampler.resample(whole), *resampler.resample(None)]:
        frame.pts, frame.time_base = position, Fraction(1, rate_hz)
        position += frame.samples
        yield frame


def likeness(one: bytes, other: bytes) -> float:
    """The correlation of two recordings, sample by sample from their beginning: 1.0 for the same, 0.0 for noise."""
    length = min(len(one), len(other)) & ~1
    first, second = array("h", one[:length]), array("h", other[:length])
    together: int = sum(map(mul, first, second))
    energies: int = sum(map(mul, first, first)) * sum(map(mul, second, second))
    return together / math.sqrt(energies or 1)


class Arriving:
    """A source whose bytes arrive in pieces.

    :ivar taken: how many of its bytes have been read
    """

    def __init__(self, data: bytes, sizes: Sequence[int] = (640,)) -> None:
        self._data, self._sizes, self._reads = data, sizes, 0
        self.taken = 0

    def read(self, max_bytes: int, /) -> bytes:
        size = min(max_bytes, self._sizes[self._reads % len(self._sizes)])
        self._reads += 1
        piece = self._data[self.taken : self.taken + size]
        self.taken += len(piece)
        return piece
