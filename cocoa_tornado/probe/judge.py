"""Compares responses and messages with the contract. Pure.

Every judge returns None, or a problem that completes the sentence "the check failed: ...".
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from .wire import Response, Upgrade, json_value

OPTIONS = ("to", "except", "priority", "ttl", "collapse_key")
READY_PARTS = ("broker", "mailbox", "presence", "speech")
_HEALTH_START = b'{"status":"healthy","timestamp":"'
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BLANK = re.compile(r"[ \t\r\n]")
_PAIR = r"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rf"\\({_PAIR}|u[0-9a-fA-F]{{4}}|.)", re.DOTALL)
_SURROGATES = {f"d{digit}" for digit in "89abcdef"}
_CURSOR = re.compile(r',"cursor":"[^"\\]+"\}')
_QUOTED_CHARS = 160
_BEARER = re.compile(r"(?:^|,)\s*Bearer(?:\s|,|$)", re.IGNORECASE)  # a proxy may add challenges of its own


# --- Words ---------------------------------------------------------------------------------------------------------


def quoted(text: str | bytes, limit: int = _QUOTED_CHARS) -> str:
    """Received data for a terminal or report: one line, printable, of limited length."""
    plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    short = plain if len(plain) <= limit else f"{plain[:limit]}..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in short)


def described(response: Response) -> str:
    """A response in a few words. An HTML page is a proxy's, as the gateway responds with JSON."""
    location = response.header("Location")
    if location is not None and 300 <= response.status < 400:
        return f"{response.status} to {quoted(re.split('[?#]', location)[0])}"  # the query may contain a token
    if response.body.lstrip()[:1] == b"<":
        server = response.header("Server")
        return f"{response.status} with an HTML page, a proxy's{f' ({quoted(server, 40)})' if server else ''}"
    return f"{response.status} {quoted(response.body)}" if response.body else str(response.status)


def described_close(code: int | None, reason: str = "") -> str:
    """A close in a few words; ``code`` is None if there was no close frame."""
    if code is None:
        return f"without a close frame ({quoted(reason)})" if reason else "without a close frame"
    return f"with {code} {quoted(reason)}".rstrip()


# --- JSON ----------------------------------------------------------------------------------------------------------


