"""What the connections of a process share of the mailbox."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from ..counters import Counters, count
from ..errors import MailboxClosed, MailboxError
from ..mailboxes.port import Mailbox
from ..rules.audiences import Audience
from ..rules.backoff import Backoff
from ..rules.box import LANES, Box, Numbers, Position
from ..rules.claims import FencingToken
from ..rules.rate import LineBudget, RateLimit
from ..rules.repeats import Repeats
from ..rules.trace_memory import Outcome, TraceMemory
from .questions import latest

ACK_LINES = RateLimit(per_s=1, burst=10)
RETRY_BASE_S, RETRY_CAP_S = 0.5, 5.0
MAX_LATE_ACKS = 1_000
LOOP_QUIET_S = 86_400.0
"""A device that has not reconnected for this long is not in a loop."""
REFRESH_S = 86_400.0
"""How often a device that stays connected is refreshed in the mailbox, so that it is not forgotten: see
:func:`refresh_period_s`."""

log = logging.getLogger("cocoa.device")


def refresh_period_s(member_ttl_s: float) -> float:
    """How often to refresh devices that the mailbox forgets after ``member_ttl_s``. A refresh waits for a ping."""
    return min(REFRESH_S, member_ttl_s / 2)


def retry_delays() -> Backoff:
    """For a question that the mailbox could not answer."""
    return Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)


@dataclass(slots=True)
class Mail:
    """See the module. IOLoop thread only.

    :ivar clock: monotonic seconds
    :ivar refresh_s: how often a device that stays connected is refreshed
    :ivar memory: the trace memory: notes the messages that are in no box and not sent; None: nothing is remembered
    :ivar late_acks: of connections that have ended
    :ivar loops: for operators: the devices that got the same message again on each of their last connections
    :ivar wall_clock: Unix seconds
    """

    mailbox: Mailbox
    counters: Counters
    clock: Callable[[], float]
    refresh_s: float = REFRESH_S
    memory: TraceMemory | None = None
    ack_lines: LineBudget = field(default_factory=lambda: LineBudget(ACK_LINES))
    late_acks: LateAcks = field(init=False)
    loops: Repeats = field(default_factory=lambda: Repeats(LOOP_QUIET_S))
    wall_clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self.late_acks = LateAcks(self)

    def drop(self, reason: str, device_id: str, body: bytes, timestamp_ms: int, outcome: Outcome = "overflow") -> None:
        """A message that is in no box is not sent.

        :param reason: the label of the counter
        """
        count(self.counters.dropped, reason)
        self.note(device_id, body, timestamp_ms, outcome)

    def note(self, device_id: str, body: bytes, timestamp_ms: int, outcome: Outcome) -> None:
        """Note the outcome of a message that is in no box."""
        if self.memory is not None:
            self.memory.note(body, timestamp_ms, device_id, outcome)

    def note_begin(self, device_id: str, box: Box, begin: Numbers) -> None:
        """For operators: whether a connection begins with messages that were written on an earlier one.

        :param begin: the positions after which it begins
        """
        if any(max(begin[name == "high"], box.lane(name).gone) < box.lane(name).written for name in LANES):
            self.loops.note(device_id, self.wall_clock(), (box.epoch, begin))
        else:
            self.loops.forget(device_id)

    def refuse_ack(self, who: dict[str, object]) -> None:
        """An acknowledgement has a cursor that is not the device's."""
        self.counters.bad_acks += 1
        self._warn("acknowledgement of an unknown cursor ignored", who)

    def drop_ack(self, who: dict[str, object]) -> None:
        """Drop an acknowledgement of a connection that has ended, because too many wait."""
        self.counters.acks_dropped += 1
        self._warn("acknowledgement dropped", who)

    def refresh(self, device_id: str, audiences: frozenset[Audience]) -> None:
        """Refresh a device that is connected, or was until now: its ``member_ttl`` begins again."""
        with contextlib.suppress(MailboxClosed):  # the gateway is stopping
            self.mailbox.refresh(device_id, audiences).add_done_callback(_forget)

    def join(self, device_id: str, audiences: frozenset[Audience], token: FencingToken | None) -> None:
        """A device that is known is connected under another grant."""
        with contextlib.suppress(MailboxClosed):  # the gateway is stopping
            self.mailbox.join(device_id, audiences, token).add_done_callback(_forget)

    def _warn(self, event: str, who: dict[str, object]) -> None:
        suppressed = self.ack_lines.take(self.clock())
        if suppressed is not None:
            log.warning(event, extra=who | ({"suppressed": suppressed} if suppressed else {}))


class LateAck(NamedTuple):
    """:ivar who: for the log"""

    position: Position
    who: dict[str, object]


class LateAcks:
    """Acknowledgements of connections that ended before their boxes could be read, most of them while the mailbox is
    unavailable. IOLoop thread only.

    Each device has one, the latest. There are at most ``MAX_LATE_ACKS``; a further one is dropped, counted and logged.
    The device then receives the acknowledged messages again, as if the acknowledgement had been lost in transit.

    Boxes are read one after the other. One that can't be read moves to the end of the queue.
    """

    def __init__(self, mail: Mail) -> None:
        self._mail = mail
        self._waiting: dict[str, LateAck] = {}
        self._is_busy = False  # a look, or the delay before the next one, is under way
        self._backoff: Backoff | None = None

    def __repr__(self) -> str:
        return f"<LateAcks {len(self)}>"

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, device_id: str, position: Position, who: dict[str, object]) -> None:
        known = self._waiting.get(device_id)
        if known is None and len(self._waiting) >= MAX_LATE_ACKS:
            self._mail.drop_ack(who)
            return
        self._waiting[device_id] = LateAck(latest(known and known.position, position), who)
        if not self._is_busy:
            self._look()

    def _look(self) -> None:
        self._is_busy = bool(self._waiting)
        if self._waiting:
            device_id = next(iter(self._waiting))
            self._mail.mailbox.look(device_id).add_done_callback(partial(self._on_look, device_id))

    def _on_look(self, device_id: str, looked: asyncio.Future[Box]) -> None:
        if looked.cancelled() or isinstance(looked.exception(), MailboxClosed):
            self._waiting.clear()
            self._is_busy = False
            return
        late, error = self._waiting.pop(device_id), looked.exception()
        if error is None:
            self._backoff = None
            self._settle(device_id, late, looked.result())
            self._look()
            return
        if not isinstance(error, MailboxError):
            log.error("box cannot be read", exc_info=error, extra=late.who)
        self._waiting[device_id] = late
        self._backoff = self._backoff or retry_delays()
        asyncio.get_running_loop().call_later(self._backoff.next_s(), self._look)

    def _settle(self, device_id: str, late: LateAck, box: Box) -> None:
        numbers = box.find(late.position)
        if numbers is None or min(numbers) < 0:
            self._mail.refuse_ack(late.who)
        else:
            self._mail.mailbox.acknowledge(device_id, Position(numbers.normal, box.epoch, numbers.high))


def _forget(joined: asyncio.Future[None]) -> None:
    """Retrieve the error, or asyncio reports it."""
    if not joined.cancelled():
        joined.exception()
