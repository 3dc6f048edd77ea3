"""Decoding of any audio, while it arrives."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import EPERM
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import av
import pytest
from av.audio.frame import AudioFrame
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.errors import AudioNotDecodable, AudioTooLong
from cocoa_tornado.rules.audio import AudioFormat, format_of
from cocoa_tornado.speech import decoding
from cocoa_tornado.speech.decoding import _mixed, _no_longer_than, decode

from ..profiles import examples
from .hostile_mp4 import that_refers_to, with_a_long_index, with_many_long_fragments
from .recordings import (
    Arriving,
    encoded,
    flac_with_cover,
    go_forward,
    id3_tag,
    likeness,
    mp3_with_cover,
    picture,
    two_in_one,
    with_video,
)

SPEECH = go_forward()
BYTES_PER_SECOND = 32_000
SMALL_PAGES = {"page_duration": "20000"}

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "100000"}
LIVE = {"live": "1", "cluster_time_limit": "100"}

RAW, WAV, OGG, FLAC, MP3 = (AudioFormat(name) for name in ("raw", "wav", "ogg", "flac", "mp3"))
WEBM, MP4, CAF, AIFF, AU, AAC, AMR = (AudioFormat(name) for name in ("webm", "mp4", "caf", "aiff", "au", "aac", "amr"))


Samplers: TypeAlias = dict[str, tuple[AudioFormat, bytes]]


@pytest.fixture(scope="module")
def samplers() -> Samplers:
    """Half a second in each kind of format, for tests that decode it over and over."""
    short = SPEECH[20_000:36_000]
    return {
        "raw": (AudioFormat("raw"), short),
        "stereo": (AudioFormat("raw", "s16le", 44_100, 2), short),
        "l16": (AudioFormat("raw", "l16", 8_000), short),
        "wav": (WAV, encoded(short, "wav", "pcm_s24le", 48_000, "stereo")[:40_000]),
        "ogg": (OGG, encoded(short, "ogg", "libopus", 48_000)),
        "flac": (FLAC, encoded(short, "flac", "flac")),
        "mp3": (MP3, encoded(short, "mp3", "libmp3lame")),
        "webm": (WEBM, encoded(short, "webm", "libopus", 48_000, options=LIVE)),
        "mp4": (MP4, encoded(short, "mp4", "aac")),
        "fragments": (MP4, encoded(short, "mp4", "aac", options=FRAGMENTED)),
        "caf": (CAF, encoded(short, "caf", "alac")),
        "aiff": (AIFF, encoded(short, "aiff", "pcm_s16be")),
        "au": (AU, encoded(short, "au", "pcm_mulaw", 8_000)),
        "aac": (AAC, encoded(short, "adts", "aac")),
    }


def decoded(audio_format: AudioFormat, data: bytes, sizes: tuple[int, ...] = (640,), max_audio_s: float = 60) -> bytes:
    return b"".join(decode(audio_format, Arriving(data, sizes), max_audio_s))


@pytest.mark.parametrize(
    ("audio_format", "container", "codec", "layout"),
    [
        (AudioFormat("raw", "s16le"), "s16le", "pcm_s16le", "mono"),
        (AudioFormat("raw", "s16be"), "s16be", "pcm_s16be", "mono"),
        (AudioFormat("raw", "l16"), "s16le", "pcm_s16le", "mono"),
        (AudioFormat("raw", "l16"), "s16be", "pcm_s16be", "mono"),
        (AudioFormat("raw", "s16le", channels=2), "s16le", "pcm_s16le", "stereo"),
        (AudioFormat("raw", "l16", channels=2), "s16be", "pcm_s16be", "stereo"),
        (AudioFormat("raw", "s16le", channels=8), "s16le", "pcm_s16le", "7.1"),
        (WAV, "wav", "pcm_s16le", "mono"),
        (WAV, "wav", "pcm_s16le", "stereo"),
        (WAV, "wav", "pcm_s24le", "mono"),
        (WAV, "wav", "pcm_s32le", "5.1"),
        (WAV, "wav", "pcm_f32le", "mono"),
        (WAV, "wav", "pcm_f64le", "stereo"),
        (FLAC, "flac", "flac", "mono"),
        (FLAC, "flac", "flac", "5.1"),
        (OGG, "ogg", "flac", "mono"),
        (WEBM, "matroska", "pcm_s16le", "mono"),
        (WEBM, "matroska", "pcm_f32le", "stereo"),
        (WEBM, "matroska", "flac", "mono"),
        (MP4, "ipod", "alac", "mono"),
        (MP4, "mov", "pcm_s16be", "stereo"),
        (CAF, "caf", "pcm_s16le", "mono"),
        (AIFF, "aiff", "pcm_s16be", "stereo"),
        (AIFF, "aiff", "pcm_s16le", "mono"),
        (AIFF, "aiff", "pcm_f32be", "mono"),
        (AU, "au", "pcm_s16be", "mono"),
        (AU, "au", "pcm_f32be", "stereo"),
    ],
)
def test_audio_that_loses_nothing_comes_out_as_it_was(
    audio_format: AudioFormat, container: str, codec: str, layout: str
) -> None:
    samples = decoded(audio_format, encoded(SPEECH, container, codec, layout=layout))

    assert len(samples) == len(SPEECH)
    assert likeness(samples, SPEECH) > 0.9999


def test_a_beginning_that_comes_byte_by_byte_is_not_judged_with_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[None] = []

    def look(judge: Callable[..., object]) -> Callable[..., object]:
        def judged(*args: object, complete: bool = False) -> object:
            looks.append(None)
            return judge(*args, complete=complete)

        return judged

    for name in ("settle", "is_fragmented"):
        monkeypatch.setattr(decoding, name, look(getattr(decoding, name)))
    brand = b"\0\0\0\x10ftypM4A \0\0\0\0"
    with pytest.raises(AudioNotDecodable):
        list(decode(AudioFormat("mp4"), Arriving(brand + b"\0\0\0\x08free" * 1_000, (1,)), 60.0))
    assert len(looks) < 80


@pytest.mark.parametrize(
    ("audio_format", "container", "codec", "rate_hz", "layout"),
    [
        (AudioFormat("raw", "u8"), "u8", "pcm_u8", 16_000, "mono"),
        (AudioFormat("raw", "u8", 8_000), "u8", "pcm_u8", 8_000, "mono"),
        (AudioFormat("raw", "mulaw", 8_000), "mulaw", "pcm_mulaw", 8_000, "mono"),
        (AudioFormat("raw", "alaw", 8_000), "alaw", "pcm_alaw", 8_000, "mono"),
        (AudioFormat("raw", "s16le", 44_100, 2), "s16le", "pcm_s16le", 44_100, "stereo"),
        (AudioFormat("raw", "s16le", 192_000), "s16le", "pcm_s16le", 192_000, "mono"),
        (WAV, "wav", "pcm_u8", 11_025, "mono"),
        (WAV, "wav", "pcm_s16le", 8_000, "mono"),
        (WAV, "wav", "pcm_s24le", 48_000, "7.1"),
        (WAV, "wav", "pcm_f32le", 44_100, "stereo"),
        (WAV, "wav", "pcm_mulaw", 8_000, "mono"),
        (WAV, "wav", "pcm_alaw", 8_000, "stereo"),
        (OGG, "ogg", "libopus", 48_000, "mono"),
        (OGG, "ogg", "libopus", 48_000, "stereo"),
        (OGG, "ogg", "libopus", 16_000, "mono"),
        (FLAC, "flac", "flac", 44_100, "stereo"),
        (MP3, "mp3", "libmp3lame", 16_000, "mono"),
        (MP3, "mp3", "libmp3lame", 44_100, "stereo"),
    ],
)
def test_audio_of_any_rate_and_encoding_comes_out_as_the_same_speech_at_16_khz(
    audio_format: AudioFormat, container: str, codec: str, rate_hz: int, layout: str
) -> None:
    samples = decoded(audio_format, encoded(SPEECH, container, codec, rate_hz, layout))

    # Encoders that work in blocks fill the last one up with silence.
    assert -4 <= len(samples) - len(SPEECH) < 0.1 * BYTES_PER_SECOND
    assert likeness(samples, SPEECH) > 0.95


def test_an_mp3_of_variable_rate_with_a_tag_is_decoded_whatever_its_type_says() -> None:
    mp3 = encoded(SPEECH, "mp3", "libmp3lame", options={"id3v2_version": "3", "write_xing": "1"})
    assert mp3.startswith(b"ID3")

    assert likeness(decoded(AudioFormat("raw"), mp3), SPEECH) > 0.95


def test_a_tag_in_no_encoding_at_all_is_no_reason_to_refuse_an_mp3() -> None:
    mp3 = encoded(SPEECH, "mp3", "libmp3lame", options={"id3v2_version": "0"})
    text = b"TIT2" + (6).to_bytes(4, "big") + b"\x00\x00" + b"\x03\xff\xfe\xfd\xc3\x28"
    tag = b"ID3\x03\x00\x00" + (0).to_bytes(2, "big") + bytes([0, len(text)]) + text

    assert likeness(decoded(MP3, tag + mp3), SPEECH) > 0.95


# What browsers and phones record

RECORDED: dict[str, tuple[AudioFormat, Callable[[], bytes]]] = {
    "WebM of Chromium and Firefox": (WEBM, lambda: encoded(SPEECH, "webm", "libopus", 48_000, options=LIVE)),
    "WebM with a length": (WEBM, lambda: encoded(SPEECH, "webm", "libopus", 48_000)),
    "MP4 with its index at the end": (MP4, lambda: encoded(SPEECH, "mp4", "aac", 44_100)),
    "MP4 in fragments": (MP4, lambda: encoded(SPEECH, "mp4", "aac", 48_000, options=FRAGMENTED)),
    "M4A of a voice recorder": (MP4, lambda: encoded(SPEECH, "ipod", "aac", 48_000)),
    "QuickTime": (MP4, lambda: encoded(SPEECH, "mov", "aac", 44_100)),
    "AAC": (AAC, lambda: encoded(SPEECH, "adts", "aac", 44_100)),
    "AAC with an ID3 tag": (AAC, lambda: id3_tag(b"TIT2", b"\0a title") + encoded(SPEECH, "adts", "aac", 16_000)),
    "CAF": (CAF, lambda: encoded(SPEECH, "caf", "alac", 44_100)),
    "AIFF": (AIFF, lambda: encoded(SPEECH, "aiff", "pcm_s16be", 44_100, "stereo")),
    "AU": (AU, lambda: encoded(SPEECH, "au", "pcm_mulaw", 8_000)),
    "MP3 without a tag": (MP3, lambda: encoded(SPEECH, "mp3", "libmp3lame", options={"id3v2_version": "0"})),
}


def alike(samples: bytes) -> float:
    """How much a second of it is like the speech, whatever an encoder has put before it: up to 69 ms."""
    expected = array("h", SPEECH)[16_000:32_000:8].tobytes()
    found = array("h", samples)

    def shifted(shift: int) -> float:
        return likeness(found[16_000 + shift : 32_000 + shift : 8].tobytes(), expected)

    near = max(range(0, 1_100, 3), key=shifted)  # one sample beside the best it is still more alike than elsewhere
    return max(map(shifted, range(max(0, near - 2), near + 3)))


@pytest.mark.parametrize("declared", ["as what it is", "raw", "wav"])
@pytest.mark.parametrize("name", RECORDED)
def test_recordings_of_browsers_and_phones_are_decoded_under_any_declared_type(name: str, declared: str) -> None:
    audio_format, make = RECORDED[name]
    if declared != "as what it is" and name != "AAC with an ID3 tag":  # which then may as well be an MP3
        audio_format = {"raw": RAW, "wav": AudioFormat("wav", eight_bit_rate_hz=8_000)}[declared]

    samples = decoded(audio_format, make())

    assert 0.98 < len(samples) / len(SPEECH) < 1.06
    assert alike(samples) > 0.93


@pytest.mark.parametrize("name", ["3gp", "amr"])
def test_the_recordings_of_old_telephones_are_decoded(name: str) -> None:
    samples = decoded(RAW, encoded(SPEECH, name, "libopencore_amrnb", 8_000))

    assert 0.98 < len(samples) / len(SPEECH) < 1.06


@pytest.mark.parametrize(
    ("name", "bytes_per_second"),
    [("WebM of Chromium and Firefox", 8_500), ("MP4 in fragments", 10_000), ("AAC", 10_000), ("AU", 8_000)],
)
def test_live_audio_is_decoded_while_it_arrives(name: str, bytes_per_second: int) -> None:
    audio_format, make = RECORDED[name]
    source = Arriving(make(), (640,))
    pieces = decode(audio_format, source, 60)

    decoded = len(next(pieces))
    assert source.taken < bytes_per_second
    while decoded < BYTES_PER_SECOND:
        decoded += len(next(pieces))
    assert source.taken < 2 * bytes_per_second


@pytest.mark.parametrize("name", ["WebM of Chromium and Firefox", "MP4 in fragments", "AAC", "AU"])
def test_of_a_recording_that_is_cut_off_what_came_is_used(name: str) -> None:
    audio_format, make = RECORDED[name]
    data = make()

    samples = decoded(audio_format, data[: len(data) * 2 // 3])

    assert 0.5 * len(SPEECH) < len(samples) < 0.8 * len(SPEECH)
    assert alike(samples) > 0.93


@pytest.mark.parametrize(
    "make",
    [
        lambda: mp3_with_cover(SPEECH),
        lambda: flac_with_cover(SPEECH),
        lambda: with_video(SPEECH, "mp4", "aac", "mpeg4"),
        lambda: with_video(SPEECH, "mp4", "aac", "mpeg4", FRAGMENTED),
        lambda: with_video(SPEECH, "mov", "aac", "libx264"),
        lambda: with_video(SPEECH, "webm", "libopus", "libvpx"),
        lambda: two_in_one(SPEECH, bytes(len(SPEECH)), "ogg", "libopus"),
        lambda: two_in_one(SPEECH, bytes(len(SPEECH)), "ogg", "flac"),
        lambda: two_in_one(SPEECH, bytes(len(SPEECH)), "webm", "libopus"),
    ],
    ids=[
        *("MP3 with a cover", "FLAC with a cover", "MP4 with video", "MP4 in fragments with video"),
        *("QuickTime with video", "WebM with video", "Ogg of two", "Ogg of two FLACs", "WebM of two"),
    ],
)
def test_the_first_audio_stream_is_decoded_and_all_others_are_skipped(make: Callable[[], bytes]) -> None:
    samples = decoded(RAW, make())

    assert 0.98 < len(samples) / len(SPEECH) < 1.06
    assert alike(samples) > 0.93


def test_a_video_without_sound_is_refused_as_one() -> None:
    with pytest.raises(AudioNotDecodable, match="this MP4 holds no audio"):
        decoded(MP4, with_video(SPEECH, "mp4", "", "mpeg4"))


def test_audio_of_another_kind_is_refused_by_its_name() -> None:
    with pytest.raises(AudioNotDecodable, match="the audio in this MP4 is not of a kind that can be decoded: ac3"):
        decoded(MP4, encoded(SPEECH, "mp4", "ac3", 48_000))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (picture(), "a PNG picture"),
        (b"RIFF\x10\0\0\0AVI LIST" + bytes(900), "an AVI video"),
        (b'{"success":false,"message":"Not found","hint":"there is nothing here, nor was there"}', "JSON"),
        (b'{"audio":""}', "JSON"),
    ],
)
@pytest.mark.parametrize("declared", ["raw", "wav", "ogg", "mp4"])
def test_what_is_no_audio_is_refused_by_its_name(declared: str, data: bytes, name: str) -> None:
    audio_format = {"raw": RAW, "wav": WAV, "ogg": OGG, "mp4": MP4}[declared]

    with pytest.raises(AudioNotDecodable, match=f"^this is {name}$"):
        decoded(audio_format, data)


# More than one WAV


def _riff(samples: bytes, codec: str = "pcm_s16le", rate_hz: int = 16_000) -> bytes:
    return encoded(samples, "wav", codec, rate_hz)


def test_a_wav_whose_type_says_a_rate_is_what_its_header_says() -> None:
    azure = format_of("audio/wav; codecs=audio/pcm; samplerate=8000", RAW)

    assert azure is not None
    assert decoded(azure, encoded(SPEECH, "wav", "pcm_s16le")) == SPEECH


@pytest.mark.parametrize("between", [b"", b"LIST\x04\0\0\0INFO", b"LIST\x03\0\0\0abc\0", b"cue \0\0\0\0" * 3])
def test_a_wav_that_follows_another_is_decoded_too(between: bytes) -> None:
    one, other = SPEECH[:40_000], SPEECH[40_000:]

    assert decoded(WAV, _riff(one) + between + _riff(other)) == SPEECH
    assert decoded(RAW, _riff(one) + between + _riff(other), (7, 4_000)) == SPEECH


def test_the_next_wav_may_be_of_another_rate_and_encoding() -> None:
    samples = decoded(WAV, _riff(SPEECH) + _riff(SPEECH, "pcm_f32le", 44_100) + _riff(SPEECH, "pcm_u8", 8_000))

    assert samples[: len(SPEECH)] == SPEECH
    assert likeness(samples[len(SPEECH) : 2 * len(SPEECH)], SPEECH) > 0.99
    assert likeness(samples[2 * len(SPEECH) :], SPEECH) > 0.95


@pytest.mark.parametrize("padding", [b"", b"\0"])
def test_the_byte_that_pads_an_odd_number_of_samples_may_be_absent(padding: bytes) -> None:
    odd = b"RIFF    WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0data\x03\0\0\0\x80\x80\x80"

    assert decoded(WAV, odd + padding + _riff(SPEECH)).endswith(SPEECH)


def test_what_follows_a_wav_and_is_none_is_not_audio() -> None:
    for behind in (b"RIFF\x04\0\0\0AVI ", b"RIFF    WAVE", b"RIF", b"\xff" * 5_000, SPEECH):
        assert decoded(WAV, _riff(SPEECH) + behind) == SPEECH


# Samples of eight bits


def test_samples_of_the_reference_firmware_are_detected() -> None:
    firmware = encoded(SPEECH, "u8", "pcm_u8", 8_000)
    declared = AudioFormat("wav", "s16le", 16_000, 1, eight_bit_rate_hz=8_000)

    assert decoded(declared, firmware) == decoded(AudioFormat("raw", "u8", 8_000), firmware)
    assert likeness(decoded(declared, firmware), SPEECH) > 0.95


def test_samples_of_sixteen_bits_are_decoded_as_before() -> None:
    assert decoded(AudioFormat("wav", "s16le", 16_000, 1, eight_bit_rate_hz=8_000), SPEECH) == SPEECH


def test_every_channel_is_as_loud_as_the_others() -> None:
    """A downmix for loudspeakers would drop the fourth of six microphones, taking it for the subwoofer."""
    for channel in range(6):
        frames = bytearray(6 * len(SPEECH))
        frames[2 * channel :: 12], frames[2 * channel + 1 :: 12] = SPEECH[0::2], SPEECH[1::2]
        samples = decoded(AudioFormat("raw", "s16le", 16_000, 6), bytes(frames), (4096,))
        assert likeness(samples, SPEECH) > 0.99


def test_chained_ogg_is_one_stream_even_if_the_next_part_has_another_rate() -> None:
    one, other = encoded(SPEECH, "ogg", "flac"), encoded(SPEECH, "ogg", "flac", 8_000, "stereo")

    samples = decoded(OGG, one + other)

    assert len(samples) == 2 * len(SPEECH)
    assert samples[: len(SPEECH)] == SPEECH
    assert likeness(samples[len(SPEECH) :], SPEECH) > 0.95


@pytest.mark.parametrize(
    ("audio_format", "make", "pieces"),
    [
        (AudioFormat("raw"), lambda: SPEECH, 1),
        (AudioFormat("raw", "l16"), lambda: SPEECH, 2),
        (AudioFormat("raw", "mulaw", 8_000), lambda: encoded(SPEECH, "mulaw", "pcm_mulaw", 8_000), 2),
        (WAV, lambda: encoded(SPEECH, "wav", "pcm_s16le"), 1),
        (OGG, lambda: encoded(SPEECH, "ogg", "libopus", 48_000, options=SMALL_PAGES), 3),
        (MP3, lambda: encoded(SPEECH, "mp3", "libmp3lame"), 3),
    ],
)
def test_the_first_samples_come_of_the_first_few_pieces(
    audio_format: AudioFormat, make: Callable[[], bytes], pieces: int
) -> None:
    source = Arriving(make(), (640,))

    assert next(decode(audio_format, source, 60))

    assert source.taken <= 640 * pieces


def test_flac_comes_no_more_than_a_dozen_frames_late() -> None:
    flac = encoded(SPEECH, "flac", "flac")
    frames = len(SPEECH) // 2 / 1152
    source = Arriving(flac)

    assert next(decode(FLAC, source, 60))

    assert source.taken < len(flac) / frames * 15


@examples(25)
@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=8))
@pytest.mark.parametrize(
    "kind",
    ["raw", "stereo", "l16", "wav", "ogg", "flac", "mp3", "webm", "mp4", "fragments", "caf", "aiff", "au", "aac"],
)
def test_the_cut_of_the_pieces_changes_nothing(samplers: Samplers, kind: str, sizes: list[int]) -> None:
    audio_format, data = samplers[kind]

    assert decoded(audio_format, data, tuple(sizes)) == decoded(audio_format, data, (1 << 20,))


def test_a_wav_without_a_header_is_raw_samples() -> None:
    assert decoded(AudioFormat("wav", "s16le", 16_000, 1), SPEECH) == SPEECH
    eight_bit = encoded(SPEECH, "u8", "pcm_u8", 8_000)
    assert likeness(decoded(AudioFormat("wav", "u8", 8_000), eight_bit), SPEECH) > 0.95


def test_a_container_under_another_containers_name_is_decoded() -> None:
    assert decoded(OGG, encoded(SPEECH, "flac", "flac")) == SPEECH
    assert decoded(AudioFormat("raw", "mulaw", 8_000), encoded(SPEECH, "wav", "pcm_s16le")) == SPEECH


@pytest.mark.parametrize("claim", [0, 0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF])
def test_a_streamed_wav_that_cannot_know_its_length_is_read_to_its_end(claim: int) -> None:
    wav = bytearray(encoded(SPEECH, "wav", "pcm_s16le"))
    at = wav.index(b"data") + 4
    wav[at : at + 4] = claim.to_bytes(4, "little")

    assert decoded(WAV, bytes(wav)) == SPEECH


def test_what_follows_the_samples_of_a_wav_is_read_and_is_not_audio() -> None:
    wav = encoded(SPEECH, "wav", "pcm_s16le")
    source = Arriving(wav + b"LIST" + bytes(range(256)) * 100)

    assert b"".join(decode(WAV, source, 60)) == SPEECH
    assert source.taken == len(wav) + 4 + 25_600


@pytest.mark.parametrize(
    ("audio_format", "container", "codec", "rate_hz", "options"),
    [
        (WAV, "wav", "pcm_s16le", 16_000, {}),
        (WAV, "wav", "pcm_s24le", 16_000, {}),
        (OGG, "ogg", "libopus", 48_000, SMALL_PAGES),
        (FLAC, "flac", "flac", 16_000, {}),
        (MP3, "mp3", "libmp3lame", 16_000, {}),
    ],
)
def test_of_a_stream_that_ends_early_what_came_is_used(
    audio_format: AudioFormat, container: str, codec: str, rate_hz: int, options: dict[str, str]
) -> None:
    data = encoded(SPEECH, container, codec, rate_hz, options=options)

    samples = decoded(audio_format, data[: len(data) * 2 // 3 + 1])

    assert 0.5 * len(SPEECH) < len(samples) < 0.8 * len(SPEECH)
    assert likeness(samples, SPEECH) > 0.95


@pytest.mark.parametrize(
    ("audio_format", "container", "codec", "rate_hz", "options"),
    [
        (OGG, "ogg", "libopus", 48_000, SMALL_PAGES),
        (FLAC, "flac", "flac", 16_000, {}),
        (MP3, "mp3", "libmp3lame", 16_000, {}),
    ],
)
def test_of_a_stream_that_is_damaged_in_the_middle_the_rest_is_used(
    audio_format: AudioFormat, container: str, codec: str, rate_hz: int, options: dict[str, str]
) -> None:
    data = bytearray(encoded(SPEECH, container, codec, rate_hz, options=options))
    middle = len(data) // 2
    data[middle : middle + 200] = random.Random(7).randbytes(200)

    samples = decoded(audio_format, bytes(data))

    assert len(samples) > 0.8 * len(SPEECH)
    assert likeness(samples[: len(samples) // 3], SPEECH) > 0.95


def test_an_odd_byte_at_the_end_is_dropped() -> None:
    assert decoded(AudioFormat("raw"), SPEECH + b"\x00") == SPEECH
    assert decoded(AudioFormat("raw", channels=2), SPEECH + b"\x00\x00\x00") == decoded(
        AudioFormat("raw", channels=2), SPEECH
    )


@pytest.mark.parametrize("container", ["ogg", "flac", "mp3"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        bytes(100_000),
        b"\xff" * 100_000,
        b"<html><body>Not found</body></html>" * 50,
        SPEECH,
        random.Random(1).randbytes(300_000),
        b"#EXTM3U\n#EXTINF:1,\nfile:///dev/zero\n",
    ],
    ids=["empty", "a byte", "zeros", "ones", "a web page", "raw samples", "noise", "a playlist"],
)
def test_what_is_not_the_container_it_was_said_to_be_is_not_decodable(container: str, data: bytes) -> None:
    audio_format = {"ogg": OGG, "flac": FLAC, "mp3": MP3}[container]

    with pytest.raises(AudioNotDecodable):
        decoded(audio_format, data, (4096,))


@pytest.mark.parametrize(
    ("audio_format", "make"),
    [
        (AudioFormat("raw"), lambda: b""),
        (AudioFormat("raw"), lambda: b"\x00"),
        (AudioFormat("raw", "l16"), lambda: b""),
        (WAV, lambda: b""),
        (WAV, lambda: encoded(SPEECH, "wav", "pcm_s16le").partition(b"data")[0] + b"data" + bytes(4)),
        (WAV, lambda: encoded(SPEECH, "wav", "pcm_s16le")[:30]),
        (WAV, lambda: encoded(SPEECH, "wav", "adpcm_ima_wav")),
        (OGG, lambda: encoded(SPEECH, "ogg", "libopus", 48_000)[:100]),
    ],
    ids=["raw", "half a sample", "l16", "wav", "no samples", "half a header", "adpcm", "no packets"],
)
def test_what_holds_not_a_single_sample_is_not_decodable(audio_format: AudioFormat, make: Callable[[], bytes]) -> None:
    with pytest.raises(AudioNotDecodable):
        decoded(audio_format, make())


def test_an_ogg_without_audio_of_a_known_kind_is_not_decodable() -> None:
    ogg = encoded(SPEECH, "ogg", "libopus", 48_000)

    with pytest.raises(AudioNotDecodable):
        decoded(OGG, ogg.replace(b"OpusHead", b"OpusHeat"))


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 44_100])
def test_audio_of_just_the_longest_length_passes_and_a_little_more_does_not(rate_hz: int) -> None:
    longest = bytes(2 * rate_hz * 3)

    assert len(decoded(AudioFormat("raw", "s16le", rate_hz), longest, max_audio_s=3)) == 3 * BYTES_PER_SECOND
    with pytest.raises(AudioTooLong):
        decoded(AudioFormat("raw", "s16le", rate_hz), longest + bytes(rate_hz // 10), max_audio_s=3)


def test_too_much_audio_is_refused_while_it_arrives() -> None:
    source = Arriving(bytes(10 * BYTES_PER_SECOND))
    pieces = decode(AudioFormat("raw"), source, 2)

    assert sum(map(len, islice(pieces, 100))) == 2 * BYTES_PER_SECOND
    with pytest.raises(AudioTooLong):
        next(pieces)
    assert source.taken <= 2 * BYTES_PER_SECOND + 640


def test_many_minutes_of_silence_in_a_small_file_cost_no_memory() -> None:
    ten_minutes = bytes(600 * BYTES_PER_SECOND)
    bomb = encoded(ten_minutes, "flac", "flac")
    assert len(bomb) < len(ten_minutes) / 100
    program = """
