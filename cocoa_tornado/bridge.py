"""From the broker's batches to the devices' outboxes: the routing decision, on the IOLoop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from .brokers.port import Batch
from .hub import Hub
from .metrics import Counters, count
from .rules.rate import LineBudget, RateLimit
from .rules.records import Delivery

UNKNOWN_DEVICE_LOG = RateLimit(per_s=10, burst=50)

log = logging.getLogger("cocoa.bridge")


class Bridge:
    """Hands each delivery to the Hub, in the order of the batch. IOLoop thread only.

    A message for a device that is not connected goes to no other device: it is dropped, counted and logged (at most
    ten lines a second; the next line says how many were left out).

    :param on_routed: is given the deliveries of each batch once they are routed
    """

    def __init__(
        self,
        hub: Hub,
        counters: Counters,
        clock: Callable[[], float],
        on_routed: Callable[[Sequence[Delivery]], None] | None = None,
    ) -> None:
        self._hub, self._counters, self._clock, self._on_routed = hub, counters, clock, on_routed
        self._lines = LineBudget(UNKNOWN_DEVICE_LOG)

    def __call__(self, batch: Batch) -> None:
        hub, routed = self._hub, 0
        for delivery in batch.deliveries:
            try:
                device_id, payload, timestamp_ms, _, interim_of = delivery
                if hub.send_to_device(device_id, payload, timestamp_ms, interim_of):
                    routed += 1
                else:
                    self._unknown(delivery.device_id)
            except Exception:
                # A fault of ours must cost this message and no other: a batch that is never done stops the stream.
                self._failed(delivery.device_id)
        self._counters.routed += routed
        batch.done()
        if self._on_routed is not None:
            self._on_routed(batch.deliveries)

    def _failed(self, device_id: str) -> None:
        count(self._counters.dropped, "fault")
        if self._lines.take(self._clock()) is not None:
            log.exception("message could not be routed, dropped", extra={"device_id": device_id})

    def _unknown(self, device_id: str) -> None:
        self._counters.unknown_device += 1
        left_out = self._lines.take(self._clock())
        if left_out is None:
            return
        extra: dict[str, object] = {"device_id": device_id}
        if left_out:
            extra["left_out"] = left_out
        log.info("device not connected, message dropped", extra=extra)
