"""The devices that operators have blocked. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

MAX_BLOCKED: Final = 10_000


class Blocked:
    """The table in memory that each handshake looks at; empty on nearly every gateway.

    :ivar until: when each device's block ends, Unix seconds; ``math.inf``: never
    """

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until: Mapping[str, float] = {}

    def __repr__(self) -> str:
        return f"<Blocked {len(self.until)} devices>"

    def holds(self, device_id: str, now: float) -> bool:
        """Whether a device is blocked.

        :param now: Unix seconds
        """
        return bool(self.until) and self.until.get(device_id, -math.inf) > now
