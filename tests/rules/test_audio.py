"""The format of a stream by its Content-Type, its first bytes and its samples."""

from __future__ import annotations

from array import array
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cocoa_tornado.errors import AudioNotDecodable
from cocoa_tornado.rules.audio import (
    MAX_CHANNELS,
    MAX_RATE_HZ,
    MIN_RATE_HZ,
    SETTLED_BYTES,
    AudioFormat,
    byte_order,
    format_of,
    has_eight_bits,
    settle,
    undeclared,
)

DEFAULT = AudioFormat("raw", "s16le", 16_000, 1)
UNDECLARED = AudioFormat("raw", "s16le", 16_000, 1, eight_bit_rate_hz=8_000)
UNUSUAL = AudioFormat("raw", "u8", 11_025, 2)
DEMO = Path(__file__).parents[2] / "demo"
SPEECH = array("h", (Path(__file__).parents[1] / "speech" / "data" / "goforward.raw").read_bytes())


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("audio/L16;rate=8000;channels=1", AudioFormat("raw", "l16", 8_000, 1)),
        ("audio/L16; rate=44100; channels=2", AudioFormat("raw", "l16", 44_100, 2)),
        ("audio/l16", AudioFormat("raw", "l16", 16_000, 1)),
        ("audio/L16;rate=16000;endianness=little-endian", AudioFormat("raw", "s16le", 16_000, 1)),
        ("audio/L16;rate=16000;endianness=BIG-endian", AudioFormat("raw", "s16be", 16_000, 1)),
        ("audio/L8;rate=8000", AudioFormat("raw", "u8", 8_000, 1)),
        ("audio/basic", AudioFormat("raw", "mulaw", 8_000, 1)),
        ("audio/PCMU", AudioFormat("raw", "mulaw", 8_000, 1)),
        ("audio/x-mulaw;rate=16000", AudioFormat("raw", "mulaw", 16_000, 1)),
        ("audio/PCMA; channels=2", AudioFormat("raw", "alaw", 8_000, 2)),
        ("audio/x-alaw", AudioFormat("raw", "alaw", 8_000, 1)),
        ("audio/pcm", UNDECLARED),
        ("audio/raw", UNDECLARED),
        ("audio/x-raw;rate=48000", AudioFormat("raw", "s16le", 48_000, 1, eight_bit_rate_hz=48_000)),
        ("audio/pcm;endianness=big-endian", AudioFormat("raw", "s16be", 16_000, 1)),
        ("application/octet-stream", UNDECLARED),
        ("audio/*", UNDECLARED),
    ],
)
def test_a_raw_type_defines_how_its_samples_are_read(content_type: str, expected: AudioFormat) -> None:
    assert format_of(content_type, DEFAULT) == expected


@pytest.mark.parametrize("content_type", ["audio/pcm", "application/octet-stream", "audio/*", "audio/raw;"])
def test_what_a_type_leaves_open_is_as_configured(content_type: str) -> None:
    assert format_of(content_type, UNUSUAL) == UNUSUAL


def test_endianness_means_nothing_to_samples_of_one_byte() -> None:
    assert format_of("audio/pcm;endianness=big-endian", UNUSUAL) == UNUSUAL


@pytest.mark.parametrize(
    ("content_type", "container"),
    [
        ("audio/wav", "wav"),
        ("audio/x-wav", "wav"),
        ("audio/wave", "wav"),
        ("audio/vnd.wave;codec=1", "wav"),
        ("audio/ogg", "ogg"),
        ("audio/ogg; codecs=opus", "ogg"),
        ('audio/ogg;codecs="opus"', "ogg"),
        ("application/ogg", "ogg"),
        ("audio/opus", "ogg"),
        ("audio/flac", "flac"),
        ("audio/x-flac", "flac"),
        ("audio/mpeg", "mp3"),
        ("audio/mp3", "mp3"),
        ("audio/webm", "webm"),
        ("audio/webm;codecs=opus", "webm"),
        ('audio/webm; codecs="pcm"', "webm"),
        ("audio/mp4", "mp4"),
        ("audio/mp4;codecs=mp4a.40.2", "mp4"),
        ("audio/x-m4a", "mp4"),
        ("audio/3gpp", "mp4"),
        ("audio/aac", "aac"),
        ("audio/x-caf", "caf"),
        ("audio/aiff", "aiff"),
        ("audio/x-au", "au"),
        ("audio/AMR", "amr"),
    ],
)
def test_a_container_keeps_beside_it_how_raw_samples_would_be_read(content_type: str, container: str) -> None:
    found = format_of(content_type, UNUSUAL)

    assert found is not None
    assert found.container == container
    assert (found.encoding, found.rate_hz, found.channels) == ("u8", 11_025, 2)


