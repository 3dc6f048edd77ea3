"""The numbers of a batch's messages by device, to find those that come after a message which is not stored."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from ..mailboxes.port import FanOutStep, lane_of
from ..rules.box import LaneName
from ..rules.records import Record
from .address import Directory, Everyone, Group, User, is_for
from .plan import Part

Stored: TypeAlias = "asyncio.Future[list[int | None]]"

NOT_KNOWN: Final = 0


class BatchNumbers:
    """Of those messages of a batch that the mailbox stores. It holds no payload: a message that waits may keep it for
    longer than the batch is in flight.

    :param parts: what the mailbox takes of the batch
    :param stored: completes with their numbers
    :param steps: of its fan-outs, as far as they are known, by the index of the record
    """

    __slots__ = ("_by_device", "_fan_outs", "_given", "_stored")

    def __init__(
        self,
        records: Sequence[Record],
        parts: Sequence[Part],
        stored: Stored,
        steps: Mapping[int, Sequence[FanOutStep]],
    ) -> None:
        self._stored = stored
        self._by_device: dict[str, list[tuple[int, int, LaneName]]] = {}
        self._fan_outs: list[tuple[int, int, LaneName, User | Group | Everyone]] = []
        self._given: dict[int, list[Mapping[str, int]]] = {}
        for place, (at, device_id) in enumerate(parts):
            record = records[at]
            if record.is_transient:
                continue
            lane, address = lane_of(record.options), record.address
            if device_id is not None:
                self._by_device.setdefault(device_id, []).append((at, place, lane))
            elif isinstance(address, (User, Group, Everyone)):
                self._fan_outs.append((at, place, lane, address))
        for at, found in steps.items():
            for step in found:
                self.add(at, step)

    def __repr__(self) -> str:
        return f"<BatchNumbers of {len(self._by_device)} devices and {len(self._fan_outs)} fan-outs>"

    def add(self, at: int, step: FanOutStep) -> None:
        """A step of the fan-out with this index."""
        if step.numbers is not None:
            self._given.setdefault(at, []).append(step.numbers)

    def first(self, after: int, device_id: str, lane: LaneName, directory: Directory) -> int | None:
        """The number of a device's first message in a lane behind the record with the index ``after``; 0: it is not
        known; None: there is none.

        :param directory: a fan-out counts for the devices that it would reach now
        """
        stored = self._stored
        if stored.done() and (stored.cancelled() or stored.exception() is not None):
            return None
        numbers = stored.result() if stored.done() else None
        found: list[tuple[int, int]] = []
        for at, place, in_lane in self._by_device.get(device_id, ()):
            if at > after and in_lane == lane:
                number = NOT_KNOWN if numbers is None else numbers[place]
                if number is not None:
                    found.append((at, number))
                    break
        for at, place, in_lane, address in self._fan_outs:
            if at > after and in_lane == lane and is_for(address, device_id, directory):
                number = NOT_KNOWN if numbers is None else numbers[place]
                number = next((given[device_id] for given in self._given.get(at, ()) if device_id in given), number)
                if number is not None:
                    found.append((at, number))
                    break
        return min(found)[1] if found else None
