"""Decodes the replies of Redis, and encodes marks. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..rules.box import Box, Mark, StoredMessage, with_marks
from ..rules.feed import Page
from .redis_connection import RedisFault
from .redis_group import device_key


def box_of(reply: list[Any], marks: Iterable[Mark] = ()) -> Box:
    """The box in a reply of the reading script, with ``marks`` applied."""
    if reply[0] == b"none":
        return Box.new(int(reply[1]), int(reply[2]), emptied=int(reply[3]))
    _, base, last, gone, acked, written, cuts, epoch, emptied, *_ = reply
    pairs = (cut.split(b":") for cut in (cuts or b"").split())
    found = tuple((int(begun), int(kept)) for begun, kept in pairs)
    acked_to = None if acked is None else int(acked)
    box = Box(int(base), int(last), int(gone), acked_to, int(written), int(epoch), found, emptied=int(emptied))
    return with_marks(box, marks)


def page_of(reply: list[Any], marks: Iterable[Mark], start: int) -> Page:
    """The messages after the number ``start``.

    :param marks: the marks set before the question, which may not be stored yet
    """
    box = box_of(reply, marks)
    if reply[0] == b"none":
        return Page((), box.gone, box.last, box.base)
    messages = [
        StoredMessage(number, payload, int(timestamp_ms))
        for number, timestamp_ms, payload in zip(reply[10::3], reply[11::3], reply[12::3], strict=True)
    ]
    # Messages that another program has deleted count as missed; the feed must not wait for them.
    first = messages[0].number if messages else box.last + 1
    gone = first - 1 if first > max(start, box.gone) + 1 else box.gone
    return Page(messages, gone, box.last, box.base, box.acked or 0)


def mark_arguments(marks: Mapping[str, Mark]) -> list[bytes]:
    """The arguments of the script that stores marks."""
    arguments = []
    for device_id, mark in marks.items():
        arguments += [device_key(device_id), *(b"" if number is None else b"%d" % number for number in mark)]
    return arguments


def refusal_of(reply: Any) -> RedisFault | None:
    """The fault that a reply stands for; None if it is no fault."""
    if isinstance(reply, RedisFault):
        return reply
    match reply:
        case [b"replaced"]:
            return RedisFault("Redis was emptied or replaced", away=False, reopen=True)
        case [b"epoch"]:
            return RedisFault("another epoch of the mailbox has begun", away=False, reopen=True)
        case [b"foreign", key]:
            return RedisFault(f"{key_name(key)} has another type, or other fields", away=False, is_foreign=True)
    return None


def key_name(key: bytes) -> str:
    """A Redis key as printable text."""
    return key.decode("utf-8", "backslashreplace")


def foreign_keys(reply: Any) -> list[bytes]:
    """The keys of a wrong type that a script found."""
    match reply:
        case [b"foreign", key]:
            return [key]
        case [b"box", _, _, _, _, _, _, _, _, [*keys], *_]:
            return keys
        case [b"open" | b"stored" | b"marked" | b"swept", *_, [*keys]]:
            return keys
    return []


def promise_of(settings: list[Any]) -> tuple[str, tuple[str, ...]]:
    """What messages survive, and warnings, according to the values of three Redis settings."""
    if any(isinstance(reply, RedisFault) or len(reply) != 2 for reply in settings):
        return "messages survive the gateway, and Redis as far as it persists them", ()
    policy, appendonly, appendfsync = (reply[1].decode() for reply in settings)
    cautions = []
    if policy != "noeviction":
        cautions.append(f"maxmemory-policy is {policy}: Redis may evict messages; set it to noeviction")
    if appendonly != "yes":
        cautions.append("messages survive the gateway, but not Redis; set appendonly to yes")
        return "messages survive the gateway, but not Redis", tuple(cautions)
    tail = "" if appendfsync == "always" else ", except for the last seconds before a power cut"
    return f"messages survive the gateway and Redis{tail}", tuple(cautions)