def test_the_rate_of_a_wav_type_applies_to_a_wav_without_a_header() -> None:
    found = format_of("audio/wav;rate=8000", DEFAULT)

    assert found == AudioFormat("wav", "s16le", 8_000, 1, eight_bit_rate_hz=8_000)


@pytest.mark.parametrize(
    "content_type",
    [
        "AUDIO/L16;RATE=8000",
        "  audio/L16 ; rate=8000  ",
        'audio/L16;rate="8000"',
        'audio/L16;rate="80\\00"',
        "audio/L16;\trate=8000",
        "audio/L16;rate=8000;",
        "audio/L16;;rate=8000",
        "audio/L16;rate=8000;charset=utf-8",
        'audio/L16;note="a;rate=1";rate=8000',
        "audio/L16; codecs=audio/pcm; samplerate=8000",
        "audio/L16;samplerate=8000",
        "audio/L16; SampleRate=8000;",
        "audio/L16;rate = 8000",
        "audio/L16;rate=8000;RATE=8000",
        "audio/L16;rate=8000;samplerate=8000",
        "audio/L16;rate=8000;note",
        "audio/L16;rate=8000;note=",
        "audio/L16;rate=8000;note=a b:c@d",
        "audio/L16 ;rate=8000 ; note=1;note=2 ;",
    ],
)
def test_a_type_may_be_written_in_every_way_that_senders_have(content_type: str) -> None:
    assert format_of(content_type, DEFAULT) == AudioFormat("raw", "l16", 8_000, 1)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        " ",
        "audio",
        "audio/",
        "/wav",
        "audio/wav, audio/wav",
        "audio/wav x",
        "audio /wav",
        "audio/wav\n",
        "audio/wav;rate",
        "audio/wav;rate=",
        'audio/wav;rate="8000',
        "audio/L16;rate=8000;rate=16000",
        "audio/L16;rate=3999",
        "audio/L16;rate=192001",
        "audio/L16;rate=-8000",
        "audio/L16;rate=8e3",
        "audio/L16;rate=8000.0",
        "audio/L16;rate=" + "9" * 5_000,
        "audio/L16;rate=٨٠٠٠",
        "audio/L16;channels=0",
        "audio/L16;channels=9",
        "audio/L16;endianness=middle",
        "audio/ogg;codecs=speex",
        "audio/ogg;codecs=theora",
        "audio/L16;rate=8000;samplerate=16000",
        "audio/wav;rate=8000\x7f",
        "audio/speex",
        "audio/L24",
        "audio/x-unheard-of",
        "video/ogg",
        "text/plain",
        "application/json",
        "multipart/form-data; boundary=x",
    ],
)
def test_what_is_no_audio_of_ours_is_refused(content_type: str | None) -> None:
    assert format_of(content_type, DEFAULT) is None


@given(st.text(alphabet='audio/L16wavrte;= "\\,\t8000*', max_size=60) | st.text(max_size=40))
@example("audio/wav" + "; " * 20_000 + "=")
@example("audio/wav" + ";a=" * 20_000)
@example('audio/wav;a="' + "\\" * 20_001)
@example("audio/wav" + ';a="' * 20_000)
@example("audio/wav;" + " " * 50_000 + "\n")
def test_no_type_is_too_strange_to_be_judged(content_type: str) -> None:
    found = format_of(content_type, DEFAULT)

    if found is not None:
        assert MIN_RATE_HZ <= found.rate_hz <= MAX_RATE_HZ
        assert 1 <= found.channels <= MAX_CHANNELS


