"""When the devices of a stopping server should reconnect, so that they do not flood the other servers. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

ADMITTED_PER_S: Final = 500
"""New connections that a server is sent in a second. It can admit several times as many for a short time, but devices
that are connected would wait longer for their messages."""


def reconnect_delays(devices: int, rooms: Sequence[int | None], shuffle: random.Random | None = None) -> Iterator[int]:
    """Return the delay of each device in milliseconds: evenly spread, in random order.

    :param rooms: how many more connections each of the other servers accepts; None: any number. If none has room, the
        devices are expected to return to a server that has yet to start
    """
    total = sum(ADMITTED_PER_S if room is None else min(ADMITTED_PER_S, room) for room in rooms) or ADMITTED_PER_S
    order = list(range(devices))
    (shuffle or random).shuffle(order)
    return (at * 1000 // total for at in order)


def reconnect_notice(after_ms: int) -> bytes:
    """The message that a device gets before its connection is closed."""
    return b'{"type":"reconnect","after_ms":%d}' % after_ms
