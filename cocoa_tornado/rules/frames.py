"""The server's side of RFC 6455 frames: bytes to events and back. No socket, no loop, no clock.

:class:`FrameReader` turns what a client sent into messages and control frames; the builders make what the server
sends. The handshake, answering a ping and closing the socket are done elsewhere. No extension is ever negotiated.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from ..errors import ProtocolError

MAX_CONTROL_BYTES: Final = 125
MAX_REASON_BYTES: Final = MAX_CONTROL_BYTES - 2

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL, _RESERVED_BITS, _OPCODE_BITS = 0x80, 0x70, 0x0F
_MASKED, _LENGTH_BITS = 0x80, 0x7F
_LENGTH_IN_16_BITS, _LENGTH_IN_64_BITS = 126, 127

SMALL_FRAGMENT_BYTES: Final = 126
"""A fragment below this has the short header, and may cost more to read than it carries."""

_PROTOCOL_ERROR, _INVALID_DATA, _TOO_BIG = 1002, 1007, 1009

_NONE: Final[list[int]] = []
"""Shared by all readers, and never changed."""

_SURROGATE_LEAD, _FIRST_OF_SURROGATE = b"\xed", b"\xa0"  # U+D800 to U+DFFF would be ED A0 80 to ED BF BF


@dataclass(frozen=True, slots=True)
class Text:
    """A whole text message."""

    text: str


@dataclass(frozen=True, slots=True)
class Binary:
    """A whole binary message."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """To be answered with a pong of the same data."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping, or a sign of life that nobody asked for."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The client closes; nothing comes after it.

    :ivar code: None where the client gave none
    """

    code: int | None
    reason: str


Event: TypeAlias = Text | Binary | Ping | Pong | Close
Unmask: TypeAlias = Callable[[bytes, bytes], bytes]


def xor_mask(mask: bytes, data: bytes) -> bytes:
    """Apply a four-byte mask to data of any length; the same call masks and unmasks."""
    size = len(data)
    repeated = mask * (size // 4) + mask[: size % 4]
    return (int.from_bytes(data, "little") ^ int.from_bytes(repeated, "little")).to_bytes(size, "little")


class FrameReader:
    """Reads the frames of one client, in whatever pieces they arrive.

    How a stream is cut into pieces never changes the events, nor the fault. Between messages a reader holds no buffer;
    within one it holds at most ``max_message_bytes`` of it, however many fragments the client makes, and the cost of a
    piece does not grow with what came before.

    :param max_message_bytes: payload of the largest message, over all its fragments; a larger one is refused as soon as
        a header announces it
    :param unmask: ``unmask(mask, data)``, where there is a faster one than :func:`xor_mask`
    :ivar error: what the client did wrong and the close code to answer with, or None; set by :meth:`feed`
    :ivar small_fragments: frames that ended no message and carried next to nothing: they make no event, and a client
        could send any number of them. For each of the last :meth:`feed`, how many of its events came before. The owner
        may set it back to an empty list
    """

    __slots__ = (
        "_check",
        "_dead",
        "_final",
        "_left",
        "_mask",
        "_max",
        "_message",
        "_opcode",
        "_tail",
        "_unmask",
        "error",
        "small_fragments",
    )

    def __init__(self, max_message_bytes: int, unmask: Unmask = xor_mask) -> None:
        self.error: ProtocolError | None = None
        self.small_fragments: list[int] = _NONE
        self._max = max_message_bytes
        self._unmask = unmask
        self._dead = False
        self._tail = b""  # the beginning of a header or of a control frame
        # The data frame under way: bytes to come, the mask turned to the next of them, and whether it is the last one.
        self._left, self._mask, self._final = 0, b"", False
        # The message under way: _TEXT or _BINARY (else _CONTINUATION), what has come of it, and the check of a text.
        self._opcode = _CONTINUATION
        self._message: bytearray | None = None
        self._check: codecs.IncrementalDecoder | None = None

    @property
    def held_bytes(self) -> int:
        """What it holds of a message, or of a frame, that is not all there."""
        return len(self._tail) + (len(self._message) if self._message is not None else 0)

    @property
    def in_message(self) -> bool:
        """True while a message is under way."""
        return self._message is not None or bool(self._left)

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that these bytes complete, in order. Never raises.

        Where the client breaks the protocol, the events before the fault are returned and :attr:`error` is set, so
        look at it after the events. From then on, and after a :class:`Close`, whatever comes is ignored.
        """
        events: list[Event] = []
        self.small_fragments = _NONE
        if self._dead:
            return events
        if self._tail:
            data, self._tail = self._tail + data, b""
        try:
            self._read(data, events)
        except ProtocolError as fault:
            # A new one: the one caught holds on to the client's data through its cause and traceback.
            self.error = ProtocolError(fault.close_code, fault.reason)
            self._die()
        return events

    def _read(self, data: bytes, events: list[Event]) -> None:
        at = self._take(data, 0, events) if self._left else 0
        while at < len(data):
            header = _parse_header(data, at)
            if header is not None:
                self._judge(header)
            if header is None or len(data) < header.needed:
                self._tail = data[at:]
                return
            at = header.needed
            mask = data[header.start - 4 : header.start]
            if header.opcode < _CLOSE:
                self._begin(header, mask)
                if not header.final and header.length < SMALL_FRAGMENT_BYTES:
                    self._note_small_fragment(len(events))
                at = self._take(data, at, events)
                continue
            event = _control(header.opcode, self._unmask(mask, data[header.start : at]))
            events.append(event)
            if isinstance(event, Close):
                self._die()
                return

    def _judge(self, header: _Header) -> None:
        """Raise where a data frame may not stand here, or is too big. Changes nothing."""
        if header.opcode >= _CLOSE:
            return
        if header.opcode == _CONTINUATION:
            if self._opcode == _CONTINUATION:
                raise ProtocolError(_PROTOCOL_ERROR, "continuation of no message")
        elif self._opcode != _CONTINUATION:
            raise ProtocolError(_PROTOCOL_ERROR, "new message inside a fragmented one")
        so_far = len(self._message) if self._message is not None else 0
        if so_far + header.length > self._max:
            raise ProtocolError(_TOO_BIG, f"message over {self._max} bytes")

    def _begin(self, header: _Header, mask: bytes) -> None:
        if header.opcode != _CONTINUATION:
            self._opcode = header.opcode
        self._left, self._mask, self._final = header.length, mask, header.final

    def _note_small_fragment(self, events_before: int) -> None:
        if self.small_fragments:
            self.small_fragments.append(events_before)
        else:
            self.small_fragments = [events_before]

    def _take(self, data: bytes, at: int, events: list[Event]) -> int:
        """Take what has come of the data frame under way; return where the next frame starts."""
        end = min(at + self._left, len(data))
        piece = self._unmask(self._mask, data[at:end])
        self._left -= end - at
        whole = self._final and not self._left
        if whole and self._message is None:  # nearly always: one frame, all there
            events.append(self._finish(piece))
            return end
        if piece:
            self._keep(piece)
        if whole:
            events.append(self._finish(self._message or b""))
        return end

    def _keep(self, piece: bytes) -> None:
        if self._message is None:
            self._message = bytearray()
        self._message += piece
        turn = len(piece) % 4
        self._mask = self._mask[turn:] + self._mask[:turn]
        if self._opcode == _TEXT:
            self._check_text(piece)

    def _check_text(self, piece: bytes) -> None:
        """Raise as soon as the text can't become UTF-8 any more, whatever may follow."""
        if self._check is None:
            self._check = codecs.getincrementaldecoder("utf-8")()
        try:
            self._check.decode(piece)
        except UnicodeDecodeError as error:
            raise ProtocolError(_INVALID_DATA, "text is not UTF-8") from error
        # The decoder waits for the third byte of a surrogate, which its error handler "surrogatepass" would let pass.
        waiting, _ = self._check.getstate()
        if waiting[:1] == _SURROGATE_LEAD and waiting[1:] >= _FIRST_OF_SURROGATE:
            raise ProtocolError(_INVALID_DATA, "text is not UTF-8")

    def _finish(self, payload: bytes | bytearray) -> Text | Binary:
        opcode = self._opcode
        self._opcode, self._mask, self._message, self._check = _CONTINUATION, b"", None, None
        if opcode == _BINARY:
            return Binary(bytes(payload))
        return Text(_utf8(payload, "text"))

    def _die(self) -> None:
        self._dead, self._left, self._mask, self._message, self._check = True, 0, b"", None, None


