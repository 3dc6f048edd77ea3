"""Speech for the gateways that break: it counts bytes and answers with words from a script, rightly or wrongly."""

from __future__ import annotations

import asyncio
import enum
import json
import secrets
from collections.abc import Callable, Mapping, Sequence

HYPOTHESES = ("go", "go somewhere")
WORDS = "go somewhere and do something"
OTHER_WORDS = "two nine three four zero"
LATE_S = 0.3

Answer = Callable[[int, str], None]
"""Status and body."""

Deliver = Callable[[str, str], None]
"""Device and message."""


class SpeechFault(enum.Enum):
    """One way to break what the contract says of speech."""

    ENGINE_FAILS = enum.auto()
    NO_WORDS = enum.auto()
    ANSWER_HAS_BLANKS = enum.auto()
    TOO_LARGE_AT_ONCE = enum.auto()
    ANSWERED_BEFORE_THE_END = enum.auto()
    CUT_WITHOUT_ANSWER = enum.auto()
    ANSWERED_WITHOUT_PUBLISHING = enum.auto()
    MESSAGE_HAS_BLANKS = enum.auto()
    MESSAGE_FOR_ANOTHER_USER = enum.auto()
    OTHER_SESSION_ID = enum.auto()
    WORDS_OF_ANOTHER_STREAM = enum.auto()
    NO_FINAL = enum.auto()
    FINAL_NOT_MARKED = enum.auto()
    TWO_FINALS = enum.auto()
    INTERIM_AFTER_FINAL = enum.auto()
    FINAL_BEFORE_THE_END = enum.auto()
    ANSWERED_BEFORE_PUBLISHING = enum.auto()
    TRANSCRIPT_TO_A_STRANGER = enum.auto()
    BINARY_IGNORED = enum.auto()
    BINARY_OF_ANOTHER_STREAM = enum.auto()
    BINARY_TO_A_STRANGER = enum.auto()
    BINARY_FAILS = enum.auto()
    NO_HYPOTHESES = enum.auto()  # no fault: the recording was short
    TWO_UTTERANCES = enum.auto()  # no fault: there was a pause in the binary messages