RIFF = b"RIFF\x24\x00\x00\x00WAVE"
ID3 = b"ID3\x04\x00\x00\x00\x00\x01\x7f"


@pytest.mark.parametrize(
    ("head", "container"),
    [
        (RIFF, "wav"),
        (b"RIFX\x00\x00\x00\x24WAVE", "wav"),
        (b"RF64\xff\xff\xff\xffWAVE", "wav"),
        (b"OggS\x00\x02", "ogg"),
        (b"fLaC\x00\x00\x00\x22", "flac"),
        (ID3, "mp3"),
    ],
)
@pytest.mark.parametrize("declared", ["raw", "wav", "ogg", "mp3"])
def test_the_first_bytes_count_for_more_than_the_type(declared: str, head: bytes, container: str) -> None:
    audio_format = msgspec.convert({"container": declared, "rate_hz": 8_000}, AudioFormat)

    assert settle(audio_format, head) == AudioFormat(container, "s16le", 8_000)  # type: ignore[arg-type]  # one of them


def test_a_flac_with_an_id3_tag_is_a_flac() -> None:
    assert settle(AudioFormat("flac"), ID3 + b"\x00\x00") == AudioFormat("flac")


@pytest.mark.parametrize(
    "head",
    [
        b"\x00\x00\x00\x00\x00",
        b"\x12\x00\xf4\xff",
        b"RIFE\x00",
        b"Ogg\x00",
        b"OggS\x01",
        b"fLac\x00",
        b"ID3\xff\xff\x00\x00\x00\x00\x00",
        b"ID3\x04\x00\x00\x00\x00\x01\x80",
    ],
)
def test_a_wav_that_does_not_begin_like_one_is_raw_samples(head: bytes) -> None:
    assert settle(AudioFormat("wav", "u8", 8_000, 2), head) == AudioFormat("raw", "u8", 8_000, 2)
    assert settle(AudioFormat("raw"), head) == AudioFormat("raw")
    assert settle(AudioFormat("mp3"), head) == AudioFormat("mp3")


@pytest.mark.parametrize("head", [b"", b"R", b"RIFF", RIFF[:11], b"OggS", b"fLa", b"I", b"ID3\x04\x00\x00\x00\x00\x01"])
def test_a_head_that_may_become_anything_is_not_settled_before_the_stream_ends(head: bytes) -> None:
    assert settle(AudioFormat("wav"), head) is None
    assert settle(AudioFormat("wav"), head, complete=True) == AudioFormat("raw")


def _settled(declared: AudioFormat, head: bytes) -> AudioFormat | str | None:
    try:
        return settle(declared, head)
    except AudioNotDecodable as error:
        return str(error)


HEADS = st.binary(max_size=40) | st.sampled_from(
    [RIFF, ID3 + b"ab", b"RIFF    AVI ", b"{", b"\xff\xfb\x90", b"\xff\xf1\x50"]
)


@given(HEADS, st.sampled_from([0, 0x20, 0x80, 0xFF]), st.integers(0, 600))
def test_a_head_is_settled_once_and_for_all(start: bytes, filling: int, cut: int) -> None:
    head = start + bytes([filling]) * SETTLED_BYTES
    for declared in (AudioFormat("raw"), AudioFormat("wav"), AudioFormat("ogg"), UNDECLARED):
        settled = _settled(declared, head[:SETTLED_BYTES])
        assert settled is not None
        assert _settled(declared, head[:cut]) in (None, settled)
        assert _settled(declared, head + b"anything") == settled
        if isinstance(settled, AudioFormat):
            assert _settled(settled, head) == settled


def test_a_head_of_something_known_that_is_not_decoded_is_refused_by_its_name() -> None:
    with pytest.raises(AudioNotDecodable, match="this is an AVI video"):
        settle(AudioFormat("wav"), b"RIFF\x24\x00\x00\x00AVI ")