class _Header(NamedTuple):
    opcode: int
    final: bool
    length: int
    start: int  # of the payload, in the data that was parsed; the mask stands right before it
    needed: int  # where the data must reach before the frame can be begun: a control frame is taken whole


def _parse_header(data: bytes, at: int) -> _Header | None:
    """Parse the header that starts at ``at``, the mask not included; None if it is not all there yet.

    Raises as soon as it can't be right.
    """
    if len(data) - at < 2:
        return None
    first, second = data[at], data[at + 1]
    opcode, final, length = first & _OPCODE_BITS, first >= _FINAL, second & _LENGTH_BITS
    if first & _RESERVED_BITS:
        raise ProtocolError(_PROTOCOL_ERROR, "reserved bits are set")
    if opcode > _PONG or _BINARY < opcode < _CLOSE:
        raise ProtocolError(_PROTOCOL_ERROR, "reserved opcode")
    if second < _MASKED:
        raise ProtocolError(_PROTOCOL_ERROR, "frame is not masked")
    if opcode >= _CLOSE and not (final and length <= MAX_CONTROL_BYTES):
        raise ProtocolError(_PROTOCOL_ERROR, "control frame is fragmented or too long")
    at += 2
    if length >= _LENGTH_IN_16_BITS:
        size, least = (2, 126) if length == _LENGTH_IN_16_BITS else (8, 0x10000)
        if len(data) - at < size:
            return None
        length = int.from_bytes(data[at : at + size], "big")
        if not least <= length < 1 << 63:
            raise ProtocolError(_PROTOCOL_ERROR, "length is not encoded as it must be")
        at += size
    start = at + 4
    return _Header(opcode, final, length, start, start + length if opcode >= _CLOSE else start)


