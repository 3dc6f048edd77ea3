"""Sends messages to the devices that are connected to this server. IOLoop thread only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import TypeAlias

from ..brokers.port import Batch
from ..counters import Counters, count
from ..hub import Hub
from ..mailboxes.port import FanOutStep, Mailbox
from ..rules.canaries import is_canary
from ..rules.frames import text_frame
from ..rules.rate import LineBudget, RateLimit
from ..rules.records import Record
from ..rules.taken import TakenOffsets, TakenOfSource
from ..rules.terms import Later, Terms, interim_terms, terms_of
from ..rules.trace_memory import Outcome, TraceMemory
from .address import Address, recipients
from .plan import Message

Origin: TypeAlias = tuple[TakenOfSource, int]
"""The partition of a record, as far as devices have taken it, and its offset."""

NOT_CONNECTED_LOG = RateLimit(per_s=0.1, burst=50)
"""A fleet that is offline must not fill the log, but each of the first lines shows."""
STORED_FAULT_LOG = RateLimit(per_s=1, burst=10)

log = logging.getLogger("cocoa.router")


class LocalDelivery:
    """Fills the outboxes of this server's connections, and counts each message's outcome.

    An internal error costs only the message that it happened to.

    :param clock: monotonic seconds; :param wall_clock: Unix seconds
    :param mailbox: None: messages that can't be sent are dropped, counted and logged: 50 lines at once, then one every
        ten seconds with the number of suppressed ones
    :param taken: what the devices have taken, if other servers may have read the same records; None without other
        servers, and with a mailbox
    :param memory: notes the messages that were not simply delivered; None: nothing is remembered
    """

    def __init__(
        self,
        hub: Hub,
        counters: Counters,
        clock: Callable[[], float],
        mailbox: Mailbox | None,
        wall_clock: Callable[[], float],
        taken: TakenOffsets | None = None,
        memory: TraceMemory | None = None,
    ) -> None:
        self._memory = memory
        self._hub, self._counters, self._mailbox, self._taken = hub, counters, mailbox, taken
        self._clock, self._wall_clock = clock, wall_clock
        self._connected = hub.connected
        self._lines = LineBudget(NOT_CONNECTED_LOG if mailbox is None else STORED_FAULT_LOG)

    def terms_of(self, record: Record) -> Terms | None:
        """How to deliver a record that was read just now; None: the defaults."""
        _, _, timestamp_ms, _, interim_of, options = record
        if options is None and not interim_of:
            return None
        return terms_of(interim_of, options, timestamp_ms, self._wall_clock() * 1000)

    def _has_expired(self, terms: Terms | None) -> bool:
        return terms is not None and terms.has_expired(self._wall_clock() * 1000)

    # -- without a mailbox

    def send_each(self, batch: Batch) -> None:
        """Send the records of a batch. A device that is not connected here is connected to no server."""
        connected, routed, taken = self._connected, 0, self._taken
        origins: Iterable[Origin | None] = repeat(None) if taken is None else _origins(batch, taken)
        for record, origin in zip(batch.records, origins, strict=False):
            try:
                address, payload, timestamp_ms, _, interim_of, options = record
                terms = None
                if options is not None:
                    terms = self.terms_of(record)
                    if self._has_expired(terms):
                        count(self._counters.dropped, "expired")
                        self._note(None, "expired", payload, timestamp_ms)
                        continue
                elif interim_of:
                    terms = interim_terms(interim_of)
                clients = connected.get(address)  # type: ignore[arg-type]  # no other address is a key
                if clients is None:
                    routed += self._send_to_all(address, payload, timestamp_ms, terms, origin)
                    continue
                # A key of ``connected`` is a device id.
                if origin is not None and not origin[0].take(address, origin[1], timestamp_ms):  # type: ignore[arg-type]
                    count(self._counters.dropped, "repeated")
                    continue
                frame = text_frame(payload)
                for client in clients:
                    client.send(frame, timestamp_ms, terms)
                routed += 1
            except Exception:
                self._failed(str(record[0]), "dropped")
                self._note(None, "fault", record[1], record[2])
        self._counters.routed += routed
        self._forget_absent(batch)

    def _note(self, device_id: str | None, outcome: Outcome, payload: bytes, timestamp_ms: int) -> None:
        if self._memory is not None:
            self._memory.note(payload, timestamp_ms, device_id, outcome)

    def _is_repeated(self, device_id: str, origin: Origin, timestamp_ms: int) -> bool:
        """Return whether a device that is here has already taken this record, which an earlier owner of its partition
        has read too. If not, remember that it has now."""
        source, offset = origin
        if source.take(device_id, offset, timestamp_ms):
            return False
        count(self._counters.dropped, "repeated")
        return True

    def _forget_absent(self, batch: Batch) -> None:
        if self._taken is not None:
            for partition, _ in batch.sources:
                self._taken.of(partition).forget_absent(self._connected, len(self._connected))

    def _send_to_all(
        self,
        address: Address,
        payload: bytes,
        timestamp_ms: int,
        terms: Terms | None,
        origin: Origin | None = None,
        absent: Outcome = "not_connected",
    ) -> int:
        """Send one message to each device that an address stands for. Return how many are connected here.

        :param absent: called for devices that are not here
        """
        device_ids = (address,) if isinstance(address, str) else recipients(address, self._hub)
        if not device_ids:
            self.no_recipient(1)
            return 0
        if self._memory is not None and not isinstance(address, str):
            self._memory.note_recipients(payload, timestamp_ms, device_ids)
        connected, frame, routed = self._connected, text_frame(payload), 0
        for device_id in device_ids:
            clients = connected.get(device_id)
            if clients is None:
                self.not_connected(device_id, payload, timestamp_ms, absent)
                continue
            if origin is not None and self._is_repeated(device_id, origin, timestamp_ms):
                continue
            try:
                for client in clients:
                    client.send(frame, timestamp_ms, terms)
                routed += 1
            except Exception:
                self._failed(device_id, "dropped")
                self._note(device_id, "fault", payload, timestamp_ms)
        return routed

    def send(self, batch: Batch, messages: Iterable[Message]) -> None:
        """Send messages of a batch."""
        connected, routed, framed = self._connected, 0, -1
        frame, terms = b"", None
        records = batch.records
        origins = None if self._taken is None else _origins(batch, self._taken)
        for at, device_id in messages:
            try:
                record = records[at]
                timestamp_ms = record.timestamp_ms
                if at != framed:  # a record for many devices is framed once
                    frame, terms, framed = text_frame(record.payload), self.terms_of(record), at
                clients = connected.get(device_id)
                if clients is None:  # an earlier message of this batch has overflowed its outbox
                    self.not_connected(device_id, record.payload, timestamp_ms)
                    continue
                if origins is not None and self._is_repeated(device_id, origins[at], timestamp_ms):
                    continue
                for client in clients:
                    client.send(frame, timestamp_ms, terms)
                routed += 1
            except Exception:
                self._failed(device_id, "dropped")
                self._note(device_id, "fault", records[at].payload, records[at].timestamp_ms)
        self._counters.routed += routed
        self._forget_absent(batch)

    def drop_expired(self, records: Sequence[Record], messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages of a batch that may still be sent, and count the others."""
        expired = {
            at
            for at, record in enumerate(records)
            if record.options is not None and record.options.ttl_s and self._has_expired(self.terms_of(record))
        }
        if not expired:
            return messages
        in_time = [message for message in messages if message[0] not in expired]
        count(self._counters.dropped, "expired", len(messages) - len(in_time))
        for at in sorted(expired):
            self._note(None, "expired", records[at].payload, records[at].timestamp_ms)
        return in_time

    def no_recipient(self, records: int) -> None:
        """Count records that address no device."""
        if records:
            self._counters.unknown_device += records
            self._log_dropped({"reason": "no recipient"})

    def not_connected(
        self, device_id: str, payload: bytes, timestamp_ms: int, outcome: Outcome = "not_connected"
    ) -> None:
        """No server holds this device: drop the message."""
        if is_canary(device_id):
            return  # its server has stopped, or misses the message
        self._counters.unknown_device += 1
        if self._memory is not None:
            self._memory.note(payload, timestamp_ms, device_id, outcome)
        if self._mailbox is not None:
            return  # only transient messages are dropped then
        self._log_dropped({"device_id": device_id, "reason": "not connected"})

    def take(
        self,
        address: Address,
        payload: bytes,
        timestamp_ms: int,
        terms: Terms | None,
        source: str = "",
        offset: int = 0,
        after: int | None = None,
        places: Mapping[str, int] | None = None,
    ) -> None:
        """Route a record that another server has read and forwarded, for those of its devices that are here.

        :param source: its partition; :param offset: in that partition
        :param after: see ``relay.messages.ForwardedMessage``; :param places: likewise
        """
        origin = None if self._taken is None else (self._taken.of(source), offset)
        try:
            if self._mailbox is not None:
                for device_id in recipients(address, self._hub):
                    place = after if places is None else places.get(device_id, after)
                    self._suggest(device_id, payload, timestamp_ms, terms, place)
            elif isinstance(address, str) or recipients(address, self._hub):
                self._counters.routed += self._send_to_all(address, payload, timestamp_ms, terms, origin, "superseded")
                if origin is not None:
                    origin[0].forget_absent(self._connected, len(self._connected))
        except Exception:
            self._failed(str(address), "dropped")
            self._note(None, "fault", payload, timestamp_ms)

    # -- with a mailbox

    def send_stored(
        self, device_id: str, record: Record, number: int | None, expires_ms: int, later: Later | None = None
    ) -> None:
        """Send a message that is stored.

        :param number: in its lane of the device's box. None: the record was stored earlier, and may not have been sent,
            so the connections look into the box. Of a transient message, which is not stored: that of the message that
            it comes after, or None if it is unknown
        :param later: see ``hub.Client``
        """
        try:
            if record.is_transient:
                self._suggest(device_id, record.payload, record.timestamp_ms, self.terms_of(record), number, later)
            elif number is None:
                self.look_again(device_id)
            elif clients := self._hub.receivers_of(device_id):
                for client in clients:
                    client.stored(number, record.payload, record.timestamp_ms, record.options, expires_ms)
                self._counters.routed += 1
            else:
                self._counters.kept += 1
        except Exception:
            self._failed(device_id, "kept")

    def send_step(self, step: FanOutStep, numbers: Mapping[str, int]) -> list[str]:
        """Send the messages of a step of a fan-out. Return the devices that are not connected here."""
        connected, elsewhere, failed = self._connected, [], 0
        _, _, payload, timestamp_ms, options, expires_ms, _, _, _ = step
        is_transient, terms = step.is_transient, terms_of("", options, timestamp_ms, 0)
        for device_id, number in numbers.items():
            clients = connected.get(device_id)
            if clients is None:
                elsewhere.append(device_id)
                continue
            try:
                for client in clients:
                    if is_transient:
                        client.suggest(payload, timestamp_ms, terms, number)
                    else:
                        client.stored(number, payload, timestamp_ms, options, expires_ms)
            except Exception:
                failed += 1
                self._failed(device_id, "kept")
        self._counters.routed += len(numbers) - len(elsewhere) - failed
        return elsewhere

    def wake(self, device_id: str) -> None:
        """Another server has stored a message for this device."""
        try:
            self.look_again(device_id)
        except Exception:
            self._failed(device_id, "kept")

    def wake_members(self, address: Address) -> None:
        """Messages may have been stored for these devices without a number that is known here."""
        for device_id in recipients(address, self._hub):
            self.wake(device_id)

    def look_again(self, device_id: str) -> None:
        """Make the device's connections look into its box."""
        for client in self._hub.receivers_of(device_id):
            client.look_again()

    def _suggest(
        self,
        device_id: str,
        payload: bytes,
        timestamp_ms: int,
        terms: Terms | None,
        after: int | None = None,
        later: Later | None = None,
    ) -> None:
        clients = self._hub.receivers_of(device_id)
        if not clients:
            self.not_connected(device_id, payload, timestamp_ms)
        elif terms is None or not terms.interim_of:
            self._counters.routed += 1
        for client in clients:
            client.suggest(payload, timestamp_ms, terms, after, later)

    def _log_dropped(self, extra: dict[str, object]) -> None:
        suppressed = self._lines.take(self._clock())
        if suppressed is not None:
            log.info("message dropped", extra=extra | ({"suppressed": suppressed} if suppressed else {}))

    def failed_elsewhere(self, messages: int, server: str = "") -> None:
        """An internal error, which is being handled, has prevented forwarding these messages to a server, or to all."""
        count(self._counters.dropped, "fault", messages)
        if self._lines.take(self._clock()) is not None:
            outcome = "dropped" if self._mailbox is None else "kept"
            log.exception("routing failed", extra={"server": server, "outcome": outcome})

    def note_faults(self, records: Iterable[Record]) -> None:
        """For operators: an internal error has prevented the delivery of these records to some or all of their
        devices."""
        for record in records:
            self._note(None, "fault", record.payload, record.timestamp_ms)

    def _failed(self, device_id: str, outcome: str) -> None:
        count(self._counters.dropped, "fault")
        if self._lines.take(self._clock()) is not None:
            log.exception("routing failed", extra={"device_id": device_id, "outcome": outcome})


def _origins(batch: Batch, taken: TakenOffsets) -> list[Origin]:
    sources = [source for partition, records in batch.sources for source in [taken.of(partition)] * records]
    return list(zip(sources, batch.offsets, strict=True))
