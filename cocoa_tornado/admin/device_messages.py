"""The last messages for a device that servers remember, and merging their answers. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..rules.record_names import plain_name
from ..rules.trace_memory import MESSAGES_PER_DEVICE, Found, Outcome
from ..web.handlers import timestamp
from .trace_answers import better


class DeviceMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message.

    :ivar source, offset: where its record is: the same for all servers
    :ivar id: the record's own; None: it has none
    :ivar at: when it came to this server, Unix seconds
    :ivar outcome: None: not known yet, or no longer
    :ivar note: an explanation of the outcome, for people
    """

    source: str
    offset: int
    id: str | None
    at: float
    outcome: Outcome | None
    note: str = ""


def message_of(found: Found, outcome: Outcome | None, note: str) -> DeviceMessage:
    """Make the row of a remembered message."""
    source, offset = found.origin
    return DeviceMessage(source=source, offset=offset, id=found.id, at=found.batch.at_s, outcome=outcome, note=note)


def last_messages(known: Iterable[DeviceMessage]) -> list[dict[str, object]]:
    """Merge the last messages of all servers, newest first. Rows of two servers about one record become one message."""
    by_origin: dict[tuple[str, int], DeviceMessage] = {}
    for message in known:
        origin = (message.source, message.offset)
        other = by_origin.get(origin)
        by_origin[origin] = message if other is None else _together(other, message)
    newest = sorted(by_origin.values(), key=lambda message: (-message.at, message.source, -message.offset))
    return [
        {
            "id": message.id or f"{plain_name(message.source)}/{message.offset}",
            "at": timestamp(message.at),
            "outcome": message.outcome,
            "note": message.note,
        }
        for message in newest[:MESSAGES_PER_DEVICE]
    ]


def _together(one: DeviceMessage, other: DeviceMessage) -> DeviceMessage:
    says_more = other if better(one.outcome, other.outcome) == other.outcome else one
    return msgspec.structs.replace(says_more, id=one.id or other.id, at=min(one.at, other.at))
