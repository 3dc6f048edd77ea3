"""What a Content-Type, the first bytes and the samples say about a stream."""

from __future__ import annotations

from array import array
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cocoa_tornado.rules.audio import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, AudioFormat, byte_order, format_of, settle

DEFAULT = AudioFormat("raw", "s16le", 16_000, 1)
UNUSUAL = AudioFormat("raw", "u8", 11_025, 2)
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
        ("audio/pcm", DEFAULT),
        ("audio/raw", DEFAULT),
        ("audio/x-raw;rate=48000", AudioFormat("raw", "s16le", 48_000, 1)),
        ("audio/pcm;endianness=big-endian", AudioFormat("raw", "s16be", 16_000, 1)),
        ("application/octet-stream", DEFAULT),
        ("audio/*", DEFAULT),
    ],
)
def test_a_raw_type_says_how_its_samples_are_read(content_type: str, expected: AudioFormat) -> None:
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
    ],
)
def test_a_container_keeps_beside_it_how_raw_samples_would_be_read(content_type: str, container: str) -> None:
    found = format_of(content_type, UNUSUAL)

    assert found is not None
    assert found.container == container
    assert (found.encoding, found.rate_hz, found.channels) == ("u8", 11_025, 2)


def test_a_wav_type_with_a_rate_says_it_for_the_wav_without_a_header() -> None:
    found = format_of("audio/wav;rate=8000", DEFAULT)

    assert found == AudioFormat("wav", "s16le", 8_000, 1)


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
    ],
)
def test_a_type_may_be_written_in_every_way_that_http_allows(content_type: str) -> None:
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
        "audio/wav;rate =8000",
        "audio/wav;rate= 8000",
        'audio/wav;rate="8000',
        "audio/L16;rate=8000;rate=16000",
        "audio/L16;rate=8000;RATE=8000",
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
        "audio/webm",
        "audio/webm;codecs=opus",
        "audio/mp4",
        "audio/aac",
        "audio/amr",
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
        b"\x00",
        b"\x12\x00\xf4\xff",
        b"RIFE",
        b"RIFF\x24\x00\x00\x00AVI ",
        b"Ogg\x00",
        b"OggS\x01",
        b"fLac",
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


@given(st.binary(min_size=12, max_size=12) | st.sampled_from([RIFF, ID3 + b"ab"]), st.integers(0, 12))
def test_a_head_is_settled_once_and_for_all_after_twelve_bytes_at_most(head: bytes, cut: int) -> None:
    for declared in (AudioFormat("raw"), AudioFormat("wav"), AudioFormat("ogg")):
        settled = settle(declared, head)
        assert settled is not None
        assert settle(declared, head[:cut]) in (None, settled)
        assert settle(declared, head + b"anything") == settled
        assert settle(settled, head) == settled


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
def test_human_speech_tells_the_order_of_its_bytes(start: int, loudness: float, decimate: int) -> None:
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
def test_speech_of_eight_bits_in_sixteen_tells_its_order_too(start: int) -> None:
    window = [max(-128, min(127, sample >> 6)) for sample in SPEECH[start : start + 1_000]]
    little, big = _in_both_orders(array("h", (sample * 256 for sample in window)))

    assert byte_order(little) == "s16le"
    assert byte_order(big) == "s16be"


def test_silence_and_ties_are_big_endian_as_the_rfc_says() -> None:
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
