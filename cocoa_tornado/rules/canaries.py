"""Canaries: the gateway's own two devices on each server, and what happened to the messages for them. Pure.

A canary message is a record of the results topic with the header :data:`HEADER`, for one canary. It takes the path of
every record: the broker, the consumer group, the router, perhaps another server, and the outbox of its canary. If it
reaches another canary, messages leak.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeAlias

import msgspec

from .addressing import Headers, Options
from .identity import CANARY_PREFIX

HEADER: Final = "cocoa.canary"
"""The name of the Kafka header of canary messages. Without it, a record for a canary is rejected."""
HEADERS: Final = {HEADER: b"1", "cocoa.ttl": b"0"}
"""Of canary messages. By the second one, servers of an earlier release don't store them either."""
DEADLINE_S: Final = 60.0
"""A message that has not arrived by then is lost. Longer than a consumer group takes to notice that a member has ended,
and to share its partitions out again: such messages are late."""
REMEMBERED: Final = 1_000
"""Lost messages that are recognized when they arrive after all: two an interval, for more than an hour by default."""
MOST_AWAITED: Final = 64
"""A canary with this many messages in flight is sent no more, so that all fit in its outbox."""
OPTIONS: Final = Options(ttl_s=0)
"""How canary messages are delivered: never stored."""

_TEXT: Final = 0x81
_LENGTH_IN_16_BITS, _LENGTH_IN_64_BITS = 126, 127


def canary_ids(token: str) -> tuple[str, str]:
    """The device ids of a server's canaries.

    :param token: unique: no other server has or had it
    """
    return f"{CANARY_PREFIX}{token}-a", f"{CANARY_PREFIX}{token}-b"


def is_canary(device_id: str) -> bool:
    """Whether a device id is reserved for canaries."""
    return device_id.startswith(CANARY_PREFIX)


def has_canary_header(headers: Headers | None) -> bool:
    return headers is not None and any(name == HEADER for name, _ in headers)


def record_for(device_id: str, session_id: str, unix_s: float) -> bytes:
    """The value of a record for a canary.

    :param session_id: names the message
    """
    timestamp = datetime.fromtimestamp(int(unix_s), UTC).isoformat().replace("+00:00", "Z")
    value = {
        "session_id": session_id,
        "user_id": 0,
        "device_id": device_id,
        "text": "canary",
        "timestamp": timestamp,
        "success": True,
    }
    return json.dumps(value, separators=(",", ":")).encode()


def texts_in(frames: bytes) -> Iterator[bytes]:
    """The text messages of a server's WebSocket frames, which are unmasked and never fragmented. Any other frame is
    skipped.

    :raises ValueError: they are cut short
    """
    at = 0
    while at < len(frames):
        length, start = frames[at + 1] if at + 1 < len(frames) else 0, at + 2
        if length in (_LENGTH_IN_16_BITS, _LENGTH_IN_64_BITS):
            digits = 2 if length == _LENGTH_IN_16_BITS else 8
            length, start = int.from_bytes(frames[start : start + digits], "big"), start + digits
        end = start + length
        if end > len(frames):
            raise ValueError("a frame is cut short")
        if frames[at] == _TEXT:
            yield frames[start:end]
        at = end


class CanaryState(enum.Enum):
    """The state of the canaries in ``GET /api/v1/ready``."""

    WAITING = "waiting"  # no message has arrived yet
    READY = "ready"
    LOST = "lost"  # one of them misses a message, and no later one has arrived
    LEAKED = "leaked"  # a message has reached the wrong one; stays until the server is restarted
    REFUSED = "refused"  # the brokers don't let the gateway write to the topic: no more are sent

    @property
    def is_ok(self) -> bool:
        return self in (CanaryState.WAITING, CanaryState.READY)


class Delivered(NamedTuple):
    """A message has reached its canary.

    :ivar seconds: since it was sent
    """

    seconds: float


class Leaked(NamedTuple):
    """A message has reached a canary that it was not for.

    :ivar device_id: which one it was for; '' if it does not say
    """

    device_id: str


class Late(NamedTuple):
    """A message that is not awaited has reached its canary.

    :ivar was_lost: it counts as lost; otherwise it arrived twice, or its canary has reconnected meanwhile
    """

    was_lost: bool


