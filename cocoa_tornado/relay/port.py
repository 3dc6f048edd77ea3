"""The relay port: the way between the servers of a deployment. What they send each other is in ``messages.py``."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from .messages import RelayMessage

M = TypeVar("M", bound=RelayMessage)


class Fate(enum.Enum):
    """What became of a message as far as its sender can know."""

    ACCEPTED = "accepted"  # it is in the inbox of the other server, which may still end before it reads it
    NO_SERVER = "no_server"  # no such server, or it has ended: nothing was sent
    OVERFLOW = "overflow"  # the inbox is full: nothing was sent
    LOST = "lost"  # the transport failed, and whether it was sent is unknown
    CLOSED = "closed"  # this relay is closed, or has not joined yet: nothing was sent


class RelayState(enum.Enum):
    """What an adapter can do right now."""

    CONNECTING = "connecting"  # not joined, or the transport is away: retried indefinitely
    READY = "ready"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """A snapshot, cheap to make, safe to ask for on the IOLoop at any time.

    :ivar detail: one line for people
    """

    state: RelayState
    detail: str


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What may wait in one server's inbox; messages of a :class:`Forward` count one by one."""

    max_messages: int = 20_000
    max_bytes: int = 64 * 1024 * 1024


@dataclass(slots=True)
class RelayCounters:
    """Plain counters. A :class:`Forward` and a :class:`WakeUp` count as often as they name a device."""

    accepted: dict[str, int] = field(default_factory=dict)  # sent, by kind
    refused: dict[str, int] = field(default_factory=dict)  # not sent, or perhaps not, by fate
    received: dict[str, int] = field(default_factory=dict)  # handed over, by kind


class Relay(Protocol):
    """What a server asks of the way to the others. IOLoop thread only; no method blocks.

    Guarantees of every adapter (the contract suite holds them):

    - *Order*: what one server sends to another arrives in the order of the calls, all kinds together. Between different
      senders there is no order.
    - *At most once*: a message arrives once or not at all. It is lost when the receiver ends before it has read it, or
      when the transport fails; whoever needs more asks again.
    - *Bound*: an inbox holds no more than ``RelayLimits`` says, in number and in bytes. What does not fit is not sent;
      :meth:`send` says ``OVERFLOW``, and ``counters.refused`` counts it. What waits already is never dropped for it.
    - *One hand-over a turn*: what has arrived is handed over in one go, once per turn of the loop, never within a call
      of :meth:`send`. A handler that fails is logged and keeps nothing from the others.
    - *Ends*: a server that is unknown or has ended is reported at once as ``NO_SERVER``; nothing waits for its return.
      An address that has ended is never used again.
    """

    @property
    def server(self) -> str:
        """The address of this end; '' before :meth:`join`."""

    @property
    def counters(self) -> RelayCounters: ...

    def handle(self, kind: type[M], handler: Callable[[str, M], None]) -> None:
        """Have ``handler(sender, message)`` called with each message of one kind. One handler for a kind.

        A kind that nobody handles is dropped, and counts as received.
        """

    def join(self, server: str) -> None:
        """Be reached under this address from now on. An address that this end had before ends, its inbox with it.

        :param server: an epoch; never one that was used before
        """

    def send(self, server: str, message: RelayMessage) -> asyncio.Future[Fate]:
        """Send a message to another server, or to this one. The future never fails, and may be dropped.

        It is done at once where the adapter knows at once; it is done when :meth:`close` returns in any case.
        """

    def status(self) -> RelayStatus: ...

    async def close(self, timeout_s: float) -> None:
        """Send what is under way, for at most ``timeout_s``; then the address has ended. Idempotent, never raises."""
