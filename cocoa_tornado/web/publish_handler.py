"""``POST /api/v1/transcriptions``: a device publishes a record to itself, through the broker."""

from __future__ import annotations

import asyncio
import math
from typing import Final

from ..brokers.port import BrokerState
from ..errors import BrokerError
from ..rules.identity import DeviceIdentity
from ..rules.records import Record, decode, has_address
from .handlers import ReadsBody

PATIENCE_S = 10.0

BYTES_PER_MESSAGE: Final = 1024
"""A record counts as a message for every KiB begun: what it costs grows with its size."""

PROBLEMS: Final = {
    "empty": "The record is empty",
    "too_large": "The record is too large",
    "not_utf8": "The record is not UTF-8",
    "too_deep": "The record is nested too deeply",
    "not_json": "The record is not JSON",
    "not_object": "The record is not a JSON object",
    "duplicate_device": "The record names device_id twice",
    "headers": "The record's headers cannot be read",
    "to": "The record has an invalid to",
    "except": "The record has an invalid except",
    "priority": "The record has an invalid priority",
    "ttl": "The record has an invalid ttl",
    "collapse_key": "The record has an invalid collapse_key",
    "id": "The record has two ids",
    "no_device": "The record has no valid device_id",
    "not_unicode": "The record holds half a surrogate pair",
}
"""For people, by the reason that :func:`decode` gives."""


class PublishHandler(ReadsBody):
    """For trials, and for ``probe-device``; on by default only with the embedded broker. The body is the value of a
    record for the token's device; it must not name another one. Only the body reaches the broker: the record has no
    headers.

    The order of the answers: 404 (off), 401, 413, 429, 403 for ``to`` or ``except``, 400, 403 for another device, 503.
    The device's inbound rate applies here too.
    """

    # The body is decoded on the event loop, with the embedded broker twice: 64 KiB of brackets take ten milliseconds, a
    # megabyte half a second. Backends write to the topic, where the limit is 1 MiB.
    max_body_bytes = 64 * 1024
    allows_any_host = True
    _identity: DeviceIdentity | None = None

    async def judge(self) -> None:
        if self.context.http_publish:
            self._identity = await self.identify()
        else:
            self.refuse(404, "Not Found")

    async def post(self) -> None:
        assert self._identity is not None
        body, device_id = self.body(), self._identity.device_id
        if self._is_over_its_rate(device_id, len(body)):
            return
        if has_address(body):
            self.refuse(403, "Devices can't address others")
            return
        decoded = decode(None, body, 0)
        if not isinstance(decoded, Record):
            self.refuse(400, PROBLEMS[decoded.reason])
        elif decoded.address != device_id:
            self.refuse(403, "The token is for another device")
        else:
            await self._publish(device_id, body)

    def _is_over_its_rate(self, device_id: str, size: int) -> bool:
        """Counts the record, or answers 429."""
        devices, publishing = self.context.devices, self.context.publishing
        limit, now = devices.limits().inbound, devices.clock()
        messages = max(1, math.ceil(size / BYTES_PER_MESSAGE))
        wait_s = publishing.wait_s(device_id, limit, now, messages)
        if wait_s:
            self.refuse(429, "Too many messages", {"Retry-After": str(math.ceil(wait_s))})
            return True
        publishing.spend(device_id, limit, now, messages)
        return False

    async def _publish(self, device_id: str, body: bytes) -> None:
        broker = self.context.broker
        if not broker.can_write() or broker.status().state is not BrokerState.READY:
            self.refuse(503, "Broker not available", {"Retry-After": str(self.context.retry_after_s)})
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.shield(broker.publish(self.context.results_topic, device_id, body))
        except (BrokerError, TimeoutError):
            self.refuse(503, "Broker not available", {"Retry-After": str(self.context.retry_after_s)})
            return
        self.answer(202, {"success": True})
