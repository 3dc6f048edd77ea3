"""RFC 6455, the server's side: reading, refusing and building frames."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets import frames as peer
from websockets.protocol import CLIENT, SERVER, Protocol

from cocoa_tornado.rules.frames import (
    MAX_CONTROL_BYTES,
    MAX_REASON_BYTES,
    PING,
    Binary,
    Close,
    Event,
    FrameReader,
    Ping,
    Pong,
    Text,
    close_frame,
    may_be_sent,
    payload_of,
    pong_frame,
    text_frame,
    xor_mask,
)

from ..profiles import examples

CONTINUATION, TEXT, BINARY, CLOSE, PING_OPCODE, PONG_OPCODE = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
LIMIT = 1000


def client_frame(opcode: int, payload: bytes = b"", *, final: bool = True, mask: bytes = b"\x37\xfa\x21\x3d") -> bytes:
    """A frame as a client sends it, byte by byte from the RFC."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return bytes([final << 7 | opcode]) + length + mask + masked


def read(stream: bytes, limit: int = LIMIT) -> tuple[list[Event], int | None]:
    """The events of a stream that arrives at once, and the close code of its fault."""
    return read_in_pieces([stream], limit)


def read_in_pieces(pieces: Iterable[bytes], limit: int = LIMIT) -> tuple[list[Event], int | None]:
    reader = FrameReader(limit)
    events = [event for piece in pieces for event in reader.feed(piece)]
    return events, reader.error.close_code if reader.error else None


def byte_by_byte(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


# -- what is read


@pytest.mark.parametrize(
    ("stream", "event"),
    [
        # The masked examples of RFC 6455, section 5.7.
        (bytes.fromhex("818537fa213d7f9f4d5158"), Text("Hello")),
        (bytes.fromhex("8a8537fa213d7f9f4d5158"), Pong(b"Hello")),
        (client_frame(TEXT), Text("")),
        (client_frame(BINARY), Binary(b"")),
        (client_frame(TEXT, "né 你好 😀".encode()), Text("né 你好 😀")),
        (client_frame(BINARY, b"\xff\x00"), Binary(b"\xff\x00")),
        (client_frame(PING_OPCODE), Ping(b"")),
        (client_frame(PING_OPCODE, b"p" * 125), Ping(b"p" * 125)),
        (client_frame(CLOSE), Close(None, "")),
        (client_frame(CLOSE, b"\x03\xe8"), Close(1000, "")),
        (client_frame(CLOSE, b"\x11\x31" + "tschüß".encode()), Close(4401, "tschüß")),
    ],
)
def test_a_frame_is_one_event(stream: bytes, event: Event) -> None:
    assert read(stream) == ([event], None)
    assert read_in_pieces(byte_by_byte(stream)) == ([event], None)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 125, 126, 127, 65535, 65536, 70001])
