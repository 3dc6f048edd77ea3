"""The connected devices: listing them, and closing their connections."""

from __future__ import annotations

import asyncio
import math
from typing import ClassVar, Final

import msgspec

from ..errors import MailboxError
from ..rules.admin_tokens import WRITE
from ..rules.audiences import of_group, of_user
from ..rules.trace_memory import MESSAGES_PER_DEVICE
from ..web.handlers import timestamp
from .connected import CLOSE, DEVICES, CloseOrder
from .device import DEVICE, NOBODY, BoxRow, DeviceQuestion, empty, last_events, members_page, weigh
from .device_messages import last_messages
from .handlers import AdminHandler, expensive
from .requests import MAX_RECONNECT_S, read_selection, read_target, user_of, whole_number
from .rows import DeviceRow, Page, Selection, connected, merge
from .servers import PATIENCE_S

MAILBOX_PATIENCE_S: Final = 10.0
EMPTY: Final = BoxRow(oldest=None, newest=None, acknowledged=None, messages=0, bytes=0)


class DevicesHandler(AdminHandler):
    """``GET devices``: the connected devices of all servers, in pages."""

    @expensive
    async def get(self) -> None:
        selection = read_selection(self.request.query_arguments)
        pages, missing = await self.ask(DEVICES, selection)
        devices, after = merge(pages, selection.limit)
        body = {"devices": devices, "next": after, "connected": connected(pages), "missing": missing}
        self.answer_struct(200, body)


class MembersHandler(AdminHandler):
    """``GET groups/{name}/devices`` and ``users/{id}/devices``: the members, in pages. With a mailbox also those that
    are not connected; they have no connections, and their user and groups are not known."""

    @expensive
    async def get(self, kind: str, text: str) -> None:
        target, asked = read_target(kind, self.id_of(text)), read_selection(self.request.query_arguments)
        user, group = (target.id, None) if kind == "users" else (None, target.id)
        selection = Selection(user=user, group=group, after=asked.after, limit=asked.limit)
        pages, missing = await self.ask(DEVICES, selection)
        fitting = connected(pages)
        if self.admin.mailbox is not None:
            audience = of_user(user_of(target.id)) if kind == "users" else of_group(target.id)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    pages.append(await members_page(self.admin.mailbox, audience, selection))
            except (MailboxError, TimeoutError):
                self.refuse(503, "Mailbox not available", {"Retry-After": str(self.context.retry_after_s)})
                return
        devices, after = merge(pages, selection.limit)
        self.answer_struct(200, {"devices": devices, "next": after, "connected": fitting, "missing": missing})


class DeviceHandler(AdminHandler):
    """``GET devices/{id}``: its connections, its last events and messages over all servers, its box, and whether it is
    blocked. 404 if no server that answers knows the device."""

    async def get(self, text: str) -> None:
        device_id = read_target("devices", self.id_of(text)).id
        answers, missing = await self.ask(DEVICE, DeviceQuestion(device_id, MESSAGES_PER_DEVICE))
        missing = sorted([*missing, *(answer.late for answer in answers if answer.late)])
        box = await self._weigh(device_id)
        pages = [Page((answer.device,), False) for answer in answers if answer.device is not None]
        rows, _ = merge(pages, 1)
        events = last_events(answers)
        messages = last_messages(message for answer in answers for message in answer.messages)
        block = self._block(device_id)
        is_known = rows or events or messages or box not in (None, EMPTY) or block["blocked"]
        if not is_known and not missing:
            self.refuse(404, "Unknown device")
            return
        row = rows[0] if rows else DeviceRow(device_id=device_id, user_id=NOBODY, groups=(), connections=())
        more = {"box": box, "events": events, "messages": messages, **block, "missing": missing}
        self.answer_struct(200, msgspec.structs.asdict(row) | more)

    def _block(self, device_id: str) -> dict[str, object]:
        """Return whether it is blocked, and until when; None: until it is unblocked."""
        blocked = self.context.blocked
        if not blocked.holds(device_id, self.context.devices.wall_clock()):
            return {"blocked": False, "blocked_until": None}
        until = blocked.until[device_id]
        return {"blocked": True, "blocked_until": None if math.isinf(until) else timestamp(until)}

    async def _weigh(self, device_id: str) -> BoxRow | None:
        """None: there is no mailbox, or it is unavailable."""
        if self.admin.mailbox is None:
            return None
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await weigh(self.admin.mailbox, device_id)
        except (MailboxError, TimeoutError):
            return None


class BoxHandler(AdminHandler):
    """``DELETE devices/{id}/box``."""

    scopes: ClassVar = {"DELETE": WRITE}

    async def delete(self, text: str) -> None:
        device_id = read_target("devices", self.id_of(text)).id
        if self.admin.mailbox is None:
            self.refuse(404, "There is no mailbox")
            return
        try:
            async with asyncio.timeout(MAILBOX_PATIENCE_S):
                deleted = await empty(self.admin.mailbox, device_id)
        except (MailboxError, TimeoutError):
            self.refuse(503, "Mailbox not available", {"Retry-After": str(self.context.retry_after_s)})
            return
        self.answer(200, {"deleted": deleted})


class ConnectionsHandler(AdminHandler):
    """``DELETE devices/{id}/connections``, and those of a user or a group."""

    scopes: ClassVar = {"DELETE": WRITE}

    async def delete(self, kind: str, text: str) -> None:
        target = read_target(kind, self.id_of(text))
        after_s = whole_number(self.request.query_arguments, "reconnect_after", 0, MAX_RECONNECT_S)
        after_ms = None if after_s is None else after_s * 1000
        closed, missing = await self.ask(CLOSE, CloseOrder(target.kind, target.id, after_ms))
        self.answer(200, {"closed": sum(each.closed for each in closed), "missing": missing})
