"""The dry run of a record."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import ClassVar, Final

from ..errors import MailboxError
from ..mailboxes.port import Mailbox
from ..routing.address import Devices
from ..routing.plan import is_fan_out
from ..rules.addressing import Headers
from ..rules.admin_tokens import READ
from ..rules.audiences import audience_of
from ..rules.records import Record, decode
from ..rules.strict_json import read_json
from ..web.publish_handler import PROBLEMS
from .explain import HOLDERS, MAX_DEVICES, counts_of, explain, question_for
from .handlers import AdminHandler, expensive
from .requests import Arguments, Invalid, argument
from .servers import PATIENCE_S

EMPTY: Final[dict[str, object]] = {"devices": [], "counts": {}, "more": False, "missing": []}


class ExplainHandler(AdminHandler):
    """``POST explain?headers=&timestamp=``: takes the value of a record, and answers what would happen to it now. Sends
    nothing.

    ``headers`` is a JSON object of the record's headers, whose values are strings; ``timestamp`` is the record's, in
    RFC 3339: its ``ttl`` counts from then.
    """

    scopes: ClassVar = {"POST": READ}

    @expensive
    async def post(self) -> None:
        now_ms = int(self.context.devices.wall_clock() * 1000)
        timestamp_ms = read_timestamp(self.request.query_arguments)
        headers = read_headers(self.request.query_arguments)
        decoded = decode(None, self.body(), now_ms if timestamp_ms is None else timestamp_ms, headers)
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
        verdicts = explain(decoded, answers, has_mailbox=mailbox is not None, members=members, now_ms=now_ms)
        shown = verdicts[:MAX_DEVICES]
        found = {"valid": True, "devices": shown, "counts": counts_of(shown), "more": len(verdicts) > MAX_DEVICES}
        self.answer_struct(200, found | {"missing": missing})


def read_headers(arguments: Arguments) -> Headers:
    """The headers of the record. Raises :class:`Invalid`."""
    text = argument(arguments, "headers")
    try:
        value = {} if text is None else read_json(text)
    except ValueError as error:
        raise Invalid("headers") from error
    if not isinstance(value, dict):
        raise Invalid("headers")
    pairs = [(name, value) for name, value in value.items() if isinstance(value, str)]
    if len(pairs) < len(value):
        raise Invalid("headers")
    try:
        return [(name, value.encode()) for name, value in pairs]
    except UnicodeEncodeError as error:  # half a surrogate pair
        raise Invalid("headers") from error


def read_timestamp(arguments: Arguments) -> int | None:
    """The timestamp of the record, Unix milliseconds; None: it is published now. Raises :class:`Invalid`."""
    text = argument(arguments, "timestamp")
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise Invalid("timestamp") from error
    if time.tzinfo is None:
        raise Invalid("timestamp")
    return max(1, int(time.timestamp() * 1000))


async def members_of(mailbox: Mailbox, record: Record) -> list[str]:
    """The recipients that the mailbox finds: at most one more than is shown."""
    address = record.address
    assert not isinstance(address, str | Devices)  # a fan-out
    device_ids = await mailbox.members(audience_of(address), "", MAX_DEVICES + len(address.excluded) + 1)
    return [device_id for device_id in device_ids if device_id not in address.excluded][: MAX_DEVICES + 1]