def compact_json(value: object) -> str:
    """JSON as in the contract: no whitespace between tokens, no unnecessary escapes."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def wasteful(text: str) -> str | None:
    """The reason why a valid JSON text is not compact; None if it is."""
    if _BLANK.search(_STRING.sub("", text)):
        return "has blanks between its tokens"
    for match in _ESCAPE.finditer("".join(_STRING.findall(text))):
        if not _is_needed(match.group(1)):
            return f"escapes what JSON lets stand ({match.group(0)})"
    return None


def _is_needed(escape: str) -> bool:
    """Whether JSON requires an escape, given without its backslash. Cases: one character; a code unit; a pair."""
    if not escape.startswith("u"):
        return escape != "/"
    return len(escape) == 5 and (int(escape[1:], 16) < 0x20 or escape[1:3].lower() in _SURROGATES)


# --- Responses -----------------------------------------------------------------------------------------------------


def judge_error_body(response: Response) -> str | None:
    """``{"message":"..."}``, compact, and nothing else."""
    value = json_value(response.body)
    if not isinstance(value, dict) or set(value) != {"message"} or not isinstance(value["message"], str):
        return f'the body is not {{"message":"..."}}: {described(response)}'
    if problem := wasteful(response.body.decode("utf-8", "replace")):
        return f"the body {problem}: {described(response)}"
    return None


def judge_refusal(
    response: Response, status: int, message: str | None = None, *, bearer: bool = False, retry_after: bool = False
) -> str | None:
    """Judge a refusal before the upgrade.

    :param message: the exact message of the body; None for any
    :param bearer: require ``WWW-Authenticate: Bearer``
    :param retry_after: require ``Retry-After``
    """
    if response.status == 101:
        return f"was let in: answered 101, expected {status}"
    if response.status != status:
        return f"answered {described(response)}, expected {status}"
    if message is None:
        if problem := judge_error_body(response):
            return problem
    elif response.body != (expected := compact_json({"message": message}).encode()):
        return f"answered {described(response)}, expected the body {expected.decode()}"
    if bearer and not any(_BEARER.search(challenge) for challenge in response.all("WWW-Authenticate")):
        return f"answered {status} without the header WWW-Authenticate: Bearer"
    wait = response.header("Retry-After")
    if retry_after and not wait:
        return f"answered {status} without the header Retry-After"
    return None


def judge_handshake(response: Response, upgrade: Upgrade, selected: str | None = None) -> str | None:
    """Judge the response to an opening handshake that must succeed.

    :param selected: the subprotocol that must be selected, if any
    """
    if response.status != 101:
        return f"answered {described(response)}, expected 101"
    if (response.header("Upgrade") or "").lower() != "websocket":
        return "answered 101 without the header Upgrade: websocket"
    if "upgrade" not in (part.strip().lower() for part in (response.header("Connection") or "").split(",")):
        return "answered 101 without the header Connection: Upgrade"
    if response.header("Sec-WebSocket-Accept") != upgrade.accept:
        return "answered 101 with a wrong Sec-WebSocket-Accept"
    if (extensions := response.header("Sec-WebSocket-Extensions")) is not None:
        return f"selected extensions that were not offered: {quoted(extensions)}"
    protocol = response.header("Sec-WebSocket-Protocol")
    if protocol != selected:
        return f"selected the subprotocol {quoted(protocol or 'none')}, expected {selected or 'none'}"
    return None


def judge_plain_get(response: Response) -> str | None:
    """Judge a GET of the WebSocket route without an upgrade, with a valid token of an offline device.

    ``Upgrade`` is not required, as a proxy must remove it (``between.note_on_426``).
    """
    return judge_refusal(response, 426)


def judge_health(response: Response) -> str | None:
    """Judge ``GET /api/v1/health``. Further fields may follow those of the contract."""
    if response.status != 200:
        return f"answered {described(response)}, expected 200"
    value = json_value(response.body)
    if not isinstance(value, dict) or not response.body.startswith(_HEALTH_START):
        return f"the body does not begin with {_HEALTH_START.decode()}: {described(response)}"
    if value.get("service") != "audio-streaming":
        return f"the service is not audio-streaming: {described(response)}"
    if problem := wasteful(response.body.decode("utf-8", "replace")):
        return f"the body {problem}"
    return judge_timestamp(value.get("timestamp"))


def judge_timestamp(value: object) -> str | None:
    """Judge a timestamp: RFC 3339, in UTC."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) and "T" in value else None
    except ValueError:
        moment = None
    if moment is None or moment.utcoffset() != timedelta(0):
        return f"the timestamp is not RFC 3339 in UTC: {quoted(str(value))}"
    return None


def judge_ready(response: Response) -> str | None:
    """Judge ``GET /api/v1/ready``: 200, with one entry per part, at the top or one level below."""
    if response.status != 200:
        return f"answered {described(response)}, expected 200"
    value = json_value(response.body)
    if not isinstance(value, dict):
        return f"the body is not a JSON object: {described(response)}"
    nested = [member for member in value.values() if isinstance(member, dict)]
    missing = [part for part in READY_PARTS if part not in value and not any(part in member for member in nested)]
    if missing:
        return f"the body has no entry for {', '.join(missing)}: {described(response)}"
    return None


def judge_audio(response: Response) -> str | None:
    """Judge ``POST /api/v1/audio/stream`` of a recording of speech, whose response must have words."""
    value = json_value(response.body)
    if response.status != 200 or not isinstance(value, dict):
        return f"answered {described(response)}, expected 200 and a transcript"
    if value.get("success") is not True or not isinstance(value.get("text"), str):
        return f"the answer holds no transcript: {described(response)}"
    if not re.fullmatch(r"[0-9a-f]{32}", str(value.get("session_id"))):
        return f"the session_id is not 32 hexadecimal digits: {described(response)}"
    if not value["text"].strip():
        return "no words: the transcript is empty (is it speech, in the engine's language?)"
    return wasteful(response.body.decode("utf-8", "replace"))