@pytest.mark.parametrize(
    "fields", [{"rate_hz": 3_999}, {"rate_hz": 192_001}, {"channels": 0}, {"channels": 9}, {"encoding": "s24"}]
)
def test_a_format_out_of_bounds_cannot_be_made_nor_received(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"rate|channels|encoding"):
        AudioFormat(**fields)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(fields), type=AudioFormat)


def test_a_format_survives_the_wire() -> None:
    audio_format = AudioFormat("ogg", "alaw", 8_000, 2)

    assert msgspec.json.decode(msgspec.json.encode(audio_format), type=AudioFormat) == audio_format


def test_a_format_knows_how_fast_its_samples_arrive() -> None:
    assert AudioFormat("raw", "s16le", 16_000, 1).bytes_per_second == 32_000
    assert AudioFormat("raw", "mulaw", 8_000, 2).bytes_per_second == 16_000
    assert AudioFormat("raw", "l16", 8_000, 2).frame_bytes == 4


def _in_both_orders(samples: array[int]) -> tuple[bytes, bytes]:
    little, big = array("h", samples), array("h", samples)
    big.byteswap()
    return little.tobytes(), big.tobytes()


@given(
    start=st.integers(0, len(SPEECH) - 1_200),
    loudness=st.sampled_from([0.05, 0.2, 1.0, 2.0]),
    decimate=st.sampled_from([1, 2]),
)
def test_human_speech_shows_its_byte_order(start: int, loudness: float, decimate: int) -> None:
    window = SPEECH[start : start + 1_200 : decimate]
    little, big = _in_both_orders(array("h", (max(-32768, min(32767, int(loudness * x))) for x in window)))

    # None where it was too quiet to tell.
    assert (byte_order(little), byte_order(big)) in (("s16le", "s16be"), (None, None))


@given(st.integers(0, len(SPEECH) - 1_000))
def test_the_channels_of_speech_are_compared_each_with_itself(start: int) -> None:
    one, other = SPEECH[start : start + 500], SPEECH[-start - 500 : -start or None]
    little, big = _in_both_orders(array("h", (sample for frame in zip(one, other, strict=True) for sample in frame)))

    assert byte_order(little, 2) in ("s16le", None)
    assert byte_order(big, 2) in ("s16be", None)


def _is_loud(start: int) -> bool:
    window = SPEECH[start : start + 1_000]
    return min(window) < -1_500 and max(window) > 1_500


@given(st.sampled_from([start for start in range(0, len(SPEECH) - 1_000, 100) if _is_loud(start)]))
def test_speech_of_eight_bits_in_sixteen_shows_its_order_too(start: int) -> None:
    window = [max(-128, min(127, sample >> 6)) for sample in SPEECH[start : start + 1_000]]
    little, big = _in_both_orders(array("h", (sample * 256 for sample in window)))

    assert byte_order(little) == "s16le"
    assert byte_order(big) == "s16be"


def test_silence_and_ties_are_big_endian_as_in_the_rfc() -> None:
    assert byte_order(b"", complete=True) == "s16be"
    assert byte_order(bytes(1_001), complete=True) == "s16be"
    assert byte_order(b"\x12\x12\xf4\xf4" * 300, complete=True) == "s16be"


def test_nothing_is_judged_by_fewer_than_200_telling_samples() -> None:
    little, _ = _in_both_orders(array("h", [3, 5] * 99 + [7] + [0, -1] * 400))

    assert byte_order(little) is None
    assert byte_order(little, complete=True) == "s16le"
    assert byte_order(little + b"\x05\x00") == "s16le"


@given(st.binary(max_size=900), st.integers(1, 8))
def test_any_bytes_have_an_order_in_the_end(samples: bytes, channels: int) -> None:
    assert byte_order(samples, channels, complete=True) in ("s16le", "s16be")
    assert byte_order(samples, channels) in (None, byte_order(samples, channels, complete=True))


# Samples of eight bits


def _eight_bits(samples: array[int], loudness: float, bias: int = 128) -> bytes:
    return bytes(max(0, min(255, bias + round(loudness * sample / 256))) for sample in samples)