Arrival: TypeAlias = Delivered | Leaked | Late


class _Fields(msgspec.Struct):
    device_id: object = None
    session_id: object = None


class _Sent(NamedTuple):
    """A message that is awaited.

    :ivar number: in the order of sending
    """

    device_id: str
    at: float
    number: int


class _Outcome(NamedTuple):
    """What happened to the message ``number``."""

    number: int
    has_arrived: bool


class CanaryWatch:
    """The messages in flight to the canaries of one server. Not thread-safe.

    Times are monotonic seconds and don't decrease.
    """

    def __init__(self, device_ids: Iterable[str]) -> None:
        self._awaited: dict[str, _Sent] = {}  # by session id, in order
        self._lost: dict[str, None] = {}  # session ids of the latest that are lost
        # Of the latest message of which it is known: an earlier one that is given up now says nothing new.
        self._outcomes: dict[str, _Outcome | None] = dict.fromkeys(device_ids)
        self._last_number = 0
        self._has_leaked = self._is_refused = False

    def __repr__(self) -> str:
        return f"<CanaryWatch {self.state.value}, {len(self._awaited)} awaited>"

    def __len__(self) -> int:
        """Messages that are awaited."""
        return len(self._awaited)

    def is_awaited(self, session_id: str) -> bool:
        return session_id in self._awaited

    def may_send(self, device_id: str) -> bool:
        """False while too many messages for the canary are awaited."""
        return sum(sent.device_id == device_id for sent in self._awaited.values()) < MOST_AWAITED

    @property
    def state(self) -> CanaryState:
        if self._has_leaked:
            return CanaryState.LEAKED
        if self._is_refused:
            return CanaryState.REFUSED
        outcomes = self._outcomes.values()
        if any(outcome is not None and not outcome.has_arrived for outcome in outcomes):
            return CanaryState.LOST
        return CanaryState.WAITING if None in outcomes else CanaryState.READY

    def sent(self, session_id: str, device_id: str, now: float) -> None:
        """Await a message. ``session_id`` must never have been used before."""
        self._last_number += 1
        self._awaited[session_id] = _Sent(device_id, now, self._last_number)

    def arrived(self, device_id: str, payload: bytes, now: float) -> Arrival:
        """A canary has received a text message.

        :param payload: any message, perhaps one of a device
        """
        try:
            fields = msgspec.json.decode(payload, type=_Fields)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            fields = _Fields()
        if fields.device_id != device_id:
            self._has_leaked = True
            return Leaked(fields.device_id if isinstance(fields.device_id, str) else "")
        session_id = fields.session_id if isinstance(fields.session_id, str) else ""
        awaited = self._awaited.pop(session_id, None)
        if awaited is None:
            was_lost = session_id in self._lost
            self._lost.pop(session_id, None)
            return Late(was_lost)
        self._note(awaited, has_arrived=True)
        return Delivered(now - awaited.at)

    def failed(self, session_id: str) -> int:
        """A message could not be published. Return how many are lost: 1, or 0 if it is not awaited any more."""
        return self._lose([session_id] if session_id in self._awaited else [])

    def overdue(self, now: float) -> int:
        """Give up the messages whose deadline has passed. Return how many are lost."""
        return self._lose([name for name, sent in self._awaited.items() if sent.at + DEADLINE_S <= now])

    def _lose(self, session_ids: Iterable[str]) -> int:
        lost = 0
        for session_id in session_ids:
            self._note(self._awaited.pop(session_id), has_arrived=False)
            self._lost[session_id] = None
            lost += 1
        while len(self._lost) > REMEMBERED:
            del self._lost[next(iter(self._lost))]
        return lost

    def _note(self, sent: _Sent, *, has_arrived: bool) -> None:
        known = self._outcomes[sent.device_id]
        if known is None or known.number < sent.number:
            self._outcomes[sent.device_id] = _Outcome(sent.number, has_arrived)

    def abandon(self, device_id: str) -> None:
        """A canary is no longer connected, so its messages may be lost like those of a device: stop awaiting them."""
        for session_id in [name for name, sent in self._awaited.items() if sent.device_id == device_id]:
            del self._awaited[session_id]

    def refuse(self) -> None:
        """The brokers don't accept canary messages."""
        self._is_refused = True
        self._awaited.clear()
