"""RFC 6455 frames on the server's side: bytes to events and back. No socket, no loop, no clock.

:class:`FrameReader` parses what a client sent into messages and control frames; the builders create what the server
sends. The handshake, pongs and closing the socket are handled elsewhere. No extension is ever negotiated.
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
"""A shorter fragment has the short header, and may cost more to parse than it carries."""

_PROTOCOL_ERROR, _INVALID_DATA, _TOO_BIG = 1002, 1007, 1009

_NONE: Final[list[int]] = []
"""Shared by all readers, and never modified."""

_SURROGATE_LEAD, _FIRST_OF_SURROGATE = b"\xed", b"\xa0"  # U+D800 to U+DFFF would be ED A0 80 to ED BF BF


@dataclass(frozen=True, slots=True)
class Text:
    """A complete text message."""

    text: str


@dataclass(frozen=True, slots=True)
class Binary:
    """A complete binary message."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping. Answer with a pong that has the same data."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """A pong, solicited or not."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The client's close frame; nothing comes after it.

    :ivar code: None if the client gave none
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
    """Parses the frames of one client, in pieces of any size.

    How the stream is split never changes the events or the error. Between messages a reader holds no buffer. Within a
    message it holds at most ``max_message_bytes``, whatever the number of fragments, and the cost of a piece does not
    grow with what came before.

    :param max_message_bytes: the largest message, over all its fragments; a larger one is refused as soon as a header
        announces it
    :param unmask: ``unmask(mask, data)``, if there is a faster one than :func:`xor_mask`
    :ivar error: the client's protocol error, with the close code to answer with, or None; set by :meth:`feed`
    :ivar small_fragments: one entry for each tiny fragment in the last :meth:`feed` that ended no message: the number
        of events before it. Such fragments cause no event, so a client could send any number of them. The owner may set
        this back to an empty list
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
        # The current data frame: bytes still missing, the mask rotated to the next of them, and the FIN bit.
        self._left, self._mask, self._final = 0, b"", False
        # The current message: _TEXT or _BINARY (else _CONTINUATION), its data so far, and the UTF-8 check of a text.
        self._opcode = _CONTINUATION
        self._message: bytearray | None = None
        self._check: codecs.IncrementalDecoder | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes held of an incomplete message or frame."""
        return len(self._tail) + (len(self._message) if self._message is not None else 0)

    @property
    def in_message(self) -> bool:
        """True while a message is incomplete."""
        return self._message is not None or bool(self._left)

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that these bytes complete, in order. Never raises.

        On a protocol error, :attr:`error` is set and the events before it are returned, so check it after handling
        them. From then on, and after a :class:`Close`, all input is ignored.
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
            # A new exception: the caught one keeps the client's data alive through its cause and traceback.
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
        """Raise if a data frame is not allowed here, or is too big. Changes nothing."""
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
        """Consume the payload of the current data frame; return where the next frame starts."""
        end = min(at + self._left, len(data))
        piece = self._unmask(self._mask, data[at:end])
        self._left -= end - at
        whole = self._final and not self._left
        if whole and self._message is None:  # nearly always: a message in one frame and one piece
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
        """Raise as soon as no continuation can make the text valid UTF-8."""
        if self._check is None:
            self._check = codecs.getincrementaldecoder("utf-8")()
        try:
            self._check.decode(piece)
        except UnicodeDecodeError as error:
            raise ProtocolError(_INVALID_DATA, "text is not UTF-8") from error
        # The decoder waits for the third byte of a surrogate, which its "surrogatepass" handler would accept.
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
    start: int  # offset of the payload in the parsed data; the mask is right before it
    needed: int  # offset up to which data is needed to begin the frame; a control frame is taken whole


def _parse_header(data: bytes, at: int) -> _Header | None:
    """Parse the header at ``at``, without the mask; None if it is incomplete.

    Raises as soon as it can't be valid.
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
    if not may_be_sent(code):  # a single payload byte is below 256, so invalid too
        raise ProtocolError(_PROTOCOL_ERROR, "close code is not valid")
    return Close(code, _utf8(payload[2:], "close reason"))


def may_be_sent(code: int) -> bool:
    """True for a close code that is allowed in a frame. 1005, 1006 and 1015, for example, are not."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def _utf8(data: bytes | bytearray, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(_INVALID_DATA, f"{what} is not UTF-8") from error


PING: Final = bytes((_FINAL | _PING, 0))
"""A ping without data."""


def text_frame(payload: bytes) -> bytes:
    """A complete text message. The payload must be UTF-8 and is not checked."""
    size = len(payload)
    # The hot path: most messages are in this range.
    if _LENGTH_IN_16_BITS <= size < 0x10000:
        return _TEXT_HEADS[size >> 8] + _OCTETS[size & 0xFF] + payload
    return _frame(_TEXT, payload)


def payload_of(frame: bytes) -> bytes:
    """What :func:`text_frame` was given."""
    length = frame[1]
    return frame[2 if length < _LENGTH_IN_16_BITS else 4 if length == _LENGTH_IN_16_BITS else 10 :]


def pong_frame(payload: bytes) -> bytes:
    """The answer to the ping with this payload. Raises ValueError over ``MAX_CONTROL_BYTES``."""
    return _control_frame(_PONG, payload)


def close_frame(code: int | None, reason: str = "") -> bytes:
    """A close frame. The reason is truncated to ``MAX_REASON_BYTES`` between characters; without a code it is dropped.

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
    """One unmasked frame, with the shortest length encoding."""
    size = len(payload)
    if size < _LENGTH_IN_16_BITS:
        return bytes((_FINAL | opcode, size)) + payload
    if size < 0x10000:
        return struct.pack("!BBH", _FINAL | opcode, _LENGTH_IN_16_BITS, size) + payload
    return struct.pack("!BBQ", _FINAL | opcode, _LENGTH_IN_64_BITS, size) + payload


# The first three bytes of a text frame with a 16-bit length, by the length's upper byte.
_TEXT_HEADS: Final = tuple(struct.pack("!BBB", _FINAL | _TEXT, _LENGTH_IN_16_BITS, upper) for upper in range(256))
_OCTETS: Final = tuple(bytes((octet,)) for octet in range(256))
