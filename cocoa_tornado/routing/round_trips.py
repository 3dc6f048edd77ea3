"""Follows the gateway's own records through the broker: how long each took, and whether all came back.

IOLoop thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from ..rules.records import Record

MAX_EXPECTED: Final = 10_000
PATIENCE_S: Final = 60.0
"""A record that has not come back by then has gone to another server, or is lost."""


class RoundTrips:
    """Compares what the router has routed with the expected records.

    Costs one comparison per batch while nothing is expected, otherwise one lookup per record.

    :param clock: monotonic seconds
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._expected: dict[str, dict[bytes, tuple[float, Callable[[], None]]]] = {}
        self._count = 0
        self._waiters: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<RoundTrips {self._count} expected>"

    def __len__(self) -> int:
        """The number of expected records."""
        return self._count

    def routed(self, records: Sequence[Record]) -> None:
        """These records have been routed. Only records for one device can be expected ones."""
        if self._expected:
            for record in records:
                address = record.address
                if isinstance(address, str) and address in self._expected:
                    found = self._remove(address, record.payload)
                    if found is not None:
                        found()

    def expect(self, device_id: str, payload: bytes, on_routed: Callable[[], None]) -> None:
        """Expect a message; ``on_routed`` is called once it has been routed, if ever.

        At most ``MAX_EXPECTED`` are followed, for ``PATIENCE_S`` each; there is no callback for others.
        """
        if self._count >= MAX_EXPECTED:
            self._forget_the_old()
        if self._count < MAX_EXPECTED and payload not in self._expected.get(device_id, {}):
            self._expected.setdefault(device_id, {})[payload] = (self._clock() + PATIENCE_S, on_routed)
            self._count += 1

    def forget(self, device_id: str, payload: bytes) -> None:
        """Stop expecting a message: it could not be published."""
        self._remove(device_id, payload)

    async def settled(self, timeout_s: float) -> bool:
        """Return True as soon as nothing is expected any more; False after ``timeout_s``."""
        self._forget_the_old()
        if not self._expected:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await asyncio.wait({waiter}, timeout=timeout_s)
        return not self._expected

    def _remove(self, device_id: str, payload: bytes) -> Callable[[], None] | None:
        of_device = self._expected.get(device_id)
        found = None if of_device is None else of_device.pop(payload, None)
        if of_device is None or found is None:
            return None
        self._count -= 1
        if not of_device:
            del self._expected[device_id]
        if not self._expected:
            self._wake()
        return found[1]

    def _forget_the_old(self) -> None:
        now = self._clock()
        old = [
            (device_id, payload)
            for device_id, of_device in self._expected.items()
            for payload, (until, _) in of_device.items()
            if until <= now
        ]
        for device_id, payload in old:
            self._remove(device_id, payload)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
