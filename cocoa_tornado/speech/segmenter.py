"""Cuts a device's stream of samples into utterances, by voice activity. Runs in the gateway's own process.

Whether a frame is speech is for the detector that comes with pocketsphinx (that of WebRTC, some 5 us for a frame of
30 ms); what follows from it is in ``rules/endpointing.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from pocketsphinx import Vad

from ..errors import AudioNotDecodable
from ..rules.audio import AudioFormat, byte_order
from ..rules.endpointing import End, Endpointer, Segment, Speech, Turn
from ..rules.samples import Encoding, to_s16le_mono
from ..rules.wav import WavLayout, read_wav_header

FRAME_S = 0.03
MAX_HEADER_BYTES = 64 * 1024


class Segmenter:
    """One device's stream, from one ``audio_end`` to the next.

    The stream is raw samples in the format given, or begins with a WAV header that says what they are.

    :param max_utterance_s: a longer utterance is ended, and a new one begun
    """

    def __init__(self, audio_format: AudioFormat, max_utterance_s: float) -> None:
        self._format, self._max_s = audio_format, max_utterance_s
        self._unread = b""
        self._is_settled = False
        self._encoding: Encoding | None = None
        self._endpointer = Endpointer()
        self._spoken_bytes = 0
        self._detector: Vad | None = None
        self._rate_hz, self._channels = audio_format.rate_hz, audio_format.channels

    @property
    def out_format(self) -> AudioFormat:
        """What the samples of a :class:`Speech` are; known once there is one."""
        return AudioFormat("raw", "s16le", self._rate_hz, 1)

    def feed(self, data: bytes) -> Iterator[Segment]:
        """What these bytes bring.

        :raises AudioNotDecodable: a WAV header that is none, or samples that cannot be judged; nothing more is read
        """
        self._unread += data
        if not self._settle(complete=False):
            return
        yield from self._frames()

    def end(self) -> Iterator[Segment]:
        """The stream is over: what is left of it."""
        if self._unread and self._settle(complete=True):
            yield from self._frames()
            if self._endpointer.speaking and self._unread:
                yield Speech(self._whole(self._unread))
        if self._endpointer.speaking:
            self._endpointer.stop()
            yield End()

    def _frames(self) -> Iterator[Segment]:
        assert self._detector is not None  # _settle made it
        size = self._detector.frame_bytes // 2 * self._frame_bytes
        whole = len(self._unread) - len(self._unread) % size
        unread, self._unread = self._unread[:whole], self._unread[whole:]
        for start in range(0, whole, size):
            yield from self._frame(self._whole(unread[start : start + size]))

    def _frame(self, frame: bytes) -> Iterator[Segment]:
        assert self._detector is not None
        turn = self._endpointer.turn(frame, bool(self._detector.is_speech(frame)))
        if turn is Turn.NOTHING:
            return
        speech = self._endpointer.take_lead() if turn is Turn.BEGIN else frame
        self._spoken_bytes = len(speech) + (0 if turn is Turn.BEGIN else self._spoken_bytes)
        yield Speech(speech)
        if turn is Turn.END:
            yield End()
        elif self._spoken_bytes + len(frame) > self._max_s * 2 * self._rate_hz:
            self._spoken_bytes = 0
            yield End()

    def _settle(self, *, complete: bool) -> bool:
        """Whether it is known what the samples are."""
        if self._is_settled:
            return True
        if self._unread[:4] in (b"RIFF"[: len(self._unread)], b"RIFX"[: len(self._unread)]):
            if not self._take_header():
                if complete or len(self._unread) > MAX_HEADER_BYTES:
                    raise AudioNotDecodable("the WAV's header does not end")
                return False
        elif self._format.encoding == "l16":
            self._encoding = byte_order(self._unread, self._channels, complete=complete)
            if self._encoding is None:
                return False
        else:
            self._encoding = self._format.encoding
        try:
            self._detector = Vad(Vad.MEDIUM_STRICT, self._rate_hz, FRAME_S)
        except ValueError as error:
            raise AudioNotDecodable(f"voice activity cannot be told at {self._rate_hz} Hz") from error
        self._is_settled = True
        return True

    def _take_header(self) -> bool:
        """Read a WAV's header off the stream; False if it is not all there yet."""
        reading, at = read_wav_header(), 0
        wanted = next(reading)
        while at + wanted <= len(self._unread):
            piece, at = self._unread[at : at + wanted], at + wanted
            try:
                wanted = reading.send(piece)
            except StopIteration as stop:
                layout: WavLayout = stop.value
                if layout.encoding not in ("s16le", "s16be", "u8", "mulaw", "alaw"):
                    raise AudioNotDecodable(f"samples of {layout.encoding} over the WebSocket") from None
                self._encoding = cast(Encoding, layout.encoding)
                self._rate_hz, self._channels = layout.rate_hz, layout.channels
                self._unread = self._unread[at:]
                return True
        return False

    @property
    def _frame_bytes(self) -> int:
        return self._channels * (2 if self._encoding in ("s16le", "s16be") else 1)

    def _whole(self, data: bytes) -> bytes:
        assert self._encoding is not None  # _settle found it
        return to_s16le_mono(data[: len(data) - len(data) % self._frame_bytes], self._encoding, self._channels)
