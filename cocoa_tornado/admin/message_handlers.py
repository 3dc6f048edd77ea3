"""Messages: sending one."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import ClassVar, Final

from ..brokers.port import BrokerState
from ..errors import BrokerError, RecordTooLarge
from ..routing.address import Address, Group, User
from ..rules.admin_tokens import WRITE
from ..rules.records import Record, decode
from ..web.publish_handler import PATIENCE_S, PROBLEMS
from .handlers import AdminHandler

ID_HEADER: Final = "cocoa.id"


class MessagesHandler(AdminHandler):
    """``POST messages``: publishes the unchanged body to the results topic. Once the broker has acknowledged the
    record, it answers with the id: the record's own, or a new one in a header.

    The order of the answers, after those of every request: 413, 400, 503.
    """

    scopes: ClassVar = {"POST": WRITE}

    async def post(self) -> None:
        body = self.body()
        decoded = decode(None, body, 0)
        if not isinstance(decoded, Record):
            self.refuse(413 if decoded.reason == "too_large" else 400, PROBLEMS[decoded.reason])
            return
        own_id = None if decoded.options is None else decoded.options.id
        message_id = own_id or uuid.uuid4().hex
        headers = {} if own_id else {ID_HEADER: json.dumps(message_id).encode()}
        await self._publish(key_of(decoded.address), body, headers, message_id)

    async def _publish(self, key: str, body: bytes, headers: dict[str, bytes], message_id: str) -> None:
        broker = self.context.broker
        if not broker.can_write() or broker.status().state in (BrokerState.CONNECTING, BrokerState.CLOSED):
            self._refuse_unavailable()
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.shield(broker.publish(self.context.results_topic, key, body, headers))
        except RecordTooLarge:
            self.refuse(413, PROBLEMS["too_large"])
        except (BrokerError, TimeoutError):
            # Whether it was published is unknown after a timeout; a second attempt should name the same id.
            self._refuse_unavailable()
        else:
            self.note_in_log("id", message_id)
            self.answer(202, {"id": message_id})

    def _refuse_unavailable(self) -> None:
        self.refuse(503, "Broker not available", {"Retry-After": str(self.context.retry_after_s)})


def key_of(address: Address) -> str:
    """The record's key, which selects its partition: messages to one recipient stay in order."""
    if isinstance(address, str):
        return address
    if isinstance(address, User):
        return f"user {json.dumps(address.user_id, ensure_ascii=False)}"
    return f"group {address.name}" if isinstance(address, Group) else "all"