def test_every_length_is_read(size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    assert read(client_frame(BINARY, payload), limit=size) == ([Binary(payload)], None)


def test_control_frames_may_stand_between_fragments() -> None:
    stream = (
        client_frame(TEXT, b"a", final=False)
        + client_frame(PING_OPCODE, b"1")
        + client_frame(CONTINUATION, b"b", final=False)
        + client_frame(PONG_OPCODE, b"2")
        + client_frame(CONTINUATION, b"c")
        + client_frame(BINARY, b"d")
    )
    assert read(stream) == ([Ping(b"1"), Pong(b"2"), Text("abc"), Binary(b"d")], None)


def test_a_character_may_be_cut_between_fragments() -> None:
    first, second = "😀".encode()[:3], "😀".encode()[3:]
    stream = (
        client_frame(TEXT, first, final=False)
        + client_frame(CONTINUATION, final=False)
        + client_frame(CONTINUATION, second)
    )
    assert read(stream) == ([Text("😀")], None)


def test_a_message_of_empty_fragments_is_empty() -> None:
    stream = client_frame(TEXT, final=False) + client_frame(CONTINUATION, final=False) * 3 + client_frame(CONTINUATION)
    assert read(stream) == ([Text("")], None)


def test_fragments_that_carry_next_to_nothing_are_counted_and_those_of_a_usual_size_are_not() -> None:
    small = client_frame(TEXT, b"x", final=False) + client_frame(CONTINUATION, final=False) * 3
    for pieces in ([small], byte_by_byte(small)):
        reader, counted = FrameReader(LIMIT), 0
        for piece in pieces:
            reader.feed(piece)
            counted += len(reader.small_fragments)
        assert counted == 4
        reader.feed(client_frame(CONTINUATION, b"y" * 126, final=False) + client_frame(CONTINUATION))
        assert reader.small_fragments == []


def test_a_small_fragment_is_noted_with_the_number_of_events_before_it() -> None:
    fragment, ping = client_frame(CONTINUATION, final=False), client_frame(PING_OPCODE)
    reader = FrameReader(LIMIT)
    assert len(reader.feed(client_frame(TEXT, final=False) + fragment + ping + ping + fragment + ping)) == 3
    assert reader.small_fragments == [0, 0, 2]
    assert reader.feed(fragment) == []
    assert reader.small_fragments == [0]


def test_nothing_is_read_after_a_close() -> None:
    reader = FrameReader(LIMIT)
    assert reader.feed(client_frame(CLOSE) + client_frame(TEXT, b"x") + b"\xff\xff") == [Close(None, "")]
    assert reader.feed(client_frame(TEXT, b"x")) == []
    assert reader.error is None


def test_a_close_may_cut_a_message_short() -> None:
    assert read(client_frame(TEXT, b"a", final=False) + client_frame(CLOSE)) == ([Close(None, "")], None)


# -- what is refused


def header(first: int, second: int, rest: bytes = b"") -> bytes:
    return bytes([first, second]) + rest


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        pytest.param(header(0x81, 0x05) + b"Hello", 1002, id="not masked"),
        pytest.param(header(0xC1, 0x80), 1002, id="reserved bit 1"),
        pytest.param(header(0xA1, 0x80), 1002, id="reserved bit 2"),
        pytest.param(header(0x91, 0x80), 1002, id="reserved bit 3"),
        pytest.param(header(0x83, 0x80), 1002, id="reserved data opcode"),
        pytest.param(header(0x8B, 0x80), 1002, id="reserved control opcode"),
        pytest.param(header(0x09, 0x80), 1002, id="fragmented ping"),
        pytest.param(header(0x08, 0x80), 1002, id="fragmented close"),
        pytest.param(header(0x89, 0xFE), 1002, id="ping over 125 bytes"),
        pytest.param(header(0x88, 0xFF), 1002, id="close over 125 bytes"),
        pytest.param(header(0x80, 0x81), 1002, id="continuation of nothing"),
        pytest.param(client_frame(TEXT, final=False) + header(0x81, 0x85), 1002, id="text inside a message"),
        pytest.param(client_frame(BINARY, final=False) + client_frame(BINARY), 1002, id="binary inside a message"),
        pytest.param(header(0x82, 0xFE, b"\x00\x7d"), 1002, id="125 in 16 bits"),
        pytest.param(header(0x82, 0xFF, b"\x00" * 6 + b"\xff\xff"), 1002, id="65535 in 64 bits"),
        pytest.param(header(0x82, 0xFF, b"\x80" + b"\x00" * 7), 1002, id="top bit of the length"),
        pytest.param(client_frame(CLOSE, b"\x03"), 1002, id="half a close code"),
        pytest.param(client_frame(TEXT, b"\xff"), 1007, id="text is no UTF-8"),
        pytest.param(client_frame(TEXT, b"\xe4\xbd"), 1007, id="text ends in a character"),
        pytest.param(client_frame(TEXT, b"\xed\xa0\x80"), 1007, id="a surrogate in UTF-8"),
        pytest.param(client_frame(TEXT, b"\xc0\xaf"), 1007, id="overlong UTF-8"),
        pytest.param(client_frame(CLOSE, b"\x03\xe8\xff"), 1007, id="reason is no UTF-8"),
        pytest.param(header(0x82, 0xFE, b"\x03\xe9"), 1009, id="one byte too many"),
        pytest.param(header(0x82, 0xFF, b"\x7f" + b"\xff" * 7), 1009, id="exabytes"),
    ],
)
def test_a_fault_is_answered_with_its_code_as_soon_as_it_shows(stream: bytes, code: int) -> None:
    before = client_frame(BINARY, b"before") + client_frame(PING_OPCODE, b"ping")
    expected = ([Binary(b"before"), Ping(b"ping")], code)
    assert read(before + stream) == expected
    assert read_in_pieces(byte_by_byte(before + stream)) == expected


