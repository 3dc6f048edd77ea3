"""The decoders of Kafka's codecs: what they decode, where they stop, and that nothing makes them fail otherwise."""

from __future__ import annotations

import contextlib
import gzip
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import codec

from cocoa_tornado.rules.decompression import (
    DECODERS,
    MAX_MEMBERS,
    XERIAL_HEADER_BYTES,
    XERIAL_MAGIC,
    Decoder,
    NoCodec,
    Oversized,
    gunzip,
    unsnap,
    unzstd,
)

MIB = 1024 * 1024
FAULTS = (ValueError, EOFError, zlib.error)

ENCODERS: dict[int, Callable[[bytes], bytes]] = {
    1: codec.gzip_encode,
    2: codec.snappy_encode,
    3: codec.lz4_encode,
    4: codec.zstd_encode,
}
each_codec = pytest.mark.parametrize("number", ENCODERS, ids=["gzip", "snappy", "lz4", "zstd"])


@each_codec
@given(st.binary(max_size=5_000), st.integers(1, 40))
def test_what_fits_the_limit_is_decoded_and_one_byte_more_is_refused(number: int, piece: bytes, times: int) -> None:
    plain = piece * times
    packed = ENCODERS[number](plain)
    assert DECODERS[number](packed, len(plain)) == plain
    assert DECODERS[number](memoryview(packed), len(plain) + 1) == plain
    if plain:
        with pytest.raises(Oversized):
            DECODERS[number](packed, len(plain) - 1)


def test_raw_snappy_is_decoded_or_refused_by_its_stated_length() -> None:
    packed = codec.snappy_encode(b"x" * 100_000, xerial_compatible=False)
    assert unsnap(packed, 100_000) == b"x" * 100_000
    with pytest.raises(Oversized):
        unsnap(packed, 99_999)


def test_several_streams_one_after_another_are_decoded_and_bounded_together() -> None:
    for number, decode in ((1, gunzip), (4, unzstd)):
        packed = ENCODERS[number](b"one") + ENCODERS[number](b"two")
        assert decode(packed, 6) == b"onetwo"
        with pytest.raises(Oversized):
            decode(packed, 5)
    assert gunzip(gzip.compress(b"one") + b"\0\0", 3) == b"one"


@each_codec
@given(st.data())
def test_whatever_comes_it_is_decoded_or_refused_within_the_limit(number: int, data: st.DataObject) -> None:
    packed = bytearray(ENCODERS[number](data.draw(st.binary(max_size=300)) * 10))
    for _ in range(data.draw(st.integers(0, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(packed)))
    with contextlib.suppress(*FAULTS):
        assert len(DECODERS[number](bytes(packed[:end]), 1_000)) <= 1_000


CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_kib() -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found
    return int(found[1])


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="only Linux lets a process forget its peak")
@each_codec
def test_a_few_kilobytes_that_stand_for_many_megabytes_cost_no_more_than_the_limit(number: int) -> None:
    packed = ENCODERS[number](bytes(64 * MIB))
    CLEAR_REFS.write_text("5", encoding="ascii")  # the peak is what is held now, without the 64 MiB
    before = peak_kib()
    for _ in range(3):
        with pytest.raises(Oversized, match="more than 1048576 bytes"):
            DECODERS[number](packed, MIB)
    assert peak_kib() - before < 8 * 1024


def test_streams_and_blocks_of_nothing_cost_no_time_that_nothing_bounds() -> None:
    member = gzip.compress(b"")
    assert gunzip(member * MAX_MEMBERS, 5) == b""
    with pytest.raises(ValueError, match="streams of gzip"):
        gunzip(member * (MAX_MEMBERS + 1), 5)
    header, block = XERIAL_MAGIC.ljust(XERIAL_HEADER_BYTES, b"\0"), b"\0\0\0\1\0"
    assert unsnap(header + block * 101, 100 * 1024) == b""
    with pytest.raises(ValueError, match="blocks of snappy"):
        unsnap(header + block * 102, 100 * 1024)


@pytest.mark.parametrize(("number", "module"), [(2, "snappy"), (3, "lz4.frame"), (4, "zstandard")])
def test_a_codec_whose_library_is_missing_is_named(number: int, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = ENCODERS[number](b"x" * 100)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    decode: Decoder = DECODERS[number]
    with pytest.raises(NoCodec):
        decode(packed, 100)
