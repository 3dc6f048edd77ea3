"""The relay port: how the servers of a deployment reach each other. Their messages are in ``messages.py``."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from .messages import ForwardedMessage, RelayMessage

M = TypeVar("M", bound=RelayMessage)


class Fate(enum.Enum):
    """What happened to a message, as far as its sender can know."""

    ACCEPTED = "accepted"  # it is in the inbox of the other server, which may still end before reading it
    NO_SERVER = "no_server"  # no such server, or it has ended: nothing was sent
    OVERFLOW = "overflow"  # the inbox is full: nothing was sent
    LOST = "lost"  # the transport failed; whether it was sent is unknown
    CLOSED = "closed"  # this relay is closed, or has not joined yet: nothing was sent
    # Of ``send_to_holders`` only:
    HERE = "here"  # this server holds the device, and no other one does: nothing was sent
    TERM_OVER = "term_over"  # another term has begun: nothing was sent


class RelayState(enum.Enum):
    """The state of an adapter."""

    CONNECTING = "connecting"  # not joined, or the transport is down: retried indefinitely
    READY = "ready"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """A snapshot. Cheap, and safe to request on the IOLoop at any time.

    :ivar detail: one line for people
    """

    state: RelayState
    detail: str


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """How much may wait in one server's inbox; the messages of a :class:`Forward` count one by one."""

    max_messages: int = 20_000
    max_bytes: int = 64 * 1024 * 1024


@dataclass(slots=True)
class RelayCounters:
    """Plain counters. A :class:`Forward` and a :class:`WakeUp` count once for each device that they name."""

    accepted: dict[str, int] = field(default_factory=dict)  # sent, by kind
    refused: dict[str, int] = field(default_factory=dict)  # not sent, or possibly not, by fate
    received: dict[str, int] = field(default_factory=dict)  # handed over, by kind
    skipped: int = 0  # not handed over: of a later release, or unreadable
    losses: int = 0  # times that this server has noticed that messages for it were lost


class Relay(Protocol):
    """The transport between servers. IOLoop thread only; no method blocks.

    Guarantees of every adapter (tested by the contract suite):

    - *Order*: messages from one server to another arrive in the order of the calls, across all kinds. Messages from
      different senders have no order.
    - *At most once*: a message arrives once or not at all. It is lost if the receiver ends before reading it, or the
      transport fails; callers that need more ask again.
    - *Bound*: an inbox holds no more than ``RelayLimits``, in number and in bytes. A message that does not fit is not
      sent: :meth:`send` returns ``OVERFLOW``, and ``counters.refused`` counts it. Messages that already wait are never
      dropped.
    - *One hand-over per turn*: messages are handed over in one batch per turn of the loop, never within a call of
      :meth:`send`. A handler that fails is logged, and the others still run.
    - *Losses are noticed*: if messages for this server were lost, or did not fit into its inbox, it is notified
      (:meth:`watch_losses`), also if nothing else is sent to it. Messages that come later are handed over.
    - *Ends*: an unknown or ended server is reported at once as ``NO_SERVER``; nothing waits for its return. An address
      that has ended is never used again.
    """

    @property
    def server(self) -> str:
        """The address of this end; '' before :meth:`join`."""

    @property
    def counters(self) -> RelayCounters: ...

    def handle(self, kind: type[M], handler: Callable[[str, M], None]) -> None:
        """Register ``handler(sender, message)`` for one kind of message. There is one handler for each kind.

        A message without a handler is dropped, and counts as received.
        """

    @property
    def last_read_at(self) -> float:
        """When this end last looked into its inbox, monotonic seconds: a server that does not must not hold devices.
        ``math.inf`` if there is none any more, because this address is over."""

    def watch_losses(self, on_loss: Callable[[], None]) -> None:
        """Call a function when messages for this server may have been lost; in a later turn of the loop."""

    def join(self, server: str) -> None:
        """Become reachable under this address. A previous address of this end ends, and its inbox with it, which may
        have lost messages.

        :param server: an epoch that was never used before
        """

    def send(self, server: str, message: RelayMessage) -> asyncio.Future[Fate]:
        """Send a message to another server, or to this one. The future never fails, and may be dropped.

        It is done at once if the adapter knows at once, and in any case when :meth:`close` returns. While the transport
        is unavailable, it waits; no more waits for a server than its inbox may hold.
        """

    @property
    def finds_holders(self) -> bool:
        """Whether :meth:`send_to_holders` works: this relay shares a store with presence."""

    def send_to_holders(self, stamp: str, messages: Sequence[ForwardedMessage]) -> asyncio.Future[Sequence[Fate]]:
        """Send each message to the other servers that hold its device, which are found in the same step. The fates are
        those of the messages, ``NO_SERVER`` if no server holds the device.

        Messages of several calls, and those of :meth:`send`, keep their order. If this end joins under another address
        before they were sent, they are ``CLOSED``. While the transport is unavailable they wait, however many they are:
        their holders are unknown until then. The caller bounds them.

        :param stamp: of ``Presence.stamp``
        :param messages: each for one device
        """

    def status(self) -> RelayStatus: ...

    async def close(self, timeout_s: float) -> None:
        """Send what is in progress, for at most ``timeout_s``, and end the address. Idempotent, never raises."""
