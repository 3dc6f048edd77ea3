"""Chapters 1 to 5 and 10: frames, pings, reserved bits, opcodes, fragments."""

from __future__ import annotations

from typing import Final

from testing.raw_device import BINARY, CLOSE, PING, PONG, TEXT

from .case import (
    CONTINUATION,
    FRAME_BY_FRAME,
    Binary,
    Case,
    Closed,
    Frame,
    Pong,
    Step,
    Strictness,
    Text,
    binary,
    close,
    fragments,
    last,
    more,
    ping,
    pong,
    text,
)

FAILS: Final = (Closed(1002),)
HELLO: Final = "Hello, world!"
GREETED: Final = Text(HELLO)
OCTETS: Final = bytes(range(256))
SIZES: Final = ((1, 0), (2, 125), (3, 126), (4, 127), (5, 128), (6, 65535), (7, 65536))


def _text_of(size: int) -> list[Step]:
    return [Step([text("*" * size)], [Text("*" * size)])]


def _binary_of(size: int) -> list[Step]:
    payload = (OCTETS * (size // 256 + 1))[:size]
    return [Step([binary(payload)], [Binary(payload)])]


def _unmasked(opcode: int, payload: bytes = b"") -> Frame:
    return Frame(opcode, payload, masked=False)


def _announced(opcode: int, payload: bytes, size: int, octets: int) -> Frame:
    """A frame that says it has so many bytes, and says it in so many octets."""
    return Frame(opcode, payload, length=bytes([126 if octets == 2 else 127]) + size.to_bytes(octets, "big"))


FRAMES: Final = (
    *(Case(f"1.1.{n}", f"a text of {size} bytes", _text_of(size)) for n, size in SIZES),
    Case("1.1.8", "a text of 65536 bytes in chops of 997 octets", _text_of(65536), chop=997),
    *(Case(f"1.2.{n}", f"a binary message of {size} bytes", _binary_of(size)) for n, size in SIZES),
    Case("1.2.8", "a binary message of 65536 bytes in chops of 997 octets", _binary_of(65536), chop=997),
    # RFC 6455, 5.1: a client must mask all its frames.
    Case("x1.1", "a text that is not masked", [Step([_unmasked(TEXT, b"Hello")], FAILS)]),
    Case("x1.2", "an empty text that is not masked", [Step([_unmasked(TEXT)], FAILS)]),
    Case("x1.3", "a ping that is not masked", [Step([_unmasked(PING, b"x")], FAILS)]),
    Case("x1.4", "a close that is not masked", [Step([_unmasked(CLOSE, b"\x03\xe8")], FAILS)]),
    Case("x1.5", "a fragment that is not masked", [Step([text("a", fin=False), _unmasked(CONTINUATION, b"b")], FAILS)]),
    # 5.2: a length takes the fewest octets, and its highest bit is 0.
    Case("x1.6", "a length of 125 in 16 bits", [Step([_announced(BINARY, bytes(125), 125, 2)], FAILS)]),
    Case("x1.7", "a length of 65535 in 64 bits", [Step([_announced(BINARY, bytes(65535), 65535, 8)], FAILS)]),
    Case("x1.8", "a length of 0 in 64 bits", [Step([_announced(TEXT, b"", 0, 8)], FAILS)]),
    Case("x1.9", "a ping with its length of 5 in 16 bits", [Step([_announced(PING, b"Hello", 5, 2)], FAILS)]),
    Case("x1.10", "a length with its highest bit set", [Step([_announced(BINARY, b"", 1 << 63, 8)], FAILS)]),
)

PINGS: Final = (
    Case("2.1", "a ping without payload", [Step([ping()], [Pong(b"")])]),
    Case("2.2", "a ping with a payload of text", [Step([ping(b"Hello")], [Pong(b"Hello")])]),
    Case(
        "2.3",
        "a ping whose payload is no UTF-8",
        [Step([ping(b"\x00\xff\xfe\xfd\xfc")], [Pong(b"\x00\xff\xfe\xfd\xfc")])],
    ),
    Case("2.4", "a ping of 125 bytes", [Step([ping(b"\xfe" * 125)], [Pong(b"\xfe" * 125)])]),
    Case("2.5", "a ping of 126 bytes", [Step([ping(b"\xfe" * 126)], FAILS)]),
    Case("2.6", "a ping of 125 bytes, octet by octet", [Step([ping(b"\xfe" * 125)], [Pong(b"\xfe" * 125)])], chop=1),
    Case("2.7", "a pong without payload that nobody asked for", [Step([pong()])]),
    Case("2.8", "a pong with payload that nobody asked for", [Step([pong(b"unsolicited")])]),
    Case(
        "2.9",
        "a pong that nobody asked for, then a ping",
        [Step([pong(b"unsolicited"), ping(b"ping")], [Pong(b"ping")])],
    ),
    Case(
        "2.10",
        "ten pings with payload",
        [Step([ping(b"payload-%d" % n) for n in range(10)], [Pong(b"payload-%d" % n) for n in range(10)])],
        Strictness.NON_STRICT,
    ),
    Case(
        "2.11",
        "ten pings with payload, octet by octet",
        [Step([ping(b"payload-%d" % n)], [Pong(b"payload-%d" % n)]) for n in range(10)],
        chop=1,
    ),
    Case("x2.1", "a pong of 126 bytes", [Step([pong(b"\xfe" * 126)], FAILS)]),
    Case("x2.2", "a ping that announces 65536 bytes", [Step([_announced(PING, b"", 65536, 8)], FAILS)]),
)


def _after_a_text(*frames: Frame, chop: int | None = None) -> list[Step]:
    """The text is accepted; what comes after it fails the connection, and the ping behind that is not answered."""
    return [Step([text(HELLO), *frames, ping()], [GREETED, *FAILS])]


RESERVED_BITS: Final = (
    Case("3.1", "a text with RSV 1", [Step([text(HELLO, rsv=1)], FAILS)]),
    Case("3.2", "a text, one with RSV 2, a ping", _after_a_text(text(HELLO, rsv=2))),
    Case(
        "3.3", "a text, one with RSV 3, a ping, frame by frame", _after_a_text(text(HELLO, rsv=3)), chop=FRAME_BY_FRAME
    ),
    Case("3.4", "a text, one with RSV 4, a ping, octet by octet", _after_a_text(text(HELLO, rsv=4)), chop=1),
    Case("3.5", "a binary message with RSV 5", [Step([binary(b"\x00\xff", rsv=5)], FAILS)]),
    Case("3.6", "a ping with RSV 6", [Step([ping(HELLO.encode(), rsv=6)], FAILS)]),
    Case("3.7", "a close with RSV 7", [Step([close(rsv=7)], FAILS)]),
    Case(
        "x3.1",
        "a fragment with RSV 4",
        [Step([text("a", fin=False), Frame(CONTINUATION, b"b", rsv=4)], FAILS)],
    ),
)

_PAYLOAD: Final = HELLO.encode()
OPCODES: Final = (
    Case("4.1.1", "opcode 3", [Step([Frame(0x3)], FAILS)]),
    Case("4.1.2", "opcode 4 with payload", [Step([Frame(0x4, _PAYLOAD)], FAILS)]),
    Case("4.1.3", "a text, opcode 5, a ping", _after_a_text(Frame(0x5))),
    Case("4.1.4", "a text, opcode 6 with payload, a ping", _after_a_text(Frame(0x6, _PAYLOAD))),
    Case("4.1.5", "a text, opcode 7 with payload, a ping", _after_a_text(Frame(0x7, _PAYLOAD))),
    Case("4.2.1", "opcode 11", [Step([Frame(0xB)], FAILS)]),
    Case("4.2.2", "opcode 12 with payload", [Step([Frame(0xC, _PAYLOAD)], FAILS)]),
    Case("4.2.3", "a text, opcode 13, a ping", _after_a_text(Frame(0xD))),
    Case("4.2.4", "a text, opcode 14 with payload, a ping", _after_a_text(Frame(0xE, _PAYLOAD))),
    Case("4.2.5", "a text, opcode 15 with payload, a ping", _after_a_text(Frame(0xF, _PAYLOAD))),
    Case("x4.1", "opcode 3 within a message", [Step([text("a", fin=False), Frame(0x3), last("b")], FAILS)]),
)

_IN_TWO: Final = (text("fragment1", fin=False), last("fragment2"))
_WHOLE: Final = Text("fragment1fragment2")
_PINGED: Final = [Step([_IN_TWO[0], ping(b"ping"), _IN_TWO[1]], [Pong(b"ping"), _WHOLE])]
_NOTHING_TO_END: Final = [Step([last("non-continuation payload"), text(HELLO)], FAILS)]
_NOTHING_TO_CONTINUE: Final = [Step([more("non-continuation payload"), text(HELLO)], FAILS)]
_PINGED_TWICE: Final = [
    Step([text("fragment1", fin=False), more("fragment2"), ping(b"pongme 1!")], [Pong(b"pongme 1!")]),
    Step(
        [more("fragment3"), more("fragment4"), ping(b"pongme 2!"), last("fragment5")],
        [Pong(b"pongme 2!"), Text("fragment1fragment2fragment3fragment4fragment5")],
    ),
]
FRAGMENTS: Final = (
    Case("5.1", "a ping in two fragments", [Step([ping(b"fragment1", fin=False), last("fragment2")], FAILS)]),
    Case("5.2", "a pong in two fragments", [Step([pong(b"fragment1", fin=False), last("fragment2")], FAILS)]),
    Case("5.3", "a text in two fragments", [Step(_IN_TWO, [_WHOLE])]),
    Case("5.4", "a text in two fragments, frame by frame", [Step(_IN_TWO, [_WHOLE])], chop=FRAME_BY_FRAME),
    Case("5.5", "a text in two fragments, octet by octet", [Step(_IN_TWO, [_WHOLE])], chop=1),
    Case("5.6", "a ping between two fragments", _PINGED),
    Case("5.7", "a ping between two fragments, frame by frame", _PINGED, chop=FRAME_BY_FRAME),
    Case("5.8", "a ping between two fragments, octet by octet", _PINGED, chop=1),
    Case("5.9", "the last fragment of nothing, then a text", _NOTHING_TO_END),
    Case("5.10", "the last fragment of nothing, then a text, frame by frame", _NOTHING_TO_END, chop=FRAME_BY_FRAME),
    Case("5.11", "the last fragment of nothing, then a text, octet by octet", _NOTHING_TO_END, chop=1),
    Case("5.12", "a fragment of nothing, then a text", _NOTHING_TO_CONTINUE),
    Case("5.13", "a fragment of nothing, then a text, frame by frame", _NOTHING_TO_CONTINUE, chop=FRAME_BY_FRAME),
    Case("5.14", "a fragment of nothing, then a text, octet by octet", _NOTHING_TO_CONTINUE, chop=1),
    Case(
        "5.15",
        "a text in two fragments, a fragment of nothing, a text",
        [Step([*_IN_TWO, more("fragment3"), text("fragment4")], [_WHOLE, *FAILS])],
    ),
    Case(
        "5.16",
        "a fragment of nothing and a text in two, twice",
        [Step([more("fragment1"), text("fragment2", fin=False), last("fragment3")] * 2, FAILS)],
    ),
    Case(
        "5.17",
        "the last fragment of nothing and a text in two, twice",
        [Step([last("fragment1"), text("fragment2", fin=False), last("fragment3")] * 2, FAILS)],
    ),
    Case("5.18", "a text in two fragments, both with opcode 1", [Step([_IN_TWO[0], text("fragment2")], FAILS)]),
    Case("5.19", "a text in five fragments, with a ping after two and after four", _PINGED_TWICE),
    Case("5.20", "the same, frame by frame", _PINGED_TWICE, chop=FRAME_BY_FRAME),
    Case("x5.1", "a binary message within a text", [Step([_IN_TWO[0], binary(b"x")], FAILS)]),
    Case("x5.2", "a close in two fragments", [Step([Frame(CLOSE, b"\x03\xe8", fin=False), last("bye")], FAILS)]),
    Case("x5.3", "a ping without payload that is no last fragment", [Step([ping(fin=False)], FAILS)]),
    Case(
        "x5.4",
        "a message in fragments of each size class",
        [
            Step(
                [binary(fin=False), more(b"a" * 125), more(b"b" * 126), more(b"c" * 65536), last()],
                [Binary(b"a" * 125 + b"b" * 126 + b"c" * 65536)],
            )
        ],
    ),
    Case(
        "x5.5",
        "a pong between two fragments",
        [Step([_IN_TWO[0], Frame(PONG, b"unsolicited"), _IN_TWO[1]], [_WHOLE])],
    ),
)

AUTO_FRAGMENTATION: Final = (
    Case(
        "10.1.1",
        "a text of 65536 bytes in fragments of 1300",
        [Step(fragments(TEXT, b"*" * 65536, 1300), [Text("*" * 65536)])],
    ),
)
