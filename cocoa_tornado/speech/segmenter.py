"""Splits a device's stream of samples into utterances, by voice activity. Runs in the gateway's process.

The detector that comes with pocketsphinx (WebRTC's, about 5 us for a frame of 30 ms) classifies the frames;
``rules/endpointing.py`` decides on utterances.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterator
from typing import Final, cast

from pocketsphinx import Vad

from ..errors import AudioNotDecodable
from ..rules.audio import AudioFormat, byte_order, next_look_bytes, settle
from ..rules.endpointing import End, Endpointer, FrameVerdict, Segment, Speech
from ..rules.samples import Encoding, sample_bytes, to_s16le_mono
from ..rules.wav import RIFF_NAMES, WavLayout, read_next_wav, read_wav_header

FRAME_S: Final = 0.03
MAX_HEADER_BYTES: Final = 64 * 1024

JUDGED_BYTES: Final = 2048
"""Samples that do not show their byte order within this many bytes are silence, or nearly."""

MIN_DETECTED_RATE_HZ, MAX_DETECTED_RATE_HZ = 6_000, 48_000
"""The detector's range. Faster samples are decimated for it, slower ones doubled; the engine gets the originals."""


class Detector:
    """Classifies frames as speech or not. Created for one rate; frames are s16le mono.

    :ivar frame_bytes: length of a frame
    """

    def __init__(self, rate_hz: int) -> None:
        self._every = -(-rate_hz // MAX_DETECTED_RATE_HZ)
        self._times = -(-MIN_DETECTED_RATE_HZ // rate_hz)
        self._detector = Vad(Vad.MEDIUM_STRICT, rate_hz * self._times // self._every, FRAME_S)
        self.frame_bytes = self._detector.frame_bytes * self._every // self._times // 2 * 2

    def is_speech(self, frame: bytes) -> bool:
        if self._every > 1:
            frame = array("h", frame)[:: self._every].tobytes()
        elif self._times > 1:
            samples = array("h", bytes(len(frame) * self._times))
            for at in range(self._times):
                samples[at :: self._times] = array("h", frame)
            frame = samples.tobytes()
        return bool(self._detector.is_speech(frame))


class Segmenter:
    """One device's stream, from one ``audio_end`` to the next.

    The stream is raw samples in the given format, or begins with a WAV header that describes and counts them. After
    those, only another WAV counts: one that follows in the stream, as in an upload, or begins with the first bytes of a
    :meth:`feed`.

    :ivar max_utterance_s: a longer utterance is split
    :ivar has_eight_bits: the samples were detected as unsigned 8-bit
    """

    def __init__(self, audio_format: AudioFormat, max_utterance_s: float) -> None:
        self.max_utterance_s = max_utterance_s
        self.has_eight_bits = False
        self._format = audio_format
        self._endpointer = Endpointer()
        self._spoken_bytes = 0
        self._unread = b""
        self._rate_hz, self._channels = audio_format.rate_hz, audio_format.channels
        self._begin(None, is_behind_a_wav=False)

    def _begin(self, header: Generator[int, bytes, WavLayout | None] | None, *, is_behind_a_wav: bool) -> None:
        self._is_behind_a_wav = is_behind_a_wav  # and no other has begun for certain
        self._header = header
        self._wanted = 0 if header is None else next(header)
        self._header_bytes = 0
        self._next_look_bytes = 1  # how many bytes to collect before identifying the stream
        self._encoding: Encoding | None = None
        self._layout: WavLayout | None = None
        self._left_bytes: int | None = None  # of a WAV's samples; None: all that follows
        self._behind = b""  # what follows those samples
        self._detector: Detector | None = None

    @property
    def out_format(self) -> AudioFormat:
        """The format of a :class:`Speech`'s samples; known once there is one."""
        return AudioFormat("raw", "s16le", self._rate_hz, 1)

    def feed(self, data: bytes) -> Iterator[Segment]:
        """Return the segments that these bytes complete.

        :raises AudioNotDecodable: an invalid WAV header, or another known format than samples; nothing more is read
        """
        if self._is_behind_a_wav and data.startswith(RIFF_NAMES):
            self._unread = b""
            self._begin(read_wav_header(), is_behind_a_wav=False)
        self._unread += data
        while self._settle(complete=False):
            yield from self._frames()
            if self._left_bytes != 0:
                return
            yield from self._stop()
            assert self._layout is not None  # otherwise the samples would have no end
            self._unread = self._behind
            self._begin(read_next_wav(self._layout), is_behind_a_wav=True)

    def end(self) -> Iterator[Segment]:
        """The stream has ended: return what is left of it."""
        if not self._is_behind_a_wav and self._unread and self._settle(complete=True):
            yield from self._frames()
        yield from self._stop()

    def _stop(self) -> Iterator[Segment]:
        """The samples have ended: end the utterance."""
        if self._endpointer.speaking:
            if self._detector is not None and (rest := self._whole_samples()):
                yield Speech(rest)
            self._endpointer.stop()
            yield End()

    def _frames(self) -> Iterator[Segment]:
        assert self._detector is not None  # created by _settle
        if self._left_bytes == 0:
            return
        size = self._detector.frame_bytes
        in_bytes = size // 2 * self._sample_bytes
        whole = len(self._unread) if self._left_bytes is None else min(len(self._unread), self._left_bytes)
        if self._left_bytes is not None and whole == self._left_bytes:
            # The last of a WAV's samples: _stop() handles a partial frame.
            self._unread, self._behind = self._unread[:whole], self._unread[whole:]
        taken = whole - whole % in_bytes
        frames = self._converted(self._unread[:taken])
        self._unread = self._unread[taken:]
        if self._left_bytes is not None:
            self._left_bytes -= taken
            if self._left_bytes == len(self._unread) < in_bytes:
                self._left_bytes = 0
        for start in range(0, len(frames), size):
            yield from self._frame(frames[start : start + size])

    def _frame(self, frame: bytes) -> Iterator[Segment]:
        assert self._detector is not None
        verdict = self._endpointer.judge(frame, self._detector.is_speech(frame))
        if verdict is FrameVerdict.NOTHING:
            return
        speech = self._endpointer.take_lead() if verdict is FrameVerdict.BEGIN else frame
        self._spoken_bytes = len(speech) + (0 if verdict is FrameVerdict.BEGIN else self._spoken_bytes)
        yield Speech(speech)
        if verdict is FrameVerdict.END:
            yield End()
        elif self._spoken_bytes + len(frame) > self.max_utterance_s * 2 * self._rate_hz:
            self._spoken_bytes = 0
            yield End()

    def _settle(self, *, complete: bool) -> bool:
        """True if the format of the samples is known."""
        if self._detector is not None:
            return True
        if self._header is None and not self._identify(complete=complete):
            return False
        if self._header is not None:
            if not self._take_header():
                if complete:
                    raise AudioNotDecodable("the WAV's header does not end")
                return False
        elif self._encoding is None:
            # Not for every short message, because detection takes time.
            if not complete and len(self._unread) < 2 * JUDGED_BYTES:
                return False
            self._encoding = byte_order(self._unread, self._channels, complete=complete)
            if self._encoding is None:
                self._forget_silence()
                return False
        self._detector = Detector(self._rate_hz)
        return True

    def _identify(self, *, complete: bool) -> bool:
        """True if it is known whether the stream is raw samples or begins with a WAV header."""
        if not complete and len(self._unread) < self._next_look_bytes:
            return False
        found = settle(self._format, self._unread, complete=complete)
        if found is None:
            self._next_look_bytes = next_look_bytes(len(self._unread))
            return False
        if found.container == "wav":
            self._header = read_wav_header()
            self._wanted = next(self._header)
        elif found.container != "raw":
            raise AudioNotDecodable(f"binary messages are raw samples or WAV, and this is {found.container}")
        elif found.encoding != "l16":
            self._encoding, self._rate_hz = found.encoding, found.rate_hz
            self.has_eight_bits = found.encoding != self._format.encoding
        return True

    def _forget_silence(self) -> None:
        """While the byte order is unknown, keep only the newest samples, to be judged with those that follow."""
        size = self._format.frame_bytes
        self._unread = self._unread[(len(self._unread) - JUDGED_BYTES) // size * size :]

    def _take_header(self) -> bool:
        """Parse a WAV header incrementally; False if it is incomplete."""
        if self._header is None:
            self._header = read_wav_header()
            self._wanted = next(self._header)
        at = 0
        try:
            while at + self._wanted <= len(self._unread):
                piece, at = self._unread[at : at + self._wanted], at + self._wanted
                self._wanted = self._header.send(piece)
        except StopIteration as stop:
            self._layout = stop.value
            self._encoding, self._rate_hz, self._channels, _, self._left_bytes = stop.value
            self._is_behind_a_wav = False
            return True
        finally:
            self._header_bytes += at
            self._unread = self._unread[at:]
        if self._header_bytes > MAX_HEADER_BYTES and not self._is_behind_a_wav:
            raise AudioNotDecodable("the WAV's header does not end")
        return False

    @property
    def _sample_bytes(self) -> int:
        """The length of one sample of every channel."""
        return self._channels * sample_bytes(cast(Encoding, self._encoding))

    def _whole_samples(self) -> bytes:
        return self._converted(self._unread[: len(self._unread) - len(self._unread) % self._sample_bytes])

    def _converted(self, data: bytes) -> bytes:
        return to_s16le_mono(data, cast(Encoding, self._encoding), self._channels)
