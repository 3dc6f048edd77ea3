"""The header of a WAV: where its samples begin, how many there are, and their format.

FFmpeg's own WAV reader needs 64 KiB before it returns anything, which is two seconds of speech; this one needs only the
header. FFmpeg still decodes the samples. Nothing here reads a file: the caller passes in the requested bytes.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from ..errors import AudioNotDecodable
from .audio import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ

_Order: TypeAlias = Literal["little", "big"]


class WavLayout(NamedTuple):
    """The content of a WAV header.

    :ivar encoding: ``u8``, ``mulaw``, ``alaw``, or ``s`` or ``f`` with bits and byte order: ``s24le``
    :ivar frame_bytes: length of one sample of every channel
    :ivar data_bytes: length of the samples; None: all that follows
    """

    encoding: str
    rate_hz: int
    channels: int
    frame_bytes: int
    data_bytes: int | None


def read_wav_header() -> Generator[int, bytes, WavLayout]:
    """Read a header: yield the number of bytes wanted, receive them, and return at the first sample.

    If fewer bytes are sent than wanted, the stream has ended. Unknown chunks of any length are skipped, 4 KiB at a
    time. Streaming writers leave a data length of zero, of all ones, or more than there is: then everything that
    follows is samples.

    :raises AudioNotDecodable: not a WAV, or not PCM, float, mu-law or A-law with 1 to 8 channels at 4 to 192 kHz
    """
    head = yield 12
    if head[:4] not in RIFF_NAMES or head[8:] != b"WAVE":
        raise AudioNotDecodable("not a WAV: it has no RIFF header")
    return (yield from _read_chunks("big" if head.startswith(b"RIFX") else "little"))


def read_next_wav(last: WavLayout) -> Generator[int, bytes, WavLayout | None]:
    """Find another WAV behind one whose samples have ended, and read its header.

    It may follow directly, or after other chunks (metadata, for example), which are skipped. The padding byte after an
    odd number of sample bytes may be missing.

    :returns: the layout of the next WAV, at its first sample; None: the stream ended without one
    :raises AudioNotDecodable: as :func:`read_wav_header`
    """
    order: _Order = "big" if last.encoding.endswith("be") else "little"
    chunk = yield 8
    if (last.data_bytes or 0) % 2 and chunk[:4] not in RIFF_NAMES:
        chunk = chunk[1:] + (yield 1)
    while len(chunk) == 8:
        name, size = chunk[:4], int.from_bytes(chunk[4:], order)
        if name in RIFF_NAMES:
            kind = yield 4
            if kind == b"WAVE":
                return (yield from _read_chunks("big" if name == b"RIFX" else "little"))
            size -= len(kind)
        yield from _pass_over(size + size % 2)
        chunk = yield 8
    return None


def _read_chunks(order: _Order) -> Generator[int, bytes, WavLayout]:
    """Read from after RIFF and WAVE to the first sample."""
    long_data_bytes = 0
    layout: WavLayout | None = None
    while True:
        chunk = yield 8
        if len(chunk) < 8:
            raise AudioNotDecodable("the WAV ends before its samples")
        name, size = chunk[:4], int.from_bytes(chunk[4:], order)
        if name == b"data":
            break
        if name in (b"fmt ", b"ds64") and 0 < size <= _MAX_READ:
            body = yield size + size % 2
            if name == b"ds64":
                long_data_bytes = int.from_bytes(body[8:16], "little")
            else:
                layout = _layout(body, order)
        else:
            yield from _pass_over(size + size % 2)
    if layout is None:
        raise AudioNotDecodable("the WAV does not say what its samples are")
    if size == _ALL_ONES:
        size = long_data_bytes
    return layout._replace(data_bytes=size or None)


def _pass_over(size: int) -> Generator[int, bytes, None]:
    while size > 0:
        got = len((yield min(size, _MAX_READ)))
        if not got:
            return
        size -= got


def _layout(body: bytes, order: _Order) -> WavLayout:
    if len(body) < 16:
        raise AudioNotDecodable("the WAV's format is cut short")
    tag, channels = int.from_bytes(body[0:2], order), int.from_bytes(body[2:4], order)
    rate_hz = int.from_bytes(body[4:8], order)
    block, bits = int.from_bytes(body[12:14], order), int.from_bytes(body[14:16], order)
    if tag == _EXTENSIBLE and body[28:40] == _GUID_TAIL[order]:
        tag = int.from_bytes(body[24:28], order)
    if not (MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ and 1 <= channels <= MAX_CHANNELS):
        raise AudioNotDecodable(f"a WAV of {channels} channels at {rate_hz} Hz")
    sample_bytes = _sample_bytes(channels, block, bits)
    if tag in _LOGARITHMIC:
        return WavLayout(_LOGARITHMIC[tag], rate_hz, channels, channels, None)
    if tag == _PCM and sample_bytes == 1:
        return WavLayout("u8", rate_hz, channels, channels, None)
    family, sizes = _LINEAR.get(tag, ("", ()))
    if sample_bytes not in sizes:
        raise AudioNotDecodable(f"a WAV of format {tag:#06x} with {bits} bits is not one that can be decoded")
    return WavLayout(f"{family}{8 * sample_bytes}{order[0]}e", rate_hz, channels, sample_bytes * channels, None)


def _sample_bytes(channels: int, block: int, bits: int) -> int:
    """Bits are left-aligned in whole bytes (12 bits take two), and the block size may allow more bytes than needed."""
    needed = (bits + 7) // 8
    room, rest = divmod(block, channels)
    return room if not rest and needed < room <= 4 else needed


RIFF_NAMES: Final = (b"RIFF", b"RIFX", b"RF64", b"BW64")
"""The first bytes of a WAV. BW64 is the broadcasters' successor of RF64."""

_MAX_READ: Final = 4096
_ALL_ONES: Final = 0xFFFFFFFF
_EXTENSIBLE: Final = 0xFFFE
# The bytes after the format tag in the GUIDs of WAVE_FORMAT_EXTENSIBLE.
_GUID_TAIL: Final[Mapping[_Order, bytes]] = {
    "little": bytes.fromhex("0000 1000 8000 00aa 0038 9b71"),
    "big": bytes.fromhex("0000 0010 8000 00aa 0038 9b71"),
}
_PCM: Final = 1
_LINEAR: Final = {_PCM: ("s", (2, 3, 4)), 3: ("f", (4, 8))}
_LOGARITHMIC: Final = {6: "alaw", 7: "mulaw"}
