"""The catalogue of close codes, and the table of them in docs/protocol.rst."""

from __future__ import annotations

import re
from pathlib import Path

from cocoa_tornado.rules import close_codes, frames
from cocoa_tornado.rules.close_codes import CloseReason

PROTOCOL = Path(__file__).parent.parent.parent / "docs" / "protocol.rst"
CATALOGUE = [value for value in vars(close_codes).values() if isinstance(value, CloseReason)]


def table() -> set[tuple[int, str]]:
    """Code and text of each row; a text in parentheses describes what the text would be."""
    text = PROTOCOL.read_text(encoding="utf-8")
    rule = r"^=+ =+ =+\n"
    body = re.search(rf"{rule}code  text .*\n{rule}((?:.*\n)*?){rule}", text, re.MULTILINE)
    assert body is not None
    return {(int(line[:5]), line[6:37].strip()) for line in body[1].splitlines()}


def test_the_protocol_has_a_row_for_every_close_of_the_catalogue_and_for_no_other() -> None:
    rows = {(code, text) for code, text in table() if not text.startswith(("(", "message over"))}
    assert rows == {(reason.code, reason.text) for reason in CATALOGUE}


def test_what_an_error_in_a_frame_is_answered_with_is_in_the_protocol() -> None:
    reader = frames.FrameReader(512 * 1024)
    reader.feed(b"\x82\xff" + (512 * 1024 + 1).to_bytes(8, "big"))
    assert reader.error is not None
    assert (reader.error.close_code, reader.error.reason) in table()
    described = {code for code, text in table() if text.startswith("(")}
    assert described == {1000, 1002, 1007}


def test_a_close_reason_fits_into_a_control_frame() -> None:
    assert all(len(reason.text.encode()) <= 123 for reason in CATALOGUE)


def test_no_two_closes_have_the_same_text_or_the_same_word_for_the_log() -> None:
    assert len({reason.text for reason in CATALOGUE}) == len(CATALOGUE)
    assert len({reason.outcome for reason in CATALOGUE}) == len(CATALOGUE)
