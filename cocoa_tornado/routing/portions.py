"""Cuts a batch into portions: of few fan-outs, which a mailbox can hold back one by one, and of few messages. Pure.

A mailbox bounds how many fan-outs are under way. If a batch were stored as a whole, it would exceed that bound, or what
stands before its last fan-out would wait for it. And a batch whose records each address many devices is expanded into a
thousand times as many messages: one portion of it after the other needs the memory of one portion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from ..brokers.port import Batch
from ..rules.records import Record
from .address import Directory, Everyone, Group, most_recipients
from .plan import is_fan_out
from .receipt import Receipt

FAN_OUTS_TOGETHER: Final = 8
MESSAGES_TOGETHER: Final = 10_000
"""A portion of more has a single record."""


def is_for_single_devices(batch: Batch) -> bool:
    """Whether each record is for one device, so that the batch stays whole."""
    return all(type(record[0]) is str for record in batch.records)


def portions(batch: Batch, directory: Directory, *, has_mailbox: bool = False) -> list[Batch]:
    """Return the batch itself, or its parts in order. The batch is done when all parts are.

    With a mailbox, a part has at most :data:`FAN_OUTS_TOGETHER` records for groups or everyone that are stored.
    """
    if is_for_single_devices(batch):
        return [batch]
    records = batch.records
    ends = list(_ends(records, directory, has_mailbox=has_mailbox))
    if not ends:
        return [batch]
    receipt = Receipt(batch.done)
    return [
        Batch(
            records[first:end],
            receipt.leg(),
            batch.offsets[first:end],
            list(_sources(batch.sources, first, end)),
            batch.assignment,
        )
        for first, end in pairwise([0, *ends, len(records)])
    ]


def _ends(records: Sequence[Record], directory: Directory, *, has_mailbox: bool) -> Iterator[int]:
    """Where a portion ends and another one begins."""
    fan_outs = messages = 0
    for at, record in enumerate(records):
        if has_mailbox and is_fan_out(record):
            more, is_large = 0, isinstance(record.address, Group | Everyone)
        else:
            more, is_large = most_recipients(record.address, directory), False
        if fan_outs + is_large > FAN_OUTS_TOGETHER or (messages and messages + more > MESSAGES_TOGETHER):
            yield at
            fan_outs = messages = 0
        fan_outs += is_large
        messages += more


def _sources(sources: Sequence[tuple[str, int]], first: int, end: int) -> Iterator[tuple[str, int]]:
    """The partitions of the records from one index to another."""
    at = 0
    for partition, count in sources:
        inside = min(end, at + count) - max(first, at)
        if inside > 0:
            yield partition, inside
        at += count
