"""Identifying a stream by its first bytes."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import zipfile
from array import array
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cocoa_tornado.rules.magic import MAX_NEEDED_BYTES, Container, Foreign, identify

from ..speech.recordings import encoded, go_forward

SPEECH = go_forward()
DEMO = Path(__file__).parents[2] / "demo"

# A container, FFmpeg's name of it, a codec of it and its rate.
DECODED: tuple[tuple[Container, str, str, int], ...] = (
    ("wav", "wav", "pcm_s16le", 16_000),
    ("ogg", "ogg", "libopus", 48_000),
    ("flac", "flac", "flac", 16_000),
    ("mp3", "mp3", "libmp3lame", 16_000),
    ("mp3", "mp3", "libmp3lame", 44_100),
    ("webm", "webm", "libopus", 48_000),
    ("webm", "matroska", "pcm_s16le", 16_000),
    ("mp4", "mp4", "aac", 16_000),
    ("mp4", "ipod", "alac", 16_000),
    ("mp4", "mov", "pcm_s16be", 16_000),
    ("mp4", "3gp", "libopencore_amrnb", 8_000),
    ("caf", "caf", "pcm_s16be", 16_000),
    ("aiff", "aiff", "pcm_s16be", 16_000),
    ("aiff", "aiff", "pcm_f32be", 16_000),
    ("au", "au", "pcm_mulaw", 8_000),
    ("aac", "adts", "aac", 16_000),
    ("aac", "adts", "aac", 44_100),
    ("amr", "amr", "libopencore_amrnb", 8_000),
)


@pytest.mark.parametrize(("container", "muxer", "codec", "rate_hz"), DECODED)
def test_what_is_decoded_is_recognized_as_soon_as_it_is_certain(
    container: Container, muxer: str, codec: str, rate_hz: int
) -> None:
    head = encoded(SPEECH, muxer, codec, rate_hz)[:MAX_NEEDED_BYTES]

    assert identify(head) == container
    assert [found for end in range(len(head)) if (found := identify(head[:end])) not in (None, container)] == []


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000])
def test_an_mp3_without_a_tag_is_recognized_by_two_frames(rate_hz: int) -> None:
    mp3 = encoded(SPEECH, "mp3", "libmp3lame", rate_hz, options={"id3v2_version": "0"})

    assert mp3[0] == 0xFF
    assert identify(mp3[:MAX_NEEDED_BYTES]) == "mp3"
    assert identify(mp3[:4]) is None
    assert identify(mp3[:4], complete=True) == "raw"
    assert identify(mp3[:4] + bytes(MAX_NEEDED_BYTES)) == "raw"


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_an_aac_stream_is_recognized_by_two_frames(rate_hz: int, layout: str) -> None:
    aac = encoded(SPEECH, "adts", "aac", rate_hz, layout)

    assert identify(aac[:MAX_NEEDED_BYTES]) == "aac"
    assert identify(aac[:6] + bytes(MAX_NEEDED_BYTES)) == "raw"


@pytest.mark.parametrize("box", [b"ftypM4A ", b"ftypqt  ", b"ftypiso5", b"ftyp3gp4", b"moov", b"mdat", b"wide"])
def test_the_relatives_of_mp4_are_recognized(box: bytes) -> None:
    assert identify((8 + len(box)).to_bytes(4, "big") + box + bytes(8)) == "mp4"


def _zip() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("voice.wav", SPEECH)
    return file.getvalue()


BOUNDARY = b"------WebKitFormBoundary7MA4YWxkTrZu0gW\r\nContent-Disposition: form-data; name=audio\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(9), "a PNG picture"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01", "a JPEG picture"),
        (b"\xff\xd8\xff\xe1\x2a\x10Exif\0\0", "a JPEG picture"),
        (b"\xff\xd8\xff\xdb\0\x43\0\x08", "a JPEG picture"),
        (b"GIF89a\x01\0\x01\0", "a GIF picture"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "a WebP picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC picture"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF picture"),
        (b"BM\x36\x10\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", "a BMP picture"),
        (b"RIFF\x10\0\0\0AVI LIST", "an AVI video"),
        (b"RIFF\x10\0\0\0sfbkLIST", "a RIFF file without WAVE audio"),
        (b"FORM\0\0\x10\x008SVXVHDR", "an IFF file without AIFF audio"),
        (b"\0\0\0\x18moof\0\0\0\x10mfhd", "a piece of an MP4 without its beginning"),
        (b"\x1f\x43\xb6\x75\x01\xff\xff\xff", "a piece of a WebM without its beginning"),
        (b"%PDF-1.7\n", "a PDF document"),
        (_zip(), "a ZIP archive"),
        (gzip.compress(SPEECH), "gzip data"),
        (bz2.compress(SPEECH), "bzip2 data"),
        (lzma.compress(SPEECH), "xz data"),
        (b"MThd\0\0\0\x06\0\x01", "a MIDI file"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9", "a Windows Media file"),
        (b"\x7fELF\x02\x01\x01\0", "a program"),
        (b'{"audio":"' + base64.b64encode(SPEECH), "JSON"),
        (b'  {\n  "deviceId": 7, "samples": [1, 2, 3], "rate": 16000, "text": "x"}', "JSON"),
        (json.dumps(list(array("h", SPEECH[:400]))).encode(), "JSON"),
        (json.dumps([[0.5, -0.25]] * 40, indent=2).encode(), "JSON"),
        (json.dumps([{"rate": 16_000}] * 40).encode(), "JSON"),
        (
            b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body></body>",
            "a web page (HTML)",
        ),
        (b"\r\n<HTML><BODY>Sign in to this network to go on, please: it is free</BODY></HTML>", "a web page (HTML)"),
        (b'<?xml version="1.0" encoding="UTF-8"?><speak>hello world, how are you</speak>', "XML"),
        (b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:9.009,\nhttp://media.example.com/first.ts\n", "a playlist"),
        (base64.b64encode(encoded(SPEECH, "wav", "pcm_s16le")), "base64; send the bytes themselves"),
        (base64.encodebytes(encoded(SPEECH, "webm", "libopus", 48_000)), "base64; send the bytes themselves"),
        (base64.urlsafe_b64encode(SPEECH), "base64; send the bytes themselves"),
        (
            b"data:audio/webm;codecs=opus;base64," + base64.b64encode(SPEECH),
            "a data URL; send the bytes themselves",
        ),
        (BOUNDARY, "a multipart form; send the file itself"),
    ],
)
def test_what_people_send_by_mistake_is_named(head: bytes, name: str) -> None:
    head = head[:MAX_NEEDED_BYTES]

    assert identify(head, complete=True) == Foreign(name)
    assert [found for end in range(len(head)) if (found := identify(head[:end])) not in (None, Foreign(name))] == []


def test_a_short_text_is_named_when_it_has_ended() -> None:
    assert identify(b'{"audio":null}') is None
    assert identify(b'{"audio":null}', complete=True) == Foreign("JSON")


@pytest.mark.parametrize(
    "head",
    [
        b"go forward ten meters" * 10,
        b"U" * 2_000,
        b"\x55\xd5" * 1_000,
        b"AAAA" * 500,
        b"0123456789" * 200,
        b"",
        b"\xff",
    ],
)
def test_what_may_be_samples_is_raw(head: bytes) -> None:
    assert identify(head, complete=True) == "raw"


ENCODINGS = (("s16le", 16_000), ("s16be", 16_000), ("u8", 8_000), ("mulaw", 8_000), ("alaw", 8_000), ("s8", 8_000))


@pytest.mark.parametrize(("encoding", "rate_hz"), ENCODINGS)
def test_recordings_of_samples_are_raw_wherever_they_begin(encoding: str, rate_hz: int) -> None:
    for samples in (SPEECH, *(path.read_bytes()[44:] for path in DEMO.glob("*.wav"))):
        raw = encoded(samples, encoding, f"pcm_{encoding}", rate_hz)
        for start in range(0, len(raw) - MAX_NEEDED_BYTES, 97):
            assert identify(raw[start : start + MAX_NEEDED_BYTES]) == "raw"


QUIET = st.integers(-130, 130)


@given(st.lists(QUIET, min_size=40, max_size=80), st.sampled_from(["little", "big"]))
@example([-1, -5] * 40, "big")
@example([-15, 0] * 40, "big")
@example([-40, -32] * 40, "big")
def test_quiet_samples_are_raw(samples: list[int], order: str) -> None:
    raw = b"".join(sample.to_bytes(2, order, signed=True) for sample in samples)  # type: ignore[arg-type]  # one of two

    assert identify(raw + bytes(MAX_NEEDED_BYTES)) == "raw"


@given(st.lists(st.integers(-6, 6), min_size=64, max_size=200), st.integers(40, 120))
def test_samples_of_eight_bits_far_off_center_are_no_text(steps: list[int], center: int) -> None:
    raw = bytes(max(0, min(255, center + step)) for step in steps)

    assert identify(raw, complete=True) == "raw"


@given(st.binary(max_size=80), st.integers(0, 100))
def test_anything_is_identified_once_and_for_all(head: bytes, cut: int) -> None:
    whole = head + bytes(MAX_NEEDED_BYTES)
    found = identify(whole)

    assert found is not None
    assert identify(whole[:cut]) in (None, found)
    assert identify(whole + b"more") == found
    assert identify(head, complete=True) is not None
