"""The headers of the messages that librdkafka has fetched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import confluent_kafka

Pairs: TypeAlias = Sequence[tuple[str, bytes | None]]

UNREADABLE: Final[Pairs] = []
"""Compared by identity: a name is not UTF-8. It could not be written again either."""

_HEADERS: Final[Any] = confluent_kafka.Message.headers


def headers_of(messages: Sequence[Any]) -> list[Pairs | None]:
    """The headers of each message: None if it has none, ``UNREADABLE`` if they cannot be read.

    May be called once for a message: after a failure, confluent-kafka returns what is no valid object. And it fails
    with a result, which the interpreter does not check in a method call that it has optimized, so that some later call
    raises; ``map`` checks each call. It also takes half the time.
    """
    found: list[Pairs | None] = []
    calls = map(_HEADERS, messages)
    while len(found) < len(messages):
        try:
            found.extend(calls)  # up to the next failure
        except (UnicodeDecodeError, SystemError):
            found.append(UNREADABLE)
    return found