def _control(opcode: int, payload: bytes) -> Ping | Pong | Close:
    if opcode == _PING:
        return Ping(payload)
    if opcode == _PONG:
        return Pong(payload)
    if not payload:
        return Close(None, "")
    code = int.from_bytes(payload[:2], "big")
    if not may_be_sent(code):  # nor may the single byte of half a code, which is less than 256
        raise ProtocolError(_PROTOCOL_ERROR, "close code is not valid")
    return Close(code, _utf8(payload[2:], "close reason"))


def may_be_sent(code: int) -> bool:
    """True for a close code that may stand in a frame; 1005, 1006 and 1015, for example, only stand for its absence."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def _utf8(data: bytes | bytearray, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(_INVALID_DATA, f"{what} is not UTF-8") from error


PING: Final = bytes((_FINAL | _PING, 0))
"""A ping without data."""


def text_frame(payload: bytes) -> bytes:
    """A whole text message; the payload must be UTF-8 and is not checked."""
    size = len(payload)
    # Most messages are of this size, and each passes here.
    if _LENGTH_IN_16_BITS <= size < 0x10000:
        return _TEXT_HEADS[size >> 8] + _OCTETS[size & 0xFF] + payload
    return _frame(_TEXT, payload)


def pong_frame(payload: bytes) -> bytes:
    """The answer to the ping with this payload. Raises ValueError over ``MAX_CONTROL_BYTES``."""
    return _control_frame(_PONG, payload)


def close_frame(code: int | None, reason: str = "") -> bytes:
    """A close. The reason is cut at ``MAX_REASON_BYTES``, between characters; without a code there is none.

    Raises ValueError for a code that may not be sent.
    """
    if code is None:
        return _control_frame(_CLOSE, b"")
    if not may_be_sent(code):
        raise ValueError(f"close code {code} may not be sent")
    cut = reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
    return _control_frame(_CLOSE, code.to_bytes(2, "big") + cut.encode())


def _control_frame(opcode: int, payload: bytes) -> bytes:
    if len(payload) > MAX_CONTROL_BYTES:
        raise ValueError(f"a control frame holds at most {MAX_CONTROL_BYTES} bytes, not {len(payload)}")
    return _frame(opcode, payload)


def _frame(opcode: int, payload: bytes) -> bytes:
    """One unmasked frame, its length in the fewest bytes."""
    size = len(payload)
    if size < _LENGTH_IN_16_BITS:
        return bytes((_FINAL | opcode, size)) + payload
    if size < 0x10000:
        return struct.pack("!BBH", _FINAL | opcode, _LENGTH_IN_16_BITS, size) + payload
    return struct.pack("!BBQ", _FINAL | opcode, _LENGTH_IN_64_BITS, size) + payload


# The first three bytes of a text frame with a length of 16 bits, by the length's upper half.
_TEXT_HEADS: Final = tuple(struct.pack("!BBB", _FINAL | _TEXT, _LENGTH_IN_16_BITS, upper) for upper in range(256))
_OCTETS: Final = tuple(bytes((octet,)) for octet in range(256))
