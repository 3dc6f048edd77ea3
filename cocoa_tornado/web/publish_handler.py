"""``POST /api/v1/transcriptions``: a device publishes a record to itself, through the broker."""

from __future__ import annotations

import asyncio
import math
from typing import Final

from ..brokers.port import BrokerState
from ..errors import BrokerError
from ..rules.identity import DeviceIdentity
from ..rules.records import Delivery, decode
from .handlers import GatewayErrors

PATIENCE_S = 10.0

MAX_BODY_BYTES: Final = 64 * 1024
"""Of a record. It is decoded on the event loop, twice with the embedded broker: 64 KiB of brackets take some ten
milliseconds, a megabyte would take half a second. Backends write to the topic, where 1 MiB is the bound."""

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
    "no_device": "The record has no valid device_id",
    "not_unicode": "The record holds half a surrogate pair",
}
"""For people, by the reason that :func:`decode` gives."""


class PublishHandler(GatewayErrors):
    """For trying things out, and for ``probe-device``; on by default only with the embedded broker. The body is the
    value of a record; the token says for which device, and no other may be named.

    The order of the answers: 404 (off), 401, 413, 429, 400, 403, 503. The device's inbound rate holds here too.
    """

    async def post(self) -> None:
        if not self.context.http_publish:
            self.refuse(404, "Not Found")
            return
        identity = await self.identify()
        if identity is None:
            return
        if len(self.request.body) > MAX_BODY_BYTES:
            self.refuse(413, "The record is too large")
            return
        if self._is_over_its_rate(identity):
            return
        decoded = decode(None, self.request.body, 0)
        if not isinstance(decoded, Delivery):
            self.refuse(400, PROBLEMS[decoded.reason])
        elif decoded.device_id != identity.device_id:
            self.refuse(403, "The token is for another device")
        else:
            await self._publish(decoded.device_id)

    def _is_over_its_rate(self, identity: DeviceIdentity) -> bool:
        """Counts the record, or answers 429."""
        devices, publishing = self.context.devices, self.context.publishing
        limit, now = devices.limits.inbound, devices.clock()
        messages = max(1, math.ceil(len(self.request.body) / BYTES_PER_MESSAGE))
        wait_s = publishing.wait_s(identity.device_id, limit, now, messages)
        if wait_s:
            self.refuse(429, "Too many messages", {"Retry-After": str(math.ceil(wait_s))})
            return True
        publishing.spend(identity.device_id, limit, now, messages)
        return False

    async def _publish(self, device_id: str) -> None:
        broker = self.context.broker
        if not broker.can_write() or broker.status().state is not BrokerState.READY:
            self.refuse(503, "Broker not available", {"Retry-After": str(self.context.retry_after_s)})
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.shield(broker.publish(self.context.results_topic, device_id, self.request.body))
        except (BrokerError, TimeoutError):
            self.refuse(503, "Broker not available", {"Retry-After": str(self.context.retry_after_s)})
            return
        self.answer(202, {"success": True})
