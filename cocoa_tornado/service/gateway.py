"""One whole gateway in one process, from its start to its stop. Nothing is global: a test may run two side by side."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ..brokers.port import Batch, Broker
from ..handover.handover import HandOver
from ..handover.sockets import Meeting, Sockets
from ..mailboxes.port import Mailbox, MailboxState
from ..presence.port import Presence
from ..relay.port import Relay
from ..rules.addresses import without_user_info
from ..rules.close_codes import GOING_AWAY
from ..rules.departure import reconnect_delays, reconnect_notice
from ..rules.readiness_report import Readiness
from ..rules.records import decode
from ..settings.table import SPEECH_OFF, Settings
from ..speech.port import SpeechEngine
from ..sweeper import Sweeper
from ..web.application import RequestFilter
from ..web.streams import write_progress_is_visible
from ..web.turns import new_event_loop
from ..workers.port import Siblings
from .closing import OpenParts
from .parts import Replaced, kafka_client, make_parts, speech_url
from .wiring import Wiring, wire

SHARE_OF_GRACE_FOR_SPEECH: Final = 0.5
SHARE_OF_GRACE_FOR_DEVICES: Final = 0.6
FAILED_START_S: Final = 1.0

log = logging.getLogger("cocoa.service")


class Gateway:
    """Built, started, drained and stopped on one IOLoop.

    :param broker: instead of the one that the settings name; for tests
    :param engine: the same
    :param mailbox: the same
    :param presence: the same, not started
    :param relay: the same, the one that ``presence`` uses
    :param siblings: the other workers, which listen on the same port; None without a parent
    :param meeting: for handing records over to them; None: through the relay
    :ivar parts: its parts; the most used ones are attributes here as well
    """

    def __init__(
        self,
        settings: Settings,
        broker: Broker | None = None,
        engine: SpeechEngine | None = None,
        mailbox: Mailbox | None = None,
        presence: Presence | None = None,
        relay: Relay | None = None,
        siblings: Siblings | None = None,
        meeting: Meeting | None = None,
    ) -> None:
        replaced = Replaced(broker, engine, mailbox, presence, relay)
        self.parts = parts = make_parts(settings, replaced, is_worker=siblings is not None)
        self.hub, self.counters, self.presence, self.relay = parts.hub, parts.counters, parts.presence, parts.relay
        self.broker, self.mailbox = parts.broker, parts.mailbox
        self._siblings, self._meeting = siblings, meeting
        self._opened = OpenParts(parts.clock)
        self._wiring: Wiring | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._connections_cut = 0

    def __repr__(self) -> str:
        return f"<Gateway {self.url} {self.hub!r}>"

    @property
    def wiring(self) -> Wiring:
        """The objects made at the start."""
        assert self._wiring is not None, "the gateway has not been started"
        return self._wiring

    @property
    def settings(self) -> Settings:
        """The current settings."""
        return self.parts.settings

    @property
    def port(self) -> int:
        """The port of the devices."""
        return self.parts.listeners.port

    @property
    def url(self) -> str:
        """The URL where it listens."""
        return self.parts.listeners.url

    @property
    def admin_url(self) -> str:
        """The URL of the admin API and the console."""
        return self.parts.listeners.admin_url

    @property
    def http_connections(self) -> int:
        """Connections that are not a device's, or not yet."""
        return self.parts.listeners.http_connections

    def metrics(self) -> str:
        """The metrics of this server alone. Only after the start, like the next one."""
        return self.wiring.web.metrics.render().decode()

    def readiness(self) -> Readiness:
        """Which parts of this server are ready."""
        return self.wiring.web.readiness()

    async def reload(self, settings: Settings) -> None:
        """See :meth:`.configuration.Configuration.reload`."""
        await self.parts.configuration.reload(settings)

    # -- the start

    async def start(self) -> None:
        """Read the keys, bind the port, start consuming. The broker may be unavailable.

        May be cancelled. If it fails, there is nothing to stop.

        :raises KeyMaterialError: no key can be used
        :raises ServiceError: the port cannot be had, or the mailbox can never be used
        """
        try:
            await self._open()
        except BaseException:
            self._opened.end_within(FAILED_START_S)
            await self._opened.close()
            raise
        settings = self.settings
        speech = SPEECH_OFF if self.parts.engine is None else speech_url(settings)
        extra = {"url": self.url, "broker": settings.broker, "speech": speech}
        client = kafka_client(settings)
        if client is not None:
            extra["kafka_client"] = client
        log.info("listening", extra=extra)

    async def _open(self) -> None:
        """Open the parts, each after those that it needs while it closes."""
        parts, opened = self.parts, self._opened
        self._wiring = wiring = wire(parts, self._siblings, opened)
        if not write_progress_is_visible():
            log.warning("write progress unknown", extra={"detail": "large answers must end within write_wait"})
        opened.stop(wiring.housekeeping.stop)
        wiring.housekeeping.start()
        opened.stop(wiring.revocation.stop)
        opened.wait(parts.configuration.close_keys)
        await parts.configuration.read_keys()
        listener = parts.listeners.make(wiring.front, wiring.upgrader)
        opened.in_time(listener.close_connections, 1.0)
        opened.within(parts.blocks.close)
        await parts.blocks.start()
        if wiring.admin_front is not None:
            self._open_admin_listener(wiring.admin_front)
        # Once presence is closed, other servers may hold this one's devices.
        opened.within(parts.relay.close)
        opened.within(parts.presence.close)
        parts.presence.start(parts.hub)
        if parts.mailbox is not None:
            opened.within(parts.mailbox.close)
            await self._open_mailbox(parts.mailbox)
        sink = await self._open_handover(wiring)
        sockets = parts.listeners.bind()
        opened.within(parts.broker.close)
        # Half of the remaining time: flushing needs time as well.
        opened.in_time(wiring.devices.intake.settled, 0.5)
        opened.stop(listener.stop)
        listener.start(sockets)
        opened.wait(self._close_devices)
        opened.in_time(parts.broker.stop_consuming, 1.0)
        if parts.engine is not None:
            parts.engine.start()
        if wiring.transcriber is not None:
            opened.within(wiring.transcriber.drain, SHARE_OF_GRACE_FOR_SPEECH)
        parts.broker.start(sink, decode)
        if parts.canaries is not None:
            opened.stop(parts.canaries.stop)
            parts.canaries.start()

    def _open_admin_listener(self, front: RequestFilter) -> None:
        """It serves until the devices' connections are closed."""
        listeners, opened = self.parts.listeners, self._opened
        listener = listeners.make(front)
        opened.in_time(listener.close_connections, 1.0)
        sockets = listeners.bind_admin()
        opened.stop(listener.stop)
        listener.start(sockets)
        log.info("admin listening", extra={"url": listeners.admin_url})

    async def _open_mailbox(self, mailbox: Mailbox) -> None:
        await mailbox.start()
        sweeper = Sweeper(mailbox)
        self._opened.stop(sweeper.stop)
        sweeper.start()
        status = mailbox.status()
        extra: dict[str, object] = {"mailbox": without_user_info(self.settings.mailbox), "promise": status.detail}
        if status.state is MailboxState.READY:
            extra |= {"messages": status.messages, "bytes": status.size_bytes}
        log.info("mailbox", extra=extra | {"state": status.state.value})

    async def _open_handover(self, wiring: Wiring) -> Callable[[Batch], None]:
        """Return the consumer of the broker's batches. With a mailbox, the worker that reads a record also stores it:
        only one at a time can remember which offsets of a partition it has stored."""
        parts, meeting = self.parts, self._meeting
        if meeting is None or parts.mailbox is not None:
            return wiring.router
        handover = HandOver(
            meeting.number,
            wiring.router,
            parts.hub,
            parts.presence.until_lease,
            parts.relay,
            parts.counters,
            parts.clock,
            lambda: parts.live.now.slots.per_device == 1,
        )
        sockets = Sockets(meeting, handover.link)
        self._opened.stop(handover.close)
        self._opened.wait(sockets.close)
        handover.start()
        await sockets.open()
        return handover

    # -- the stop

    async def drain_and_stop(self) -> None:
        """Drain and stop, within ``drain_grace``. Another call waits for the same end.

        In this order: the canaries stop; ready turns 503 and new connections and audio streams get 503 with
        Retry-After; after ``drain_delay`` the current audio streams finish, and their words return from the broker (in
        at most half of the remaining time); reading stops, the records that were read are routed and their offsets
        committed; every device is sent its queued messages and closed with 1001; the devices' own messages are flushed
        to the broker.
        """
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._drain_and_stop())
        await asyncio.shield(self._stopping)

    async def _drain_and_stop(self) -> None:
        parts, settings = self.parts, self.settings
        self._opened.end_within(settings.drain_grace_s)
        parts.presence.drain()
        if parts.canaries is not None:
            parts.canaries.stop()
        if self._wiring is not None:
            self._wiring.admin.watchers.close()
        log.info("draining", extra={"connections": len(parts.hub), "grace_s": settings.drain_grace_s})
        await asyncio.sleep(min(settings.drain_delay_s, settings.drain_grace_s))
        await self._opened.close()
        log.info("stopped", extra={"connections_cut": self._connections_cut})

    async def _close_devices(self) -> None:
        """Close every device with 1001, after its queued messages and the ``reconnect`` message; cut sockets that are
        still open at the end."""
        # The handshakes of this turn have not registered yet.
        await asyncio.sleep(0)
        clients = list(self.hub)
        peers = self.presence.peers()
        delays = reconnect_delays(len(clients), [peer.room for peer in peers if not peer.is_draining])
        for client, after_ms in zip(clients, delays, strict=True):
            client.end(GOING_AWAY, keep_queued=True, notice=reconnect_notice(after_ms))
        left_s = self._opened.left_s(SHARE_OF_GRACE_FOR_DEVICES)
        self._connections_cut = await self.wiring.devices.sockets.cut_late(left_s)


async def check(settings: Settings) -> None:
    """Read the keys and certificates, as at the start of a gateway with these settings, and open nothing else: no port,
    no broker, no mailbox.

    :raises CocoaError: it would not start
    """
    configuration = Gateway(settings).parts.configuration
    try:
        await configuration.read_keys()
    finally:
        await configuration.close_keys()


def run(main: Coroutine[Any, Any, None]) -> None:
    """As ``asyncio.run``, on an event loop for thousands of devices."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main)
