"""How the memory budget for messages is divided: a fixed share for each part. Pure.

A part that has used up its share applies backpressure to its source, back to Kafka's log or a device's socket. No part
borrows from another, so none can starve another, and there are no deadlocks between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

DEFAULT_BYTES: Final = 128 * 1024 * 1024

MIN_BYTES: Final = 32 * 1024 * 1024
"""Every part can hold the largest item that it takes: a batch of 6 MiB, or a message of 512 KiB and its record."""

WHOLE: Final = 16
"""The denominator of the shares."""


class Share(NamedTuple):
    """The share of one part, in sixteenths.

    :ivar of_kafka: if the broker is Kafka
    :ivar of_memory: with the embedded broker
    """

    of_kafka: int
    of_memory: int


SHARES: Final[Mapping[str, Share]] = MappingProxyType(
    {
        "handoff": Share(3, 3),  # records handed over and not done: being routed, or waiting for the mailbox
        "fetch": Share(2, 0),  # what the Kafka client has fetched ahead, from each broker
        "batch": Share(3, 0),  # one decompressed batch
        "publish": Share(4, 0),  # records that the broker has not acknowledged yet
        "log": Share(0, 9),  # the topics of the embedded broker
        "uplink": Share(2, 2),  # messages from devices: arriving, or waiting for the publish queue
        "bodies": Share(2, 2),  # request bodies
    }
)
"""Every part and its share of ``buffer_bytes``."""


class Use(NamedTuple):
    """How much of its share a part uses.

    :ivar held: bytes in use; None if unknown
    :ivar limit: bytes in the share
    """

    held: int | None
    limit: int


def split(total: int, *, embedded: bool) -> dict[str, int]:
    """Return the bytes of each part that exists.

    :param embedded: the broker is the embedded one
    """
    shares = {part: share.of_memory if embedded else share.of_kafka for part, share in SHARES.items()}
    return {part: total * share // WHOLE for part, share in shares.items() if share}
