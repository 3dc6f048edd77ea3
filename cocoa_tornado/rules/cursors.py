"""Cursors: opaque, signed positions in a device's box, and the messages that carry them (contract section 7). Pure.

A cursor is a position in a device's box and a MAC over device and position. The mailbox keeps the key. Another
device's cursor, another mailbox's and a forged one all fail the same check.
"""

from __future__ import annotations

import binascii
import hmac
import json
from base64 import urlsafe_b64decode
from binascii import b2a_base64
from hashlib import blake2b
from typing import Final

from .box import Position
from .strict_json import read_json

KEY_BYTES: Final = 32
MAX_ACK_CHARS: Final = 256
GAP_HEAD: Final = b'{"type":"gap",'
"""The beginning of a gap notice, which no message of a record has."""
_EPOCH_BYTES: Final = 4
_NUMBER_BYTES: Final = 6
_NUMBER_BITS: Final = 8 * _NUMBER_BYTES
_MAC_BYTES: Final = 8
_POSITION_BYTES: Final = _EPOCH_BYTES + _NUMBER_BYTES
_CURSOR_CHARS: Final = (_POSITION_BYTES + _MAC_BYTES) // 3 * 4
_LONG_CURSOR_CHARS: Final = (_POSITION_BYTES + _NUMBER_BYTES + _MAC_BYTES) // 3 * 4
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")

MAX_EPOCH: Final = 2 ** (8 * _EPOCH_BYTES) - 1
MAX_NUMBER: Final = 2 ** (8 * _NUMBER_BYTES) - 1


def make_cursor(key: bytes, device_id: str, position: Position) -> str:
    """Return the cursor of a position: 24 characters that need no escaping in JSON or in a URL, or 32 if the device has
    been sent messages of high priority.

    :param key: ``KEY_BYTES`` bytes
    """
    return _cursor(key, device_id, position).decode()


def _cursor(key: bytes, device_id: str, position: Position) -> bytes:
    normal, epoch, high = position
    data = (epoch << _NUMBER_BITS | normal).to_bytes(_POSITION_BYTES, "big")
    if high:
        data += high.to_bytes(_NUMBER_BYTES, "big")
    return _text_of(data + _mac(key, device_id, data))


def _text_of(data: bytes) -> bytes:
    """As ``base64.urlsafe_b64encode``, which takes twice as long."""
    return b2a_base64(data, newline=False).translate(_URL_SAFE)


def read_cursor(key: bytes, device_id: str, cursor: str) -> Position | None:
    """Return the position that the cursor stands for; None if the cursor is not this device's in this mailbox."""
    if len(cursor) not in (_CURSOR_CHARS, _LONG_CURSOR_CHARS):
        return None
    try:
        data = urlsafe_b64decode(cursor.encode("ascii"))
    except (binascii.Error, UnicodeEncodeError):
        return None
    position, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(key, device_id, position)):
        return None
    # A position has exactly one cursor, but a base64 decoder that ignores stray bits or characters accepts variants.
    if _text_of(data) != cursor.encode():
        return None
    epoch, normal, high = position[:_EPOCH_BYTES], position[_EPOCH_BYTES:_POSITION_BYTES], position[_POSITION_BYTES:]
    return Position(*(int.from_bytes(part, "big") for part in (normal, epoch, high)))


def with_cursor(payload: bytes, key: bytes, device_id: str, position: Position) -> bytes:
    """Add the cursor of a position as the message's last field. A ``cursor`` field of the record itself is replaced.

    :param payload: a message as in contract section 3: a compact JSON object that is not empty
    :param key: as for :func:`make_cursor`
    """
    if b'"cursor":' in payload:
        payload = _without_cursor(payload)
    return b'%b,"cursor":"%b"}' % (payload[:-1], _cursor(key, device_id, position))


def gap_notice(missed: int) -> bytes:
    """The message that a device gets first when messages have expired or overflowed."""
    return b'%b"missed":%d}' % (GAP_HEAD, missed)


def acknowledged_cursor(text: str) -> str | None:
    """The cursor of ``{"type":"ack","cursor":"..."}``; None if the text is an ordinary message."""
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


def _mac(key: bytes, device_id: str, position: bytes) -> bytes:
    return blake2b(position + device_id.encode(), digest_size=_MAC_BYTES, key=key).digest()


def _without_cursor(payload: bytes) -> bytes:
    decoder = json.JSONDecoder(parse_int=str, parse_float=str)  # values are only skipped, so don't convert numbers
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