class BrokenSpeech:
    """Speech of one gateway.

    :param deliver: sends a device a message
    :param devices: all that are connected
    :ivar bodies: the audio that was uploaded, whole
    """

    def __init__(self, faults: Sequence[SpeechFault], deliver: Deliver, devices: Callable[[], list[str]]) -> None:
        self.bodies: list[bytes] = []
        self.binary: dict[str, list[bytes]] = {}
        self._faults, self._deliver, self._devices = frozenset(faults), deliver, devices

    def has(self, fault: SpeechFault) -> bool:
        return fault in self._faults

    async def post(
        self, claims: Mapping[str, object], reader: asyncio.StreamReader, answer: Answer, cut: Callable[[], None]
    ) -> None:
        """Take an upload and answer it. A hypothesis is sent with the first piece, and another with each that follows,
        as long as there are any."""
        session_id, hypotheses, body = secrets.token_hex(16), list(HYPOTHESES), b""
        if self.has(SpeechFault.TOO_LARGE_AT_ONCE):
            answer(413, '{"message":"Audio too large"}')
            return
        while piece := await _chunk(reader):
            body += piece
            if self.has(SpeechFault.CUT_WITHOUT_ANSWER):
                cut()
                return
            if self.has(SpeechFault.FINAL_BEFORE_THE_END):
                if body == piece:
                    self._say(claims, session_id, WORDS, True)
            elif hypotheses and not self.has(SpeechFault.NO_HYPOTHESES):
                self._say(claims, session_id, hypotheses.pop(0), False)
            if self.has(SpeechFault.ANSWERED_BEFORE_THE_END):
                break
        self.bodies.append(body)
        self._finish(claims, session_id, answer)

    def _finish(self, claims: Mapping[str, object], session_id: str, answer: Answer) -> None:
        if self.has(SpeechFault.ENGINE_FAILS):
            answer(502, '{"message":"Speech recognition failed"}')
            return
        if self.has(SpeechFault.ANSWERED_BEFORE_PUBLISHING):
            self._soon(lambda: self._publish(claims, session_id))
        else:
            self._publish(claims, session_id)
        fields = {"success": True, "message": "Audio processed successfully", "session_id": session_id}
        text = "" if self.has(SpeechFault.NO_WORDS) else WORDS
        separators = (", ", ": ") if self.has(SpeechFault.ANSWER_HAS_BLANKS) else (",", ":")
        answer(200, json.dumps({**fields, "text": text}, separators=separators))

    def _publish(self, claims: Mapping[str, object], session_id: str) -> None:
        if self.has(SpeechFault.NO_FINAL) or self.has(SpeechFault.FINAL_BEFORE_THE_END):
            return
        words = OTHER_WORDS if self.has(SpeechFault.WORDS_OF_ANOTHER_STREAM) else WORDS
        self._say(claims, session_id, words, None if self.has(SpeechFault.FINAL_NOT_MARKED) else True)
        if self.has(SpeechFault.TWO_FINALS):
            self._say(claims, session_id, words, True)
        if self.has(SpeechFault.INTERIM_AFTER_FINAL):
            self._say(claims, session_id, HYPOTHESES[-1], False)

    def _say(self, claims: Mapping[str, object], session_id: str, text: str, final: bool | None) -> None:
        if self.has(SpeechFault.ANSWERED_WITHOUT_PUBLISHING):
            return
        if self.has(SpeechFault.OTHER_SESSION_ID):
            session_id = secrets.token_hex(16)
        message = self._message(claims, session_id, text, {} if final is None else {"final": final})
        self._deliver(str(claims["device_id"]), message)
        if self.has(SpeechFault.TRANSCRIPT_TO_A_STRANGER):
            self._leak_to_others(claims, message)

    def _message(
        self, claims: Mapping[str, object], session_id: str, text: str, more: Mapping[str, object], ok: bool = True
    ) -> str:
        user_id = 4711 if self.has(SpeechFault.MESSAGE_FOR_ANOTHER_USER) else claims["user_id"]
        identity = {"session_id": session_id, "user_id": user_id, "device_id": claims["device_id"]}
        fields = {"type": "transcription", **identity, "text": text, "timestamp": "2026-01-02T03:04:05.678Z", **more}
        separators = (", ", ": ") if self.has(SpeechFault.MESSAGE_HAS_BLANKS) else (",", ":")
        outcome = {"success": True} if ok else {"success": False, "error": "speech recognition failed"}
        return json.dumps({**fields, **outcome}, separators=separators)

    def _leak_to_others(self, claims: Mapping[str, object], message: str) -> None:
        for device_id in self._devices():
            if device_id != claims["device_id"]:
                self._deliver(device_id, message)

    def _soon(self, act: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(LATE_S, act)

    # --- Binary messages -------------------------------------------------------------------------------------------

    def take(self, claims: Mapping[str, object], data: bytes) -> None:
        """A binary message."""
        self.binary.setdefault(str(claims["device_id"]), []).append(data)

    def end(self, claims: Mapping[str, object]) -> None:
        """``{"type":"audio_end"}``."""
        if self.has(SpeechFault.BINARY_IGNORED) or not self.binary.get(str(claims["device_id"])):
            return
        words = OTHER_WORDS if self.has(SpeechFault.BINARY_OF_ANOTHER_STREAM) else WORDS
        parts = [words[:12], words[13:]] if self.has(SpeechFault.TWO_UTTERANCES) else [words]
        for part in parts:
            failing = self.has(SpeechFault.BINARY_FAILS)
            text = "" if failing else part
            message = self._message(claims, secrets.token_hex(16), text, {}, not failing)
            self._deliver(str(claims["device_id"]), message)
            if self.has(SpeechFault.BINARY_TO_A_STRANGER):
                self._leak_to_others(claims, message)


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    """The next chunk of a body; empty at its end."""
    size = int(await reader.readuntil(b"\r\n"), 16)
    return (await reader.readexactly(size + 2))[:-2]
