"""Chapter 9: limits and performance, at the sizes of the gateway's contract.

The suite goes up to messages of 16 MiB. The largest that a device may send has 512 KiB (contract, section 4), so the
cases that the suite runs with 1 MiB or 4 MiB run with that, and larger ones are closed with 1009. Small fragments,
pings and pongs count against the rate limit like messages, and too many are closed with 1008.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from testing.raw_device import BINARY, TEXT

from .case import Binary, Case, Closed, Event, Frame, Step, Strictness, Text, binary, fragments, more, pong, text

KIB: Final = 1024
MIB: Final = 1024 * KIB
LARGEST: Final = 512 * KIB
ROUND_TRIPS: Final = 150  # the suite has 1000, which is over the rate limit
TOO_BIG: Final = (Closed(1009),)
TOO_MANY: Final = (Closed(1008),)
OF_CONTRACT: Final = Strictness.INFORMATIONAL


def _message(opcode: int, size: int) -> tuple[Frame, Event]:
    data = (b"BAsd7&jh23" * (size // 10 + 1))[:size]
    return (text(data), Text(data.decode())) if opcode == TEXT else (binary(data), Binary(data))


def _announced(opcode: int, size: int, *, sent: int = KIB) -> Frame:
    """The beginning of a message: its length is enough to refuse it."""
    return Frame(opcode, b"*" * sent, length=b"\x7f" + size.to_bytes(8, "big"))


def _sizes(chapter: str, opcode: int) -> Iterator[Case]:
    for number, size in ((1, 64 * KIB), (2, 256 * KIB)):
        frame, event = _message(opcode, size)
        yield Case(f"{chapter}.{number}", f"a message of {size // KIB} KiB", [Step([frame], [event])])
    frame, _ = _message(opcode, MIB)
    yield Case(f"{chapter}.3", "a message of 1 MiB", [Step([frame], TOO_BIG)], OF_CONTRACT)
    for number, size in ((4, 4), (5, 8), (6, 16)):
        steps = [Step([_announced(opcode, size * MIB)], TOO_BIG)]
        yield Case(f"{chapter}.{number}", f"a message of {size} MiB", steps, OF_CONTRACT)
    frame, event = _message(opcode, LARGEST)
    yield Case(f"x{chapter}.7", "the largest message", [Step([frame], [event])], OF_CONTRACT)
    frame, _ = _message(opcode, LARGEST + 1)
    yield Case(f"x{chapter}.8", "a message of one byte more", [Step([frame], TOO_BIG)], OF_CONTRACT)


def _in_fragments(chapter: str, opcode: int) -> Iterator[Case]:
    frame, event = _message(opcode, LARGEST)
    yield Case(
        f"{chapter}.1",
        "512 KiB in fragments of 64 bytes",
        [Step(fragments(opcode, frame.payload, 64), TOO_MANY)],
        OF_CONTRACT,
    )
    for number, size in ((2, 256), (3, KIB), (4, 4 * KIB), (5, 16 * KIB), (6, 64 * KIB), (7, 256 * KIB)):
        steps = [Step(fragments(opcode, frame.payload, size), [event])]
        yield Case(f"{chapter}.{number}", f"512 KiB in fragments of {size} bytes", steps)
    for number, size in ((8, MIB), (9, 4 * MIB)):
        steps = [Step([_announced(opcode, size)._replace(fin=False)], TOO_BIG)]
        yield Case(f"{chapter}.{number}", f"a first fragment of {size // MIB} MiB", steps, OF_CONTRACT)
    yield Case(
        f"x{chapter}.10",
        "the largest message, and one byte more in a fragment of its own",
        [Step([frame._replace(fin=False), more(b"*")], TOO_BIG)],
        OF_CONTRACT,
    )


def _in_chops(chapter: str, opcode: int) -> Iterator[Case]:
    frame, event = _message(opcode, LARGEST)
    for number, chop in enumerate((64, 128, 256, 512, 1024, 2048), 1):
        yield Case(f"{chapter}.{number}", f"512 KiB in chops of {chop} octets", [Step([frame], [event])], chop=chop)


def _round_trips(chapter: str, opcode: int) -> Iterator[Case]:
    for number, size in enumerate((0, 16, 64, 256, 1024, 4096), 1):
        frame, event = _message(opcode, size)
        steps = [Step([frame] * ROUND_TRIPS, [event] * ROUND_TRIPS)]
        yield Case(f"{chapter}.{number}", f"{ROUND_TRIPS} messages of {size} bytes", steps)


def limits() -> list[Case]:
    """Made when they are asked for: some 20 MB."""
    return [
        *_sizes("9.1", TEXT),
        *_sizes("9.2", BINARY),
        *_in_fragments("9.3", TEXT),
        *_in_fragments("9.4", BINARY),
        *_in_chops("9.5", TEXT),
        *_in_chops("9.6", BINARY),
        *_round_trips("9.7", TEXT),
        *_round_trips("9.8", BINARY),
        Case(
            "9.9.1",
            "a text of fragments of 4 KiB without end",
            [Step([text("*" * 4096, fin=False), *[more("*" * 4096)] * 200], TOO_BIG)],
            OF_CONTRACT,
        ),
        Case("x9.1", "a thousand pongs", [Step([pong()] * 1000, TOO_MANY)], OF_CONTRACT),
        Case(
            "x9.2",
            "a thousand empty fragments",
            [Step([text("*", fin=False), *[more()] * 1000], TOO_MANY)],
            OF_CONTRACT,
        ),
        Case(
            "x9.3",
            "a thousand pongs within a message",
            [Step([text("*", fin=False), *[pong()] * 1000], TOO_MANY)],
            OF_CONTRACT,
        ),
    ]
