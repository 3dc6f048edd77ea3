"""How the memory for messages is shared out among the parts that hold them: a budget, and a fixed share for each. Pure.

A part that has used up its share makes those wait that it takes from, back to Kafka's log or a device's socket. No part
borrows from another, so none can starve another, and no two can wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

DEFAULT_BYTES: Final = 128 * 1024 * 1024

MIN_BYTES: Final = 32 * 1024 * 1024
"""Every part can hold the largest of what it takes: a batch of 6 MiB, a message of 512 KiB and what becomes of it."""

WHOLE: Final = 16
"""What the shares are parts of."""


class Share(NamedTuple):
    """Of one part.

    :ivar of_kafka: in sixteenths, where the broker is Kafka
    :ivar of_memory: the same with the embedded broker
    """

    of_kafka: int
    of_memory: int


SHARES: Final[Mapping[str, Share]] = MappingProxyType(
    {
        "handoff": Share(3, 3),  # records handed over and not done: being routed, or waiting for the mailbox
        "fetch": Share(2, 0),  # what the Kafka client has fetched ahead, from each broker
        "batch": Share(3, 0),  # one batch, decompressed
        "publish": Share(4, 0),  # records that the broker has not acknowledged yet
        "log": Share(0, 9),  # the topics of the embedded broker
        "uplink": Share(2, 2),  # messages of devices: on their way in, and waiting for the publish queue
        "bodies": Share(2, 2),  # of requests
    }
)
"""Every part, with its share of ``buffer_bytes``."""


class Use(NamedTuple):
    """Of one part's share.

    :ivar held: bytes that it holds now; None where that can't be told
    :ivar limit: bytes that it may hold
    """

    held: int | None
    limit: int


def split(total: int, *, embedded: bool) -> dict[str, int]:
    """The bytes of each part that there is.

    :param embedded: the broker is the embedded one
    """
    shares = {part: share.of_memory if embedded else share.of_kafka for part, share in SHARES.items()}
    return {part: total * share // WHOLE for part, share in shares.items() if share}
