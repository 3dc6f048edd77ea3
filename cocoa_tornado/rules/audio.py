"""Which audio a device declares, and what its first bytes show: Content-Types, containers, byte order.

Nothing here decodes anything; the container patterns are in :mod:`.magic`. Pure and thread-safe.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, get_args

from ..errors import AudioNotDecodable
from .magic import MAX_NEEDED_BYTES, Container, Foreign, identify

Encoding: TypeAlias = Literal["s16le", "s16be", "l16", "u8", "mulaw", "alaw"]
"""``l16`` is 16-bit audio whose byte order is detected from the samples: RFC 2586 says big-endian, but devices in the
field send little-endian under that name."""

MIN_RATE_HZ: Final = 4_000
MAX_RATE_HZ: Final = 192_000
MAX_CHANNELS: Final = 8
EIGHT_BIT_RATE_HZ: Final = 8_000
"""The rate of samples that turn out to have 8 bits, if nothing else gives it: what firmware in the field records."""

SETTLED_BYTES: Final = 6_400
""":func:`settle` always decides with this many bytes. It seldom needs more than 512."""


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """The format of a stream.

    A container describes its own samples. For one, ``encoding``, ``rate_hz`` and ``channels`` apply only if the bytes
    turn out to have no container: some firmware sends raw samples as ``audio/wav``.

    :ivar encoding: of raw samples
    :ivar rate_hz: of raw samples, 4,000 to 192,000
    :ivar channels: of raw samples, interleaved, 1 to 8
    :ivar eight_bit_rate_hz: nonzero if the sender did not declare the encoding and ``encoding`` is the configured
        default. Samples that are clearly unsigned 8-bit are then read as such, at this rate
    :raises ValueError: a field is out of bounds
    """

    container: Container = "raw"
    encoding: Encoding = "s16le"
    rate_hz: int = 16_000
    channels: int = 1
    eight_bit_rate_hz: int = 0

    def __post_init__(self) -> None:
        if self.container not in get_args(Container):
            raise ValueError(f"container {self.container!r} is none of {', '.join(get_args(Container))}")
        if self.encoding not in get_args(Encoding):
            raise ValueError(f"encoding {self.encoding!r} is none of {', '.join(get_args(Encoding))}")
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ:
            raise ValueError(f"rate {self.rate_hz} is not within {MIN_RATE_HZ} and {MAX_RATE_HZ} Hz")
        if self.eight_bit_rate_hz and not MIN_RATE_HZ <= self.eight_bit_rate_hz <= MAX_RATE_HZ:
            raise ValueError(f"rate {self.eight_bit_rate_hz} is not within {MIN_RATE_HZ} and {MAX_RATE_HZ} Hz")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise ValueError(f"{self.channels} channels are not within 1 and {MAX_CHANNELS}")

    @property
    def sample_bytes(self) -> int:
        """Length of one raw sample of one channel."""
        return 2 if self.encoding in _TWO_BYTES else 1

    @property
    def frame_bytes(self) -> int:
        """Length of one raw sample of every channel."""
        return self.sample_bytes * self.channels

    @property
    def bytes_per_second(self) -> int:
        """The data rate of raw samples in this format, in real time."""
        return self.frame_bytes * self.rate_hz


def format_of(content_type: str | None, default_raw: AudioFormat) -> AudioFormat | None:
    """Return the format that a Content-Type declares; None if it is absent, malformed, or not one that is decoded.

    Raw types are ``audio/L16`` (big-endian by RFC 2586, but detected from the samples unless
    ``endianness=little-endian`` or ``big-endian`` is given), ``audio/L8``, ``audio/basic``, ``audio/PCMU`` and
    ``audio/PCMA`` with their usual other names. The parameters ``rate`` (or ``samplerate``) and ``channels`` apply.
    ``audio/pcm``, ``audio/raw``, ``application/octet-stream`` and a literal ``audio/*`` mean only "audio", so
    ``default_raw`` applies. A compressed type without a decoder (``audio/speex``) is None: read as raw samples it would
    be noise.

    Parameters are parsed leniently: values with a slash need no quotes, and blanks around "=" and unknown parameters
    are ignored.

    :param default_raw: the format of raw samples where the type does not define it
    """
    parsed = _parse(content_type or "")
    if parsed is None:
        return None
    media_type, parameters = parsed
    base = _base(media_type, parameters, default_raw)
    if base is None:
        return None
    rate = parameters.get("rate")
    rate_hz = base.rate_hz if rate is None else _number(rate)
    channels = _number(parameters.get("channels", str(base.channels)))
    eight_bit_rate_hz = base.eight_bit_rate_hz if rate is None or not base.eight_bit_rate_hz else rate_hz
    try:
        return replace(base, rate_hz=rate_hz, channels=channels, eight_bit_rate_hz=eight_bit_rate_hz)
    except ValueError:
        return None


def undeclared(default_raw: AudioFormat) -> AudioFormat:
    """Return the format of raw samples that their sender did not describe: the default, unless they clearly have 8
    bits."""
    return replace(default_raw, eight_bit_rate_hz=EIGHT_BIT_RATE_HZ if default_raw.sample_bytes == 2 else 0)


def settle(declared: AudioFormat, head: bytes, *, complete: bool = False) -> AudioFormat | None:
    """Return the format of a stream from its first bytes; None if more bytes are needed.

    The bytes outrank the Content-Type: data that begins like a known container is that container, for any declared
    type. A ``wav`` without such a beginning is raw samples. Any other container keeps its declared type, and the
    decoder refuses it if it is wrong. Undeclared raw samples may turn out to have 8 bits. A settled format may be
    settled again.

    :param head: the stream from its first byte; :data:`SETTLED_BYTES` always suffice
    :param complete: nothing comes after ``head``
    :raises AudioNotDecodable: the bytes begin like another known format, such as a picture; the message names it
    """
    found = identify(head[:MAX_NEEDED_BYTES], complete=complete)
    if found is None:
        return None
    if isinstance(found, Foreign):
        raise AudioNotDecodable(f"this is {found.name}")
    container = declared.container if found == "raw" and declared.container != "wav" else found
    if found == "mp3" and declared.container in ("flac", "aac") and head.startswith(b"ID3"):
        container = declared.container  # these are tagged with ID3 too
    if container != "raw" or not declared.eight_bit_rate_hz:
        return replace(declared, container=container, eight_bit_rate_hz=0)
    is_eight_bit = has_eight_bits(head, complete=complete)
    if is_eight_bit is None:
        return None
    if is_eight_bit:
        declared = replace(declared, encoding="u8", rate_hz=declared.eight_bit_rate_hz)
    return replace(declared, container="raw", eight_bit_rate_hz=0)


def next_look_bytes(known_bytes: int) -> int:
    """How many bytes to collect before looking at the beginning of a stream again: a quarter more.

    A look costs up to a millisecond. Looking at every byte of a stream that arrives byte by byte would take seconds.

    :param known_bytes: the bytes that were there at the last look, and were too few
    """
    return known_bytes + known_bytes // 4 + 1


def has_eight_bits(samples: bytes, *, complete: bool = False) -> bool | None:
    """Judge whether samples declared as 16-bit clearly are unsigned 8-bit; None: too few samples to tell.

    Unsigned 8-bit samples are centered on 128, nearly all within half of their range, at even and odd offsets alike.
    Read as 16-bit they would be noise that never comes near zero. In true 16-bit samples, one byte of each pair carries
    the level and is centered on zero, and the other is evenly distributed, except in silence and clipping. Pairs of 0
    or of 255 are silence and are ignored.

    :param samples: from the first one on; at most :data:`SETTLED_BYTES` count
    :param complete: there are no more samples: decide with these
    """
    head = samples[:SETTLED_BYTES]
    usable = b"".join(_USABLE_PAIRS(head))[:JUDGED_BYTES]
    if len(usable) < JUDGED_BYTES and len(head) < SETTLED_BYTES and not complete:
        return None
    return len(usable) >= MIN_JUDGED_BYTES and min(map(_share_near_128, (usable[0::2], usable[1::2]))) >= 0.75


def _share_near_128(octets: bytes) -> float:
    return len(octets.translate(None, _FAR_FROM_128)) / len(octets)


def byte_order(samples: bytes, channels: int = 1, *, complete: bool = False) -> Literal["s16le", "s16be"] | None:
    """Detect the byte order of 16-bit samples; None: fewer than 200 usable samples so far.

    Speech changes little from one sample to the next; with its bytes swapped it is noise. So the order with the smaller
    differences between neighbors wins. If one of the two bytes is always zero, the samples are 8-bit ones shifted up,
    or all below 256; then the other byte decides, by whether it is smoother read as signed or as unsigned. Ties and
    silence are big-endian, as in the RFC. Samples whose two bytes are equal, such as zero and -1, are ignored.

    :param samples: from the first one on; an odd byte at the end is ignored
    :param complete: there are no more samples: decide with these
    """
    whole = samples[: len(samples) & ~1]
    firsts, seconds = whole[0::2], whole[1::2]
    usable = sum(1 for first, second in zip(firsts, seconds, strict=True) if first != second)
    if usable < JUDGED_SAMPLES and not complete:
        return None
    if not any(firsts):
        return "s16le" if _has_sign(seconds, channels) else "s16be"
    if not any(seconds):
        return "s16be" if _has_sign(firsts, channels) else "s16le"
    little, big = array("h", whole), array("h", whole)
    (little if sys.byteorder == "big" else big).byteswap()
    return "s16le" if _roughness(little, channels) < _roughness(big, channels) else "s16be"


def _has_sign(octets: bytes, channels: int) -> bool:
    return _roughness(array("b", octets), channels) < _roughness(array("B", octets), channels)


def _roughness(samples: array[int], channels: int) -> int:
    """The total variation of the signal, channel by channel."""
    return sum(abs(after - before) for before, after in zip(samples, samples[channels:], strict=False))


def _base(media_type: str, parameters: Mapping[str, str], default_raw: AudioFormat) -> AudioFormat | None:
    """The format of a media type, before ``rate`` and ``channels`` are applied."""
    container = _CONTAINERS.get(media_type)
    if container is not None:
        codecs = {codec.strip().lower() for codec in parameters.get("codecs", "opus").split(",")}
        if container == "ogg" and not codecs <= _OGG_CODECS:
            return None
        return replace(undeclared(default_raw), container=container)
    telephone = _TELEPHONE.get(media_type)
    if telephone is not None:
        return AudioFormat("raw", telephone, 8_000, 1)
    order = parameters.get("endianness")
    if order is not None and order.lower() not in _ENDIANNESS:
        return None
    if media_type in _LINEAR:
        base = AudioFormat("raw", _LINEAR[media_type], default_raw.rate_hz, 1)
    elif media_type in _UNNAMED:
        base = replace(undeclared(default_raw), container="raw")
    else:
        return None
    if order is not None and base.sample_bytes == 2:
        base = replace(base, encoding=_ENDIANNESS[order.lower()], eight_bit_rate_hz=0)
    return base


def _parse(content_type: str) -> tuple[str, dict[str, str]] | None:
    """Return the type and its parameters, names in lower case; None if it is malformed.

    Accepts more than RFC 9110 section 8.3.1: values that lack their quotes, and blanks around "=". A parameter without
    a value, or with an empty one, is ignored, unless it is one that is used here: that, or one given twice with
    different values, is an error.
    """
    match = _TYPE(content_type.strip(_BLANK))
    if match is None:
        return None
    parameters: dict[str, str] = {}
    for part in _PARTS(match["parameters"]):
        name, _, value = (text.strip(_BLANK) for text in part.partition("="))
        name = _ALIASES.get(name.lower(), name.lower())
        if value.startswith('"'):
            if _QUOTED(value) is None:
                return None
            value = _UNESCAPE(r"\1", value[1:-1])
        if name in _COUNTING and parameters.get(name, value) != value:
            return None
        if value or name in _COUNTING:
            parameters[name] = value
    return match["type"].lower(), parameters


def _number(text: str) -> int:
    """A small decimal number; -1, which is out of all bounds, for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else -1


JUDGED_SAMPLES: Final = 200
"""Samples with two different bytes that are needed to detect the byte order."""

JUDGED_BYTES: Final = 512
"""Bytes other than silence that are needed to detect 8-bit samples: 64 ms at 8 kHz."""

MIN_JUDGED_BYTES: Final = 128
"""The same for a stream that is shorter."""

_CONTAINERS: Final[Mapping[str, Container]] = {
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
    "audio/vnd.wave": "wav",
    "audio/ogg": "ogg",
    "application/ogg": "ogg",
    "audio/opus": "ogg",
    "audio/flac": "flac",
    "audio/x-flac": "flac",
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
    "audio/x-mp3": "mp3",
    "audio/webm": "webm",
    "audio/x-matroska": "webm",
    "audio/matroska": "webm",
    "audio/mp4": "mp4",
    "audio/x-mp4": "mp4",
    "audio/m4a": "mp4",
    "audio/x-m4a": "mp4",
    "audio/3gpp": "mp4",
    "audio/3gpp2": "mp4",
    "audio/quicktime": "mp4",
    "audio/aac": "aac",
    "audio/x-aac": "aac",
    "audio/aacp": "aac",
    "audio/x-hx-aac-adts": "aac",
    "audio/x-caf": "caf",
    "audio/caf": "caf",
    "audio/aiff": "aiff",
    "audio/x-aiff": "aiff",
    "audio/au": "au",
    "audio/x-au": "au",
    "audio/amr": "amr",
    "audio/amr-wb": "amr",
}
_LINEAR: Final[Mapping[str, Encoding]] = {"audio/l16": "l16", "audio/x-l16": "l16", "audio/l8": "u8"}
# Telephony types imply 8 kHz and one channel (RFC 2046, RFC 3551).
_TELEPHONE: Final[Mapping[str, Encoding]] = {
    "audio/basic": "mulaw",
    "audio/pcmu": "mulaw",
    "audio/mulaw": "mulaw",
    "audio/x-mulaw": "mulaw",
    "audio/ulaw": "mulaw",
    "audio/x-ulaw": "mulaw",
    "audio/pcma": "alaw",
    "audio/alaw": "alaw",
    "audio/x-alaw": "alaw",
}
_UNNAMED: Final = frozenset(
    {"audio/pcm", "audio/x-pcm", "audio/raw", "audio/x-raw", "audio/*", "application/octet-stream"}
)
_ENDIANNESS: Final[Mapping[str, Encoding]] = {"little-endian": "s16le", "big-endian": "s16be"}
_TWO_BYTES: Final = frozenset({"s16le", "s16be", "l16"})
_OGG_CODECS: Final = frozenset({"opus", "vorbis", "flac"})

_ALIASES: Final = {"samplerate": "rate", "sample-rate": "rate", "sample_rate": "rate"}
_COUNTING: Final = frozenset({"rate", "channels", "endianness"})

_BLANK: Final = " \t"
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_STRING: Final = r'"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t -~])*"'
# The text between semicolons outside of strings. Control characters are allowed nowhere.
_PART: Final = rf'(?:{_STRING}|[^";\x00-\x08\x0a-\x1f\x7f])*'
_TYPE = re.compile(rf"(?P<type>{_TOKEN}/{_TOKEN})[ \t]*(?P<parameters>(?:;{_PART})*)").fullmatch
_PARTS = re.compile(rf";({_PART})").findall
_QUOTED = re.compile(_STRING).fullmatch
_UNESCAPE = re.compile(r"\\(.)").sub

_USABLE_PAIRS = re.compile(rb"\0\0|\xff\xff|(..)", re.DOTALL).findall
_FAR_FROM_128: Final = bytes(byte for byte in range(256) if abs(byte - 128) > 64)
