"""Identifies a stream by its first bytes: the containers that are decoded, and formats that people send by mistake.

Raw samples may begin with any bytes, so every pattern here is one that samples don't have: it is long, or confirmed by
something further on. Pure and thread-safe.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Container: TypeAlias = Literal["raw", "wav", "ogg", "flac", "mp3", "webm", "mp4", "caf", "aiff", "au", "aac", "amr"]
"""``webm`` is any Matroska, ``mp4`` any of its family (M4A, 3GP, QuickTime), ``aac`` is ADTS."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """A known format that is not decoded.

    :ivar name: for people, with its article: "a PNG picture"
    """

    name: str


MAX_NEEDED_BYTES: Final = 2_056
""":func:`identify` always decides with this many bytes; usually 12 suffice."""


def identify(head: bytes, *, complete: bool = False) -> Container | Foreign | None:
    """Return the format that begins like this; ``raw`` if none does; None if more bytes are needed.

    A longer head never changes the result. ``mp3`` found by its ID3 tag may be a FLAC or ADTS stream with such a tag.

    :param head: the stream from its first byte
    :param complete: nothing comes after ``head``
    """
    for found, judge in _JUDGES:
        verdict = judge(head)
        if verdict is None and not complete:
            return None
        if verdict:
            return found
    return _text(head, complete)


def _pattern(pattern: bytes) -> Callable[[bytes], bool | None]:
    """Match a beginning, where "?" is any byte. None: a prefix matches and more bytes are needed."""

    def judge(head: bytes) -> bool | None:
        if head and head[0] != pattern[0]:  # nearly always
            return False
        if any(byte not in (wanted, _ANY) for byte, wanted in zip(pattern, head, strict=False)):
            return False
        return True if len(head) >= len(pattern) else None

    return judge


def _is_id3(head: bytes) -> bool | None:
    """The letters, an existing version, and a size of four bytes below 128: the letters alone occur in samples."""
    begins = _pattern(b"ID3")(head)
    if not begins:
        return begins
    if len(head) < 10:
        return None
    return head[3] in (2, 3, 4) and head[4] != 0xFF and max(head[6:10]) < 0x80


def _is_mp3(head: bytes) -> bool | None:
    """Two consecutive frames of MPEG layer III: a single header occurs in samples."""
    return _two_frames(head, 3, _mp3_frame_bytes, b"\xff\xfe\x0c")


def _is_adts(head: bytes) -> bool | None:
    """Two consecutive ADTS frames, of the low complexity profile only: all devices write that one, and the others begin
    like quiet big-endian samples."""
    return _two_frames(head, 6, _adts_frame_bytes, b"\xff\xff\xff\xf0")


def _two_frames(head: bytes, header_bytes: int, frame_bytes: Callable[[bytes], int], constant: bytes) -> bool | None:
    """Match a frame's header and the next one's, which agree in the bits of ``constant``."""
    if not head:
        return None
    if head[0] != 0xFF or (len(head) > 1 and head[1] < 0xE0):
        return False
    if len(head) < header_bytes:
        return None
    size = frame_bytes(head)
    if not size:
        return False
    following = head[size : size + len(constant)]
    if any((a ^ b) & mask for a, b, mask in zip(head, following, constant, strict=False)):
        return False
    return True if len(following) == len(constant) else None


def _mp3_frame_bytes(head: bytes) -> int:
    """Length of the layer III frame that begins here; 0: there is none."""
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bit_rate, sample_rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer != 1 or bit_rate in (0, 15) or sample_rate == 3:
        return 0
    is_mpeg_1 = version == 3
    kbit_per_s = (_MPEG_1_KBIT_PER_S if is_mpeg_1 else _MPEG_2_KBIT_PER_S)[bit_rate - 1]
    rate_hz = (44_100, 48_000, 32_000)[sample_rate] >> {3: 0, 2: 1, 0: 2}[version]
    return (144 if is_mpeg_1 else 72) * kbit_per_s * 1000 // rate_hz + (head[2] >> 1 & 1)


def _adts_frame_bytes(head: bytes) -> int:
    """Length of the ADTS frame that begins here; 0: there is none, or it is longer than two channels need."""
    if head[1] & 0xF6 != 0xF0 or head[2] >> 6 != _AAC_LC or head[2] >> 2 & 0xF > 12:
        return 0
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size if 7 < size <= MAX_NEEDED_BYTES - 8 else 0


def _text(head: bytes, complete: bool) -> Container | Foreign | None:
    """Identify text that was sent instead of audio, by its first 64 bytes. Any other text may be samples."""
    start = head[:_JUDGED_TEXT]
    if not _IS_PRINTABLE(start):
        return "raw"
    if len(start) < _JUDGED_TEXT and not complete:
        return None
    for name, begins in _TEXTS:
        if begins(start):
            return Foreign(name)
    return "raw"


def _is_base64(start: bytes) -> bool:
    """Upper and lower case letters and digits, many different ones, and otherwise only line ends."""
    kinds = (rb"[A-Z]", rb"[a-z]", rb"[0-9+/_-]")
    return _IS_BASE64(start) is not None and all(re.search(kind, start) for kind in kinds) and len(set(start)) >= 16


_ANY: Final = ord("?")
_AAC_LC: Final = 1
_MPEG_1_KBIT_PER_S: Final = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG_2_KBIT_PER_S: Final = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_JUDGED_TEXT: Final = 64
_IS_PRINTABLE = re.compile(rb"[\t\n\r -~]*").fullmatch
_IS_BASE64 = re.compile(rb"[A-Za-z0-9+/=_\r\n-]+").fullmatch
_TEXTS: Final[tuple[tuple[str, Callable[[bytes], object]], ...]] = (
    ("a web page (HTML)", re.compile(rb"\s*<(?:!doctype html|html|head|body)\b", re.IGNORECASE).match),
    ("XML", re.compile(rb"\s*<(?:[?!][a-z-]|[a-z][a-z0-9:]*[\s/>])", re.IGNORECASE).match),
    ("JSON", re.compile(rb'\s*(?:(?:\[\s*)+(?:-?[0-9]+[0-9.,\s\]]|")|(?:\[\s*)*\{\s*")').match),
    ("a playlist", re.compile(rb"#EXTM3U|\[playlist\]").match),
    ("a data URL; send the bytes themselves", re.compile(rb"data:[a-z0-9/+.-]*[;,]", re.IGNORECASE).match),
    ("a multipart form; send the file itself", re.compile(rb"--[ -~]+\r\n").match),
    ("base64; send the bytes themselves", _is_base64),
)

_MPEG_4_PICTURES: Final = (
    *(("a HEIC picture", brand) for brand in (b"heic", b"heix", b"hevc")),
    *(("a HEIF picture", brand) for brand in (b"mif1", b"msf1")),
    *(("an AVIF picture", brand) for brand in (b"avif", b"avis")),
)
_FOREIGN: Final[tuple[tuple[str, bytes], ...]] = (
    *((name, b"\0\0\0?ftyp" + brand) for name, brand in _MPEG_4_PICTURES),
    ("a piece of an MP4 without its beginning", b"\0\0??moof"),
    ("a piece of an MP4 without its beginning", b"\0\0??styp"),
    ("a piece of an MP4 without its beginning", b"\0\0??sidx"),
    ("a piece of a WebM without its beginning", b"\x1f\x43\xb6\x75"),
    ("a WebP picture", b"RIFF????WEBP"),
    ("an AVI video", b"RIFF????AVI "),
    ("a MIDI file", b"RIFF????RMID"),
    ("a RIFF file without WAVE audio", b"RIFF????????"),
    ("a Sony Wave64 file", b"riff\x2e\x91\xcf\x11"),
    ("an IFF file without AIFF audio", b"FORM\0???????"),
    ("a PNG picture", b"\x89PNG\r\n\x1a\n"),
    ("a JPEG picture", b"\xff\xd8\xff\xe0??JFIF"),
    ("a JPEG picture", b"\xff\xd8\xff\xe1??Exif"),
    ("a JPEG picture", b"\xff\xd8\xff\xe2??ICC_"),
    ("a JPEG picture", b"\xff\xd8\xff\xee\0\x0eAdobe"),
    ("a JPEG picture", b"\xff\xd8\xff\xdb\x00\x43\x00"),
    ("a JPEG picture", b"\xff\xd8\xff\xdb\x00\x84\x00"),
    ("a GIF picture", b"GIF87a"),
    ("a GIF picture", b"GIF89a"),
    ("a BMP picture", b"BM????\0\0\0\0??\0\0\x28\0\0\0"),
    ("a BMP picture", b"BM????\0\0\0\0??\0\0\x7c\0\0\0"),
    ("a TIFF picture", b"II*\0\x08\0\0\0"),
    ("a TIFF picture", b"MM\0*\0\0\0\x08"),
    ("a PDF document", b"%PDF-"),
    ("a ZIP archive", b"PK\x03\x04"),
    ("a RAR archive", b"Rar!\x1a\x07"),
    ("a 7z archive", b"7z\xbc\xaf\x27\x1c"),
    ("gzip data", b"\x1f\x8b\x08\0"),
    ("gzip data", b"\x1f\x8b\x08\x08"),
    ("bzip2 data", b"BZh?1AY&SY"),
    ("xz data", b"\xfd7zXZ\0"),
    ("Zstandard data", b"\x28\xb5\x2f\xfd"),
    ("a Windows Media file", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    ("a Flash video", b"FLV\x01"),
    ("a RealMedia file", b".RMF\0\0\0"),
    ("a MIDI file", b"MThd\0\0\0\x06"),
    ("a Monkey's Audio file", b"MAC ??\0\0"),
    ("a WavPack file", b"wvpk?????\x04"),
    ("a DSD file", b"DSD \x1c\0\0\0"),
    ("a NIST SPHERE file", b"NIST_1A\n"),
    ("an SQLite database", b"SQLite format 3\0"),
    ("a program", b"\x7fELF\x01\x01\x01"),
    ("a program", b"\x7fELF\x02\x01\x01"),
)
_DECODED: Final[tuple[tuple[Container, bytes], ...]] = (
    *(("wav", form + b"????WAVE") for form in (b"RIFF", b"RIFX", b"RF64", b"BW64")),
    ("ogg", b"OggS\0"),
    ("flac", b"fLaC"),
    ("webm", b"\x1a\x45\xdf\xa3"),
    ("caf", b"caff\0\1"),
    ("aiff", b"FORM????AIFF"),
    ("aiff", b"FORM????AIFC"),
    ("au", b".snd\0\0"),
    ("amr", b"#!AMR\n"),
    ("amr", b"#!AMR-WB\n"),
)
# An MP4 begins with the box "ftyp", an old QuickTime movie with any of the others.
_MP4: Final[tuple[tuple[Container, bytes], ...]] = (
    ("mp4", b"\0\0??ftyp"),
    *(("mp4", b"\0???" + box) for box in (b"moov", b"mdat", b"wide", b"free", b"skip")),
)
# The order matters: some patterns contain others.
_JUDGES: Final[tuple[tuple[Container | Foreign, Callable[[bytes], bool | None]], ...]] = (
    *((container, _pattern(pattern)) for container, pattern in _DECODED),
    *((Foreign(name), _pattern(pattern)) for name, pattern in _FOREIGN),
    *((container, _pattern(pattern)) for container, pattern in _MP4),
    ("mp3", _is_id3),
    ("mp3", _is_mp3),
    ("aac", _is_adts),
)
