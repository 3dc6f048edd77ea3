"""What a spoken recording has led to, judged. Pure; as in :mod:`.judge`, None is: all is well.

The judges stand in the order of their checks. Each takes for granted what those before it have found to be so, and says
nothing of it again.
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
"""Two recognitions of so many words, and more, have one in common."""

_FIELDS: Final = ("session_id", "user_id", "device_id", "text", "timestamp", "success")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message, and when it came (monotonic seconds)."""

    at: float
    message: Message

    @property
    def fields(self) -> Mapping[str, object]:
        """Of its JSON object; none where it is something else."""
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
class Heard:
    """An utterance that was answered with its words, and what arrived meanwhile. Times are monotonic seconds.

    :ivar session_id: of the answer, as is ``text``
    :ivar arrivals: all that came to the device that spoke, in its order
    :ivar strangers: what came to the other device; None where there was none to listen
    :ivar no_stranger: why there was none
    """

    device: Device
    session_id: str
    text: str
    began_at: float
    last_byte_at: float
    answered_at: float
    arrivals: Sequence[Arrival]
    strangers: Sequence[Message] | None = None
    no_stranger: str = ""

    @property
    def messages(self) -> list[Arrival]:
        """Those of the utterance. A live device may get others between them."""
        return [arrival for arrival in self.arrivals if arrival.session_id == self.session_id]

    @property
    def hypotheses(self) -> list[Arrival]:
        return [arrival for arrival in self.messages if arrival.is_hypothesis]

    @property
    def results(self) -> list[Arrival]:
        """Those that are no hypotheses."""
        return [arrival for arrival in self.messages if not arrival.is_hypothesis]


def judge_speech_messages(heard: Heard) -> str | None:
    """Something came, and all of it is as the contract spells it."""
    if not heard.messages:
        others = [arrival.message for arrival in heard.arrivals]
        hint = f"; something else did: {quoted(others[-1])}" if others else ""
        return f"the transcript was answered, but no message with its session_id came{hint}"
    return next(filter(None, (_judge_shape(arrival, heard.device) for arrival in heard.messages)), None)


def _judge_shape(arrival: Arrival, device: Device) -> str | None:
    message, fields = arrival.message, arrival.fields
    if isinstance(message, bytes):
        return "arrived as a binary message; the contract sends text"
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


def judge_words(heard: Heard) -> str | None:
    """The last message that is no hypothesis says what the answer says."""
    said = heard.results[-1].text
    if said == heard.text:
        return None
    return f'the message says "{quoted(said, 60)}", the answer "{quoted(heard.text, 60)}"'


def judge_final(heard: Heard) -> str | None:
    """With ``?interim=true`` exactly one message says ``"final":true``."""
    if not heard.results:
        return f'{len(heard.hypotheses)} hypotheses came, but no message with "final":true'
    if len(heard.results) > 1:
        return f"{len(heard.results)} messages with the words came, expected 1"
    if heard.results[0].fields.get("final") is not True:
        return f'the message does not say "final":true: {quoted(heard.results[0].message)}'
    return None


def judge_speech_order(heard: Heard) -> str | None:
    """First the audio ends, then the final message comes, then nothing more."""
    final = heard.results[0]
    if final.at < heard.last_byte_at:
        return f"the final message came {heard.last_byte_at - final.at:.2f} s before the last of the audio was sent"
    late = len([arrival for arrival in heard.messages[heard.messages.index(final) :] if arrival.is_hypothesis])
    return f"{late} {'hypothesis' if late == 1 else 'hypotheses'} came after the final message" if late else None


def judge_published(heard: Heard, at_once_s: float) -> str | None:
    """What was published before the answer arrives at about the same time as the answer."""
    late_s = heard.results[0].at - heard.answered_at
    if late_s <= at_once_s:
        return None
    return f"the message came {late_s:.2f} s after the answer: the answer did not wait for it to be published"


def judge_strangers(heard: Heard) -> str | None:
    """Nothing of the utterance reached the other device."""
    for message in heard.strangers or ():
        fields = Arrival(0.0, message).fields
        if fields.get("session_id") == heard.session_id or fields.get("device_id") == heard.device.device_id:
            return f"another device got {quoted(message)}"
    return None


def judge_binary(words: str, posted: str, arrived: Sequence[Arrival]) -> str | None:
    """The same audio as binary messages. Other pauses and cuts make other words of it, but not all of them.

    :param words: of all its utterances
    :param posted: the words that the upload of the same recording came back as
    """
    if failures := [arrival.message for arrival in arrived if arrival.fields.get("success") is not True]:
        return f"was answered {quoted(failures[0])}"
    if not words:
        return "no words came back"
    expected = set(posted.lower().split())
    if len(expected) >= LEAST_WORDS and not expected & set(words.lower().split()):
        return f'came back as "{quoted(words, 60)}", which has no word in common with "{quoted(posted, 60)}"'
    return None
