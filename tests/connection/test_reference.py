"""The protocol beside a reader that is written a second time, on any bytes, cut anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from cocoa_tornado.connection.limits import DeviceLimits
from cocoa_tornado.connection.protocol import DISCARDING, OPEN, DeviceProtocol, Event
from cocoa_tornado.rules.rate import RateLimit
from testing.raw_device import BINARY, CLOSE, PING, PONG, TEXT, frame

from ..profiles import examples
from .reference import Heard, hear
from .takers import TAKER
from .wire import close_of, sent_frames

BURST = 12
LIMITS = DeviceLimits(max_message_bytes=300, inbound=RateLimit(per_s=1, burst=BURST))
NOW = 100.0


def listen(pieces: Sequence[bytes], is_pinged: bool) -> Heard:
    """The protocol's reading of a stream."""
    protocol = DeviceProtocol(NOW)
    if is_pinged:
        protocol.ping(NOW)
        protocol.data_to_send(TAKER)
        protocol.sent()
    events: list[Event] = []
    for piece in pieces:
        events += protocol.receive(piece, NOW, LIMITS)
    phase = protocol.phase
    frames = sent_frames(protocol.data_to_send(TAKER))
    code = close_of(frames[-1])[0] if phase is not OPEN else None
    pongs = [payload for opcode, payload in frames if opcode == PONG]
    assert len(pongs) <= 1
    return Heard(events, phase, code, pongs[0] if pongs else None)


def byte_by_byte(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


@st.composite
def cut(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> list[bytes]:
    stream = draw(streams)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    return [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]


TEXTS = st.text(max_size=40).map(str.encode)
DATA = st.one_of(
    st.builds(frame, st.just(TEXT), TEXTS, fin=st.booleans()),
    st.builds(frame, st.just(BINARY), st.binary(max_size=200), fin=st.booleans()),
    st.builds(frame, st.just(0), TEXTS | st.binary(max_size=200), fin=st.booleans()),
    st.builds(frame, st.just(TEXT), st.binary(max_size=20)),
)
CONTROL = st.one_of(
    st.builds(frame, st.sampled_from([PING, PONG]), st.binary(max_size=125)),
    st.just(frame(PONG)),
    st.builds(
        frame,
        st.just(CLOSE),
        st.tuples(st.sampled_from([1000, 1001, 1005, 1011, 3000, 4999, 999]), TEXTS | st.binary(max_size=4)).map(
            lambda close: close[0].to_bytes(2, "big") + close[1][:123]
        ),
    ),
    st.just(frame(CLOSE)),
)
# A message in as many fragments as there are strings, with pings between them.
FRAGMENTED = st.lists(st.binary(max_size=130), min_size=1, max_size=5).map(
    lambda parts: b"".join(
        frame(0 if at else BINARY, part, fin=at == len(parts) - 1) + frame(PING, bytes([at]))
        for at, part in enumerate(parts)
    )
)
GARBAGE = st.one_of(
    st.binary(max_size=14),
    st.builds(
        lambda first, second, rest: bytes([first, second]) + rest,
        st.integers(0, 255),
        st.integers(128, 255),
        st.binary(max_size=12),
    ),
    st.builds(
        frame,
        st.integers(0, 15),
        st.binary(max_size=130),
        fin=st.booleans(),
        masked=st.booleans(),
        rsv=st.sampled_from([0, 0, 0, 4]),
    ),
)
STREAMS = st.lists(st.one_of(DATA, DATA, CONTROL, FRAGMENTED, GARBAGE), max_size=8).map(b"".join)


@examples(300)
@given(cut(STREAMS), st.booleans())
@example([frame(TEXT, b"x", fin=False) + frame(0, fin=False) * BURST + frame(PING, b"late")], False)
@example([(frame(PING, b"early") + frame(TEXT, b"x", fin=False) + frame(0, fin=False) * BURST)], False)
@example([frame(PONG) * (BURST + 1)], True)
@example([frame(PONG) * (BURST + 1)], False)
@example([frame(PONG)], True)
@example([b"\x82\x86" + bytes(4), b"\x8a\x80mask", frame(TEXT, b"what looks like a pong is part of a message")], True)
@example([frame(PONG), frame(TEXT, b"\xf0\x9f\x98"), frame(CLOSE)], True)
def test_the_protocol_hears_what_the_reference_hears_however_the_bytes_are_cut(
    pieces: list[bytes], is_pinged: bool
) -> None:
    stream = b"".join(pieces)
    expected = hear(stream, LIMITS.max_message_bytes, BURST, int(is_pinged))
    assert listen([stream], is_pinged) == expected
    assert listen(pieces, is_pinged) == expected
    assert listen(byte_by_byte(stream), is_pinged) == expected


@given(cut(STREAMS), cut(STREAMS))
def test_what_a_client_says_behind_its_fault_changes_nothing(before: list[bytes], after: list[bytes]) -> None:
    fault = frame(TEXT, rsv=4)
    heard = listen([*before, fault], False)
    assert listen([*before, fault, *after], False) == heard
    assert heard.phase is not OPEN
    if heard.phase is DISCARDING:
        assert heard.code in (1002, 1007, 1008, 1009)
