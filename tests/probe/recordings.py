"""WAV files for tests; the broken gateways ignore their contents."""

from __future__ import annotations

import io
import struct
import wave


def wav(duration_s: float = 0.2, rate: int = 16_000, channels: int = 1, sample_bytes: int = 2) -> bytes:
    """A file of PCM samples that count up, so that all pieces of it differ."""
    size = round(duration_s * rate) * channels * sample_bytes
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(sample_bytes)
        writer.setframerate(rate)
        writer.writeframes(data)
    return file.getvalue()


def chunk(name: bytes, body: bytes, said: int | None = None) -> bytes:
    """A RIFF chunk, padded; ``said`` is the length that it gives, if that is not its own."""
    return name + struct.pack("<I", len(body) if said is None else said) + body + b"\0" * (len(body) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


MULAW_8K = chunk(b"fmt ", struct.pack("<HHIIHHH", 7, 1, 8000, 8000, 1, 8, 0))
