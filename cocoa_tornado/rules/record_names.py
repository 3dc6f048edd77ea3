"""The names of records that have no ``id`` of their own: ``<topic>/<partition>/<offset>``. Pure."""

from __future__ import annotations


def origin_of(message_id: str) -> tuple[str, int]:
    """The partition and the offset that an id names; ('', -1) if it names none."""
    source, _, digits = message_id.rpartition("/")
    is_offset = digits.isascii() and digits.isdecimal() and len(digits) < 20
    return (source, int(digits)) if source and is_offset else ("", -1)


def is_named(partition: str, name: str) -> bool:
    """Whether a name means a partition: exactly, or without the mark that distinguishes a topic from earlier ones of
    its name, as in ``results@<id>/3`` and ``results/0#<id>``."""
    if partition == name or not name:
        return partition == name
    return plain_name(partition) == name


def plain_name(partition: str) -> str:
    """The name of a partition as :func:`is_named` and the producers of its records know it."""
    topic, _, number = partition.rpartition("/")
    return f"{topic.partition('@')[0]}/{number.partition('#')[0]}"
