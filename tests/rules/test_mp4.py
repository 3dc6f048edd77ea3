"""How an MP4 is laid out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.mp4 import MAX_HEAD_BYTES, is_fragmented

from ..speech.recordings import encoded, go_forward

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "100000"}


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return (8 + len(body)).to_bytes(4, "big") + kind + body


FTYP = box(b"ftyp", b"iso5\0\0\2\0")


def test_what_live_recorders_write_is_fragmented() -> None:
    assert is_fragmented(encoded(go_forward(), "mp4", "aac", options=FRAGMENTED)) is True


def test_what_others_write_is_not() -> None:
    assert is_fragmented(encoded(go_forward(), "mp4", "aac")) is False


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", None),
        (FTYP, None),
        (FTYP + box(b"moov", box(b"mvhd", bytes(100)), box(b"mvex", bytes(24))), True),
        (FTYP + box(b"free", bytes(500)) + box(b"moov", box(b"mvex")), True),
        (FTYP + box(b"moov", box(b"mvhd", bytes(100)), box(b"trak", bytes(80))), False),
        (FTYP + box(b"moov", box(b"mvhd", bytes(100)))[:50], None),
        (FTYP + (900).to_bytes(4, "big") + b"mdat", False),
        (FTYP + (1).to_bytes(4, "big") + b"mdat", False),
        (FTYP + (0).to_bytes(4, "big") + b"free" + bytes(8), False),
        (FTYP + (0x7FFFFFFF).to_bytes(4, "big") + b"moov", None),
        (FTYP + (0x7FFFFFFF).to_bytes(4, "big") + b"free", False),
        (FTYP + box(b"moov", (3).to_bytes(4, "big") + b"mvhd", box(b"mvex")), False),
    ],
)
def test_the_boxes_tell(head: bytes, expected: bool | None) -> None:
    assert is_fragmented(head) is expected
    assert is_fragmented(head, complete=True) is (expected or False)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_are_judged_once_and_for_all(tail: bytes, cut: int) -> None:
    head = FTYP + tail + bytes(MAX_HEAD_BYTES)
    judged = is_fragmented(head)

    assert judged is not None
    assert is_fragmented(head[:cut]) in (None, judged)