def test_after_a_fault_nothing_more_is_read_and_the_fault_stands() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(header(0x81, 0x00))
    fault = reader.error
    assert fault is not None
    assert reader.feed(client_frame(TEXT, b"fine")) == []
    assert reader.feed(header(0xFF, 0xFF)) == []
    assert reader.error is fault


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_a_close_code_of_the_registry_is_read(code: int) -> None:
    assert read(client_frame(CLOSE, code.to_bytes(2, "big") + b"r")) == ([Close(code, "r")], None)


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_a_close_code_that_may_not_be_sent_is_refused(code: int) -> None:
    assert read(client_frame(CLOSE, code.to_bytes(2, "big"))) == ([], 1002)


def test_the_limit_holds_over_all_fragments_and_at_the_header_already() -> None:
    first = client_frame(BINARY, b"x" * 600, final=False)
    assert read(first + client_frame(CONTINUATION, b"y" * 400)) == ([Binary(b"x" * 600 + b"y" * 400)], None)
    only_the_header = client_frame(CONTINUATION, b"y" * 401)[:4]
    assert read(first + only_the_header) == ([], 1009)
    assert read(first + client_frame(CONTINUATION, b"y" * 400, final=False) + client_frame(CONTINUATION, b"z")) == (
        [],
        1009,
    )


def test_the_limit_counts_one_message_and_not_the_next() -> None:
    message = client_frame(BINARY, b"x" * 300, final=False) + client_frame(CONTINUATION, b"y" * 700)
    assert read(message * 3) == ([Binary(b"x" * 300 + b"y" * 700)] * 3, None)


def test_text_that_can_not_become_utf8_is_refused_in_the_middle_of_its_frame() -> None:
    frame = client_frame(TEXT, b"ok\xffand much more")
    reader = FrameReader(LIMIT)
    assert reader.feed(frame[:8]) == []
    assert reader.error is None
    reader.feed(frame[8:9])
    assert reader.error is not None
    assert reader.error.close_code == 1007


def test_text_that_can_not_become_utf8_is_refused_before_its_last_fragment() -> None:
    assert read(client_frame(TEXT, b"\xf4\x90", final=False)) == ([], 1007)
    assert read(client_frame(TEXT, b"\xf4", final=False) + client_frame(CONTINUATION, b"\x90", final=False)) == (
        [],
        1007,
    )


# What may follow in UTF-8 (RFC 3629, section 4): the first byte, the second, and how many there are in all.
UTF8 = [
    *((range(0xC2, 0xE0), range(0x80, 0xC0), 2), (range(0xE0, 0xE1), range(0xA0, 0xC0), 3)),
    *((range(0xE1, 0xED), range(0x80, 0xC0), 3), (range(0xED, 0xEE), range(0x80, 0xA0), 3)),
    *((range(0xEE, 0xF0), range(0x80, 0xC0), 3), (range(0xF0, 0xF1), range(0x90, 0xC0), 4)),
    *((range(0xF1, 0xF4), range(0x80, 0xC0), 4), (range(0xF4, 0xF5), range(0x80, 0x90), 4)),
]
FIRSTS = range(0x80), *(first for first, _, _ in UTF8)
BEGINNINGS = {
    b"": FIRSTS,
    **{bytes([octet]): (second,) for first, second, _ in UTF8 for octet in first},
    **{bytes([first[0], second[-1]]): FIRSTS if size == 2 else (range(0x80, 0xC0),) for first, second, size in UTF8},
    **{bytes([first[0], second[0], 0xBF]): (range(0x80, 0xC0),) for first, second, size in UTF8 if size == 4},
}


