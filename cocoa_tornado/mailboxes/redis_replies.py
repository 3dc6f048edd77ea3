"""What Redis' replies mean, and what devices have told about their boxes. Awaits nothing."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from ..rules.box import Box, StoredMessage
from ..rules.feed import Page
from .redis_group import device_key
from .redis_link import RedisFault

REPLACED: Final = "Redis was emptied or replaced: if that is meant, restart the gateway"


class Mark(NamedTuple):
    """What a device has told since it was last written down."""

    acked: int | None = None
    written: int | None = None

    def on(self, box: Box) -> Box:
        if self.acked is not None:
            box = box.acknowledge(self.acked)
        return box if self.written is None else box.write(self.written)


def box_of(reply: list[Any]) -> Box:
    """The box that the reading script has found."""
    _, base, last, gone, acked, written, *_ = reply
    return Box(int(base), int(last), int(gone), None if acked is None else int(acked), int(written))


def page_of(reply: list[Any], mark: Mark, start: int) -> Page:
    """What was read after the number ``start``.

    :param mark: set before that was asked, and perhaps not stored yet
    """
    box = mark.on(box_of(reply))
    messages = [
        StoredMessage(number, payload, int(timestamp_ms))
        for number, timestamp_ms, payload in zip(reply[6::3], reply[7::3], reply[8::3], strict=True)
    ]
    # Where another hand than ours has taken messages out, they are missed and not waited for.
    first = messages[0].number if messages else box.last + 1
    gone = first - 1 if first > max(start, box.gone) + 1 else box.gone
    return Page(messages, gone, box.last, box.base, box.acked or 0)


def mark_arguments(marks: dict[str, Mark]) -> list[bytes]:
    """As the script that stores them wants them."""
    arguments = []
    for device_id, mark in marks.items():
        arguments += [device_key(device_id), *(b"" if number is None else b"%d" % number for number in mark)]
    return arguments


def refusal_of(reply: Any) -> RedisFault | None:
    """The fault that a reply is, if it is one."""
    if isinstance(reply, RedisFault):
        return reply
    if isinstance(reply, list) and reply and reply[0] == b"replaced":
        return RedisFault(REPLACED, replaced=True)
    return None


def promise_of(settings: list[Any]) -> tuple[str, tuple[str, ...]]:
    """What messages survive, and what is to be cautioned against, by the values of three of Redis' settings."""
    if any(isinstance(reply, RedisFault) or len(reply) != 2 for reply in settings):
        return "messages survive the gateway, and Redis as far as it is told to keep them", ()
    policy, appendonly, appendfsync = (reply[1].decode() for reply in settings)
    cautions = []
    if policy != "noeviction":
        cautions.append(f"maxmemory-policy is {policy}: Redis may throw messages away; set it to noeviction")
    if appendonly != "yes":
        cautions.append("messages survive the gateway, but not Redis; set appendonly to yes")
        return "messages survive the gateway, but not Redis", tuple(cautions)
    tail = "" if appendfsync == "always" else ", but the last seconds not a power cut"
    return f"messages survive the gateway and Redis{tail}", tuple(cautions)
