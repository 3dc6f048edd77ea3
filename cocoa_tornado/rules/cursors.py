"""Cursors: a place in one device's box, in a form that only this mailbox can read, and the messages that carry them.

Contract section 7. A cursor is a message's place in its box with a seal over device and place, made with a key that the
mailbox keeps. Another device's, another mailbox's and a made-up one fail alike. Pure.
"""

from __future__ import annotations

import binascii
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Final

from .box import Place
from .strict_json import read_json

KEY_BYTES: Final = 32
MAX_ACK_CHARS: Final = 256
_EPOCH_BYTES: Final = 4
_NUMBER_BYTES: Final = 6
_SEAL_BYTES: Final = 8
_PLACE_BYTES: Final = _EPOCH_BYTES + _NUMBER_BYTES
_CURSOR_CHARS: Final = (_PLACE_BYTES + _SEAL_BYTES) // 3 * 4

MAX_EPOCH: Final = 2 ** (8 * _EPOCH_BYTES) - 1
MAX_NUMBER: Final = 2 ** (8 * _NUMBER_BYTES) - 1


def make_cursor(key: bytes, device_id: str, number: int, epoch: int = 0) -> str:
    """The cursor of one message: 24 characters that need no escaping in JSON or in a URL.

    :param key: ``KEY_BYTES`` bytes
    :param number: of the message in its box; ``epoch``: of the mailbox
    """
    place = (epoch << 8 * _NUMBER_BYTES | number).to_bytes(_PLACE_BYTES, "big")
    return urlsafe_b64encode(place + _seal(key, device_id, place)).decode()


def read_cursor(key: bytes, device_id: str, cursor: str) -> Place | None:
    """The place that the cursor stands for; None where it is none of this device's in this mailbox."""
    if len(cursor) != _CURSOR_CHARS:
        return None
    try:
        data = urlsafe_b64decode(cursor.encode("ascii"))
    except (binascii.Error, UnicodeEncodeError):
        return None
    place, seal = data[:_PLACE_BYTES], data[_PLACE_BYTES:]
    if not hmac.compare_digest(seal, _seal(key, device_id, place)):
        return None
    # One number has one cursor: a decoder that skips what it does not know would take others for the same.
    if urlsafe_b64encode(data) != cursor.encode():
        return None
    return Place(int.from_bytes(place[_EPOCH_BYTES:], "big"), int.from_bytes(place[:_EPOCH_BYTES], "big"))


def with_cursor(payload: bytes, cursor: str) -> bytes:
    """A message with its cursor as its last field. A ``cursor`` of the record itself is replaced.

    :param payload: a message of contract section 3: a compact JSON object that is not empty
    """
    if b'"cursor":' in payload:
        payload = _without_cursor(payload)
    return b'%b,"cursor":"%b"}' % (payload[:-1], cursor.encode())


def gap_notice(missed: int) -> bytes:
    """What a device is told first where messages have expired or fallen out."""
    return b'{"type":"gap","missed":%d}' % missed


def acknowledged_cursor(text: str) -> str | None:
    """The cursor of ``{"type":"ack","cursor":"..."}``; None where the text is an ordinary message."""
    if len(text) > MAX_ACK_CHARS or '"ack"' not in text:
        return None
    try:
        message = read_json(text)
    except ValueError:
        return None
    if not isinstance(message, dict) or message.get("type") != "ack":
        return None
    cursor = message.get("cursor")
    return cursor if isinstance(cursor, str) else None


def _seal(key: bytes, device_id: str, place: bytes) -> bytes:
    return blake2b(place + device_id.encode(), digest_size=_SEAL_BYTES, key=key).digest()


def _without_cursor(payload: bytes) -> bytes:
    decoder = json.JSONDecoder(parse_int=str, parse_float=str)  # only where a value ends is asked for
    text = payload.decode()
    kept, at = [], 1
    while text[at] != "}":
        start = at
        name, at = decoder.raw_decode(text, at)
        _, at = decoder.raw_decode(text, at + 1)
        if name != "cursor":
            kept.append(text[start:at])
        at += text[at] == ","
    return f"{{{','.join(kept)}}}".encode()