def test_text_is_refused_with_the_first_byte_that_can_not_be_right() -> None:
    for beginning, may_follow in BEGINNINGS.items():
        for octet in range(256):
            reader, frame = FrameReader(LIMIT), client_frame(TEXT, beginning + bytes([octet, 0x41]))
            reader.feed(frame[:-2])
            assert reader.error is None, beginning.hex()
            reader.feed(frame[-2:-1])
            assert (reader.error is None) is any(octet in each for each in may_follow), (beginning.hex(), hex(octet))


def test_a_fault_shows_nothing_of_what_the_client_sent() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(client_frame(TEXT, b"secret\xff"))
    error = reader.error
    assert error is not None
    assert "secret" not in f"{error} {error.reason} {error!r}"
    assert (error.__cause__, error.__context__, error.__traceback__) == (None, None, None)


@pytest.mark.parametrize("in_message", [False, True])
def test_every_header_is_judged_as_the_rfc_has_it(in_message: bool) -> None:
    """All 65,536 beginnings of a frame, against the rules written down a second time."""
    before = client_frame(BINARY, final=False) if in_message else b""
    for first in range(256):
        opcode, final = first & 15, first >= 128
        for second in range(256):
            size = second & 127
            right = first & 0x70 == 0 and second >= 128 and opcode in (0, 1, 2, 8, 9, 10)
            if opcode >= 8:
                right = right and final and size < 126
            rest = {126: b"\x00\x7e", 127: b"\x00" * 5 + b"\x01\x00\x00"}.get(size, b"") + b"mask"
            if opcode < 8:
                right = right and (opcode == 0) is in_message
            reader = FrameReader(1 << 20)
            reader.feed(before + bytes([first, second]) + rest)
            assert (reader.error is None) is right, (hex(first), hex(second))
            assert right or (reader.error is not None and reader.error.close_code == 1002)


# -- bounds


def test_fragments_without_end_cost_no_memory() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(client_frame(TEXT, b"a", final=False))
    piece = client_frame(CONTINUATION, final=False) * 1000
    reader.feed(piece)
    tracemalloc.start()
    try:
        for _ in range(20):
            assert reader.feed(piece) == []
            reader.small_fragments = []
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2000
    assert reader.feed(client_frame(CONTINUATION, b"b")) == [Text("ab")]


def test_a_message_in_tiny_fragments_costs_no_more_than_its_bytes() -> None:
    fragment = client_frame(CONTINUATION, b"x", final=False)
    tracemalloc.start()
    try:
        reader = FrameReader(20_000)
        reader.feed(client_frame(TEXT, b"x", final=False))
        for _ in range(10_000):
            reader.feed(fragment)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 20_000


def test_an_idle_reader_holds_next_to_nothing() -> None:
    readers = []
    traffic = client_frame(TEXT, b"x" * 600, final=False) + client_frame(CONTINUATION, b"y") + client_frame(PONG_OPCODE)
    tracemalloc.start()
    try:
        for _ in range(1000):
            reader = FrameReader(LIMIT)
            reader.feed(traffic[:100])
            reader.feed(traffic[100:])
            readers.append(reader)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept / len(readers) < 250


def test_a_piece_costs_what_it_brings_and_not_what_came_before() -> None:
    unmasked = 0

    def counting(mask: bytes, data: bytes) -> bytes:
        nonlocal unmasked
        unmasked += len(data)
        return xor_mask(mask, data)

    payload = bytes(range(256)) * 20
    reader = FrameReader(len(payload), counting)
    events = [event for piece in byte_by_byte(client_frame(BINARY, payload)) for event in reader.feed(piece)]
    assert events == [Binary(payload)]
    assert unmasked == len(payload)


# -- any stream, cut anywhere


class Traffic(NamedTuple):
    """The frames of a well-behaved client, and the events that they mean."""

    stream: bytes
    events: list[Event]


MASKS = st.binary(min_size=4, max_size=4)
CONTROLS = st.one_of(
    st.builds(Ping, st.binary(max_size=125)),
    st.builds(Pong, st.binary(max_size=125)),
)


@st.composite
def control_frames(draw: st.DrawFn) -> Traffic:
    events = draw(st.lists(CONTROLS, max_size=2))
    frames = (
        client_frame(PING_OPCODE if isinstance(event, Ping) else PONG_OPCODE, event.data, mask=draw(MASKS))
        for event in events
    )
    return Traffic(b"".join(frames), list(events))


