"""The connected devices: who they are, and how to close their connections."""

from __future__ import annotations

from typing import ClassVar

from ..rules.admin_tokens import WRITE
from .connected import CLOSE, DEVICES, CloseOrder
from .handlers import AdminHandler
from .requests import MAX_RECONNECT_S, read_selection, read_target, whole_number
from .rows import merge


class DevicesHandler(AdminHandler):
    """``GET devices``: those that are connected, over all servers, in pages."""

    async def get(self) -> None:
        selection = read_selection(self.request.query_arguments)
        pages, missing = await self.ask(DEVICES, selection)
        devices, after = merge(pages, selection.limit)
        self.answer_struct(200, {"devices": devices, "next": after, "missing": missing})


class ConnectionsHandler(AdminHandler):
    """``DELETE devices/{id}/connections``, and those of a user or a group."""

    scopes: ClassVar = {"DELETE": WRITE}

    async def delete(self, kind: str, text: str) -> None:
        target = read_target(kind, text)
        after_s = whole_number(self.request.query_arguments, "reconnect_after", 0, MAX_RECONNECT_S)
        after_ms = None if after_s is None else after_s * 1000
        closed, missing = await self.ask(CLOSE, CloseOrder(target.kind, target.id, after_ms))
        self.answer(200, {"closed": sum(each.closed for each in closed), "missing": missing})
