"""Parses requests to the admin API: ids in paths, and the fields of queries. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from ..rules.identity import is_device_id, is_group, is_user_id
from .rows import MAX_PAGE, Selection

DEFAULT_PAGE: Final = 100
MAX_RECONNECT_S: Final = 86_400
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,999})")


class Invalid(ValueError):
    """A part of the request is invalid.

    :ivar name: its name, as the caller knows it
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"Invalid {name}")


Arguments = Mapping[str, Sequence[bytes]]
"""The fields of a query, percent-decoded."""


def argument(arguments: Arguments, name: str) -> str | None:
    """The value of a field that may be absent. Raises :class:`Invalid` if it comes twice or is not UTF-8."""
    values = arguments.get(name, ())
    if not values:
        return None
    if len(values) > 1:
        raise Invalid(name)
    try:
        return values[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(name) from error


def id_of(text: str, arguments: Arguments) -> str:
    """Return the id that a request names: the part of its path or, if that is ``-``, the field ``id`` of its query.

    URL clients and proxies remove the parts ``.`` and ``..`` from a path, percent-encoded or not.

    :raises Invalid: the field comes twice or is not UTF-8
    """
    given = argument(arguments, "id") if text == "-" else None
    return text if given is None else given


def whole_number(arguments: Arguments, name: str, least: int, most: int) -> int | None:
    """The value of a field in decimal digits, within bounds."""
    text = argument(arguments, name)
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise Invalid(name)
    return int(text)


def user_of(text: str) -> int | str:
    """Return the user id that a text stands for, in the API and on the command line: ``99`` is the integer, ``"99"``
    (JSON text) the string, and every other text, such as ``ann`` or ``007``, is itself."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if text.startswith('"'):
        try:
            value = json.loads(text)
        except ValueError:
            return text
        if isinstance(value, str):
            return value
    return text


def user_text(user_id: int | str) -> str:
    """Return a user id as :func:`user_of` reads it."""
    return json.dumps(user_id, ensure_ascii=False)


class Filter(NamedTuple):
    """Which devices a request is about. A field that is None does not restrict it.

    :ivar user: as :func:`user_of` reads it
    """

    device: str | None
    user: str | None
    group: str | None


def read_filter(arguments: Arguments) -> Filter:
    """Read the fields ``device``, ``user`` and ``group`` of a query.

    :raises Invalid: one of them is not a valid id
    """
    device = argument(arguments, "device")
    if device is not None and not is_device_id(device):
        raise Invalid("device")
    return Filter(device, *_audience(arguments))


def _audience(arguments: Arguments) -> tuple[str | None, str | None]:
    """The fields ``user`` and ``group``."""
    user, group = argument(arguments, "user"), argument(arguments, "group")
    if user is not None and not is_user_id(user_of(user)):
        raise Invalid("user")
    if group is not None and not is_group(group):
        raise Invalid("group")
    return user, group


def read_selection(arguments: Arguments) -> Selection:
    """Read the query of a list of devices.

    :raises Invalid: a field is invalid
    """
    user, group = _audience(arguments)
    limit = whole_number(arguments, "limit", 1, MAX_PAGE)
    return Selection(
        user=user,
        group=group,
        prefix=argument(arguments, "prefix") or "",
        after=argument(arguments, "after") or "",
        limit=DEFAULT_PAGE if limit is None else limit,
    )


class Target(NamedTuple):
    """The device, user or group that a request is about: ``devices/doll``.

    :ivar kind: ``devices``, ``users`` or ``groups``
    :ivar id: of the device, JSON text of the user, or name of the group
    """

    kind: str
    id: str


def read_target(kind: str, text: str) -> Target:
    """Read a target from the two parts of a path, the second percent-decoded.

    :raises Invalid: no device, user or group can have this id
    """
    if kind == "users":
        user_id = user_of(text)
        if not is_user_id(user_id):
            raise Invalid("user")
        return Target(kind, user_text(user_id))
    if not (is_device_id(text) if kind == "devices" else is_group(text)):
        raise Invalid("device" if kind == "devices" else "group")
    return Target(kind, text)
