"""Splits the part of a batch for another server into relay messages: no inbox takes a whole batch at once. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Final, NamedTuple

from ..relay.messages import Forward, ForwardedMessage, size_of
from ..rules.records import Record
from ..rules.terms import Terms
from .address import Devices
from .plan import Part

MOST: Final = 1000
"""Devices in one message of the relay."""
MOST_BYTES: Final = 1024 * 1024
"""Their records together. A single record may be larger."""


class Place(NamedTuple):
    """``after`` and ``places`` of a :class:`ForwardedMessage`."""

    after: int | None = None
    of_devices: Mapping[str, int] | None = None


_NO_PLACE: Final = Place()
NO_PLACES: Final[Mapping[Part, Place]] = MappingProxyType({})


class Portion(NamedTuple):
    """:ivar parts: what the message is made of"""

    forward: Forward
    parts: Sequence[Part]


def forwards_of(
    records: Sequence[Record],
    origins: Sequence[tuple[str, int]],
    parts: Sequence[Part],
    terms_of: Callable[[Record], Terms | None],
    places: Mapping[Part, Place] = NO_PLACES,
) -> Iterator[Portion]:
    """Make messages of parts of a batch, in their order. The payload of a record goes once for several devices.

    :param origins: by record: its partition, and its offset there
    :param parts: in the order of the records
    :param places: of the parts, as far as they are known
    """
    messages: list[ForwardedMessage] = []
    taken: list[Part] = []
    size = 0
    for at, piece in _pieces(parts):
        record = records[at]
        device_ids = tuple([device_id for _, device_id in piece if device_id is not None])
        address = Devices(device_ids) if len(device_ids) > 1 else device_ids[0] if device_ids else record.address
        place = _place_of(piece, places) if places else _NO_PLACE
        made = ForwardedMessage(address, record.payload, record.timestamp_ms, *origins[at], terms_of(record), *place)
        size += size_of(made)
        if messages and (len(taken) + len(piece) > MOST or size > MOST_BYTES):
            yield Portion(Forward(tuple(messages)), taken)
            messages, taken, size = [], [], size_of(made)
        messages.append(made)
        taken += piece
    if messages:
        yield Portion(Forward(tuple(messages)), taken)


def _place_of(piece: Sequence[Part], places: Mapping[Part, Place]) -> Place:
    """Of the parts of one record."""
    if len(piece) == 1:
        return places.get(piece[0], _NO_PLACE)
    found = {part[1]: places[part].after for part in piece if part in places}
    return Place(None, {device_id: after for device_id, after in found.items() if device_id and after is not None})


def _pieces(parts: Sequence[Part]) -> Iterator[tuple[int, list[Part]]]:
    """Those of one record together, at most :data:`MOST`."""
    for at, of_record in groupby(parts, itemgetter(0)):
        same = list(of_record)
        for start in range(0, len(same), MOST):
            yield at, same[start : start + MOST]
