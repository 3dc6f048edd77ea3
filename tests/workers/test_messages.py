from __future__ import annotations

import contextlib
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.workers.messages import (
    MAX_MESSAGE_BYTES,
    Answer,
    Ask,
    Beat,
    BrokenChannel,
    FromWorker,
    Leaving,
    MessageReader,
    Question,
    Reloaded,
    Up,
    encode,
)

MESSAGES: st.SearchStrategy[FromWorker] = st.one_of(
    st.sampled_from([Up(), Beat(), Leaving(), Reloaded()]),
    st.builds(Ask, st.integers(0, 2**31), st.sampled_from(["metrics", "ready"])),
    st.builds(Answer, st.integers(0, 2**31), st.text()),
)


def reader() -> MessageReader[FromWorker]:
    return MessageReader[FromWorker](cast(type[FromWorker], FromWorker))


@given(messages=st.lists(MESSAGES), sizes=st.lists(st.integers(1, 40), min_size=1))
def test_messages_arrive_in_order_however_the_bytes_are_split(messages: list[FromWorker], sizes: list[int]) -> None:
    data, read = b"".join(map(encode, messages)), reader()
    received: list[FromWorker] = []
    while data:
        for size in sizes:
            received += read.feed(data[:size])
            data = data[size:]
    assert received == messages


@pytest.mark.parametrize(
    "data",
    [
        (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"),
        b"\0\0\0\2{}",
        b"\0\0\0\1\xff",
        encode(Question(1, "ready")),  # the other direction
    ],
)
def test_what_is_not_a_message_breaks_the_channel(data: bytes) -> None:
    with pytest.raises(BrokenChannel):
        list(reader().feed(data))


@given(data=st.binary())
def test_any_bytes_are_messages_or_break_the_channel(data: bytes) -> None:
    with contextlib.suppress(BrokenChannel):
        list(reader().feed(data))
