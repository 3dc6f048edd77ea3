"""What two workers say to each other (handover.wire)."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.handover.pieces import Delivery, Merged, Piece, merged
from cocoa_tornado.handover.wire import BrokenLink, Hello, Message, MessageReader, News, Records, encode, records_of
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.records import Record

texts = st.text(max_size=10)
numbers = st.integers(0, 2**53)
optional = st.none() | texts
options = st.none() | st.builds(
    Options, st.sampled_from(["high", "normal", "low"]), st.none() | numbers, optional, optional
)
records = st.builds(Record, texts, st.binary(max_size=30), numbers, st.just(True), texts, options)


@st.composite
def portions(draw: st.DrawFn) -> Records:
    of = draw(st.lists(records, min_size=1, max_size=5))
    offsets = draw(st.lists(numbers, min_size=len(of), max_size=len(of)))
    return records_of(draw(numbers), draw(numbers), Merged(of, offsets, [("results/0", len(of))]))


messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, numbers, numbers),
    st.builds(
        News,
        *(texts, numbers, st.lists(texts), st.lists(texts), numbers),
        *(st.dictionaries(numbers, st.lists(numbers), max_size=3), st.lists(numbers)),
    ),
    portions(),
)


@given(st.lists(messages, max_size=4), st.integers(1, 50))
def test_messages_are_read_as_they_were_written_however_the_socket_splits_them(of: list[Message], step: int) -> None:
    data, reader = b"".join(map(encode, of)), MessageReader()
    read = [message for at in range(0, len(data), step) for message in reader.feed(data[at : at + step])]
    assert read == of


@given(st.lists(records, min_size=1, max_size=5))
def test_a_record_is_the_same_at_the_sibling(of: list[Record]) -> None:
    portion = records_of(1, 2, Merged(of, range(len(of)), [("results/0", len(of))]))
    (read,) = MessageReader().feed(encode(portion))
    assert isinstance(read, Records)
    assert read.records() == of


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(["later", 1]),
        msgspec.msgpack.encode(["records", 1, 1, ["a"], [b"{}"], [0], [""], [None], [1, 2], [["p", 1]]]),
        msgspec.msgpack.encode(["records", 1, 1, ["a"], [b"{}"], [0], [""], [None], [1], [["p", 2]]]),
    ],
)
def test_anything_else_ends_the_link(body: bytes) -> None:
    with pytest.raises(BrokenLink):
        list(MessageReader().feed(struct.pack("!I", len(body)) + body))


def test_a_length_that_no_message_has_ends_the_link_at_once() -> None:
    with pytest.raises(BrokenLink, match="4294967295 bytes"):
        list(MessageReader().feed(b"\xff\xff\xff\xff"))


def test_pieces_of_several_batches_keep_the_partition_and_the_offset_of_each_record() -> None:
    done: list[str] = []
    one = Delivery(
        [Record(name, b"{}", 0) for name in "abc"], [4, 5, 9], [("p", 2), ("q", 1)], lambda: done.append("1")
    )
    two = Delivery([Record(name, b"{}", 0) for name in "de"], [10, 11], [("q", 2)], lambda: done.append("2"))
    pieces = [Piece(one, [1, 2]), Piece(two, [0])]
    whole = merged(pieces)
    assert [record.address for record in whole.records] == ["b", "c", "d"]
    assert (whole.offsets, whole.sources) == ([5, 9, 10], [("p", 1), ("q", 2)])
    for piece in [*pieces, Piece(one, [0])]:
        piece.done()
    assert done == ["1"]
