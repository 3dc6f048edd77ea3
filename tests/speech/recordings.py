"""A recording of human speech, and the same in every format that the field sends."""

from __future__ import annotations

import io
import math
from array import array
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream

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
    together = sum(a * b for a, b in zip(first, second, strict=True))
    return together / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second) or 1)


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
