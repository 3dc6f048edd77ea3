"""The pending requests to presence in Redis: releases, claims and look-ups of one loop turn share a round trip. Pure.

Releases go before claims: a device that leaves and returns at once needs no challenge. A claim that is released before
it was sent is not sent. Look-ups go last, so they see both.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from ..rules.claims import Claim
from .actions import Acquire, Send
from .port import Holder

MOST: Final = 1000
"""Devices in a round trip, of each kind: claims share its time to reply."""

T = TypeVar("T")

Found = asyncio.Future[Mapping[str, Sequence[Holder]]]


class Releasing(NamedTuple):
    """:ivar then: messages to send once the slot is free"""

    device_id: str
    claim: Claim
    then: list[Send]


class LookUp(NamedTuple):
    """At most :data:`MOST` devices of a look-up.

    :ivar result: the holders that the parts of the look-up have found so far
    :ivar is_last: of these parts
    """

    device_ids: Sequence[str]
    found: Found
    result: dict[str, Sequence[Holder]]
    is_last: bool

    def end(self, holders: Mapping[str, Sequence[Holder]]) -> None:
        """These are the holders of its devices."""
        self.result.update(holders)
        if self.is_last and not self.found.done():
            self.found.set_result(self.result)


class Asked(NamedTuple):
    """The content of one round trip."""

    releases: Sequence[Releasing]
    acquires: Sequence[Acquire]
    look_ups: Sequence[LookUp]


class Backlog:
    def __init__(self) -> None:
        self._releases: dict[Claim, Releasing] = {}
        self._acquires: dict[Claim, Acquire] = {}
        self._look_ups: deque[LookUp] = deque()
        self._under_way: dict[str, Releasing] = {}  # by device; the last one

    def __repr__(self) -> str:
        return f"<Backlog {len(self._releases)} releases, {len(self._acquires)} claims, {len(self._look_ups)} look-ups>"

    def __bool__(self) -> bool:
        return bool(self._releases or self._acquires or self._look_ups)

    def acquire(self, acquire: Acquire) -> None:
        self._acquires[acquire.claim] = acquire

    def release(self, device_id: str, claim: Claim) -> None:
        self._acquires.pop(claim, None)
        releasing = self._releases.get(claim) or Releasing(device_id, claim, [])
        self._releases[claim] = self._under_way[device_id] = releasing

    def look_up(self, device_ids: Sequence[str], found: Found) -> None:
        result: dict[str, Sequence[Holder]] = {}
        for start in range(0, len(device_ids), MOST):
            is_last = start + MOST >= len(device_ids)
            self._look_ups.append(LookUp(device_ids[start : start + MOST], found, result, is_last))

    def send_after(self, send: Send) -> bool:
        """Have a message sent after the releases of its device; False: there are none, so send it now."""
        releasing = self._under_way.get(send.message.device_id)
        if releasing is None:
            return False
        releasing.then.append(send)
        return True

    def take(self) -> Asked:
        """Take the next round trip."""
        look_ups, devices = [], 0
        while self._look_ups and (not devices or devices + len(self._look_ups[0].device_ids) <= MOST):
            devices += len(self._look_ups[0].device_ids)
            look_ups.append(self._look_ups.popleft())
        return Asked(_some(self._releases), _some(self._acquires), look_ups)

    def give_back(self, asked: Asked) -> None:
        """The releases and the look-ups were not answered: they go first next time."""
        if not asked.releases and not asked.look_ups:
            return
        earlier = {releasing.claim: releasing for releasing in asked.releases}
        for claim in earlier.keys() & self._releases.keys():
            self._releases[claim].then[:0] = earlier[claim].then
        self._releases = earlier | self._releases
        self._look_ups.extendleft(reversed(asked.look_ups))

    def released(self, releases: Sequence[Releasing]) -> list[Send]:
        """These releases were answered. Return the messages that have waited for them."""
        for releasing in releases:
            if self._under_way.get(releasing.device_id) is releasing:
                del self._under_way[releasing.device_id]
        return [send for releasing in releases for send in releasing.then]

    def forget(self) -> list[Send]:
        """The epoch has ended, and with it all of its slots: only the look-ups remain."""
        waited = [send for releasing in self._releases.values() for send in releasing.then]
        self._releases.clear()
        self._acquires.clear()
        self._under_way.clear()
        return waited

    def end(self) -> list[LookUp]:
        """Take away all look-ups."""
        look_ups = [*self._look_ups]
        self._look_ups.clear()
        return look_ups


def _some(waiting: dict[Claim, T]) -> list[T]:
    """Take the oldest ones away."""
    if not waiting:
        return []
    some = list(waiting.values())[:MOST]
    if len(some) == len(waiting):
        waiting.clear()
    else:
        for claim in list(waiting)[:MOST]:
            del waiting[claim]
    return some
