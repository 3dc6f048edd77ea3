"""What would become of a record."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

from ..errors import MailboxError
from ..mailboxes.port import Mailbox
from ..routing.address import Devices
from ..routing.plan import is_fan_out
from ..rules.admin_tokens import READ
from ..rules.audiences import audience_of
from ..rules.records import Record, decode
from ..web.publish_handler import PROBLEMS
from .explain import HOLDERS, MAX_DEVICES, counts_of, explain, question_for
from .handlers import AdminHandler, expensive
from .servers import PATIENCE_S

EMPTY: Final[dict[str, object]] = {"devices": [], "counts": {}, "more": False, "missing": []}


class ExplainHandler(AdminHandler):
    """``POST explain``: takes the value of a record, and says what would become of it now. Sends nothing."""

    scopes: ClassVar = {"POST": READ}

    @expensive
    async def post(self) -> None:
        decoded = decode(None, self.body(), int(self.context.devices.wall_clock() * 1000))
        if not isinstance(decoded, Record):
            problem = {"valid": False, "reason": decoded.reason, "message": PROBLEMS[decoded.reason]}
            self.answer(200, problem | EMPTY)
            return
        mailbox = self.admin.mailbox
        try:
            async with asyncio.timeout(PATIENCE_S):
                members = None if mailbox is None or not is_fan_out(decoded) else await members_of(mailbox, decoded)
        except (MailboxError, TimeoutError):
            self.refuse(503, "Mailbox not available", {"Retry-After": str(self.context.retry_after_s)})
            return
        answers, missing = await self.ask(HOLDERS, question_for(decoded.address, members))
        verdicts = explain(decoded, answers, has_mailbox=mailbox is not None, members=members)
        shown = verdicts[:MAX_DEVICES]
        found = {"valid": True, "devices": shown, "counts": counts_of(shown), "more": len(verdicts) > MAX_DEVICES}
        self.answer_struct(200, found | {"missing": missing})


async def members_of(mailbox: Mailbox, record: Record) -> list[str]:
    """The recipients that the mailbox finds: at most one more than is shown."""
    address = record.address
    assert not isinstance(address, str | Devices)  # a fan-out
    device_ids = await mailbox.members(audience_of(address), "", MAX_DEVICES + len(address.excluded) + 1)
    return [device_id for device_id in device_ids if device_id not in address.excluded][: MAX_DEVICES + 1]
