"""Raw samples of any encoding, as 16-bit little-endian mono."""

from __future__ import annotations

import struct

import pytest

from cocoa_tornado.rules.samples import Encoding, to_s16le_mono

from ..speech.recordings import encoded, go_forward, likeness


@pytest.mark.parametrize(
    ("encoding", "muxer", "codec"),
    [
        ("s16le", "s16le", "pcm_s16le"),
        ("s16be", "s16be", "pcm_s16be"),
        ("u8", "u8", "pcm_u8"),
        ("mulaw", "mulaw", "pcm_mulaw"),
        ("alaw", "alaw", "pcm_alaw"),
        ("s24le", "s24le", "pcm_s24le"),
        ("s24be", "s24be", "pcm_s24be"),
        ("s32le", "s32le", "pcm_s32le"),
        ("s32be", "s32be", "pcm_s32be"),
        ("f32le", "f32le", "pcm_f32le"),
        ("f32be", "f32be", "pcm_f32be"),
        ("f64le", "f64le", "pcm_f64le"),
        ("f64be", "f64be", "pcm_f64be"),
    ],
)
def test_every_encoding_is_read_as_another_library_wrote_it(encoding: Encoding, muxer: str, codec: str) -> None:
    speech = go_forward()
    read = to_s16le_mono(encoded(speech, muxer, codec), encoding, 1)
    assert len(read) == len(speech)
    assert likeness(read, speech) > 0.98


def test_channels_are_mixed_equally() -> None:
    stereo = struct.pack("<4h", 100, 200, -300, 100)
    assert to_s16le_mono(stereo, "s16le", 2) == struct.pack("<2h", 150, -100)


def test_the_corners_of_g711_are_those_of_the_standard() -> None:
    assert struct.unpack("<4h", to_s16le_mono(b"\x00\x80\xff\x7f", "mulaw", 1)) == (-32124, 32124, 0, 0)
    assert struct.unpack("<4h", to_s16le_mono(b"\x2a\xaa\xd5\x55", "alaw", 1)) == (-32256, 32256, 8, -8)


def test_floats_of_any_value_are_samples() -> None:
    strange = struct.pack("<6f", 2.0, -7.0, float("nan"), float("inf"), -0.5, 1e-30)
    assert struct.unpack("<6h", to_s16le_mono(strange, "f32le", 1)) == (32767, -32767, 0, 32767, -16383, 0)