import resource, sys
from cocoa_tornado.errors import AudioTooLong
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.speech.decoding import decode
from tests.speech.recordings import Arriving
def seconds(max_audio_s):
    try:
        for piece in decode(AudioFormat("flac"), Arriving(bomb, (65536,)), max_audio_s):
            pass
    except AudioTooLong:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bomb = sys.stdin.buffer.read()
before_kib = seconds(2)
print(seconds(500) - before_kib)
"""

    assert int(_run(program, bomb)) < 4096


class LineDown(Exception):
    """What this test's source raises; nothing that FFmpeg knows."""


class Breaking(Arriving):
    """A source that fails after its last byte."""

    def read(self, max_bytes: int, /) -> bytes:
        piece = super().read(max_bytes)
        if not piece:
            raise LineDown
        return piece


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
@pytest.mark.parametrize("container", ["raw", "wav", "ogg", "flac", "mp3"])
def test_what_the_source_raises_comes_through(container: str, share: float) -> None:
    codecs = {"raw": "pcm_s16le", "wav": "pcm_s16le", "ogg": "libopus", "flac": "flac", "mp3": "libmp3lame"}
    rate_hz = 48_000 if container == "ogg" else 16_000
    data = encoded(SPEECH, "s16le" if container == "raw" else container, codecs[container], rate_hz)
    audio_format = {"raw": AudioFormat("raw"), "wav": WAV, "ogg": OGG, "flac": FLAC, "mp3": MP3}[container]

    with pytest.raises(LineDown):
        for _ in decode(audio_format, Breaking(data[: int(len(data) * share)]), 60):
            pass


