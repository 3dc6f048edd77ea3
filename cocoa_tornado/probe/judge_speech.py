"""Judges the results of a recording. Pure; as in :mod:`.judge`, None means no problem.

The judges are in the order of their checks. Each relies on the earlier ones, and does not repeat their problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .credentials import Device
from .device import Message
from .judge import judge_timestamp, quoted, wasteful
from .wire import json_value

LEAST_WORDS: Final = 3
"""Two transcripts of the same speech with at least this many words have a word in common."""

_FIELDS: Final = ("session_id", "user_id", "device_id", "text", "timestamp", "success")


@dataclass(frozen=True, slots=True)
class Received:
    """A message, and when it was received (monotonic seconds)."""

    at: float
    message: Message

    @property
    def fields(self) -> Mapping[str, object]:
        """The fields of its JSON object; empty if it is no object."""
        raw = self.message.encode("utf-8", "replace") if isinstance(self.message, str) else self.message
        value = json_value(raw)
        return value if isinstance(value, dict) else {}

    @property
    def session_id(self) -> object:
        return self.fields.get("session_id")

    @property
    def text(self) -> str:
        return str(self.fields.get("text", ""))

    @property
    def is_hypothesis(self) -> bool:
        return self.fields.get("final") is False


@dataclass(frozen=True, slots=True)
class SpeechResult:
    """An upload that was answered with text, and the messages received meanwhile. Times are monotonic seconds.

    :ivar session_id: the session id of the response
    :ivar text: the text of the response
    :ivar received: all messages to the speaking device, in order
    :ivar others: the messages to the second device; None if there is no second device
    :ivar no_other: why there is no second device
    """

    device: Device
    session_id: str
    text: str
    began_at: float
    last_byte_at: float
    answered_at: float
    received: Sequence[Received]
    others: Sequence[Message] | None = None
    no_other: str = ""

    @property
    def messages(self) -> list[Received]:
        """The messages of this utterance. A real device may get others in between."""
        return [item for item in self.received if item.session_id == self.session_id]

    @property
    def hypotheses(self) -> list[Received]:
        return [item for item in self.messages if item.is_hypothesis]

    @property
    def results(self) -> list[Received]:
        """The messages that are not hypotheses."""
        return [item for item in self.messages if not item.is_hypothesis]


def judge_speech_messages(speech: SpeechResult) -> str | None:
    """At least one message came, and all of them match the contract."""
    if not speech.messages:
        others = [item.message for item in speech.received]
        hint = f"; something else did: {quoted(others[-1])}" if others else ""
        return f"the transcript was answered, but no message with its session_id came{hint}"
    return next(filter(None, (_judge_shape(item, speech.device) for item in speech.messages)), None)


def _judge_shape(item: Received, device: Device) -> str | None:
    message, fields = item.message, item.fields
    if isinstance(message, bytes):
        return "results as a binary message; the contract sends text"
    if next(iter(fields), None) != "type" or fields["type"] != "transcription":
        return f'does not begin with {{"type":"transcription": {quoted(message)}'
    if missing := [name for name in _FIELDS if name not in fields]:
        return f"has no {missing[0]}: {quoted(message)}"
    if problem := wasteful(message):
        return f"{problem}: {quoted(message)}"
    if fields["device_id"] != device.device_id or fields["user_id"] != device.user_id:
        return f"names another device or user: {quoted(message)}"
    if fields["success"] is not True:
        return f"says success:false, though the answer was 200: {quoted(message)}"
    return judge_timestamp(fields["timestamp"])


def judge_words(speech: SpeechResult) -> str | None:
    """The last final message has the text of the response."""
    said = speech.results[-1].text
    if said == speech.text:
        return None
    return f'the message says "{quoted(said, 60)}", the answer "{quoted(speech.text, 60)}"'


def judge_final(speech: SpeechResult) -> str | None:
    """With ``?interim=true`` exactly one message has ``"final":true``."""
    if not speech.results:
        return f'{len(speech.hypotheses)} hypotheses came, but no message with "final":true'
    if len(speech.results) > 1:
        return f"{len(speech.results)} messages with the words came, expected 1"
    if speech.results[0].fields.get("final") is not True:
        return f'the message does not say "final":true: {quoted(speech.results[0].message)}'
    return None


def judge_speech_order(speech: SpeechResult) -> str | None:
    """The final message comes after the end of the audio, and no hypothesis after it."""
    final = speech.results[0]
    if final.at < speech.last_byte_at:
        return f"the final message came {speech.last_byte_at - final.at:.2f} s before the last of the audio was sent"
    late = len([item for item in speech.messages[speech.messages.index(final) :] if item.is_hypothesis])
    return f"{late} {'hypothesis' if late == 1 else 'hypotheses'} came after the final message" if late else None


def judge_published(speech: SpeechResult, at_once_s: float) -> str | None:
    """The message is published before the response, so both arrive at about the same time."""
    late_s = speech.results[0].at - speech.answered_at
    if late_s <= at_once_s:
        return None
    return f"the message came {late_s:.2f} s after the answer: the answer did not wait for it to be published"


def judge_isolation(speech: SpeechResult) -> str | None:
    """No message of the utterance reached the second device."""
    for message in speech.others or ():
        fields = Received(0.0, message).fields
        if fields.get("session_id") == speech.session_id or fields.get("device_id") == speech.device.device_id:
            return f"another device got {quoted(message)}"
    return None


def judge_binary(words: str, posted: str, results: Sequence[Received]) -> str | None:
    """Judge the same audio in binary messages. It may be split differently, which changes some words, but not all.

    :param words: the words of all its utterances
    :param posted: the words of the upload of the same recording
    """
    if failures := [item.message for item in results if item.fields.get("success") is not True]:
        return f"was answered {quoted(failures[0])}"
    if not words:
        return "no words came back"
    expected = set(posted.lower().split())
    if len(expected) >= LEAST_WORDS and not expected & set(words.lower().split()):
        return f'came back as "{quoted(words, 60)}", which has no word in common with "{quoted(posted, 60)}"'
    return None
