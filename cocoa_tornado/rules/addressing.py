"""Which devices a record is for and how to deliver it: the fields of contract section 8. Pure.

The fields are in the record's value, or in headers named ``cocoa.<field>``. A record with an invalid field is rejected;
the field's name is the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias, TypeGuard

from msgspec import Raw

from ..routing.address import Address, Devices, Everyone, Group, User
from .identity import CANARY_PREFIX, is_device_id, is_group, is_user_id
from .lossless_json import Repeating, is_too_deep, parse

FIELDS: Final = ("to", "except", "priority", "ttl", "collapse_key", "id")
"""In the order of checking: a record with several invalid fields is rejected for the first."""
MAX_DEVICES: Final = 1_000
"""In one list, duplicates included."""
MAX_KEY_BYTES: Final = 64
"""Of ``collapse_key`` and ``id``."""
MAX_TTL_S: Final = 10**12
"""A longer ``ttl`` is valid and cut to this (30,000 years), so that a deadline in milliseconds fits 64 bits."""

Priority: TypeAlias = Literal["high", "normal", "low"]
Headers: TypeAlias = Iterable[tuple[str, bytes | None]]
"""A record's headers in their order. A name may occur more than once."""


class Options(NamedTuple):
    """How to deliver a record that asks for anything but the defaults.

    :ivar ttl_s: the record may be sent for this many seconds; None: as long as the mailbox keeps it. 0: it is sent to
        the connections that are open when it is routed, and never stored
    :ivar id: the record's own; None: it has none
    """

    priority: Priority = "normal"
    ttl_s: int | None = None
    collapse_key: str | None = None
    id: str | None = None

    @property
    def is_transient(self) -> bool:
        """True if the record is never stored."""
        return self.ttl_s == 0

    @property
    def looks_into_box(self) -> bool:
        """True if how to deliver the record depends on what is in the device's box, or changes that."""
        return self.collapse_key is not None or self.id is not None

    def expires_ms(self, timestamp_ms: int, now_ms: float) -> int:
        """Return the time until which the record may be sent, Unix milliseconds; 0: its ``ttl`` sets no limit. It
        counts from the record's timestamp or, if there is none or it is in the future, from ``now_ms``.

        :param timestamp_ms: the record's timestamp, Unix milliseconds; 0 if it has none
        :param now_ms: when the record was read
        """
        if not self.ttl_s:
            return 0
        begin_ms = timestamp_ms if 0 < timestamp_ms <= now_ms else int(now_ms)
        return begin_ms + self.ttl_s * 1000


class Addressing(NamedTuple):
    """:ivar address: None: the record has no ``to``, so its ``device_id`` decides
    :ivar options: None: the defaults
    """

    address: Address | None
    options: Options | None


class InvalidField(ValueError):
    """A field is invalid or occurs twice, or a member of ``to`` or ``except`` does, or is unknown.

    :ivar field: the field's name
    """

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


# Every reader rejects it: a field that occurs twice, or a header that is neither JSON nor text.
_INVALID: Final = object()
_NO_OPTIONS: Final = Options()
_FIELD_OF: Final = {f"cocoa.{field}": field for field in FIELDS}
_BEGINS_JSON: Final = frozenset('{["-0123456789tfn \t\n\r')
_MAX_TTL_DIGITS: Final = len(str(MAX_TTL_S))
_MAX_INTEGER_CHARACTERS: Final = 4300  # no token has a longer user_id: Python does not convert it


def fields_in_headers(headers: Headers) -> dict[str, object]:
    """The fields in a record's headers, by name. Unknown headers and null are skipped."""
    found: dict[str, object] = {}
    for name, value in headers:
        field = _FIELD_OF.get(name)
        if field is not None:
            found[field] = _INVALID if field in found else _read_header(value)
    if None in found.values():
        return {field: value for field, value in found.items() if value is not None}
    return found


def take_fields(record: dict[str, object], from_headers: Mapping[str, object]) -> dict[str, object]:
    """Remove the fields from a record, and return those of it and of its headers that count: a header overrides.

    An ``id`` stays in the record unless a header overrides it. If it is invalid it is an ordinary member of the record.

    :param record: modified
    """
    given = dict(from_headers)
    for field in FIELDS:
        if field not in record:
            continue
        if field in from_headers:
            del record[field]
            continue
        values = record.values_of(field) if isinstance(record, Repeating) else [record[field]]
        if field == "id":
            if not any(map(_is_key, values)):
                continue
        else:
            del record[field]
        value = values[0] if len(values) == 1 else _INVALID
        if value is not None:
            given[field] = value
    return given


