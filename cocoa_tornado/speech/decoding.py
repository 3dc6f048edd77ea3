"""Decodes any supported audio to what recognizers take: 16 kHz, mono, signed 16-bit little-endian.

Runs in a worker process, because it blocks for input and passes untrusted bytes to C code. FFmpeg (through PyAV)
decodes, mixes and resamples. It never guesses the container, may use only the demuxers and decoders listed here,
allocates at most 128 MiB per stream, and opens no file or address that a container refers to. Raw samples and WAV need
no demuxer, so they are recognized without delay.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from errno import EPERM
from io import BytesIO
from typing import Any, Final, Literal, NoReturn, Protocol, TypeAlias, TypeVar

import av
import av.filter
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Discard

from ..errors import AudioNotDecodable, AudioTooLong
from ..rules.audio import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, AudioFormat, byte_order, next_look_bytes, settle
from ..rules.magic import Container
from ..rules.mp4 import is_fragmented
from ..rules.wav import WavLayout, read_next_wav, read_wav_header
from .memory_budget import MemoryBudget
from .recognizer import BYTES_PER_SECOND, SAMPLE_RATE_HZ

_Frames: TypeAlias = Generator[AudioFrame, None, None]


class Readable(Protocol):
    """The source of a stream's bytes."""

    def read(self, max_bytes: int, /) -> bytes:
        """Wait for bytes and return those available, at least one and at most ``max_bytes``; b'' at the end."""


def decode(audio_format: AudioFormat, source: Readable, max_audio_s: float) -> Generator[bytes, None, None]:
    """Decode a stream while it arrives; yield pieces of whole samples, each as soon as the input allows.

    The first bytes decide the format (:func:`~cocoa_tornado.rules.audio.settle`). Raw samples and WAV are decoded
    without delay; Ogg, WebM, MP3, AAC and fragmented MP4 lag a page or a few frames; FLAC lags ten frames, because of
    its parser. Other MP4s, CAF and AIFF may have their index at the end, so they are kept in memory until then, 64 MiB
    at most. Of all others only a few seconds are in memory.

    The first audio stream in a container that can be decoded is used; pictures, video and other streams are skipped.
    All channels are mixed equally. The input is read to its end. Data after a WAV's samples is not audio, unless it is
    another WAV.

    In a stream that is truncated or damaged, damaged packets are skipped and the rest is used. The stream is refused
    only if nothing could be decoded. Exceptions from ``source.read`` are passed on unchanged.

    :param max_audio_s: the most audio to decode
    :raises AudioNotDecodable: no sample could be decoded: an unsupported format, damaged from the start, or empty. The
        message is for the sender
    :raises AudioTooLong: there is more than ``max_audio_s``; raised once that much has been yielded
    """
    stream = _Input(source)
    left_bytes = 2 * math.ceil(max_audio_s * SAMPLE_RATE_HZ)
    begun = False
    try:
        with closing(_frames(audio_format, stream)) as frames:
            for piece in _mixed(_no_longer_than(max_audio_s, frames)):
                stream.raise_failure()
                begun = True
                if len(piece) > left_bytes:
                    if left_bytes:
                        yield piece[:left_bytes]
                    raise AudioTooLong(f"more than {max_audio_s:g} s of audio")
                left_bytes -= len(piece)
                yield piece
    except AudioNotDecodable:
        stream.raise_failure()
        if not begun:
            raise
    except av.FFmpegError as error:
        stream.raise_failure()
        if not begun:
            raise AudioNotDecodable("its samples cannot be decoded") from error
    while stream.read(_READ_BYTES):
        pass
    stream.raise_failure()
    if not begun:
        raise AudioNotDecodable("there is no audio in it")


