"""Cuts a batch with many fan-outs into portions, which a mailbox can hold back one by one. Pure.

A mailbox bounds how many fan-outs are under way. If a batch were stored as a whole, it would exceed that bound, or what
stands before its last fan-out would wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from ..brokers.port import Batch
from ..rules.records import Record
from .address import Everyone, Group
from .receipt import Receipt

FAN_OUTS_TOGETHER: Final = 8


def portions(batch: Batch) -> list[Batch]:
    """Return the batch itself, or its parts in order, each with at most so many records for groups or everyone. The
    batch is done when all parts are."""
    ends = [at + 1 for at, record in enumerate(batch.records) if _is_large(record)][
        FAN_OUTS_TOGETHER - 1 :: FAN_OUTS_TOGETHER
    ]
    if not ends or ends == [len(batch.records)]:
        return [batch]
    receipt = Receipt(batch.done)
    bounds = sorted({0, *ends, len(batch.records)})
    return [
        Batch(
            batch.records[first:end], receipt.leg(), batch.offsets[first:end], list(_sources(batch.sources, first, end))
        )
        for first, end in pairwise(bounds)
    ]


def _is_large(record: Record) -> bool:
    return isinstance(record.address, Group | Everyone) and record.is_for_mailbox


def _sources(sources: Sequence[tuple[str, int]], first: int, end: int) -> Iterator[tuple[str, int]]:
    """The partitions of the records from one index to another."""
    at = 0
    for partition, count in sources:
        inside = min(end, at + count) - max(first, at)
        if inside > 0:
            yield partition, inside
        at += count
