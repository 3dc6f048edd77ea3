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
MOST_PLACES: Final = 1000
"""Devices whose place goes with a record that another server expands. Those of the nearest records come first."""


class BatchNumbers:
    """Of those messages of a batch that the mailbox stores. It holds no payload: a message that waits may keep it for
    longer than the batch is in flight.

    :param parts: what the mailbox takes of the batch
    :param stored: completes with their numbers
    :param steps: of its fan-outs, as far as they are known, by the index of the record
    """

    __slots__ = ("_by_device", "_fan_outs", "_given", "_in_order", "_stored")

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
        self._in_order: list[tuple[int, int, LaneName, str | None]] = []
        for place, (at, device_id) in enumerate(parts):
            record = records[at]
            if record.is_transient:
                continue
            lane, address = lane_of(record.options), record.address
            self._in_order.append((at, place, lane, device_id))
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

    def forget(self, at: int) -> None:
        """The steps of the fan-out with this index."""
        self._given.pop(at, None)

    def first(self, after: int, device_id: str, lane: LaneName, directory: Directory | None) -> int | None:
        """The number of a device's first message in a lane behind the record with the index ``after``; 0: it is not
        known; None: there is none.

        :param directory: a fan-out counts for the devices that it would reach now. None: the device is at another
            server, so only the steps that are known count; that server is notified of the others later
        """
        if self._is_given_up:
            return None
        numbers = self._numbers
        found: list[tuple[int, int]] = []
        for at, place, in_lane in self._by_device.get(device_id, ()):
            if at > after and in_lane == lane:
                number = NOT_KNOWN if numbers is None else numbers[place]
                if number is not None:
                    found.append((at, number))
                    break
        for at, place, in_lane, address in self._fan_outs:
            if at > after and in_lane == lane and (directory is None or is_for(address, device_id, directory)):
                number = None if directory is None else NOT_KNOWN if numbers is None else numbers[place]
                number = next((given[device_id] for given in self._given.get(at, ()) if device_id in given), number)
                if number is not None:
                    found.append((at, number))
                    break
        return min(found)[1] if found else None

    def last(self, before: int, device_id: str, lane: LaneName) -> int | None:
        """The number of a device's last message in a lane ahead of the record with the index ``before``; None: it is
        not known, or there is none."""
        numbers = self._numbers
        if numbers is None:
            return None
        for at, place, in_lane in reversed(self._by_device.get(device_id, ())):
            if at < before and in_lane == lane and numbers[place] is not None:
                return numbers[place]
        return None

    def add_firsts(self, after: int, lane: LaneName, firsts: dict[str, int]) -> None:
        """Add what :meth:`first` is for the devices at other servers that have no number yet, within
        :data:`MOST_PLACES`.

        :param firsts: by device
        """
        numbers = self._numbers
        for at, place, in_lane, device_id in () if self._is_given_up else self._in_order:
            if len(firsts) >= MOST_PLACES:
                return
            number = NOT_KNOWN if numbers is None else numbers[place]
            if at <= after or in_lane != lane or number is None:
                continue
            if device_id is not None:
                firsts.setdefault(device_id, number)
            for given in self._given.get(at, ()):
                for of_step, its_number in given.items():
                    firsts.setdefault(of_step, its_number)

    @property
    def _is_given_up(self) -> bool:
        stored = self._stored
        return stored.done() and (stored.cancelled() or stored.exception() is not None)

    @property
    def _numbers(self) -> list[int | None] | None:
        """None: they are not known yet."""
        return self._stored.result() if self._stored.done() and not self._is_given_up else None
