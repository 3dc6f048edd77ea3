"""A second implementation of the server's side of a WebSocket, as plain as possible, to compare with.

The whole stream is at hand, nothing is kept between two calls, and nothing is fast. RFC 6455, and the rule that each
message, each ping, each pong that nobody asked for and each small fragment counts against a budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cocoa_tornado.connection.protocol import ANSWERED, DISCARDING, OPEN, Event, Phase
from cocoa_tornado.rules.frames import Binary, Pong, Text

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
SMALL = 126  # bytes: a fragment below it counts


class Heard(NamedTuple):
    """The meaning of a stream.

    :ivar answer: the payload of the pong that is owed, if one is
    :ivar code: of our close frame: why it is a fault, or the client's own; None: there is none, or it says nothing
    """

    events: list[Event]
    phase: Phase
    code: int | None
    answer: bytes | None


class _End(Exception):
    """Nothing is read any more."""

    def __init__(self, phase: Phase, code: int | None) -> None:
        self.phase, self.code = phase, code


class _Frame(NamedTuple):
    """:ivar payload: as much of it as there is"""

    final: bool
    opcode: int
    length: int
    payload: bytes

    @property
    def is_whole(self) -> bool:
        return len(self.payload) == self.length


def fault(code: int) -> _End:
    return _End(DISCARDING, code)


def hear(stream: bytes, max_bytes: int, budget: int, pings_out: int) -> Heard:
    """:param pings_out: 1 if a ping of ours waits for its pong"""
    reader = _Reference(max_bytes, budget, pings_out)
    phase, code = OPEN, None
    try:
        reader.read(stream)
    except _End as end:
        phase, code = end.phase, end.code
    return Heard(reader.events, phase, code, reader.answer)


class _Reference:
    def __init__(self, max_bytes: int, budget: int, pings_out: int) -> None:
        self.max_bytes, self.budget, self.pings_out = max_bytes, budget, pings_out
        self.events: list[Event] = []
        self.answer: bytes | None = None
        self.opcode, self.message = CONTINUATION, b""

    def pay(self) -> None:
        self.budget -= 1
        if self.budget < 0:
            raise fault(1008)

    def read(self, stream: bytes) -> None:
        for frame in self.frames(stream):
            if frame.opcode >= CLOSE:
                if not frame.is_whole:
                    return
                self.control(frame)
            else:
                self.data(frame)

    def frames(self, stream: bytes) -> Iterator[_Frame]:
        while len(stream) >= 2:
            final, opcode, length = stream[0] >= 128, stream[0] & 15, stream[1] & 127
            if stream[0] & 0x70 or opcode not in (0, 1, 2, 8, 9, 10) or stream[1] < 128:
                raise fault(1002)
            if opcode >= CLOSE and (not final or length > 125):
                raise fault(1002)
            extra = {126: 2, 127: 8}.get(length, 0)
            if len(stream) < 2 + extra:
                return
            if extra:
                length = int.from_bytes(stream[2 : 2 + extra], "big")
                if length < (126 if extra == 2 else 65536) or length >= 1 << 63:
                    raise fault(1002)
            self.allow(opcode, length)
            start = 2 + extra + 4
            if len(stream) < start:
                return
            mask, masked = stream[start - 4 : start], stream[start : start + length]
            yield _Frame(final, opcode, length, bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked)))
            stream = stream[start + length :]

    def allow(self, opcode: int, length: int) -> None:
        """A data frame may stand here, and is not too big, which shows in its header."""
        if opcode >= CLOSE:
            return
        if (opcode == CONTINUATION) != (self.opcode != CONTINUATION):
            raise fault(1002)
        if len(self.message) + length > self.max_bytes:
            raise fault(1009)

    def control(self, frame: _Frame) -> None:
        if frame.opcode == CLOSE:
            raise self.closed(frame.payload)
        if frame.opcode == PING:
            self.pay()
            self.answer = frame.payload
            return
        if self.pings_out:
            self.pings_out = 0
        else:
            self.pay()
        self.events.append(Pong(frame.payload))

    @staticmethod
    def closed(payload: bytes) -> _End:
        if not payload:
            return _End(ANSWERED, None)
        code = int.from_bytes(payload[:2], "big")
        sendable = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}
        if len(payload) < 2 or code not in sendable:
            return fault(1002)
        try:
            payload[2:].decode()
        except UnicodeDecodeError:
            return fault(1007)
        return _End(ANSWERED, code)

    def data(self, frame: _Frame) -> None:
        if not frame.final and frame.length < SMALL:
            self.pay()
        if frame.opcode != CONTINUATION:
            self.opcode = frame.opcode
        self.message += frame.payload
        is_whole = frame.final and frame.is_whole
        if self.opcode == TEXT:
            self.check_text(is_whole)
        if is_whole:
            self.pay()
            text = self.opcode == TEXT
            self.events.append(Text(self.message.decode()) if text else Binary(self.message))
            self.opcode, self.message = CONTINUATION, b""

    def check_text(self, is_whole: bool) -> None:
        try:
            self.message.decode()
        except UnicodeDecodeError as error:
            if is_whole or error.reason != "unexpected end of data":
                raise fault(1007) from error
