"""Decode a record into the bytes that a device receives, or into the reason for rejecting it.

The values below cross from a broker's thread to the IOLoop. :func:`decode` is the gateway's hot path, so it has a fast
path: msgspec checks and compacts flat records without a backslash. All others are read name by name. The result does
not depend on the path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

import msgspec

from ..routing.address import Address
from .addressing import FIELDS, Headers, InvalidField, Options, fields_in_headers, read_fields, take_fields
from .canaries import OPTIONS as CANARY_OPTIONS
from .canaries import has_canary_header, is_canary
from .identity import CANARY_PREFIX, is_device_id
from .lossless_json import Repeating, is_too_deep, parse

MAX_RECORD_BYTES: Final = 1024 * 1024

REASONS: Final = frozenset(
    {
        "empty",  # no value: a tombstone
        "too_large",  # longer than max_bytes
        "not_utf8",
        "too_deep",  # more than MAX_NESTING nested objects and arrays
        "not_json",  # RFC 8259 only: no NaN, no byte order mark, nothing after the value
        "not_object",
        "duplicate_device",  # device_id occurs twice: parsers differ on which one counts
        "headers",  # they cannot be read (a name that is not UTF-8), so the recipients are unknown
        *FIELDS,  # the field of this name is invalid, in the value or in a header (rules/addressing.py)
        # No to, and device_id is absent, mistyped, empty, too long, or has control characters; or it is a canary's, and
        # the record is no canary message (rules/canaries.py).
        "no_device",
        "not_unicode",  # an escaped lone surrogate, which a text message cannot carry
    }
)
"""Every ``Rejected.reason``, in the order of checking: a record with two faults is rejected for the first."""


class Record(NamedTuple):
    """A record that can be routed: one offset of its partition, and one message for each device that it addresses.

    :ivar address: from the record's value or its headers, never from its key; a ``str`` is the id of one device
    :ivar payload: the UTF-8 text message of contract section 3: compact JSON, ``type`` first
    :ivar timestamp_ms: the record's timestamp, Unix milliseconds; 0 if it has none
    :ivar key_agrees: False if the record is for one device and has a key that is neither that device's id nor the
        record's ``session_id`` (which older producers use as the key)
    :ivar interim_of: the ``session_id`` of an interim (``"final":false``); '' for everything else
    :ivar options: how to deliver it; None for nearly all records
    """

    address: Address
    payload: bytes
    timestamp_ms: int
    key_agrees: bool = True
    interim_of: str = ""
    options: Options | None = None

    @property
    def is_transient(self) -> bool:
        """True if it is never stored: an interim, or a record whose ``ttl`` is 0."""
        return bool(self.interim_of) or (self.options is not None and self.options.is_transient)

    @property
    def is_for_mailbox(self) -> bool:
        """True if a mailbox, if there is one, takes the record: to store it or, if its ``ttl`` is 0, because it has a
        ``collapse_key`` or an ``id``. An interim is for no mailbox: its final result may have the same ``id``."""
        options = self.options
        if self.interim_of:
            return False
        return options is None or not options.is_transient or options.looks_into_box


class Rejected(NamedTuple):
    """A record that cannot be decoded, has no recipient, or has an invalid field.

    :ivar reason: one of ``REASONS``; a metric label and the quarantine header
    """

    reason: str


Decoded: TypeAlias = Record | Rejected


def decode(
    key: bytes | None,
    value: bytes | None,
    timestamp_ms: int,
    headers: Headers | None = None,
    *,
    max_bytes: int = MAX_RECORD_BYTES,
) -> Decoded:
    """Decode a record of the results topic. Pure, thread-safe, and never raises.

    The payload has the record's fields in the record's order after ``"type":"transcription"``. It has no blank between
    tokens and escapes only what JSON requires; numbers keep their spelling. The record's own ``type`` is dropped, one
    in a nested object is kept. The fields that say how to deliver the record (``rules/addressing.py``) are dropped too,
    except ``id``. If any other name repeats, its last value takes the first one's position, as in common parsers.
    Dropped fields are validated only if they count.

    :param timestamp_ms: the record's timestamp; negative means none, as in Kafka
    :param headers: the record's headers in their order
    :param max_bytes: the longest value that is decoded
    """
    if not value:
        return Rejected("empty")
    if len(value) > max_bytes:
        return Rejected("too_large")
    try:
        given = fields_in_headers(headers) if headers else None
        if value.find(_BACKSLASH) < 0 and (not given or given.keys() <= _OPTIONS):
            plain = _decode_plain(key, value, timestamp_ms)
            if plain is not None:
                return _with_options(plain, given) if given else plain
        return _decode_any(key, value, timestamp_ms, given or {}, headers)
    except RecursionError:  # the caller has used up nearly all of the stack: MAX_NESTING alone never does
        return Rejected("too_deep")


def has_address(value: bytes) -> bool:
    """True if a record's value has ``to`` or ``except``, valid or not. ``null`` counts as absent."""
    if not _MAY_HAVE_ADDRESS(value):
        return False
    record = _parse_object(value)
    if isinstance(record, Rejected):
        return False
    pairs = record.pairs if isinstance(record, Repeating) else record.items()
    return any(name in ("to", "except") and found is not None for name, found in pairs)


