"""The records that speech makes, as the results topic has them. Pure."""

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
class Speaker:
    """Whose utterance a record is about.

    :ivar session_id: 32 hexadecimal digits, one for each utterance
    :ivar user_id: as the token has it
    """

    session_id: str
    user_id: int | str
    device_id: str


def transcript_record(speaker: Speaker, text: str, unix_s: float, *, final: bool | None = None) -> bytes:
    """What was said.

    :param final: False: a hypothesis; True: what the hypotheses have led to; None: there were none to tell it from
    """
    return _record(speaker, text, unix_s, final, {"success": True})


def failure_record(speaker: Speaker, error: str, unix_s: float, *, final: bool | None = None) -> bytes:
    """Why there are no words.

    :param error: for the device, and for whoever reads its log
    :param final: True where hypotheses may have come before, None otherwise
    """
    return _record(speaker, "", unix_s, final, {"success": False, "error": error})


def message_of(record: bytes) -> bytes:
    """The text message that a device gets for one of these records (contract section 3)."""
    return MESSAGE_HEAD + record[1:]


def _record(speaker: Speaker, text: str, unix_s: float, final: bool | None, outcome: dict[str, object]) -> bytes:
    stamp = datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields: dict[str, object] = {
        "session_id": speaker.session_id,
        "user_id": speaker.user_id,
        "device_id": speaker.device_id,
        "text": text,
        "timestamp": stamp,
    }
    if final is not None:
        fields["final"] = final
    return json.dumps(fields | outcome, ensure_ascii=False, separators=(",", ":")).encode()
