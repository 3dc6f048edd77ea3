"""The availability of Kafka: a status for programs, and one log line for each change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from .port import BrokerCounters, BrokerState, BrokerStatus, QuarantineState

ANSWERING = frozenset({"topic", "group", "protocol", "codec", "standby", "shared"})  # causes other than absent brokers
STANDBY = "one gateway reads; this one is not ready until the reader has left (update with Recreate, not RollingUpdate)"
SHARED = "the records that the other reader gets reach no device of this gateway: give it a group of its own"

UNREACHABLE = "{address}, which {bootstrap} advertises, cannot be reached: {detail}"

log = logging.getLogger("cocoa.broker")


class Availability:
    """The adapter's state. Written by its consumer thread, read by any thread.

    The state is only trusted while its thread is alive: if that has not called :meth:`alive` for ``stale_s``, the
    adapter is not READY.

    STANDBY is caused by another reader. Broker failures don't end it: it lasts until :meth:`turn_came`. A load balancer
    may send devices to a gateway that is CONNECTING, but never to one in STANDBY.
    """

    def __init__(
        self, counters: BrokerCounters, *, stale_s: float = 15.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._counters, self._stale_s, self._clock = counters, stale_s, clock
        self._lock = threading.Lock()
        self._state, self._detail = BrokerState.CONNECTING, "not started"
        self._kind = ""
        self._lag: int | None = None
        self._quarantine = QuarantineState.CHECKING
        self._oldest_quarantined_ms: int | None = None
        self._alive_at = clock()
        self._muted = False

    def alive(self) -> None:
        self._alive_at = self._clock()

    def set_lag(self, lag: int | None) -> None:
        self._lag = lag

    @property
    def quarantine(self) -> QuarantineState:
        return self._quarantine

    def set_quarantine(self, state: QuarantineState) -> None:
        self._quarantine = state

    def set_oldest_quarantined(self, timestamp_ms: int | None) -> None:
        self._oldest_quarantined_ms = timestamp_ms

    def brokers_answer(self) -> bool:
        """True if the brokers answered when last contacted, even if something else is wrong."""
        if self.status().state is BrokerState.READY:
            return True
        with self._lock:
            return self._kind in ANSWERING and self._clock() - self._alive_at <= self._stale_s

    def status(self) -> BrokerStatus:
        with self._lock:
            state, detail, lag = self._state, self._detail, self._lag
        quarantine, oldest_ms = self._quarantine, self._oldest_quarantined_ms
        if state is not BrokerState.READY:
            return BrokerStatus(state, detail, None, quarantine, oldest_ms)
        silent_s = self._clock() - self._alive_at
        if silent_s > self._stale_s:
            detail = f"the consumer thread has been stuck for {silent_s:.0f} s"
            return BrokerStatus(BrokerState.CONNECTING, detail, None, quarantine, oldest_ms)
        return BrokerStatus(state, detail, lag, quarantine, oldest_ms)

    def connecting(self, detail: str) -> None:
        """Connecting, without a problem so far. Not logged, and does not replace a current failure."""
        with self._lock:
            if self._state is BrokerState.CONNECTING and not self._kind:
                self._detail = detail

    def down(self, kind: str, detail: str) -> bool:
        """Kafka is unavailable. Logged when that is new, or when ``kind``, a one-word cause, changes.

        Returns whether it was logged. A gateway that waits for another reader stays in STANDBY.
        """
        news = self._enter(None, kind, detail)
        if news:
            log.warning("broker unavailable", extra={"cause": kind, "detail": detail})
        return news

    def standby(self, group: str, reader: str) -> None:
        """Another member of the group reads. Logged like :meth:`down`."""
        if self._enter(BrokerState.STANDBY, "standby", f"group {group} is in use by {reader}"):
            log.warning("consumer group in use", extra={"group": group, "reader": reader, "detail": STANDBY})

    def turn_came(self) -> None:
        """No other member of the group reads any more, or that is unknown: this gateway is about to join."""
        with self._lock:
            if self._state is BrokerState.STANDBY:
                self._state, self._detail, self._kind = BrokerState.CONNECTING, "about to join the group", ""

    def shared(self, group: str, other_reader: str) -> None:
        """Another member that joined later takes some of the records. Logged like :meth:`down`."""
        if self._enter(BrokerState.SHARED, "shared", f"group {group} is shared with {other_reader}"):
            log.warning("consumer group shared", extra={"group": group, "other_reader": other_reader, "detail": SHARED})

    def _enter(self, state: BrokerState | None, kind: str, detail: str) -> bool:
        """Return whether the state or its cause has changed.

        :param state: None for CONNECTING, or STANDBY if that is the current state
        """
        with self._lock:
            if self._state is BrokerState.CLOSED or self._muted:
                return False
            if state is None:
                waiting = self._state is BrokerState.STANDBY
                state = BrokerState.STANDBY if waiting else BrokerState.CONNECTING
            was_ready, news = self._state is BrokerState.READY, self._kind != kind
            self._state, self._detail, self._kind = state, detail, kind
            if was_ready:
                self._counters.reconnects += 1
        return news

    def ready(self, detail: str) -> None:
        with self._lock:
            if self._state is BrokerState.CLOSED or self._muted:
                return
            news = self._state is not BrokerState.READY
            self._state, self._detail, self._kind = BrokerState.READY, detail, ""
        if news:
            log.info("broker ready", extra={"detail": detail})

    def stopping(self) -> None:
        """Consuming stops on purpose: log nothing from now on."""
        with self._lock:
            self._muted = True
            if self._state is not BrokerState.CLOSED:
                self._state, self._detail = BrokerState.CONNECTING, "not consuming"

    def closed(self) -> None:
        with self._lock:
            self._state, self._detail = BrokerState.CLOSED, "closed"
