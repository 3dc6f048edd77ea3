"""Makes all devices of this server look into their boxes, a few at a time. IOLoop thread only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from itertools import islice
from typing import Final

AT_ONCE: Final = 500
EVERY_S: Final = 0.5
"""1,000 devices a second: each one asks the mailbox, which all other servers may be asking at the same time."""


class LookingAgain:
    """Looks into the boxes of all connected devices after wake-ups were lost, a few at a time.

    :param devices: returns those that are connected now
    :param look: makes the connections of one device look; never raises
    """

    def __init__(self, devices: Callable[[], Collection[str]], look: Callable[[str], None]) -> None:
        self._devices, self._look = devices, look
        self._waiting: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<LookingAgain, {len(self._waiting)} devices wait>"

    def start(self) -> None:
        """Devices that still wait since an earlier loss look only once."""
        self._waiting.update(dict.fromkeys(self._devices()))
        if self._timer is None:
            self._go_on()

    def stop(self) -> None:
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go_on(self) -> None:
        self._timer = None
        for device_id in list(islice(self._waiting, AT_ONCE)):
            del self._waiting[device_id]
            self._look(device_id)
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._go_on)