@st.composite
def messages(draw: st.DrawFn) -> Traffic:
    event: Text | Binary = draw(st.builds(Text, st.text(max_size=150)) | st.builds(Binary, st.binary(max_size=150)))
    payload = event.text.encode() if isinstance(event, Text) else event.data
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
    pieces = [payload[start:end] for start, end in pairwise([0, *cuts, len(payload)])]
    opcode = TEXT if isinstance(event, Text) else BINARY
    stream, events = b"", list[Event]()
    for number, piece in enumerate(pieces, 1):
        between = draw(control_frames())
        stream += between.stream + client_frame(opcode, piece, final=number == len(pieces), mask=draw(MASKS))
        events += between.events
        opcode = CONTINUATION
    return Traffic(stream, [*events, event])


@st.composite
def conversations(draw: st.DrawFn) -> Traffic:
    parts = draw(st.lists(messages(), max_size=4))
    return Traffic(b"".join(part.stream for part in parts), [event for part in parts for event in part.events])


@st.composite
def pieces_of(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> list[bytes]:
    stream = draw(streams)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]


FRAGMENTS_OF_FRAMES = st.builds(
    lambda first, second, rest: bytes([first, second]) + rest,
    st.sampled_from([0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A, 0x00, 0x83, 0xC1]),
    st.integers(0x80, 0xFF) | st.sampled_from([0x80, 0x82, 0xFE, 0xFF, 0x05]),
    st.binary(max_size=12),
)
STREAMS = st.one_of(
    st.binary(max_size=200),
    st.lists(FRAGMENTS_OF_FRAMES, max_size=8).map(b"".join),
    st.tuples(conversations(), st.lists(FRAGMENTS_OF_FRAMES, max_size=3)).map(
        lambda two: two[0].stream + b"".join(two[1])
    ),
)


@given(conversations(), st.data())
def test_a_conversation_is_read_whole_however_it_is_cut(traffic: Traffic, data: st.DataObject) -> None:
    pieces = data.draw(pieces_of(st.just(traffic.stream)))
    assert read_in_pieces(pieces) == (traffic.events, None)
    assert read_in_pieces(byte_by_byte(traffic.stream)) == (traffic.events, None)


@examples(150)
@given(pieces_of(STREAMS))
def test_any_bytes_give_the_same_events_and_the_same_fault_however_they_are_cut(pieces: list[bytes]) -> None:
    events, code = read(b"".join(pieces))
    assert read_in_pieces(pieces) == (events, code)
    assert read_in_pieces(byte_by_byte(b"".join(pieces))) == (events, code)
    assert code in (None, 1002, 1007, 1009)


@given(MASKS, st.binary(max_size=300))
@example(b"\x00\x00\x00\x00", b"\x00\x00\x00")
def test_the_mask_is_that_of_the_rfc_and_undoes_itself(mask: bytes, data: bytes) -> None:
    masked = xor_mask(mask, data)
    assert masked == bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
    assert xor_mask(mask, masked) == data


# -- against another implementation


def sent(protocol: Protocol) -> bytes:
    return b"".join(protocol.data_to_send())


@given(
    st.lists(st.tuples(st.sampled_from(["text", "binary", "ping", "pong"]), st.text(max_size=30)), max_size=6),
    st.data(),
)
def test_the_frames_of_another_client_are_read(sends: list[tuple[str, str]], data: st.DataObject) -> None:
    client, expected = Protocol(CLIENT), list[Event]()
    for kind, text in sends:
        payload = text.encode()
        if kind == "text":
            half = data.draw(st.integers(0, len(payload)))
            client.send_text(payload[:half], fin=False)
            client.send_continuation(payload[half:], fin=True)
            expected.append(Text(text))
        elif kind == "binary":
            client.send_binary(payload * 700)
            expected.append(Binary(payload * 700))
        elif kind == "ping":
            client.send_ping(payload)
            expected.append(Ping(payload))
        else:
            client.send_pong(payload)
            expected.append(Pong(payload))
    client.send_close(4000, "bye")
    pieces = data.draw(pieces_of(st.just(sent(client))))
    assert read_in_pieces(pieces, limit=1 << 20) == ([*expected, Close(4000, "bye")], None)


