"""Regularly sends messages to this server's two canaries through the broker. IOLoop thread only.

``rules/canaries.py`` decides the outcome of each. The canaries are connected like devices (``connection/canary.py``):
presence grants them, and other servers forward their messages here.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from functools import partial

from .brokers.port import Broker, BrokerState
from .connection.canary import CanaryConnection
from .counters import CanaryCounters
from .errors import BrokerClosed, BrokerError, WriteDenied
from .hub import Hub
from .presence.grants import Grant
from .presence.port import Presence, PresenceState, Refused
from .rules.canaries import (
    DEADLINE_S,
    HEADERS,
    CanaryState,
    CanaryWatch,
    Delivered,
    Late,
    Leaked,
    canary_ids,
    record_for,
)
from .rules.rate import LineBudget, RateLimit
from .rules.readiness_report import ReadinessPart

LOOK_S = 1.0
"""How often it looks whether a canary has to connect, and whether messages are due or overdue."""
PAUSE_S = 15.0
"""A longer time between two looks means that this process was paused."""
GRACE_S = 5.0
"""How long after a pause no message is given up: waiting messages are handled first, and so is presence, which may have
freed the canaries meanwhile."""
LEAK_LINES = RateLimit(per_s=1 / 60, burst=5)

log = logging.getLogger("cocoa.canary")


class Canaries:
    """The canaries of one server, from :meth:`start` to :meth:`stop`.

    The first messages are sent once the broker is ready: a new consumer group does not read what was written earlier.
    The next ones wait until the broker has acknowledged the canary's last message, or that is lost, and while too many
    are under way.

    :param topic: of the results
    :param interval_s: between two messages to a canary
    :param clock: monotonic seconds; :param wall_clock: Unix seconds
    """

    def __init__(
        self,
        hub: Hub,
        presence: Presence,
        broker: Broker,
        counters: CanaryCounters,
        topic: str,
        interval_s: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._hub, self._presence, self._broker, self._counters = hub, presence, broker, counters
        self._topic, self._interval_s = topic, interval_s
        self._clock, self._wall_clock = clock, wall_clock
        self.device_ids = canary_ids(secrets.token_hex(8))
        self._watch = CanaryWatch(self.device_ids)
        self._logged = CanaryState.WAITING
        self._connections: dict[str, CanaryConnection] = {}
        self._claiming: set[str] = set()
        self._unacknowledged: dict[str, str] = {}  # the session id of each canary's last message, if it is
        self._due = 0.0
        self._looked_at, self._gives_up_from = clock(), 0.0
        self._has_begun = False  # the broker was ready
        self._task: asyncio.Task[None] | None = None
        self._leak_lines = LineBudget(LEAK_LINES)

    def __repr__(self) -> str:
        return f"<Canaries {self._watch!r}>"

    @property
    def state(self) -> CanaryState:
        return self._watch.state

    def part(self) -> ReadinessPart:
        """The part ``canary`` of ``GET /api/v1/ready``."""
        return {"ok": self.state.is_ok, "state": self.state.value}

    def start(self) -> None:
        self._presence.exempt(self.device_ids)
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Stop sending and awaiting messages, and free the canaries' slots. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            connection.close()
        for device_id in self.device_ids:
            self._watch.abandon(device_id)

    async def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                log.exception("canaries failed")
            await asyncio.sleep(min(LOOK_S, self._interval_s))

    def look(self) -> None:
        """Do everything that is due."""
        now = self._clock()
        if now - self._looked_at > PAUSE_S:
            self._gives_up_from = now + GRACE_S
        self._looked_at = now
        if now >= self._gives_up_from:
            self._counters.lost += self._watch.overdue(now)
            self._note_state()
        self._has_begun = self._has_begun or self._broker.status().state is BrokerState.READY
        for device_id in self.device_ids:
            if device_id not in self._connections and device_id not in self._claiming:
                self._claim(device_id)
        if self._has_begun and now >= self._due and self._connections:
            self._due = now + self._interval_s
            for device_id in list(self._connections):
                self._send(device_id, now)

    # -- connecting

    def _claim(self, device_id: str) -> None:
        if self._presence.status().state is PresenceState.READY and not self._presence.draining:
            self._claiming.add(device_id)
            self._presence.begin_claim(device_id, partial(self._on_verdict, device_id))

    def _on_verdict(self, device_id: str, verdict: Grant | Refused) -> None:
        self._claiming.discard(device_id)
        if isinstance(verdict, Refused):
            return  # the next look claims again
        is_valid = verdict.lease.is_valid(self._presence.clock()) and self._presence.has_slot(verdict)
        if self._task is None or not is_valid:
            self._presence.release(verdict)
            return
        connection = CanaryConnection(
            verdict, self._hub, self._presence, self._counters, self._wall_clock, self._on_text, self._on_end
        )
        connection.open()
        self._connections[device_id] = connection

    def _on_end(self, connection: CanaryConnection) -> None:
        device_id = connection.grant.device_id
        if self._connections.get(device_id) is connection:
            del self._connections[device_id]
            self._watch.abandon(device_id)

    # -- messages

    def _send(self, device_id: str, now: float) -> None:
        if self._watch.is_awaited(self._unacknowledged.get(device_id, "")) or not self._watch.may_send(device_id):
            return
        session_id = secrets.token_hex(8)
        self._watch.sent(session_id, device_id, now)
        self._counters.sent += 1
        self._unacknowledged[device_id] = session_id
        value = record_for(device_id, session_id, self._wall_clock())
        try:
            # With this key, the messages of a canary are spread over all partitions.
            published = self._broker.publish(self._topic, session_id, value, HEADERS)
        except BrokerClosed:
            self._watch.abandon(device_id)
            return
        published.add_done_callback(partial(self._on_published, device_id, session_id))

    def _on_published(self, device_id: str, session_id: str, published: asyncio.Future[None]) -> None:
        if self._unacknowledged.get(device_id) == session_id:
            del self._unacknowledged[device_id]
        error = None if published.cancelled() else published.exception()
        if self._task is None or error is None:
            return
        if isinstance(error, WriteDenied):
            self._watch.refuse()
            self.stop()
            log.warning("canaries off", extra={"topic": self._topic, "reason": str(error)})
        elif isinstance(error, BrokerError):
            self._counters.lost += self._watch.failed(session_id)
            self._note_state()

    def _on_text(self, device_id: str, text: bytes) -> None:
        arrival = self._watch.arrived(device_id, text, self._clock())
        if isinstance(arrival, Delivered):
            self._counters.seconds.observe(arrival.seconds)
        elif isinstance(arrival, Late):
            self._counters.late += arrival.was_lost
        elif isinstance(arrival, Leaked):
            self._counters.leaked += 1
            suppressed = self._leak_lines.take(self._clock())
            if suppressed is not None:
                extra = {"device_id": arrival.device_id, "reached": device_id, "suppressed": suppressed}
                log.error("message leaked", extra=extra)
        self._note_state()

    def _note_state(self) -> None:
        """One line for each change of state; leaks have lines of their own."""
        state = self.state
        if state is self._logged:
            return
        before, self._logged = self._logged, state
        if state is CanaryState.LOST:
            log.warning("canary lost", extra={"deadline_s": DEADLINE_S})
        elif state is CanaryState.READY:
            log.info("canaries arrive", extra={"before": before.value})
