"""What audio a device says it sends, and what its first bytes say: Content-Types, containers, byte order.

Nothing here decodes anything. Pure, and safe on any thread.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, get_args

Container: TypeAlias = Literal["raw", "wav", "ogg", "flac", "mp3"]
Encoding: TypeAlias = Literal["s16le", "s16be", "l16", "u8", "mulaw", "alaw"]
"""``l16`` is 16-bit audio in a byte order that the samples tell: RFC 2586 says big-endian, and the field sends
little-endian under the same name."""

MIN_RATE_HZ: Final = 4_000
MAX_RATE_HZ: Final = 192_000
MAX_CHANNELS: Final = 8
SETTLED_BYTES: Final = 12
"""With so many bytes :func:`settle` has always decided."""


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """What a stream is made of.

    A container describes its samples itself. There ``encoding``, ``rate_hz`` and ``channels`` say how the bytes are to
    be read should there be no container at all: firmware exists that sends raw samples as ``audio/wav``.

    :ivar encoding: of raw samples
    :ivar rate_hz: of raw samples, 4,000 to 192,000
    :ivar channels: of raw samples, interleaved, 1 to 8
    :raises ValueError: a field is outside its bounds
    """

    container: Container = "raw"
    encoding: Encoding = "s16le"
    rate_hz: int = 16_000
    channels: int = 1

    def __post_init__(self) -> None:
        if self.container not in get_args(Container):
            raise ValueError(f"container {self.container!r} is none of {', '.join(get_args(Container))}")
        if self.encoding not in get_args(Encoding):
            raise ValueError(f"encoding {self.encoding!r} is none of {', '.join(get_args(Encoding))}")
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ:
            raise ValueError(f"rate {self.rate_hz} is not within {MIN_RATE_HZ} and {MAX_RATE_HZ} Hz")
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
        """How fast raw samples of this format arrive when they arrive at the speed of speech."""
        return self.frame_bytes * self.rate_hz


def format_of(content_type: str | None, default_raw: AudioFormat) -> AudioFormat | None:
    """Return what a Content-Type promises; None where it is absent, malformed, or nothing that we decode.

    Raw types are ``audio/L16`` (big-endian by RFC 2586, judged by its samples unless ``endianness=little-endian`` or
    ``big-endian`` says it), ``audio/L8``, ``audio/basic``, ``audio/PCMU`` and ``audio/PCMA`` with their usual other
    names; the parameters ``rate`` and ``channels`` count. ``audio/pcm``, ``audio/raw``, ``application/octet-stream``
    and a literal ``audio/*`` say no more than "audio", so ``default_raw`` tells the rest. A compressed type that no
    decoder of ours takes (``audio/aac``, ``audio/webm``, ``audio/amr``) is None: read as raw it would be noise.

    :param default_raw: how raw samples are read where the type leaves it open
    """
    parsed = _parse(content_type or "")
    if parsed is None:
        return None
    media_type, parameters = parsed
    base = _base(media_type, parameters, default_raw)
    if base is None:
        return None
    rate_hz = _number(parameters.get("rate", str(base.rate_hz)))
    channels = _number(parameters.get("channels", str(base.channels)))
    try:
        return replace(base, rate_hz=rate_hz, channels=channels)
    except ValueError:
        return None


def settle(declared: AudioFormat, head: bytes, *, complete: bool = False) -> AudioFormat | None:
    """Return what a stream is, now that its first bytes are known; None: they don't tell yet.

    What the bytes say counts for more than the Content-Type: RIFF, RIFX or RF64 with WAVE is a WAV whatever it was
    called, and so for Ogg, FLAC, and MP3 with an ID3v2 tag. A ``wav`` without such a header is raw samples. All else
    stays what it was declared to be: an MP3 without a tag can't be told from samples, and an ``ogg`` that doesn't begin
    like one is for the decoder to refuse. What is settled may be settled again.

    :param head: the stream from its first byte; 12 bytes always suffice
    :param complete: there is nothing after ``head``
    """
    for container, magic in _MAGIC:
        verdict = magic(head[:SETTLED_BYTES])
        if verdict is None and not complete:
            return None
        if verdict and (container, declared.container) != ("mp3", "flac"):  # FLAC files are tagged with ID3 too
            return replace(declared, container=container)
    return replace(declared, container="raw") if declared.container == "wav" else declared


def byte_order(samples: bytes, channels: int = 1, *, complete: bool = False) -> Literal["s16le", "s16be"] | None:
    """Judge in which order 16-bit samples have their bytes; None: fewer than 200 of them tell anything yet.

    Speech changes little from one sample to the next, and with its bytes swapped it is a roar. So the reading wins
    whose samples differ less from their neighbours. Where one of the two bytes is zero throughout, the samples are
    either of 8 bits, moved up, or all below 256; then the other byte tells, by whether it is smoother with a sign or
    without. Ties and silence are big-endian, as the RFC has it. Samples whose two bytes are the same, zero and -1 among
    them, tell nothing.

    :param samples: from the first one on; an odd byte at the end is left out
    :param complete: there are no more samples: judge by what is there
    """
    whole = samples[: len(samples) & ~1]
    firsts, seconds = whole[0::2], whole[1::2]
    telling = sum(1 for first, second in zip(firsts, seconds, strict=True) if first != second)
    if telling < JUDGED_SAMPLES and not complete:
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
    """The way that a wave travels up and down, channel by channel."""
    return sum(abs(after - before) for before, after in zip(samples, samples[channels:], strict=False))


def _base(media_type: str, parameters: Mapping[str, str], default_raw: AudioFormat) -> AudioFormat | None:
    """What a media type means before its ``rate`` and ``channels`` are applied."""
    container = _CONTAINERS.get(media_type)
    if container is not None:
        codecs = parameters.get("codecs", "opus").strip().lower()
        if container == "ogg" and codecs not in _OGG_CODECS:
            return None
        return replace(default_raw, container=container)
    telephone = _TELEPHONE.get(media_type)
    if telephone is not None:
        return AudioFormat("raw", telephone, 8_000, 1)
    order = parameters.get("endianness")
    if order is not None and order.lower() not in _ENDIANNESS:
        return None
    if media_type in _LINEAR:
        base = AudioFormat("raw", _LINEAR[media_type], default_raw.rate_hz, 1)
    elif media_type in _UNNAMED:
        base = replace(default_raw, container="raw")
    else:
        return None
    if order is not None and base.sample_bytes == 2:
        base = replace(base, encoding=_ENDIANNESS[order.lower()])
    return base


def _parse(content_type: str) -> tuple[str, dict[str, str]] | None:
    """The type and its parameters, names in lower case (RFC 9110 section 8.3.1); None if it is anything else."""
    match = _TYPE(content_type.strip(_BLANK))
    if match is None:
        return None
    parameters: dict[str, str] = {}
    for name, plain, quoted in _PARAMETERS(match["parameters"]):
        if name.lower() in parameters:
            return None
        if name:  # an empty one, as after a ";" at the end, means nothing
            parameters[name.lower()] = plain or _UNESCAPE(r"\1", quoted)
    return match["type"].lower(), parameters


def _number(text: str) -> int:
    """A small decimal number; -1, which no bounds allow, for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else -1


def _is_riff(head: bytes) -> bool | None:
    return _begins(head[:4], b"RIFF", b"RIFX", b"RF64") and _begins(head[8:12], b"WAVE")


def _is_id3(head: bytes) -> bool | None:
    """The letters, a version that exists, and a size of four bytes below 128: three letters alone are samples too."""
    if not head.startswith(b"ID3"):
        return _begins(head, b"ID3")
    if len(head) < 10:
        return None
    return head[3] in (2, 3, 4) and head[4] != 0xFF and max(head[6:10]) < 0x80


def _begins(head: bytes, *magics: bytes) -> bool | None:
    """True if ``head`` begins with one of ``magics``; None while it may still turn out to."""
    if any(head.startswith(magic) for magic in magics):
        return True
    return None if any(magic.startswith(head) for magic in magics) else False


JUDGED_SAMPLES: Final = 200
"""So many samples whose bytes differ tell their order."""

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
}
_LINEAR: Final[Mapping[str, Encoding]] = {"audio/l16": "l16", "audio/x-l16": "l16", "audio/l8": "u8"}
# The types of telephony imply 8 kHz and one channel (RFC 2046, RFC 3551).
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

_BLANK: Final = " \t"
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE: Final = rf'(?:({_TOKEN})|"((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t -~])*)")'
# Blanks stand in one place only: were they allowed on both sides of an absent parameter, a run of ";" and blanks could
# be read in more ways than there is time for.
_ONE: Final = rf"[ \t]*;(?:[ \t]*({_TOKEN})={_VALUE})?"
_TYPE = re.compile(rf"(?P<type>{_TOKEN}/{_TOKEN})(?P<parameters>(?:{_ONE})*)").fullmatch
_PARAMETERS = re.compile(_ONE).findall
_UNESCAPE = re.compile(r"\\(.)").sub

_MAGIC: Final[tuple[tuple[Container, Callable[[bytes], bool | None]], ...]] = (
    ("wav", _is_riff),
    ("ogg", lambda head: _begins(head, b"OggS\0")),
    ("flac", lambda head: _begins(head, b"fLaC")),
    ("mp3", _is_id3),
)