@given(st.binary(max_size=125), st.text(max_size=300), st.sampled_from([0, 125, 126, 65535, 65536]))
def test_another_client_reads_our_frames(data: bytes, text: str, size: int) -> None:
    client = Protocol(CLIENT)
    long = b"x" * size
    client.receive_data(text_frame(text.encode()) + text_frame(long) + PING + pong_frame(data))
    client.receive_data(close_frame(1001, text))
    assert client.parser_exc is None
    frames = [event for event in client.events_received() if isinstance(event, peer.Frame)]
    assert [(frame.opcode, bytes(frame.data)) for frame in frames][:-1] == [
        (peer.Opcode.TEXT, text.encode()),
        (peer.Opcode.TEXT, long),
        (peer.Opcode.PING, b""),
        (peer.Opcode.PONG, data),
    ]
    assert client.close_rcvd is not None
    assert client.close_rcvd.code == 1001
    assert text.startswith(client.close_rcvd.reason)
    assert read(sent(client)) == ([Pong(b""), Close(1001, client.close_rcvd.reason)], None)


@examples(150)
@given(STREAMS)
@example(b"\x02\xfe\x04\x00")
def test_whatever_another_server_refuses_is_refused(stream: bytes) -> None:
    server = Protocol(SERVER, max_size=LIMIT)
    server.receive_data(stream)
    events, code = read(stream)
    closed = bool(events) and isinstance(events[-1], Close)  # in a fragmented message too: the other one forbids it
    assert server.parser_exc is None or code is not None or closed


# -- what is sent


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        # The unmasked examples of RFC 6455, section 5.7.
        (text_frame(b"Hello"), "810548656c6c6f"),
        (pong_frame(b"Hello"), "8a0548656c6c6f"),
        (text_frame(bytes(256))[:4], "817e0100"),
        (text_frame(bytes(65536))[:10], "817f0000000000010000"),
        (PING, "8900"),
        (close_frame(None), "8800"),
        (close_frame(None, "lost with the code"), "8800"),
        (close_frame(1000), "880203e8"),
        (close_frame(4409, "no"), "880411396e6f"),
    ],
)
def test_a_frame_is_built_as_the_rfc_shows_it(frame: bytes, expected: str) -> None:
    assert frame.hex() == expected


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_a_length_takes_the_fewest_bytes(size: int) -> None:
    payload = bytes(size)
    assert len(text_frame(payload)) - size == (2 if size < 126 else 4 if size < 65536 else 10)
    assert payload_of(text_frame(payload)) == payload


@pytest.mark.parametrize(
    ("reason", "kept"),
    [("x" * 124, "x" * 123), ("ä" * 62, "ä" * 61), ("x" + "😀" * 40, "x" + "😀" * 30), ("a\ud800b", "a?b")],
)
def test_a_close_reason_is_cut_between_characters(reason: str, kept: str) -> None:
    frame = close_frame(1008, reason)
    assert frame[4:].decode() == kept
    assert len(frame) <= 2 + 2 + MAX_REASON_BYTES


def test_a_control_frame_over_125_bytes_is_not_built() -> None:
    assert len(pong_frame(b"x" * MAX_CONTROL_BYTES)) == 127
    with pytest.raises(ValueError, match="at most 125 bytes, not 126"):
        pong_frame(b"x" * 126)


@pytest.mark.parametrize("code", [0, 999, 1005, 1006, 1015, 2999, 5000, 70000, -1])
def test_a_close_code_that_may_not_be_sent_is_not_sent(code: int) -> None:
    assert not may_be_sent(code)
    with pytest.raises(ValueError, match="may not be sent"):
        close_frame(code)


def test_a_reader_counts_what_it_holds_of_a_message_and_holds_nothing_between_messages() -> None:
    reader, sent = FrameReader(1000), client_frame(0x1, b"x" * 200)
    for end in range(1, len(sent)):
        assert reader.feed(sent[end - 1 : end]) == []
        assert reader.in_message == (end >= 8)  # behind the header
        assert reader.held_bytes == (end - 8 if end >= 8 else end)
    reader.feed(sent[-1:])
    assert (reader.held_bytes, reader.in_message) == (0, False)