STARTS = st.integers(0, len(SPEECH) - 1_200)


@given(STARTS, st.sampled_from([0.0, 0.1, 1.0, 4.0]), st.sampled_from([1, 2]), st.integers(112, 144))
def test_speech_of_unsigned_eight_bits_is_recognized(start: int, loudness: float, step: int, bias: int) -> None:
    """Silent, quiet, normal and loud, and off center as microphones are that hang on a plain converter."""
    samples = _eight_bits(SPEECH[start : start + 600 * step : step], loudness, bias)

    assert has_eight_bits(samples)
    assert settle(UNDECLARED, samples) == AudioFormat("raw", "u8", 8_000, 1)
    assert settle(AudioFormat("wav", eight_bit_rate_hz=11_025), samples) == AudioFormat("raw", "u8", 11_025, 1)


@given(STARTS, st.sampled_from([0.0, 0.003, 0.02, 0.1, 1.0, 4.0, 30.0]), st.sampled_from([1, 2]), st.integers(0, 3_000))
def test_speech_of_sixteen_bits_is_never_taken_for_eight(start: int, loudness: float, step: int, bias: int) -> None:
    """Silent, whispered, normal, loud and clipped beyond recognition, in both orders and off center."""
    window = SPEECH[start : start + 600 * step : step]
    for samples in _in_both_orders(array("h", (max(-32768, min(32767, bias + int(loudness * x))) for x in window))):
        assert not has_eight_bits(samples, complete=True)
        assert settle(UNDECLARED, samples, complete=True) == DEFAULT


@given(st.randoms(use_true_random=False), st.sampled_from([2, 40, 1_000, 8_000, 32_768]))
def test_noise_of_sixteen_bits_is_never_taken_for_eight(random: Random, loudness: int) -> None:
    for samples in _in_both_orders(array("h", (random.randrange(-loudness, loudness) for _ in range(600)))):
        assert not has_eight_bits(samples, complete=True)


@pytest.mark.parametrize("bits", [0x0000, 0xFFFF, 0x8000, 0x7FFF, 0xFF7F, 0x0080])
def test_constant_samples_of_sixteen_bits_are_never_taken_for_eight(bits: int) -> None:
    assert not has_eight_bits(bits.to_bytes(2, "little") * 4_000, complete=True)


def test_whole_recordings_of_sixteen_bits_are_never_taken_for_eight_wherever_they_begin() -> None:
    recordings = [SPEECH.tobytes(), *(path.read_bytes()[44:] for path in DEMO.glob("*.wav"))]
    assert len(recordings) > 2
    for recording in recordings:
        swapped = array("h", recording)
        swapped.byteswap()
        for samples in (recording, swapped.tobytes()):
            for start in range(0, len(samples) - SETTLED_BYTES, 1_000):
                assert settle(UNDECLARED, samples[start : start + SETTLED_BYTES]) == DEFAULT


def test_digital_silence_at_the_beginning_is_ignored() -> None:
    speech = _eight_bits(SPEECH[8_000:9_000], 1.0)

    assert has_eight_bits(bytes(3_000)) is None
    assert has_eight_bits(bytes(3_000) + speech)
    assert has_eight_bits(bytes(SETTLED_BYTES)) is False


def test_a_few_bytes_are_what_the_settings_say() -> None:
    assert has_eight_bits(b"\x80" * 511) is None
    assert has_eight_bits(b"\x80" * 128, complete=True)
    assert not has_eight_bits(b"\x80" * 126, complete=True)


@pytest.mark.parametrize(
    "content_type", ["audio/L16", "audio/L8;rate=8000", "audio/basic", "audio/PCMA", "audio/pcm;endianness=big-endian"]
)
def test_declared_samples_are_not_judged(content_type: str) -> None:
    found = format_of(content_type, DEFAULT)

    assert found is not None
    assert found.eight_bit_rate_hz == 0


def test_what_the_settings_say_of_eight_bits_is_not_judged() -> None:
    assert undeclared(UNUSUAL) == UNUSUAL
    assert undeclared(DEFAULT) == UNDECLARED