class _Input:
    """The bytes of one stream. Some may be examined and put back.

    FFmpeg calls :meth:`read` from C, where an exception is just an I/O error. So FFmpeg sees a failure of the source as
    the end of the stream, and the next call from Python raises it.
    """

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._ahead = b""
        self._ended = False
        self._failure: BaseException | None = None

    def read(self, max_bytes: int) -> bytes:
        """Return at least one byte and at most ``max_bytes``, the size of the buffer that PyAV copies them into."""
        if not self._ahead and not self._ended:
            try:
                self._ahead = self._source.read(max_bytes)
            except BaseException as failure:
                self._failure = failure
            self._ended = not self._ahead
        piece, self._ahead = self._ahead[:max_bytes], self._ahead[max_bytes:]
        return piece

    def exactly(self, count: int) -> bytes:
        """Return ``count`` bytes; fewer only at the end of the stream."""
        pieces = bytearray()
        while len(pieces) < count and (piece := self.read(count - len(pieces))):
            pieces += piece
        self.raise_failure()
        return bytes(pieces)

    def put_back(self, piece: bytes) -> None:
        self._ahead = piece + self._ahead

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _frames(declared: AudioFormat, stream: _Input) -> _Frames:
    head, ended = b"", False
    while (audio_format := settle(declared, head, complete=ended)) is None:
        head, ended = _more(stream, head)
    stream.put_back(head)
    if audio_format.container == "wav":
        return _wavs(stream)
    if audio_format.container != "raw":
        return _demuxed(_DEMUXERS[audio_format.container], stream)
    pieces = _whole_samples(stream, audio_format.frame_bytes, None)
    encoding: str = audio_format.encoding
    if encoding == "l16":
        encoding, pieces = "s16le", _little_endian(pieces, audio_format.channels)
    return _pcm(encoding, audio_format.rate_hz, audio_format.channels, pieces)


def _more(stream: _Input, head: bytes) -> tuple[bytes, bool]:
    """Return the head extended enough for another look, and whether that is the whole stream."""
    longer = bytearray(head)
    while len(longer) < next_look_bytes(len(head)):
        piece = stream.read(_READ_BYTES)
        if not piece:
            return bytes(longer), True
        longer += piece
    return bytes(longer), False


def _wavs(stream: _Input) -> _Frames:
    """Decode a WAV, and any that follow it."""
    layout: WavLayout | None = _read(read_wav_header(), stream)
    while layout is not None:
        pieces = _whole_samples(stream, layout.frame_bytes, layout.data_bytes)
        yield from _pcm(layout.encoding, layout.rate_hz, layout.channels, pieces)
        layout = _read(read_next_wav(layout), stream)


_Layout = TypeVar("_Layout", WavLayout, WavLayout | None)


def _read(header: Generator[int, bytes, _Layout], stream: _Input) -> _Layout:
    try:
        wanted = next(header)
        while True:
            wanted = header.send(stream.exactly(wanted))
    except StopIteration as found:
        layout: _Layout = found.value
        return layout


def _whole_samples(stream: _Input, frame_bytes: int, data_bytes: int | None) -> Iterator[bytes]:
    """Cut the stream at sample boundaries; a partial sample at the end is dropped.

    :param data_bytes: read at most this many; None: everything
    """
    held = b""
    left_bytes = math.inf if data_bytes is None else data_bytes
    while left_bytes and (piece := stream.read(int(min(left_bytes, _READ_BYTES)))):
        left_bytes -= len(piece)
        held += piece
        whole = len(held) - len(held) % frame_bytes
        if whole:
            yield held[:whole]
            held = held[whole:]


def _little_endian(pieces: Iterator[bytes], channels: int) -> Iterator[bytes]:
    """Detect the byte order of 16-bit samples, and swap the bytes if necessary."""
    held = b""
    order: Literal["s16le", "s16be"] | None = None
    for piece in pieces:
        if order is not None:
            yield _turned(piece) if order == "s16be" else piece
            continue
        held += piece
        order = byte_order(held, channels)
        # Near silence may last long without showing the order; don't hold it back, judge each piece by itself.
        if order is not None or len(held) >= _HELD_BYTES or held[0::2] == held[1::2]:
            yield _in_order(held, channels)
            held = b""
    if held:
        yield _in_order(held, channels)


def _in_order(samples: bytes, channels: int) -> bytes:
    return _turned(samples) if byte_order(samples, channels, complete=True) == "s16be" else samples


def _turned(samples: bytes) -> bytes:
    turned = array("h", samples)
    turned.byteswap()
    return turned.tobytes()


def _pcm(encoding: str, rate_hz: int, channels: int, pieces: Iterator[bytes]) -> _Frames:
    decoder = av.CodecContext.create(f"pcm_{encoding}", "r")
    assert isinstance(decoder, AudioCodecContext)
    decoder.sample_rate = rate_hz
    decoder.layout = f"{channels}c"
    for piece in pieces:
        yield from decoder.decode(av.Packet(piece))


