"""Decode a record into the bytes that a device receives, or into the reason for rejecting it.

The values below cross from a broker's thread to the IOLoop. :func:`decode` is the gateway's hot path, so it has a fast
path: msgspec checks and compacts flat records without a backslash. All others are read name by name. The result does
not depend on the path.
"""

from __future__ import annotations

import json
import re
from typing import Final, NamedTuple, TypeAlias

import msgspec

from ..routing.address import Address
from .identity import is_device_id

MAX_RECORD_BYTES: Final = 1024 * 1024
MAX_NESTING: Final = 64

REASONS: Final = frozenset(
    {
        "empty",  # no value: a tombstone
        "too_large",  # longer than max_bytes
        "not_utf8",
        "too_deep",  # more than MAX_NESTING nested objects and arrays
        "not_json",  # RFC 8259 only: no NaN, no byte order mark, nothing after the value
        "not_object",
        "duplicate_device",  # device_id occurs twice: parsers differ on which one counts
        "no_device",  # device_id is absent, mistyped, empty, too long, or has control characters
        "not_unicode",  # an escaped lone surrogate, which a text message cannot carry
    }
)
"""Every ``Rejected.reason``, in the order of checking: a record with two faults is rejected for the first."""


class Record(NamedTuple):
    """A record that can be routed: one offset of its partition, and one message for each device that it addresses.

    :ivar address: from the record's value, never from its key; a ``str`` is the id of one device
    :ivar payload: the UTF-8 text message of contract section 3: compact JSON, ``type`` first
    :ivar timestamp_ms: the record's timestamp, Unix milliseconds; 0 if it has none
    :ivar key_agrees: False if the record has a key that is neither its device_id nor its ``session_id`` (which older
        producers use as the key)
    :ivar interim_of: the ``session_id`` of an interim (``"final":false``); '' for everything else
    """

    address: Address
    payload: bytes
    timestamp_ms: int
    key_agrees: bool = True
    interim_of: str = ""


class Rejected(NamedTuple):
    """A record that cannot be decoded, or has no recipient.

    :ivar reason: one of ``REASONS``; a metric label and the quarantine header
    """

    reason: str


Decoded: TypeAlias = Record | Rejected


def decode(key: bytes | None, value: bytes | None, timestamp_ms: int, *, max_bytes: int = MAX_RECORD_BYTES) -> Decoded:
    """Decode a record of the results topic. Pure, thread-safe, and never raises.

    The payload has the record's fields in the record's order after ``"type":"transcription"``. It has no blank between
    tokens and escapes only what JSON requires; numbers keep their spelling. The record's own ``type`` is dropped, one
    in a nested object is kept. If any other name repeats, its last value takes the first one's position, as in common
    parsers. Dropped fields are not validated.

    :param timestamp_ms: the record's timestamp; negative means none, as in Kafka
    :param max_bytes: the longest value that is decoded
    """
    if not value:
        return Rejected("empty")
    if len(value) > max_bytes:
        return Rejected("too_large")
    try:
        message = _read_plain(value)
        if message is None:
            found = _read_careful(value)
            if isinstance(found, Rejected):
                return found
            message = found
    except RecursionError:  # the caller has used up nearly all of the stack: MAX_NESTING alone never does
        return Rejected("too_deep")
    device_id, session_id, final, payload = message
    agrees = key is None or key == device_id.encode() or (isinstance(session_id, str) and key == session_id.encode())
    interim_of = session_id if final is False and isinstance(session_id, str) else ""
    # Like Record(...), without the Python function that a NamedTuple has for it.
    return _NEW(Record, (device_id, payload, timestamp_ms if timestamp_ms > 0 else 0, agrees, interim_of))


_Message: TypeAlias = tuple[str, object, object, bytes]
"""device_id, session_id and final (of any type), payload."""


class _TwoDevices(dict[str, object]):
    """An object in which ``device_id`` occurs more than once. Invalid only if it is the record itself."""


def _read_plain(value: bytes) -> _Message | None:
    """Read a flat record without escapes; None if the record needs the slow path, or is invalid.

    Without backslashes, every ``":`` in compact JSON ends a name or is the beginning of a string. So if there are as
    many as the record has different names, no name repeats.
    """
    if value.find(_BACKSLASH) >= 0:
        return None
    try:
        compact = _COMPACT(value, indent=-1)
        fields = _FLAT(compact)
        device_id = fields["device_id"]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError):
        return None
    if compact.count(b'":') != len(fields) or "type" in fields or not is_device_id(device_id):
        return None
    return device_id, fields.get("session_id"), fields.get("final"), _HEAD + compact[1:]


def _read_careful(value: bytes) -> _Message | Rejected:
    """Read any record, or return why it is invalid."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return Rejected("not_utf8")
    if _is_too_deep(text):
        return Rejected("too_deep")
    try:
        record = _PARSE(text)
    except ValueError:
        return Rejected("not_json")
    if not isinstance(record, dict):
        return Rejected("not_object")
    if isinstance(record, _TwoDevices):
        return Rejected("duplicate_device")
    device_id = record.get("device_id")
    if not is_device_id(device_id):
        return Rejected("no_device")
    record.pop("type", None)
    try:
        payload = _ENCODE({"type": "transcription", **record})
    except UnicodeEncodeError:
        return Rejected("not_unicode")
    return device_id, record.get("session_id"), record.get("final"), payload


def _is_too_deep(text: str) -> bool:
    """True if arrays and objects are nested more than MAX_NESTING deep. Linear in time for any text."""
    if text.count("{") + text.count("[") <= MAX_NESTING:
        return False
    depth = 0
    for token in _STRINGS_AND_BRACKETS(text):
        first = token[0][0]
        if first in "{[":
            depth += 1
            if depth > MAX_NESTING:
                return True
        elif first in "}]":
            depth -= 1
    return False


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs) and sum(name == "device_id" for name, _ in pairs) > 1:
        return _TwoDevices(fields)
    return fields


def _refuse_constant(spelling: str) -> object:
    raise ValueError(f"{spelling} is not JSON")


# Compiled once and stateless.
# A string may lack its closing quote. Without possessive matching, retrying at each later quote would take quadratic
# time.
_STRINGS_AND_BRACKETS = re.compile(r'"(?:[^"\\]+|\\.)*+"?|[{}\[\]]', re.DOTALL).finditer
_COMPACT = msgspec.json.format
_HEAD: Final = b'{"type":"transcription",'
_BACKSLASH: Final = ord("\\")  # an int: searching for one takes half the time of searching for bytes
_NEW = tuple.__new__
_Scalar: TypeAlias = str | int | float | bool | None
_FLAT = msgspec.json.Decoder(dict[str, _Scalar | list[_Scalar]]).decode
_ENCODE = msgspec.json.Encoder().encode
# Raw passes a number's digits through unparsed: 1.0 stays 1.0, and 1e400 does not become infinity.
_PARSE = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=msgspec.Raw, parse_float=msgspec.Raw, parse_constant=_refuse_constant
).decode
