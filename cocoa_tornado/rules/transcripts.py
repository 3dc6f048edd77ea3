"""Builds the records that speech recognition publishes to the results topic. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

RECOGNITION_FAILED: Final = "speech recognition failed"
NOT_DECODABLE: Final = "audio not decodable"
TOO_LONG: Final = "audio too long"
BUSY: Final = "speech recognition is busy"
DRAINING: Final = "the gateway is going away"
DROPPED: Final = "the audio did not come to its end"

MESSAGE_HEAD: Final = b'{"type":"transcription",'


@dataclass(frozen=True, slots=True)
class SpeechSession:
    """The utterance of which a record contains the transcript.

    :ivar session_id: 32 hexadecimal digits, one for each utterance
    :ivar user_id: as in the token
    """

    session_id: str
    user_id: int | str
    device_id: str


def transcript_record(session: SpeechSession, text: str, unix_s: float, *, final: bool | None = None) -> bytes:
    """The record of a transcript.

    :param final: False: an interim; True: the final result after interims; None: interims are not used
    """
    return _record(session, text, unix_s, final, {"success": True})


def failure_record(session: SpeechSession, error: str, unix_s: float, *, final: bool | None = None) -> bytes:
    """The record of a failed utterance.

    :param error: for the device, and for readers of its log
    :param final: True if interims may have come before, None otherwise
    """
    return _record(session, "", unix_s, final, {"success": False, "error": error})


def message_of(record: bytes) -> bytes:
    """The text message that a device receives for such a record (contract section 3)."""
    return MESSAGE_HEAD + record[1:]


def _record(session: SpeechSession, text: str, unix_s: float, final: bool | None, outcome: dict[str, object]) -> bytes:
    stamp = datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields: dict[str, object] = {
        "session_id": session.session_id,
        "user_id": session.user_id,
        "device_id": session.device_id,
        "text": text,
        "timestamp": stamp,
    }
    if final is not None:
        fields["final"] = final
    return json.dumps(fields | outcome, ensure_ascii=False, separators=(",", ":")).encode()