def test_a_source_that_gives_more_than_it_was_asked_for_overruns_nothing() -> None:
    class Generous(Arriving):
        def read(self, max_bytes: int, /) -> bytes:
            return super().read(max_bytes * 20)

    for audio_format, codec in ((FLAC, "flac"), (OGG, "flac")):
        data = encoded(SPEECH, audio_format.container, codec)
        assert b"".join(decode(audio_format, Generous(data, (1 << 20,)), 60)) == SPEECH


def test_a_decoding_that_is_given_up_reads_nothing_more() -> None:
    source = Arriving(encoded(SPEECH, "ogg", "libopus", 48_000, options=SMALL_PAGES))
    pieces = decode(OGG, source, 60)
    next(pieces)
    taken = source.taken

    pieces.close()

    assert source.taken == taken


DAMAGE = st.lists(
    st.tuples(st.sampled_from(["set", "insert", "delete", "cut"]), st.integers(0, 1 << 16), st.binary(max_size=40)),
    min_size=1,
    max_size=12,
)


@examples(60)
@given(damage=DAMAGE)
@pytest.mark.parametrize(
    "container", ["wav", "ogg", "flac", "mp3", "webm", "mp4", "fragments", "caf", "aiff", "au", "aac"]
)
def test_damage_anywhere_ends_in_audio_or_in_one_of_two_errors(
    samplers: Samplers, container: str, damage: list[tuple[str, int, bytes]]
) -> None:
    audio_format, intact = samplers[container]
    data = bytearray(intact)
    for what, where, octets in damage:
        at = where % (len(data) + 1)
        if what == "cut":
            del data[at:]
        else:
            data[at : at + (len(octets) if what != "insert" else 0)] = octets if what != "delete" else b""
    try:
        samples = decoded(audio_format, bytes(data), (997,), max_audio_s=5)
    except (AudioNotDecodable, AudioTooLong):
        return
    assert 0 < len(samples) <= 5 * BYTES_PER_SECOND
    assert len(samples) % 2 == 0


