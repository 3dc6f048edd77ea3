"""Blocking a device."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import ClassVar

from ..rules.admin_tokens import WRITE
from ..rules.blocked import MAX_BLOCKED
from .blocks import REFRESH, BlockFault, Full, Refresh
from .handlers import AdminHandler
from .requests import Invalid, read_target


class BlockHandler(AdminHandler):
    """``PUT devices/{id}/block``, with ``{"until":"<RFC 3339>"}`` for a time, and ``DELETE``.

    A device that is blocked is disconnected (4410).
    """

    scopes: ClassVar = {"PUT": WRITE, "DELETE": WRITE}
    max_body_bytes = 1024

    async def put(self, text: str) -> None:
        device_id = read_target("devices", self.id_of(text)).id
        given = self.json_body().get("until")
        until = math.inf if given is None else _unix_s(given)
        if until <= self.context.devices.wall_clock():
            raise Invalid("until")
        await self._write(device_id, until)
        if not self._finished:
            closed, missing = await self.ask(REFRESH, Refresh())
            body = {"blocked": True, "until": given, "closed": sum(each.closed for each in closed), "missing": missing}
            self.answer(200, body)

    async def delete(self, text: str) -> None:
        await self._write(read_target("devices", self.id_of(text)).id, None)
        if not self._finished:
            _, missing = await self.ask(REFRESH, Refresh())
            self.answer(200, {"blocked": False, "missing": missing})

    async def _write(self, device_id: str, until: float | None) -> None:
        try:
            await self.admin.blocks.write(device_id, until)
        except Full:
            self.refuse(409, f"{MAX_BLOCKED} devices are blocked already")
        except (BlockFault, TimeoutError):
            self.refuse(503, "Blocks cannot be stored", {"Retry-After": str(self.context.retry_after_s)})


def _unix_s(text: object) -> float:
    """Parse RFC 3339 text. Raises :class:`Invalid`; also for a time outside the calendar in UTC."""
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
        if time is not None and time.tzinfo is not None:
            return time.astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        pass
    raise Invalid("until")