# --- Messages ------------------------------------------------------------------------------------------------------


def expected_message(record: Mapping[str, object]) -> str:
    """The message for a record: compact JSON, ``type`` first, the other fields in the record's order."""
    fields = {name: value for name, value in record.items() if name != "type"}
    return compact_json({"type": "transcription", **fields})


def judge_message(message: str | bytes, record: Mapping[str, object]) -> str | None:
    """Compare a message with its record. A gateway with a mailbox may add ``cursor`` at the end."""
    if isinstance(message, bytes):
        return "arrived as a binary message; the contract sends text"
    expected = expected_message(record)
    if message == expected:
        return None
    if message.startswith(expected[:-1]) and _CURSOR.fullmatch(message[len(expected) - 1 :]):
        return None
    value = json_value(message.encode("utf-8", "replace"))
    if not isinstance(value, dict):
        return f"is not a JSON object: {quoted(message)}"
    if problem := wasteful(message):
        return f"{problem}: {quoted(message)}"
    if next(iter(value), None) != "type":
        return f"does not have type as its first field: {quoted(message)}"
    return f"is not what the contract makes of the record: {quoted(message)}, expected {quoted(expected)}"


def session_of(message: str | bytes) -> str | None:
    """The session id of a message; None if it has none."""
    value = json_value(message.encode("utf-8", "replace") if isinstance(message, str) else message)
    session_id = value.get("session_id") if isinstance(value, dict) else None
    return session_id if isinstance(session_id, str) else None


def judge_received(
    messages: Sequence[str | bytes], own: Sequence[str], foreign: Collection[str] = (), *, in_order: bool = False
) -> str | None:
    """Judge the messages of one device by session ids: each of ``own`` once, and none of ``foreign``.

    Other messages may be among them, as a real device may get more.
    """
    sessions = [session_of(message) for message in messages]
    misdelivered = sum(session in foreign for session in sessions)
    if misdelivered:
        return f"got {misdelivered} {'message' if misdelivered == 1 else 'messages'} meant for another device"
    arrived = [session for session in sessions if session in own]
    if missing := [session for session in own if session not in arrived]:
        return f"did not get {len(missing)} of {len(own)} messages"
    if len(arrived) != len(own):
        return f"got {len(arrived)} messages for {len(own)} records"
    if in_order and arrived != list(own):
        return "got its messages out of order"
    return None


def judge_priorities(messages: Sequence[str | bytes], sent: Sequence[tuple[str, str]]) -> str | None:
    """Judge the messages of one device by the priorities of their records.

    Messages written to the socket before a high record arrived cannot be overtaken, so a high message may arrive after
    normal ones that were published before it. It may not arrive after one that was published after it. That holds for
    at most eight high records: after eight, a gateway may send a normal message that waits.

    :param sent: the session id and the priority of each record, in the order of publishing, to one partition
    """
    sessions = [session for session, _ in sent]
    if problem := judge_received(messages, sessions):
        return problem
    arrived = [found for found in map(session_of, messages) if found in sessions]
    numbers = [sessions.index(session) for session in arrived if session is not None]
    for priority in ("high", "normal", "low"):
        own = [number for number in numbers if sent[number][1] == priority]
        if own != sorted(own):
            return f"got its messages of priority {priority} out of order"
    for place, number in enumerate(numbers):
        if sent[number][1] == "high" and any(before > number for before in numbers[:place]):
            return "got a high message after one of a lower priority that was published later"
    return None


def judge_options_removed(messages: Iterable[str | bytes], sessions: Collection[str]) -> str | None:
    """Judge whether the messages of ``sessions`` are without the fields that say how to deliver a record."""
    for message in messages:
        if session_of(message) in sessions:
            value = json_value(message.encode("utf-8", "replace") if isinstance(message, str) else message)
            if found := [name for name in OPTIONS if isinstance(value, dict) and name in value]:
                return f"got the field {found[0]}, which is not for devices: {quoted(message)}"
    return None
