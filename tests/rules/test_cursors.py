"""Cursors, the messages that bear them, and acknowledgements."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.box import Position
from cocoa_tornado.rules.cursors import (
    MAX_EPOCH,
    MAX_NUMBER,
    acknowledged_cursor,
    gap_notice,
    make_cursor,
    read_cursor,
    with_cursor,
)
from cocoa_tornado.rules.records import Record, decode

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
DEVICES = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())
NUMBERS = st.integers(0, MAX_NUMBER)


POSITIONS = st.builds(Position, NUMBERS, st.integers(0, MAX_EPOCH), st.just(0) | NUMBERS)


@given(DEVICES, POSITIONS)
def test_a_cursor_is_read_by_its_own_device_and_mailbox_alone(device: str, position: Position) -> None:
    cursor = make_cursor(KEY, device, position)
    assert len(cursor) == (32 if position.high else 24)
    assert read_cursor(KEY, device, cursor) == position
    assert read_cursor(KEY, device + "x", cursor) is None
    assert read_cursor(OTHER_KEY, device, cursor) is None


def test_a_cursor_needs_no_escaping() -> None:
    cursors = [make_cursor(KEY, "doll", Position(at % 500, 0, at // 500)) for at in range(1000)]
    assert all(cursor.replace("-", "a").replace("_", "a").isalnum() for cursor in cursors)
    assert len(set(cursors)) == 1000


@given(POSITIONS, st.integers(0, 31), st.characters())
def test_a_cursor_that_was_tampered_with_is_unknown(position: Position, at: int, character: str) -> None:
    cursor = make_cursor(KEY, "doll", position)
    forged = cursor[:at] + character + cursor[at + 1 :]
    assert read_cursor(KEY, "doll", forged) == (position if forged == cursor else None)


def test_a_cursor_of_the_previous_release_is_read_and_made_as_before() -> None:
    """Literally, because devices keep them."""
    assert make_cursor(KEY, "doll", Position(7, 3)) == "AAAAAwAAAAAAB1jhoCW-nLiT"
    assert read_cursor(KEY, "doll", "AAAAAwAAAAAAB1jhoCW-nLiT") == Position(7, 3, 0)


@given(st.text(max_size=40))
def test_no_text_at_all_breaks_the_reader(text: str) -> None:
    assert read_cursor(KEY, "doll", text) is None


def with_c(payload: bytes) -> bytes:
    """The message with its cursor, which is shortened to ``C``."""
    position = Position(7, 3)
    cursor = make_cursor(KEY, "doll", position).encode()
    return with_cursor(payload, KEY, "doll", position).replace(cursor, b"C")


def test_the_cursor_is_the_last_field() -> None:
    assert with_c(b'{"type":"transcription","text":"Hi"}') == (b'{"type":"transcription","text":"Hi","cursor":"C"}')


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"type":"t","cursor":"mine"}', b'{"type":"t","cursor":"C"}'),
        (b'{"type":"t","cursor":{"a":[1]},"n":1.00}', b'{"type":"t","n":1.00,"cursor":"C"}'),
        (b'{"type":"t","a":{"cursor":1}}', b'{"type":"t","a":{"cursor":1},"cursor":"C"}'),
        (b'{"type":"t","a":"\\"cursor\\":"}', b'{"type":"t","a":"\\"cursor\\":","cursor":"C"}'),
        (b'{"type":"t","cursor":' + b"9" * 5000 + b"}", b'{"type":"t","cursor":"C"}'),
    ],
)
def test_a_cursor_of_the_record_itself_is_replaced(payload: bytes, expected: bytes) -> None:
    assert with_c(payload) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "cursor", "\\", '"']), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["text", "cursor", "cursor ", 'x"cursor":', "é"]), JSON))
def test_every_other_field_stays_as_it_was(fields: dict[str, object]) -> None:
    delivery = decode(None, json.dumps({"device_id": "doll", **fields}).encode(), 0)
    assert isinstance(delivery, Record)
    before = json.loads(delivery.payload)
    after = json.loads(with_c(delivery.payload))
    assert list(after)[-1] == "cursor"
    before.pop("cursor", None)
    assert after.pop("cursor") == "C"
    assert (after, list(after)) == (before, list(before))


def test_a_gap_notice_has_the_form_of_the_contract() -> None:
    assert gap_notice(12) == b'{"type":"gap","missed":12}'


@pytest.mark.parametrize("text", ['{"type":"ack","cursor":"abc"}', ' {"cursor" : "abc", "type":"ack", "n": 1 } '])
def test_an_acknowledgement_names_a_cursor(text: str) -> None:
    assert acknowledged_cursor(text) == "abc"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ack",
        '"ack"',
        '["ack"]',
        '{"type":"ack"}',
        '{"type":"ack","cursor":7}',
        '{"type":"nack","cursor":"abc"}',
        '{"type":"ack","cursor":"abc"',
        '{"kind":"ack","cursor":"abc"}',
        '{"type":"ack","cursor":"' + "a" * 300 + '"}',
        "[" * 250 + '"ack"',
    ],
)
def test_anything_else_is_an_ordinary_message(text: str) -> None:
    assert acknowledged_cursor(text) is None