@dataclass(frozen=True, slots=True)
class _Demuxer:
    """How FFmpeg reads a container.

    :ivar title: the container's name, for people
    :ivar name: FFmpeg's name
    :ivar decoders: the allowed decoders, by FFmpeg's names
    """

    title: str
    name: str
    decoders: tuple[str, ...]


def _demuxed(demuxer: _Demuxer, stream: _Input) -> _Frames:
    source = _seekable(stream) if _is_kept(demuxer, stream) else stream
    budget = MemoryBudget(_MAX_DEMUXER_BYTES)
    try:
        with budget.spending():
            container = av.open(
                source,
                "r",
                format=demuxer.name,
                container_options={
                    "codec_whitelist": ",".join(demuxer.decoders),
                    "format_whitelist": demuxer.name,
                    **_AT_ONCE,
                    **_FEW_STREAMS,
                },
                metadata_errors="replace",  # tags are not used, and may contain anything
                buffer_size=_READ_BYTES,
                io_open=_open_nothing,
            )
    except _FAILED as error:
        stream.raise_failure()
        raise AudioNotDecodable(f"it does not begin like {demuxer.title}") from error
    with container:
        track = _first_audible(container, demuxer)
        track.codec_context.thread_count = 1  # threads decode ahead, which delays the result
        packets = container.demux(track)
        while True:
            try:
                with budget.spending():
                    packet = next(packets)
            except (StopIteration, *_FAILED):  # broken beyond repair: use what was decoded
                return
            try:
                with budget.spending():
                    decoded = packet.decode()
            except _FAILED:  # this packet is damaged or incomplete; the next may be intact
                continue
            yield from decoded


def _first_audible(container: InputContainer, demuxer: _Demuxer) -> AudioStream:
    """The first audio stream that can be decoded. Packets of other streams are discarded."""
    tracks = [track for track in container.streams.audio if _codec_of(track) in demuxer.decoders]
    if not tracks:
        others = sorted({_codec_of(track) or "unknown" for track in container.streams.audio})
        if others:
            raise AudioNotDecodable(
                f"the audio in this {demuxer.title} is not of a kind that can be decoded: {others[0]}"
            )
        raise AudioNotDecodable(f"this {demuxer.title} holds no audio")
    for track in container.streams:
        if track is not tracks[0]:
            track.discard = Discard.all
    return tracks[0]


def _codec_of(track: AudioStream) -> str:
    """The decoder's name; '' if FFmpeg has none."""
    return track.codec_context.codec.name if track.codec_context is not None else ""


def _is_kept(demuxer: _Demuxer, stream: _Input) -> bool:
    """True if the container's index may be at its end."""
    if demuxer.name not in _INDEXED:
        return False
    if demuxer.name != "mp4":
        return True
    head, ended = b"", False
    while (fragmented := is_fragmented(head, complete=ended)) is None:
        head, ended = _more(stream, head)
    stream.put_back(head)
    return not fragmented


def _seekable(stream: _Input) -> BytesIO:
    whole = stream.exactly(_MAX_KEPT_BYTES + 1)
    if len(whole) > _MAX_KEPT_BYTES:
        raise AudioNotDecodable(f"its index is at its end, and it has more than {_MAX_KEPT_BYTES >> 20} MiB")
    return BytesIO(whole)


def _open_nothing(*_arguments: Any) -> NoReturn:
    """Called when a container refers to another file or address."""
    raise av.PermissionError(EPERM, "a container refers to something outside of itself")