def test_nothing_is_printed_whatever_is_wrong() -> None:
    """FFmpeg complains of everything, on standard error, unless configured otherwise."""
    program = """
from cocoa_tornado.errors import AudioNotDecodable
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.speech.decoding import decode
from tests.speech.recordings import Arriving, encoded, go_forward
for container, codec in (("ogg", "flac"), ("flac", "flac"), ("mp3", "libmp3lame"), ("wav", "pcm_s16le")):
    data = bytearray(encoded(go_forward(), container, codec))
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(range(200))
    for damaged in (data, data[3000:], data[:200]):
        try:
            for piece in decode(AudioFormat(container), Arriving(bytes(damaged)), 60):
                pass
        except AudioNotDecodable:
            pass
print("done")
"""

    assert _run(program) == b"done\n"


def _run(program: str, data: bytes = b"") -> bytes:
    """The output of a separate Python process, which must succeed and write nothing to standard error."""
    path = os.pathsep.join(path for path in sys.path if path)
    ran = subprocess.run(
        [sys.executable, "-c", program],
        input=data,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=60,
        check=True,
    )
    assert ran.stderr == b""
    return ran.stdout


def test_a_container_of_many_streams_takes_no_more_memory_than_one() -> None:
    """Each stream that an Ogg announces may make FFmpeg take many megabytes; only the first is decoded."""
    one = encoded(go_forward(), "ogg", "libopus")
    pages = one.split(b"OggS")[1:]
    head = b"OggS" + pages[0]
    others = b"".join(_with_serial(head, serial) for serial in range(100, 160))
    with pytest.raises(AudioNotDecodable):
        b"".join(decode(AudioFormat("ogg"), BytesIO(head + others + one[len(head) :]), 60.0))


