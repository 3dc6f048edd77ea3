"""The records of speech."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.records import Record, decode
from cocoa_tornado.rules.transcripts import SpeechSession, failure_record, message_of, transcript_record

SESSION = SpeechSession("ab" * 16, 99, "12312")
START = b'{"session_id":"abababababababababababababababab","user_id":99,"device_id":"12312",'


@pytest.mark.parametrize(
    ("final", "tail"),
    [
        (None, b'"success":true}'),
        (False, b'"final":false,"success":true}'),
        (True, b'"final":true,"success":true}'),
    ],
)
def test_a_transcript_is_compact_and_marked_as_final_or_not(final: bool | None, tail: bytes) -> None:
    record = transcript_record(SESSION, "Hello", 1_705_314_600.0, final=final)
    assert record == START + b'"text":"Hello","timestamp":"2024-01-15T10:30:00.000Z",' + tail


def test_a_failure_has_an_error_and_no_text() -> None:
    record = failure_record(SESSION, "speech recognition failed", 1_705_314_600.0, final=True)
    tail = b'"final":true,"success":false,"error":"speech recognition failed"}'
    assert record == START + b'"text":"","timestamp":"2024-01-15T10:30:00.000Z",' + tail


def test_only_what_json_requires_is_escaped() -> None:
    assert '"text":"żółw \\"a\\"",'.encode() in transcript_record(SESSION, 'żółw "a"', 0.0)


text = st.text(st.characters(exclude_categories=["Cs"]))


@given(text, text.filter(lambda name: name.isprintable() and 0 < len(name.encode()) <= 128), st.integers() | text)
def test_a_record_comes_back_as_the_message_that_is_expected(words: str, device_id: str, user_id: int | str) -> None:
    record = transcript_record(SpeechSession("ab" * 16, user_id, device_id), words, 1_705_314_600.0)
    decoded = decode(device_id.encode(), record, 0)
    assert isinstance(decoded, Record)
    assert decoded.address == device_id
    assert decoded.payload == message_of(record)
    assert json.loads(decoded.payload)["text"] == words
