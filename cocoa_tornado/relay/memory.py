"""``memory://``: between gateways of one process, without persistence. A single gateway has its own exchange."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence

from .handlers import Handlers
from .messages import ForwardedMessage, RelayMessage
from .port import Fate, M, RelayCounters, RelayLimits, RelayState, RelayStatus


class Exchange:
    """Connects the relays of one process, all of which belong to one IOLoop.

    :ivar loses: for tests: ``loses(sender, receiver, message)`` decides which messages get lost in transit
    """

    def __init__(self, limits: RelayLimits | None = None) -> None:
        self.limits = RelayLimits() if limits is None else limits
        self.loses: Callable[[str, str, RelayMessage], bool] = _loses_nothing
        self.servers: dict[str, MemoryRelay] = {}

    def __repr__(self) -> str:
        return f"<Exchange {len(self.servers)} servers>"


class MemoryRelay:
    """A :class:`~cocoa_tornado.relay.port.Relay` that needs no service."""

    def __init__(self, exchange: Exchange | None = None) -> None:
        self._exchange = Exchange() if exchange is None else exchange
        self._on_loss: Callable[[], None] = _nothing
        self._has_lost = False
        self._inbox: deque[tuple[str, RelayMessage]] = deque()
        self._messages = self._bytes = 0
        self._counters = RelayCounters()
        self._handlers = Handlers(self._counters)
        self._hand_over_due = False
        self._is_closed = False
        self._server = ""

    def __repr__(self) -> str:
        return f"<MemoryRelay {self._server or 'not joined'}, {self._messages} messages wait>"

    @property
    def server(self) -> str:
        return self._server

    @property
    def counters(self) -> RelayCounters:
        return self._counters

    def handle(self, kind: type[M], handler: Callable[[str, M], None]) -> None:
        self._handlers.register(kind, handler)

    @property
    def last_read_at(self) -> float:
        return math.inf  # it takes no reading: senders have the loop call this end

    def watch_losses(self, on_loss: Callable[[], None]) -> None:
        self._on_loss = on_loss

    def join(self, server: str) -> None:
        if self._server:
            asyncio.get_running_loop().call_soon(self._on_loss)
        self._leave()
        self._is_closed = False
        self._server = server
        self._exchange.servers[server] = self

    def send(self, server: str, message: RelayMessage) -> asyncio.Future[Fate]:
        sent: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()
        fate = self._send(server, message)
        accepted = fate is Fate.ACCEPTED
        counted, label = (self._counters.accepted, message.kind) if accepted else (self._counters.refused, fate.value)
        counted[label] = counted.get(label, 0) + message.count
        sent.set_result(fate)
        return sent

    @property
    def finds_holders(self) -> bool:
        return False

    def send_to_holders(self, stamp: str, messages: Sequence[ForwardedMessage]) -> asyncio.Future[Sequence[Fate]]:
        raise NotImplementedError  # it shares no store with presence

    def status(self) -> RelayStatus:
        if self._is_closed:
            return RelayStatus(RelayState.CLOSED, "closed")
        if not self._server:
            return RelayStatus(RelayState.CONNECTING, "not joined")
        return RelayStatus(RelayState.READY, "in this process")

    async def close(self, timeout_s: float) -> None:
        self._leave()
        self._is_closed = True

    def _leave(self) -> None:
        self._exchange.servers.pop(self._server, None)
        self._server = ""
        self._inbox.clear()
        self._messages = self._bytes = 0
        self._has_lost = False

    def _send(self, server: str, message: RelayMessage) -> Fate:
        """Cases, in order: this end has not joined; no such server; its inbox is full; sent."""
        if not self._server:
            return Fate.CLOSED
        receiver = self._exchange.servers.get(server)
        if receiver is None:
            return Fate.NO_SERVER
        limits = self._exchange.limits
        messages, size = receiver._messages + message.count, receiver._bytes + message.size_bytes
        if messages > limits.max_messages or size > limits.max_bytes:
            receiver._has_lost = True
            receiver._schedule()
            return Fate.OVERFLOW
        if not self._exchange.loses(self._server, server, message):
            receiver._messages, receiver._bytes = messages, size
            receiver._inbox.append((self._server, message))
            receiver._schedule()
        return Fate.ACCEPTED

    def _schedule(self) -> None:
        if not self._hand_over_due:
            self._hand_over_due = True
            asyncio.get_running_loop().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._hand_over_due = False
        arrived, self._inbox = self._inbox, deque()
        self._messages = self._bytes = 0
        address = self._server
        for sender, message in arrived:
            if self._server != address:
                return  # a handler has ended this address, and its inbox with it
            self._handlers.call(sender, message)
        if self._has_lost and self._server == address:
            self._has_lost = False
            self._counters.losses += 1
            self._on_loss()


def _nothing() -> None:
    pass


def _loses_nothing(sender: str, receiver: str, message: RelayMessage) -> bool:
    return False