def _with_serial(page: bytes, serial: int) -> bytes:
    """The page as one of another logical stream, its checksum made anew."""
    page = page[:14] + serial.to_bytes(4, "little") + page[18:22] + bytes(4) + page[26:]
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ 0x04C11DB7 if checksum & 0x80000000 else checksum << 1) & 0xFFFFFFFF
    return page[:22] + checksum.to_bytes(4, "little") + page[26:]


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_a_long_index(20_000_000),
        lambda: with_a_long_index(2_000_000_000),
        lambda: with_many_long_fragments(1, 20_000_000),
        lambda: with_many_long_fragments(100, 1_000_000),
    ],
    ids=["a long index", "a longer one", "a long fragment", "many long fragments"],
)
def test_a_few_kilobytes_that_announce_gigabytes_take_no_more_than_the_budget(make: Callable[[], bytes]) -> None:
    program = """
import sys
from cocoa_tornado.errors import AudioNotDecodable
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.speech.decoding import decode
from tests.speech.recordings import Arriving, encoded, go_forward
def peak_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) // 1024
def decoded_bytes(data):
    try:
        return sum(map(len, decode(AudioFormat("mp4"), Arriving(data, (65536,)), 60)))
    except AudioNotDecodable:
        return 0
speech = encoded(go_forward(), "mp4", "aac")
hostile = sys.stdin.buffer.read()
assert decoded_bytes(speech) > 0
before = peak_mib()
assert decoded_bytes(hostile) == 0
print(peak_mib() - before)
assert decoded_bytes(speech) > 0  # the next one has a budget of its own
"""
    data = make()

    assert len(data) < 20_000
    assert int(_run(program, data)) < 160