def read_fields(given: Mapping[str, object]) -> Addressing:
    """Read the fields that count, none of which is null.

    :raises InvalidField: for the first that is invalid
    """
    address = _read_to(given["to"]) if "to" in given else None
    if "except" in given:
        address = _without(address, _read_except(given["except"]))
    options = Options(
        _read_priority(given["priority"]) if "priority" in given else "normal",
        _read_ttl(given["ttl"]) if "ttl" in given else None,
        _read_key("collapse_key", given["collapse_key"]) if "collapse_key" in given else None,
        _read_key("id", given["id"]) if "id" in given else None,
    )
    return Addressing(address, None if options == _NO_OPTIONS else options)


def _read_header(value: bytes | None) -> object:
    """Read JSON text; anything else is a string. None: null, or a header without a value."""
    if value is None:
        return None
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return _INVALID
    if text[:1] not in _BEGINS_JSON:
        return text
    if is_too_deep(text):  # as a string it is longer than any field allows
        return _INVALID
    try:
        return parse(text)
    except ValueError:
        return text


def _read_to(to: object) -> Address:
    if isinstance(to, dict) and not isinstance(to, Repeating) and len(to) == 1:
        [(kind, value)] = to.items()
        if kind == "device" and is_device_id(value) and not _is_canary(value):
            return value
        if kind == "devices" and (names := _read_devices(value)) and not any(map(_is_canary, names)):
            return names[0] if len(names) == 1 else Devices(names)
        if kind == "user" and (user_id := _read_user_id(value)) is not None:
            return User(user_id)
        if kind == "group" and is_group(value):
            return Group(value)
        if kind == "all" and value is True:
            return Everyone()
    raise InvalidField("to")


def _read_except(excluded: object) -> frozenset[str]:
    if isinstance(excluded, dict) and not isinstance(excluded, Repeating) and excluded.keys() == {"devices"}:
        names = _read_devices(excluded["devices"])
        if names is not None:
            return frozenset(names)
    raise InvalidField("except")


def _without(address: Address | None, excluded: frozenset[str]) -> Address:
    if isinstance(address, User):
        return User(address.user_id, excluded)
    if isinstance(address, Group):
        return Group(address.name, excluded)
    if isinstance(address, Everyone):
        return Everyone(excluded)
    raise InvalidField("except")  # a list of devices has no exceptions


def _read_devices(value: object) -> tuple[str, ...] | None:
    """Each device once; None unless it is a list of at most ``MAX_DEVICES`` valid ids."""
    if isinstance(value, list) and len(value) <= MAX_DEVICES and all(map(is_device_id, value)):
        return tuple(dict.fromkeys(value))
    return None


def _is_canary(device_id: str) -> bool:
    """Canaries (``rules/canaries.py``) have no place in ``to``."""
    return device_id.startswith(CANARY_PREFIX)


def _read_user_id(value: object) -> int | str | None:
    if isinstance(value, Raw):
        spelling = _integer(value)
        return int(spelling) if spelling is not None and len(spelling) <= _MAX_INTEGER_CHARACTERS else None
    return value if is_user_id(value) else None


def _read_priority(value: object) -> Priority:
    if value == "high":
        return "high"
    if value == "normal":
        return "normal"
    if value == "low":
        return "low"
    raise InvalidField("priority")


def _read_ttl(value: object) -> int:
    spelling = _integer(value)
    if spelling is None or (spelling.startswith(b"-") and spelling != b"-0"):
        raise InvalidField("ttl")
    # JSON has no leading zeros, so a longer number is a larger one. It may be too long for int().
    return MAX_TTL_S if len(spelling) > _MAX_TTL_DIGITS else min(int(spelling), MAX_TTL_S)


def _read_key(field: str, value: object) -> str:
    if _is_key(value):
        return value
    raise InvalidField(field)


def _is_key(value: object) -> TypeGuard[str]:
    """A string of 1 to ``MAX_KEY_BYTES`` bytes of UTF-8."""
    if not isinstance(value, str):
        return False
    try:
        return 0 < len(value.encode("utf-8")) <= MAX_KEY_BYTES
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _integer(value: object) -> bytes | None:
    """The digits of a number written as an integer, unlike 1.0 and 1e2."""
    spelling = bytes(value) if isinstance(value, Raw) else b""
    return spelling if spelling.removeprefix(b"-").isdigit() else None
