"""The first bytes of an upload: what format it has, and whether it is too long, as far as they show. Pure."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from ..errors import AudioTooLong
from .audio import SETTLED_BYTES, AudioFormat, next_look_bytes, settle
from .wav import WavLayout, read_wav_header

MAX_HEAD_BYTES: Final = max(SETTLED_BYTES, 8 * 1024)
"""How much of an upload is examined. If a WAV's samples begin later, only the decoder judges it."""

SLACK_S: Final = 0.01
"""The duration that the decoder may round off."""


class UploadHead:
    """Collects the beginning of an upload until it shows nothing more.

    The duration of raw samples follows from the Content-Length; that of a WAV from its header too. A WAV's data length
    counts only if it is within the upload limit: streaming writers put a large number there.

    :ivar settled: the upload's format; None while it is unknown, which it may remain until the end
    :ivar is_known: nothing more is to be learned
    :ivar has_eight_bits: the samples clearly have 8 bits, although that was not declared
    """

    def __init__(self, declared: AudioFormat, body_bytes: int | None, *, max_bytes: int, max_audio_s: float) -> None:
        """
        :param body_bytes: the Content-Length; None: unknown
        :param max_bytes: the limit on an upload
        """
        self.settled: AudioFormat | None = None
        self.is_known = self.has_eight_bits = False
        self._declared, self._body_bytes = declared, body_bytes
        self._max_bytes, self._max_audio_s = max_bytes, max_audio_s
        self._head = b""
        self._next_look_bytes = 1

    def add(self, data: bytes) -> None:
        """Add the next bytes.

        :raises AudioNotDecodable: it is a known format that is not decoded, or an invalid WAV
        :raises AudioTooLong: it will exceed the longest audio
        """
        if self.is_known:
            return
        self._head += data[: MAX_HEAD_BYTES - len(self._head)]
        is_all = len(self._head) >= MAX_HEAD_BYTES
        if len(self._head) < self._next_look_bytes and not is_all:
            return
        self._next_look_bytes = next_look_bytes(len(self._head))
        if self.settled is None:
            self.settled = settle(self._declared, self._head)
        if self.settled is None:
            self.is_known = is_all
        elif self.settled.container == "wav":
            layout = self._wav_layout()
            self.is_known = layout is not None or is_all
            if layout is not None:
                self._judge(self._wav_bytes(*layout), layout[0].frame_bytes * layout[0].rate_hz)
        else:
            self.is_known = True
            if self.settled.container == "raw":
                self.has_eight_bits = self.settled.encoding != self._declared.encoding
                self._judge(self._body_bytes, self.settled.bytes_per_second)
        if self.is_known:
            self._head = b""

    def _wav_layout(self) -> tuple[WavLayout, int] | None:
        """Return the header's content and the offset of the samples; None if the header is incomplete."""
        header: Generator[int, bytes, WavLayout] = read_wav_header()
        at, wanted = 0, next(header)
        try:
            while at + wanted <= len(self._head):
                piece, at = self._head[at : at + wanted], at + wanted
                wanted = header.send(piece)
        except StopIteration as found:
            return found.value, at
        return None

    def _wav_bytes(self, layout: WavLayout, begin: int) -> int | None:
        claim = layout.data_bytes
        if self._body_bytes is not None:
            rest = self._body_bytes - begin
            return rest if claim is None else min(claim, rest)
        return claim if claim is not None and claim <= self._max_bytes else None

    def _judge(self, sample_bytes: int | None, bytes_per_second: int) -> None:
        if sample_bytes is not None and sample_bytes > (self._max_audio_s + SLACK_S) * bytes_per_second:
            raise AudioTooLong(f"more than {self._max_audio_s:g} s of audio")