def test_a_container_reads_no_file_that_it_refers_to(tmp_path: Path) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(SPEECH)
    data, opened = that_refers_to(str(secret)), []

    def note(url: str, flags: int, options: dict[str, str]) -> None:
        opened.append(url)
        raise av.PermissionError(EPERM, "that is the question")

    with pytest.raises(AudioNotDecodable):
        decoded(MP4, data)
    # FFmpeg would, if it were allowed to.
    with suppress(av.FFmpegError):
        options = {"enable_drefs": "1", "use_absolute_path": "1"}
        av.open(BytesIO(data), "r", format="mp4", container_options=options, io_open=note)
    assert opened == [str(secret)]


def test_audio_that_changes_all_the_time_is_given_up() -> None:
    frames = [AudioFrame(format="s16", layout=layout, samples=16) for layout in ("mono", "stereo") * 200]
    for frame in frames:
        frame.sample_rate = 44_100 if frame.layout.name == "mono" else 48_000
    with pytest.raises(AudioNotDecodable, match="all the time"):
        list(_mixed(iter(frames)))


def test_what_is_decoded_counts_though_nothing_comes_of_it() -> None:
    def endless() -> Iterator[AudioFrame]:
        while True:
            frame = AudioFrame(format="s16", layout="mono", samples=16_000)
            frame.sample_rate = 16_000
            yield frame

    with pytest.raises(AudioTooLong):
        for _ in _no_longer_than(5.0, endless()):
            pass
