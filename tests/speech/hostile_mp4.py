"""Malicious MP4s, built box by box."""

from __future__ import annotations


def _box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return (8 + len(body)).to_bytes(4, "big") + kind + body


def _full(kind: bytes, *content: bytes) -> bytes:
    return _box(kind, bytes(4), *content)


def _numbers(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def _boxes(samples: int, sample_bytes: int, dref: bytes, entry: bytes, movie_extends: bytes) -> bytes:
    tables = (
        _full(b"stsd", _numbers(1), entry),
        _full(b"stts", _numbers(1, samples, 1024) if samples else _numbers(0)),
        _full(b"stsc", _numbers(1, 1, samples, 1) if samples else _numbers(0)),
        _full(b"stsz", _numbers(sample_bytes, samples)),
        _full(b"stco", _numbers(1, 2_000) if samples else _numbers(0)),
    )
    information = _box(
        b"minf", _full(b"smhd", bytes(4)), _box(b"dinf", _full(b"dref", _numbers(1), dref)), _box(b"stbl", *tables)
    )
    media = _box(
        b"mdia",
        _full(b"mdhd", bytes(8), _numbers(16_000, 16_000), bytes(4)),
        _full(b"hdlr", bytes(4), b"soun", bytes(13)),
        information,
    )
    track = _box(b"trak", _full(b"tkhd", bytes(8), _numbers(1), bytes(68)), media)
    movie = _box(b"moov", _full(b"mvhd", bytes(8), _numbers(1_000, 1_000), bytes(80)), track, movie_extends)
    return _box(b"ftyp", b"isom\0\0\2\0") + movie


_HERE = b"\0\0\0\x0curl \0\0\0\1"
_AUDIO = bytes(6) + b"\0\1" + bytes(8) + b"\0\1\0\x10" + bytes(4) + (16_000 << 16).to_bytes(4, "big")
_ESDS = bytes.fromhex("03190000000411401500000000000000000000000005021408060102")
_AAC = _box(b"mp4a", _AUDIO, _full(b"esds", _ESDS))


def with_a_long_index(samples: int) -> bytes:
    """A few kilobytes that announce this many samples of a byte each."""
    return _boxes(samples, 1, _HERE, _AAC, b"") + _box(b"mdat", bytes(5_000))


def with_many_long_fragments(fragments: int, samples: int) -> bytes:
    """The same in fragments, with this many samples in each."""
    extends = _box(b"mvex", _full(b"trex", _numbers(1, 1, 1024, 1, 0)))
    header = _box(b"tfhd", _numbers(0x020000, 1))
    run = _box(b"trun", _numbers(0, samples))
    fragment = _box(b"moof", _full(b"mfhd", _numbers(1)), _box(b"traf", header, run))
    return _boxes(0, 1, _HERE, _AAC, extends) + fragment * fragments + _box(b"mdat", bytes(5_000))


def that_refers_to(path: str) -> bytes:
    """It refers to another file for its samples."""
    name = path.encode()
    alias = bytes(10) + bytes(28) + bytes(12) + bytes(64) + bytes(16) + bytes(4) + bytes(16)
    absolute = b"\0\2" + len(name).to_bytes(2, "big") + name + bytes(len(name) % 2)
    reference = _box(b"alis", bytes(4), alias, absolute, b"\xff\xff\0\0", bytes(40))
    samples = _box(b"sowt", _AUDIO)
    return _boxes(2_000, 2, reference, samples, b"") + _box(b"mdat", b"")
