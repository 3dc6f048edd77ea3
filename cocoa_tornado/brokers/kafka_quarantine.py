"""The records that could not be decoded, on their way to the quarantine topic.

All of it runs on the consumer's thread, but for the publisher's answers, which any thread may bring.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from ..errors import BrokerError, RecordTooLarge
from ..rules.backoff import Backoff
from ..rules.handoff import Span
from ..rules.rate import LineBudget, RateLimit
from .kafka_publisher import Outgoing, Publisher
from .port import BrokerCounters

PATIENCE_S = 1.0  # consumption pauses when a record waits longer for the quarantine topic
LOG_LIMIT = RateLimit(per_s=1, burst=20)  # lines; the counter tells of the others

log = logging.getLogger("cocoa.broker")


class _Poison:
    """One record that was rejected.

    :ivar own: the headers that say where it is from
    """

    __slots__ = ("backoff", "error", "origin", "outgoing", "own", "reason", "resend_at", "since", "size", "span")

    def __init__(self, span: Span, reason: str, origin: str, since: float, size: int) -> None:
        self.size = size  # as it counts with the records in flight
        self.span, self.reason, self.origin, self.since = span, reason, origin, since
        self.backoff = Backoff(base_s=0.5, cap_s=10.0)
        self.resend_at: float | None = None  # None while the publisher has it
        self.error = ""
        self.own: list[tuple[str, bytes]] = []
        self.outgoing: Outgoing

    def lighten(self) -> bool:
        """The topic never takes it as it is, and the stream has to go on: keep the fact, and say what is missing.

        The value goes first, then the headers that the record came with, then its key. False: there is nothing left.
        """
        outgoing = self.outgoing
        theirs = outgoing.headers[: len(outgoing.headers) - len(self.own)]
        if outgoing.value:
            dropped, outgoing.value = ("cocoa.dropped-bytes", len(outgoing.value)), b""
        elif theirs:
            dropped, theirs = ("cocoa.dropped-headers", len(theirs)), []
        elif outgoing.key:
            dropped, outgoing.key, outgoing.value = ("cocoa.dropped-key-bytes", len(outgoing.key)), None, b""
        else:
            return False
        name, size = dropped
        self.own.append((name, str(size).encode()))
        outgoing.headers = theirs + self.own
        return True


class Quarantine:
    """Holds each rejected record, and its part of a span, until the quarantine topic has acknowledged it.

    It never gives one up: what the topic does not take is sent again, and meanwhile :meth:`blocked` has the consumer
    wait, so that neither a record is lost nor the memory filled.
    """

    def __init__(self, topic: str, publisher: Publisher, counters: BrokerCounters) -> None:
        self._topic, self._publisher, self._counters = topic, publisher, counters
        self._waiting: set[_Poison] = set()
        self._answers: deque[tuple[_Poison, BrokerError | None]] = deque()
        self._lines = LineBudget(LOG_LIMIT)

    def take(self, record: Any, reason: str, span: Span, size: int) -> None:
        """Send a record of the consumer to the quarantine topic; its part of ``span`` is done when that has it.

        :param size: what :meth:`settle` returns for it
        """
        origin = f"{record.topic}/{record.partition}@{record.offset}"
        poison = _Poison(span, reason, origin, time.monotonic(), size)
        theirs = [(name, value or b"") for name, value in record.headers]  # the client library sends no null
        poison.own = [
            ("cocoa.reason", reason.encode()),
            ("cocoa.topic", record.topic.encode()),
            ("cocoa.partition", str(record.partition).encode()),
            ("cocoa.offset", str(record.offset).encode()),
        ]
        value = record.value
        if record.key is None and value is None:
            value = b""  # the client library refuses to send a record of nothing
        poison.outgoing = Outgoing(
            self._topic, record.key, value, theirs + poison.own, lambda error: self._answers.append((poison, error))
        )
        self._waiting.add(poison)
        self._submit(poison)

    def settle(self) -> tuple[int, int]:
        """Enter the publisher's answers and send again what is due. Returns how many records are off our hands, and
        their bytes."""
        settled = size = 0
        while self._answers:
            poison, error = self._answers.popleft()
            if error is not None and poison in self._waiting:
                self._retry_later(poison, error)
                continue
            settled += 1
            size += poison.size
            if error is None:
                self._enter(poison)
            # Otherwise it is of a partition that is not ours any more: its next owner sets it aside.
        now = time.monotonic()
        for poison in [poison for poison in self._waiting if poison.resend_at is not None and poison.resend_at <= now]:
            self._submit(poison)
        return settled, size

    def forget(self) -> tuple[int, int]:
        """The partitions are not ours any more. Returns the records of which nothing will be heard again, likewise."""
        unheard = [poison.size for poison in self._waiting if poison.resend_at is not None]
        self._waiting.clear()
        return len(unheard), sum(unheard)

    def blocked(self) -> bool:
        """True where the topic has kept a record waiting for too long."""
        now = time.monotonic()
        return any(now - poison.since > PATIENCE_S for poison in self._waiting)

    def trouble(self) -> str:
        """Why it is blocked, for people."""
        error = next((poison.error for poison in self._waiting if poison.error), "no acknowledgement")
        return f"topic {self._topic} takes no records: {error}"

    def _enter(self, poison: _Poison) -> None:
        self._waiting.discard(poison)
        poison.span.done_one()
        counts = self._counters.quarantined
        counts[poison.reason] = counts.get(poison.reason, 0) + 1
        left_out = self._lines.take(time.monotonic())
        if left_out is not None:
            extra = {"reason": poison.reason, "origin": poison.origin}
            log.info("record set aside", extra=extra | ({"left_out": left_out} if left_out else {}))

    def _submit(self, poison: _Poison) -> None:
        poison.resend_at = None
        try:
            self._publisher.submit(poison.outgoing)
        except BrokerError as error:
            self._retry_later(poison, error)

    def _retry_later(self, poison: _Poison, error: BrokerError) -> None:
        outgoing = poison.outgoing
        poison.error = str(error)
        if isinstance(error, RecordTooLarge) and poison.lighten():
            poison.backoff.reset()
            poison.resend_at = time.monotonic()
        else:
            poison.resend_at = time.monotonic() + poison.backoff.next_s()
        outgoing.refusals = 0