def _decode_plain(key: bytes | None, value: bytes, timestamp_ms: int) -> Record | None:
    """Decode a flat record without escapes for one device; None if the record needs the slow path, or is invalid.

    Without backslashes, every ``":`` in compact JSON ends a name or is the beginning of a string. So if there are as
    many as the record has different names, no name repeats.
    """
    try:
        compact = _COMPACT(value, indent=-1)
        fields = _FLAT(compact)
        device_id = fields["device_id"]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError):
        return None
    if compact.count(b'":') != len(fields) or not is_device_id(device_id) or device_id.startswith(CANARY_PREFIX):
        return None
    # "type" and all of FIELDS. Single look-ups take less time than an intersection of sets.
    if "type" in fields or "to" in fields or "except" in fields or "priority" in fields:
        return None
    if "ttl" in fields or "collapse_key" in fields or "id" in fields:
        return None
    session_id = fields.get("session_id")
    agrees = key is None or key == device_id.encode() or (isinstance(session_id, str) and key == session_id.encode())
    interim_of = session_id if fields.get("final") is False and isinstance(session_id, str) else ""
    # Like Record(...), without the Python function that a NamedTuple has for it.
    timestamp_ms = timestamp_ms if timestamp_ms > 0 else 0
    return _NEW(Record, (device_id, compact.replace(b"{", _HEAD, 1), timestamp_ms, agrees, interim_of, None))


def _with_options(record: Record, from_headers: Mapping[str, object]) -> Decoded:
    try:
        return _NEW(Record, (*record[:-1], read_fields(from_headers).options))
    except InvalidField as invalid:
        return Rejected(invalid.field)


def _decode_any(
    key: bytes | None,
    value: bytes,
    timestamp_ms: int,
    from_headers: Mapping[str, object],
    headers: Headers | None = None,
) -> Decoded:
    """Decode any record, or return why it is invalid.

    :param from_headers: the fields in ``headers``
    """
    record = _parse_object(value)
    if isinstance(record, Rejected):
        return record
    if isinstance(record, Repeating) and len(record.values_of("device_id")) > 1:
        return Rejected("duplicate_device")
    address: Address | None = None
    options: Options | None = None
    if from_headers or not _FIELDS.isdisjoint(record):
        try:
            address, options = read_fields(take_fields(record, from_headers))
        except InvalidField as invalid:
            return Rejected(invalid.field)
        if options is not None and options.id is not None:
            record.setdefault("id", options.id)
    if address is None:
        device_id = record.get("device_id")
        if not is_device_id(device_id):
            return Rejected("no_device")
        if is_canary(device_id):
            if not has_canary_header(headers):
                return Rejected("no_device")
            options = CANARY_OPTIONS
        address = device_id
    record.pop("type", None)
    try:
        payload = _ENCODE(record).replace(b"{", _HEAD, 1) if record else _EMPTY
    except UnicodeEncodeError:
        return Rejected("not_unicode")
    session_id = record.get("session_id")
    agrees = (
        key is None
        or not isinstance(address, str)
        or key == address.encode()
        or (isinstance(session_id, str) and key == session_id.encode())
    )
    interim_of = session_id if record.get("final") is False and isinstance(session_id, str) else ""
    timestamp_ms = timestamp_ms if timestamp_ms > 0 else 0
    return _NEW(Record, (address, payload, timestamp_ms, agrees, interim_of, options))


def _parse_object(value: bytes) -> dict[str, object] | Rejected:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return Rejected("not_utf8")
    if is_too_deep(text):
        return Rejected("too_deep")
    try:
        record = parse(text)
    except ValueError:
        return Rejected("not_json")
    if not isinstance(record, dict):
        return Rejected("not_object")
    return record


# Compiled once and stateless.
_COMPACT = msgspec.json.format
_FIELDS: Final = frozenset(FIELDS)
_OPTIONS: Final = frozenset({"priority", "ttl", "collapse_key"})  # those that do not change the message
_HEAD: Final = b'{"type":"transcription",'
_EMPTY: Final = b'{"type":"transcription"}'
_BACKSLASH: Final = ord("\\")  # an int: searching for one takes half the time of searching for bytes
_MAY_HAVE_ADDRESS = re.compile(rb'[\\]|"to"|"except"').search
_NEW = tuple.__new__
_Scalar: TypeAlias = str | int | float | bool | None
_FLAT = msgspec.json.Decoder(dict[str, _Scalar | list[_Scalar]]).decode
_ENCODE = msgspec.json.Encoder().encode