def _no_longer_than(max_audio_s: float, frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
    """Limit the audio by what was decoded, because mixing may yield less than that. The last second is left to the
    mixer, which is exact to the sample."""
    left_s = max_audio_s + 1.0
    for frame in frames:
        left_s -= frame.samples / max(1, frame.sample_rate)
        if left_s < 0:
            raise AudioTooLong(f"more than {max_audio_s:g} s of audio")
        yield frame


def _mixed(frames: Iterator[AudioFrame]) -> Iterator[bytes]:
    """Mix and resample. The rate and the channels may change within a stream, as in chained Ogg."""
    mixer: _Mixer | None = None
    changes = 0
    for frame in frames:
        if mixer is None or mixer.made_of != _made_of(frame):
            if mixer is not None:
                yield from mixer.mix(None)
                changes += 1
                if changes > _MAX_CHANGES:
                    raise AudioNotDecodable("it changes its rate or channels all the time")
            mixer = _Mixer(frame)
        yield from mixer.mix(frame)
    if mixer is not None:
        yield from mixer.mix(None)


class _Mixer:
    """Converts frames of one kind to what recognizers take.

    :ivar made_of: sample format, channel layout and rate of the input frames
    """

    def __init__(self, like: AudioFrame) -> None:
        channels, rate_hz = like.layout.nb_channels, like.sample_rate
        if not (MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ and 1 <= channels <= MAX_CHANNELS):
            raise AudioNotDecodable(f"{channels} channels at {rate_hz} Hz")
        self.made_of = _made_of(like)
        self._graph = av.filter.Graph()
        # Weight all channels equally: a downmix by layout would drop a microphone mistaken for a subwoofer.
        shares = "+".join(f"{1 / channels:.6f}*c{channel}" for channel in range(channels))
        self._graph.link_nodes(
            self._graph.add(
                "abuffer",
                sample_rate=str(rate_hz),
                sample_fmt=like.format.name,
                channel_layout=like.layout.name,
                time_base=f"1/{rate_hz}",
            ),
            self._graph.add("pan", f"mono|c0={shares}"),
            self._graph.add("aformat", sample_rates=str(SAMPLE_RATE_HZ), sample_fmts="s16", channel_layouts="mono"),
            self._graph.add("abuffersink"),
        ).configure()

    def mix(self, frame: AudioFrame | None) -> Iterator[bytes]:
        """Return the samples available now; None: no frame follows, so flush the resampler."""
        if frame is not None:
            frame.pts = None  # samples are contiguous, whatever their time stamps
        self._graph.push(frame)
        while True:
            try:
                mixed = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):  # it needs more input, or is drained
                return
            assert isinstance(mixed, AudioFrame)
            if mixed.samples:
                samples = bytes(mixed.planes[0])[: 2 * mixed.samples]  # the rest of the plane is padding
                yield _turned(samples) if sys.byteorder == "big" else samples


def _made_of(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


_FAILED: Final = (av.FFmpegError, MemoryError)
_READ_BYTES: Final = 4096
_HELD_BYTES: Final = BYTES_PER_SECOND // 5
"""The most audio that is held back while its byte order is unknown."""
# The stream parameters are in the first packet: don't probe further.
_AT_ONCE: Final = {"probesize": "32"}
# FFmpeg creates a decoder for every announced stream, and a few bytes can announce one that takes many megabytes.
# A video has a handful: picture, sound, subtitles, chapters, a cover.
_FEW_STREAMS: Final = {"max_streams": "8"}
_MAX_CHANGES: Final = 100
"""Changes of rate or layout within a stream. A change is expensive and takes hardly any input."""
_MAX_KEPT_BYTES: Final = 64 << 20
_MAX_DEMUXER_BYTES: Final = 128 << 20
"""Memory that FFmpeg may take for a container. Some kilobytes can announce an index of gigabytes; a cover as large as
the largest upload is copied a few times."""

_PCM: Final = (
    *("pcm_u8", "pcm_s8", "pcm_mulaw", "pcm_alaw"),
    *(f"pcm_{kind}{order}" for kind in ("s16", "s24", "s32", "f32", "f64") for order in ("le", "be")),
)
_MP3: Final = ("mp3float", "mp3")
_AMR: Final = ("amrnb", "amrwb")
_DEMUXERS: Final[dict[Container, _Demuxer]] = {
    "ogg": _Demuxer("Ogg", "ogg", ("opus", "vorbis", "flac")),
    "flac": _Demuxer("FLAC", "flac", ("flac",)),
    "mp3": _Demuxer("MP3", "mp3", _MP3),
    "webm": _Demuxer("WebM", "matroska", ("opus", "vorbis", "flac", "aac", *_MP3, *_PCM)),
    "mp4": _Demuxer("MP4", "mp4", ("aac", "alac", "opus", "flac", *_MP3, *_AMR, *_PCM)),
    "caf": _Demuxer("CAF", "caf", ("aac", "alac", "opus", "flac", "adpcm_ima_qt", *_MP3, *_PCM)),
    "aiff": _Demuxer("AIFF", "aiff", ("adpcm_ima_qt", *_PCM)),
    "au": _Demuxer("AU", "au", _PCM),
    "aac": _Demuxer("AAC", "aac", ("aac",)),
    "amr": _Demuxer("AMR", "amr", _AMR),
}
_INDEXED: Final = frozenset({"mp4", "caf", "aiff"})
