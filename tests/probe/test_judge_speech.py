"""Judging the results of a recording."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.probe.credentials import Device
from cocoa_tornado.probe.judge import compact_json
from cocoa_tornado.probe.judge_speech import (
    Received,
    SpeechResult,
    judge_binary,
    judge_final,
    judge_isolation,
    judge_published,
    judge_speech_messages,
    judge_speech_order,
    judge_words,
)

SESSION = "0123456789abcdef" * 2
TEXT = "go somewhere and do something"


def message(text: str = TEXT, **fields: object) -> str:
    head = {"type": "transcription", "session_id": SESSION, "user_id": 7, "device_id": "doll", "text": text}
    return compact_json({**head, "timestamp": "2026-01-02T03:04:05.678Z", "success": True, **fields})


SPEECH = SpeechResult(
    Device("doll", 7, "a.b.c"),
    SESSION,
    TEXT,
    began_at=10.0,
    last_byte_at=13.0,
    answered_at=13.4,
    received=(Received(11.0, message("go", final=False)), Received(13.5, message(final=True))),
    others=(),
)


def with_messages(*messages: str | bytes, at: float = 13.5) -> SpeechResult:
    return replace(SPEECH, received=tuple(Received(at, message) for message in messages))


def test_speech_as_the_contract_has_it_passes() -> None:
    assert judge_speech_messages(SPEECH) is None
    assert judge_words(SPEECH) is None
    assert judge_final(SPEECH) is None
    assert judge_speech_order(SPEECH) is None
    assert judge_published(SPEECH, 1.0) is None
    assert judge_isolation(SPEECH) is None


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (message(user_id="7", final=True), "another device or user"),
        (message(device_id="other", final=True), "another device or user"),
        (message(success=False, error="?", final=True), "success:false"),
        (message(timestamp="yesterday", final=True), "timestamp"),
        (message(final=True).replace(",", ", "), "has blanks"),
        (message(type="transcript", final=True), "does not begin with"),
        (message(final=True).replace('"type":"transcription",', ""), "does not begin with"),
        (message(final=True).replace('"success":true,', ""), "has no success"),
        (message(final=True).encode(), "binary"),
        (message(session_id="f" * 32, final=True), "something else did"),
    ],
)
def test_what_is_wrong_with_a_message_of_speech_is_named(sent: str | bytes, problem: str) -> None:
    assert problem in str(judge_speech_messages(with_messages(sent)))


def test_a_message_may_have_further_fields() -> None:
    assert judge_speech_messages(with_messages(message(final=True, confidence=0.7, cursor="abc"))) is None


def test_a_final_message_without_final_true_is_a_failure() -> None:
    assert "no message with" in str(judge_final(with_messages(message("go", final=False))))
    assert "2 messages" in str(judge_final(with_messages(message(final=True), message(final=True))))
    assert "does not say" in str(judge_final(with_messages(message())))


def test_times_are_judged_to_the_hundredth() -> None:
    assert "0.50 s before the last of the audio" in str(judge_speech_order(with_messages(message(final=True), at=12.5)))
    assert "2.10 s after the answer" in str(judge_published(with_messages(message(final=True), at=15.5), 1.0))


def test_hypotheses_after_the_final_are_counted() -> None:
    late = (message(final=True), message("go", final=False), message("go some", final=False))
    assert judge_speech_order(with_messages(*late)) == "2 hypotheses came after the final message"
    assert judge_speech_order(with_messages(*late[:2])) == "1 hypothesis came after the final message"


@pytest.mark.parametrize("sent", [message(), message(session_id="f" * 32), message(device_id="other")])
def test_a_message_of_it_to_another_device_is_noticed(sent: str) -> None:
    assert "another device got" in str(judge_isolation(replace(SPEECH, others=(sent,))))


def test_another_devices_own_messages_do_not_matter() -> None:
    own = message(session_id="f" * 32, device_id="other")
    assert judge_isolation(replace(SPEECH, others=(own, b"\xff", "garbage"))) is None


def test_binary_messages_need_words_of_the_recording() -> None:
    arrived = [Received(0.0, message())]
    assert judge_binary("somewhere else", TEXT, arrived) is None
    assert judge_binary("two", "five", arrived) is None
    assert "no word in common" in str(judge_binary("two nine three", TEXT, arrived))
    assert "no words" in str(judge_binary("", TEXT, arrived))
    assert "was answered" in str(judge_binary("", TEXT, [Received(0.0, message(success=False))]))


FIELDS = st.fixed_dictionaries(
    {"session_id": st.sampled_from([SESSION, "other", 7])},
    optional={name: st.none() | st.booleans() | st.text(max_size=3) for name in ("final", "text", "success", "type")},
)


@given(st.lists(st.tuples(st.floats(0, 20), FIELDS.map(compact_json) | st.binary(max_size=9)), min_size=1))
def test_any_messages_can_be_judged(received: list[tuple[float, str | bytes]]) -> None:
    speech = replace(SPEECH, received=tuple(Received(*item) for item in received))
    judge_speech_messages(speech)
    judge_final(speech)
    judge_isolation(replace(speech, others=tuple(message for _, message in received)))
    judge_binary("a b c", "d e f", speech.received)
    if speech.results:
        judge_words(speech)
        judge_speech_order(speech)
        judge_published(speech, 1.0)
