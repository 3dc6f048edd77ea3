"""The cases without a socket: cut as they say, all at once, and octet by octet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import pytest

from cocoa_tornado.connection.limits import DeviceLimits
from cocoa_tornado.connection.protocol import DeviceProtocol
from cocoa_tornado.rules import frames
from testing.raw_device import PONG

from ..connection.takers import TAKER
from ..connection.wire import Sent, close_of, sent_frames
from .case import Binary, Case, Closed, Event, Pong, Text, agrees, chopped, close
from .table import CHAPTERS, cases

LIMITS: Final = DeviceLimits()
NOW: Final = 1000.0

MOST_OCTETS: Final = 5_000
"""Of a longer case only the headers are cut into octets, and the rest into chops of 997."""

LONGEST_HEADER: Final = 14
MOST_HEADERS: Final = 50


class Server:
    """The server's side of one connection, with a socket that takes everything at once. The clock stands still."""

    def __init__(self) -> None:
        self._protocol = DeviceProtocol(NOW)

    def receive(self, data: bytes) -> list[Event]:
        """What comes of the next bytes: first what was accepted, then what is sent."""
        accepted = [message for message in map(_message, self._protocol.receive(data, NOW, LIMITS)) if message]
        answer = self._protocol.data_to_send(TAKER)
        self._protocol.sent()
        self._protocol.advance(NOW, LIMITS)
        return accepted + [_event(frame) for frame in sent_frames(answer)]


def _message(event: frames.Event) -> Event | None:
    if isinstance(event, frames.Text):
        return Text(event.text)
    return Binary(event.data) if isinstance(event, frames.Binary) else None


def _event(frame: Sent) -> Event:
    if frame.opcode == PONG:
        return Pong(frame.payload)
    code, _ = close_of(frame)
    return Closed(code)


class Part(NamedTuple):
    """What is received, and what is to come of it."""

    pieces: Sequence[bytes]
    then: Sequence[Event]


def cuts(case: Case) -> Iterator[tuple[str, list[Part]]]:
    """The case, cut in each of the ways."""
    steps = [(step.encode(), step.then) for step in case.steps]
    yield "cut as it says", [Part(chopped(sends, case.chop), then) for sends, then in steps]
    stream = b"".join(sent for sends, _ in steps for sent in sends)
    if len(stream) <= MOST_OCTETS:
        yield "all at once", [Part([stream], case.expected)]
        yield "octet by octet", [Part(chopped(sends, 1), then) for sends, then in steps]
    elif case.chop is None:
        yield "with its headers octet by octet", [Part(octets_of_headers(sends), then) for sends, then in steps]


def octets_of_headers(sends: Sequence[bytes]) -> list[bytes]:
    pieces = list[bytes]()
    for sent in sends[:MOST_HEADERS]:
        bounds = [*range(min(LONGEST_HEADER, len(sent))), *range(LONGEST_HEADER, len(sent), 997), len(sent)]
        pieces += (sent[start:end] for start, end in pairwise(bounds))
    return pieces + chopped(sends[MOST_HEADERS:], 997)


def problems(case: Case) -> Iterator[str]:
    """The differences between the server's and the expected behavior, as reports for people."""
    for how, parts in cuts(case):
        server = Server()
        is_closed = False
        for number, part in enumerate(parts, 1):
            got = [event for piece in part.pieces for event in server.receive(piece)]
            if not agrees(part.then, got):
                yield case.report(f"{how}, step {number} of {len(parts)}", part.then, got)
                break
            is_closed = is_closed or any(isinstance(event, Closed) for event in got)
        else:
            farewell = [] if is_closed else [Closed(1000)]
            got = server.receive(close().encode())
            if got != farewell:
                yield case.report(f"{how}, then a close", farewell, got)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_connection_gets_the_chapter_right_however_it_is_cut(chapter: str) -> None:
    found = [problem for case in cases() if case.chapter == chapter for problem in problems(case)]
    if found:
        pytest.fail("\n".join([f"{len(found)} faults in chapter {chapter}", *found]), pytrace=False)
