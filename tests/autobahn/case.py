"""What a case of the Autobahn testsuite is made of, as data: what a client sends, and what a right server makes of it.

The ids, from 1.1.1 to 13.7, are those of https://github.com/crossbario/autobahn-testsuite, so that people find what
they know. That suite runs on Python 2 alone and wants a server that echoes, which the gateway is not: where the suite
waits for an echo, a case here says which message is accepted. The cases are written from RFC 6455; an id with an ``x``
is one that the suite lacks.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from testing.raw_device import BINARY, CLOSE, PING, PONG, TEXT, frame

CONTINUATION: Final = 0x0

FRAME_BY_FRAME: Final = 0
"""For :attr:`Case.chop`: one write for each frame."""

# -- what comes of it


@dataclass(frozen=True, slots=True)
class Text:
    """The server accepts a text message."""

    text: str

    def __str__(self) -> str:
        return f"text of {len(self.text)} characters {self.text[:24]!r}"


@dataclass(frozen=True, slots=True)
class Binary:
    """The server accepts a binary message."""

    data: bytes

    def __str__(self) -> str:
        return f"binary of {len(self.data)} bytes {self.data[:16]!r}"


@dataclass(frozen=True, slots=True)
class Pong:
    """The server sends a pong."""

    data: bytes

    def __str__(self) -> str:
        return f"pong of {len(self.data)} bytes {self.data[:16]!r}"


@dataclass(frozen=True, slots=True)
class Closed:
    """The server sends a close frame, and nothing after it.

    :ivar code: None where the frame has none
    """

    code: int | None

    def __str__(self) -> str:
        return f"closed with {self.code or 'no code'}"


Event: TypeAlias = Text | Binary | Pong | Closed


# -- what a client sends


class Frame(NamedTuple):
    """One frame, right or wrong.

    :ivar length: the length field as it is sent, without the mask bit, where it is not the right one
    """

    opcode: int
    payload: bytes = b""
    fin: bool = True
    rsv: int = 0
    masked: bool = True
    length: bytes | None = None

    def encode(self) -> bytes:
        """The bytes of it, with a random mask."""
        return frame(self.opcode, self.payload, fin=self.fin, masked=self.masked, rsv=self.rsv, length=self.length)


def text(payload: str | bytes = b"", *, fin: bool = True, rsv: int = 0) -> Frame:
    return Frame(TEXT, payload.encode() if isinstance(payload, str) else payload, fin, rsv)


def binary(payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> Frame:
    return Frame(BINARY, payload, fin, rsv)


def more(payload: str | bytes = b"", *, fin: bool = False) -> Frame:
    """A continuation that is not the last one."""
    return Frame(CONTINUATION, payload.encode() if isinstance(payload, str) else payload, fin)


def last(payload: str | bytes = b"") -> Frame:
    """The last continuation."""
    return more(payload, fin=True)


def ping(payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> Frame:
    return Frame(PING, payload, fin, rsv)


def pong(payload: bytes = b"", *, fin: bool = True) -> Frame:
    return Frame(PONG, payload, fin)


def close(code: int | None = 1000, reason: bytes = b"", *, rsv: int = 0) -> Frame:
    return Frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason, rsv=rsv)


def fragments(opcode: int, payload: bytes, size: int) -> list[Frame]:
    """A message in frames of ``size`` bytes; the last one may be shorter."""
    starts = range(0, max(1, len(payload)), size)
    return [
        Frame(CONTINUATION if start else opcode, payload[start : start + size], fin=start == starts[-1])
        for start in starts
    ]


# -- the case


class Strictness(enum.Enum):
    """How much of what a case expects is demanded by RFC 6455."""

    OK = "OK"  # all of it
    NON_STRICT = "NON-STRICT"  # the RFC allows for other outcomes as well; this is the best one
    INFORMATIONAL = "INFORMATIONAL"  # the RFC leaves it open; the contract, or the gateway, decides


class Step(NamedTuple):
    """What the client sends, and what comes of it before the client sends more.

    :ivar sends: frames, or parts of one as bytes
    :ivar then: in this order, messages and frames each by themselves
    """

    sends: Sequence[Frame | bytes]
    then: Sequence[Event] = ()

    def encode(self) -> list[bytes]:
        """Each of what it sends."""
        return [item if isinstance(item, bytes) else item.encode() for item in self.sends]


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation. Where it does not end with :class:`Closed`, an orderly close with 1000 is still possible.

    :ivar chop: how each step is cut into TCP writes: None for one write, ``FRAME_BY_FRAME``, or a number of octets
    :ivar offers: ``Sec-WebSocket-Extensions`` of the handshake; none is ever accepted
    """

    id: str
    title: str
    steps: Sequence[Step]
    strictness: Strictness = Strictness.OK
    chop: int | None = None
    offers: str = ""

    @property
    def chapter(self) -> str:
        """Of the testsuite: ``"6"`` for 6.4.1, and for x6.1."""
        return self.id.lstrip("x").partition(".")[0]

    @property
    def expected(self) -> list[Event]:
        return [event for step in self.steps for event in step.then]

    def report(self, problem: str, expected: Sequence[Event], got: Sequence[Event]) -> str:
        """For people: the case, and where it went wrong."""
        return (
            f"{self.id} [{self.strictness.value}] {self.title}\n"
            f"    {problem}\n"
            f"    expected: {_listed(expected)}\n"
            f"    got:      {_listed(got)}"
        )


def chopped(frames: Sequence[bytes], chop: int | None) -> list[bytes]:
    """The frames as TCP writes; ``chop`` as in :class:`Case`."""
    if chop == FRAME_BY_FRAME:
        return list(frames)
    stream = b"".join(frames)
    size = chop or max(1, len(stream))
    return [stream[start : start + size] for start in range(0, len(stream), size)]


def agrees(expected: Sequence[Event], got: Sequence[Event]) -> bool:
    """Whether what came is what was expected.

    Messages go one way and frames another: only within each is there an order. Of several pings, only the latest must
    be answered (RFC 6455, 5.5.3).
    """
    return _messages(expected) == _messages(got) and _answers(_frames(expected), _frames(got))


def _messages(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, Text | Binary)]


def _frames(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, Pong | Closed)]


def _answers(expected: Sequence[Event], got: list[Event]) -> bool:
    for at, event in enumerate(expected):
        if got and got[0] == event:
            got = got[1:]
        elif not (isinstance(event, Pong) and any(isinstance(later, Pong) for later in expected[at + 1 :])):
            return False
    return not got


def _listed(events: Sequence[Event]) -> str:
    shown = [str(event) for event in events[:6]] + ([f"and {len(events) - 6} more"] if len(events) > 6 else [])
    return ", ".join(shown) or "nothing"
