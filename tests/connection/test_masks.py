"""Which function unmasks the frames of clients."""

from __future__ import annotations

import sys

import pytest
import tornado.speedups
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.connection.masks import fastest_unmask
from cocoa_tornado.rules.frames import Binary, FrameReader, xor_mask


def test_tornados_function_is_taken() -> None:
    assert fastest_unmask() is tornado.speedups.websocket_mask


def test_python_unmasks_where_tornado_was_installed_without_its_c_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tornado.speedups", None)
    assert fastest_unmask() is xor_mask


def wants_something_else(mask: bytes, data: bytes) -> bytes:
    raise TypeError


@pytest.mark.parametrize("function", [wants_something_else, lambda mask, data: data])
def test_python_unmasks_where_tornados_function_does_something_else(
    function: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tornado.speedups, "websocket_mask", function)
    assert fastest_unmask() is xor_mask


@given(mask=st.binary(min_size=4, max_size=4), data=st.binary(max_size=300))
def test_both_functions_do_the_same(mask: bytes, data: bytes) -> None:
    assert fastest_unmask()(mask, data) == xor_mask(mask, data)


@given(mask=st.binary(min_size=4, max_size=4), data=st.binary(min_size=126, max_size=1000), cut=st.integers(0, 1000))
def test_a_message_in_two_pieces_is_unmasked_as_one(mask: bytes, data: bytes, cut: int) -> None:
    frame = b"\x82\xfe" + len(data).to_bytes(2, "big") + mask + xor_mask(mask, data)
    reader = FrameReader(1000, fastest_unmask())
    assert reader.feed(frame[:cut]) + reader.feed(frame[cut:]) == [Binary(data)]
