"""Messages from a device: text to the broker, audio to speech, acknowledgements to its box. IOLoop thread only."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import Final, Protocol, TypeAlias

from ..errors import BrokerError, RecordTooLarge
from ..presence.grants import Grant
from ..rules.close_codes import TOO_BIG_FOR_BROKER, CloseReason
from ..rules.frames import Binary, Text
from ..rules.identity import DeviceIdentity
from .audio_session import AudioSession, is_audio_end
from .device_context import DeviceContext
from .feed import BoxFeed
from .protocol import TO_END, DeviceProtocol
from .uplink import Uplink

Full: TypeAlias = "Uplink | AudioSession | Inbound"
"""The parts that a connection waits for before it is read further. ``Inbound`` means the intake of all connections."""

GENERATION_HEADER: Final = "cocoa.generation"
"""Two decimal numbers, ``<term>.<number>``: compare them as a pair."""

log = logging.getLogger("cocoa.device")


class Speaker(Protocol):
    """The connection that sends."""

    @property
    def grant(self) -> Grant: ...

    def end(self, reason: CloseReason, keep_queued: bool = False) -> None: ...

    def who(self) -> dict[str, object]: ...


class Inbound:
    """Messages from one connection. Created when the device sends the first one.

    It also knows whether there is room for more: messages wait for the broker or the speech engine, each within bounds,
    and the intake bounds the messages of all devices in the process.
    """

    __slots__ = (
        "_audio",
        "_box",
        "_context",
        "_identity",
        "_protocol",
        "_speaker",
        "_under_way",
        "_uplink",
        "_wants_interim",
    )

    def __init__(
        self,
        speaker: Speaker,
        protocol: DeviceProtocol,
        identity: DeviceIdentity,
        context: DeviceContext,
        box: BoxFeed | None,
        wants_interim: bool,
    ) -> None:
        self._speaker, self._protocol, self._identity, self._context = speaker, protocol, identity, context
        self._box, self._wants_interim = box, wants_interim
        self._uplink: Uplink | None = None
        self._audio: AudioSession | None = None
        self._under_way = 0  # bytes of an unfinished message that the intake counts

    # -- room

    def full(self) -> Full | None:
        """Return the parts that have no room for more data from the device now."""
        if not self._protocol.may_pause:
            return None
        is_challenged, held = self._protocol.heartbeat.challenged, 0
        if self._uplink is not None:
            if not self._uplink.has_room(is_challenged):
                return self._uplink
            held = self._uplink.held_bytes
        if self._audio is not None and not self._audio.has_room(is_challenged):
            return self._audio
        if not self._under_way and not held:  # nearly always
            return None
        return None if self._context.intake.may_read(self, self._under_way, held) else self

    async def wait_for_room(self) -> None:
        """Wait in the intake of all connections. Return when something has changed, as for :class:`Uplink`."""
        await self._context.intake.wait_for_room(self, self._under_way)

    def wake(self) -> None:
        """Have the connection, if it waits for room, check again."""
        for holding in (self._uplink, self._audio):
            if holding is not None:
                holding.wake()
        self._context.intake.wake(self)

    def end(self, reason: CloseReason, keep_queued: bool = False) -> None:
        """See ``intake.Sender``."""
        self._speaker.end(reason, keep_queued)

    def close(self) -> None:
        """The connection has ended. Its parts finish their work."""
        intake = self._context.intake
        if self._under_way:
            intake.under_way(-self._under_way)
            self._under_way = 0
        intake.wake(self)
        intake.forget(self)
        for holding in (self._uplink, self._audio):
            if holding is not None:
                holding.close()
        self._uplink = self._audio = None

    # -- messages from the device

    def hear(self, message: Text | Binary) -> None:
        """Process a whole message."""
        if isinstance(message, Text):
            self._text(message.text)
        else:
            self._binary(message.data)

    def note_under_way(self, size: int, has_ended: bool) -> None:
        """Count the bytes that have arrived of an unfinished message.

        :param has_ended: another message has just ended
        """
        if not size and not self._under_way:
            return
        intake, change, self._under_way = self._context.intake, size - self._under_way, size
        intake.under_way(change)
        if has_ended:
            intake.end_turn(self)

    def _text(self, text: str) -> None:
        """The end of an utterance, an acknowledgement, or a message for ``device.messages`` (contract section 3)."""
        if self._audio is not None and is_audio_end(text):
            self._audio.offer(None)
            return
        if self._box is not None and self._box.take_ack(text):
            return
        self._context.counters.device_messages += 1
        if self._uplink is None:
            self._uplink = Uplink(self._context.broker, self._context.intake, self._publish, self._uplink_dropped)
        identity = self._identity
        stamp = datetime.fromtimestamp(self._context.wall_clock(), UTC).isoformat(timespec="milliseconds")
        message = {
            "device_id": identity.device_id,
            "user_id": identity.user_id,
            "text": text,
            "timestamp": stamp.replace("+00:00", "Z"),
        }
        record = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
        self._uplink.offer(record, last_words=self._protocol.reading is TO_END)

    def _binary(self, data: bytes) -> None:
        if self._context.audio is not None:
            if self._audio is None:
                self._audio = AudioSession(self._identity, self._context.audio, self._wants_interim)
            self._audio.offer(data)
            return
        # Speech is off.
        if not self._context.counters.audio_ignored:
            log.warning("audio ignored", extra=self._speaker.who() | {"reason": "speech is off"})
        self._context.counters.audio_ignored += 1

    def _publish(self, record: bytes) -> None:
        try:
            topic, device_id = self._context.messages_topic, self._identity.device_id
            sent = self._context.broker.publish(topic, device_id, record, headers_of(self._speaker.grant))
        except BrokerError:
            self._uplink_dropped(1)
            return
        sent.add_done_callback(self._published)

    def _published(self, sent: asyncio.Future[None]) -> None:
        if sent.cancelled() or sent.exception() is None:
            return
        self._warn("message from the device not published", {"error": str(sent.exception())})
        if isinstance(sent.exception(), RecordTooLarge):
            self._speaker.end(TOO_BIG_FOR_BROKER)

    def _uplink_dropped(self, messages: int) -> None:
        self._context.counters.device_messages_dropped += messages
        if messages:
            self._warn("messages from the device dropped", {"messages": messages})

    def _warn(self, event: str, extra: dict[str, object]) -> None:
        """Log one line, within the rate that all connections share: a broker that refuses, refuses them all."""
        suppressed = self._context.uplink_lines.take(self._context.clock())
        if suppressed is not None:
            log.warning(event, extra=self._speaker.who() | extra | ({"suppressed": suppressed} if suppressed else {}))


def headers_of(grant: Grant) -> dict[str, bytes] | None:
    """The headers of a record that a device publishes. If several servers may hold a device, they let a backend drop
    records of a superseded connection: those with a lower generation than it has seen."""
    if not grant.lease.is_shared:
        return None
    return {GENERATION_HEADER: b"%d.%d" % grant.generation}
