"""The Hub: which device is connected through which connection. One per process, made by the composition root.

The rules are in ``rules/slots.py``; this is their shell on the IOLoop, and the table of live connections. Every
method belongs to the IOLoop thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .rules.close_codes import REPLACED, CloseReason
from .rules.frames import text_frame
from .rules.slots import NOTHING, Admit, RefusalReason, Refuse, Settlement, SlotLimits, Slots, Ticket


class Client(Protocol):
    """A live connection, as the Hub sees it."""

    @property
    def ticket(self) -> Ticket: ...

    def send(self, frame: bytes, timestamp_ms: int, interim_of: str = "") -> None:
        """Queue one WebSocket frame. Never raises and never blocks; a full outbox closes the client.

        :param interim_of: the session that it is a hypothesis of, which closes nobody; '' for everything else
        """

    def stored(self, number: int, frame: bytes, timestamp_ms: int) -> None:
        """A message of this device has been stored in its box under this number. Queue it, if it is the next in line.

        :param frame: the message with its cursor
        """

    def look_again(self) -> None:
        """Something may be in the device's box that this client was not told of."""

    def suggest(self, payload: bytes, timestamp_ms: int, interim_of: str) -> None:
        """Queue a hypothesis, where a mailbox is configured; it may be dropped."""

    def challenge(self) -> None:
        """Send a ping whose answer is to be told to :meth:`Hub.answered`."""

    def end(self, reason: CloseReason, keep_queued: bool = False) -> None:
        """Begin the closing handshake. Calls :meth:`Hub.unregister` before it returns."""


class Refused(Exception):
    """No slot for this connection.

    :ivar reason: ``device`` (409), ``full`` or ``draining`` (503)
    """

    def __init__(self, reason: RefusalReason) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(slots=True)
class HubCounters:
    """Plain counters, for the metrics."""

    challenges: int = 0
    evictions: int = 0
    registered: int = 0
    refused: dict[str, int] = field(default_factory=dict)


class Hub:
    """All connections of this process.

    :param clock: monotonic seconds; the IOLoop's own time
    """

    def __init__(self, limits: SlotLimits, clock: Callable[[], float]) -> None:
        self.counters = HubCounters()
        self._slots = Slots(limits)
        self._clock = clock
        self._clients: dict[str, list[Client]] = {}
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._registered = 0

    def __repr__(self) -> str:
        state = "draining" if self._slots.draining else "open"
        return f"<Hub {self._registered} connections of {len(self._clients)} devices, {state}>"

    def __len__(self) -> int:
        """Connections now."""
        return self._registered

    def __iter__(self) -> Iterator[Client]:
        """A snapshot of all connections."""
        return iter([client for clients in self._clients.values() for client in clients])

    @property
    def draining(self) -> bool:
        return self._slots.draining

    @property
    def slots_taken(self) -> int:
        """Held and reserved; equal to ``len(hub)`` whenever no upgrade is under way."""
        return len(self._slots)

    @property
    def limits(self) -> SlotLimits:
        return self._slots.limits

    @limits.setter
    def limits(self, limits: SlotLimits) -> None:
        self._slots.limits = limits

    def drain(self) -> None:
        """Refuse every newcomer from now on."""
        self._slots.draining = True

    async def reserve(self, device_id: str) -> Ticket:
        """Take a slot before the upgrade; the caller must :meth:`register` or :meth:`release` the ticket.

        Suspends only while a silent incumbent is challenged (at most ``challenge_s``). Cancelling it gives up the
        place in the queue, or the slot, should it have been granted in the same turn. Raises :class:`Refused`.
        """
        decision = self._slots.request(device_id, self._clock())
        if isinstance(decision, Admit):
            return decision.ticket
        if isinstance(decision, Refuse):
            raise self._refused(decision.reason)
        verdict: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[decision.ticket] = verdict
        if decision.ping:
            self.counters.challenges += 1
            asyncio.get_running_loop().call_later(
                max(0.0, decision.deadline - self._clock()), self._expire, device_id, decision.deadline
            )
            for client in list(self._clients.get(device_id, ())):
                if client.ticket in decision.ping:
                    client.challenge()
        try:
            await verdict
        except asyncio.CancelledError:
            if verdict.done() and not verdict.cancelled():
                verdict.exception()  # a refusal in the very turn of the cancellation: nobody is left to hear it
            self.release(decision.ticket)
            raise
        finally:
            self._waiting.pop(decision.ticket, None)
        return decision.ticket

    def obstacle(self, device_id: str) -> RefusalReason | None:
        """Why there is no slot for the device as things are, as in :class:`Refused`; nobody is challenged."""
        return self._slots.obstacle(device_id)

    def register(self, client: Client) -> None:
        """The upgrade is done: from here on the device's messages go to this client. KeyError without a ticket."""
        self._slots.register(client.ticket)
        self._clients.setdefault(client.ticket.device_id, []).append(client)
        self._registered += 1
        self.counters.registered += 1

    def unregister(self, client: Client) -> bool:
        """Remove this very connection, and no other of its device; False if it was not there. Idempotent."""
        device_id = client.ticket.device_id
        clients = self._clients.get(device_id, [])
        found = any(other is client for other in clients)
        if found:
            remaining = [other for other in clients if other is not client]
            if remaining:
                self._clients[device_id] = remaining
            else:
                del self._clients[device_id]
            self._registered -= 1
        self.release(client.ticket)
        return found

    def release(self, ticket: Ticket) -> None:
        """Give back a slot that was reserved, or is held. Idempotent."""
        self._carry_out(self._slots.release(ticket))

    def answered(self, client: Client) -> None:
        """A challenged client has answered."""
        self._carry_out(self._slots.answered(client.ticket))

    def is_device_connected(self, device_id: str) -> bool:
        return device_id in self._clients

    def get_client_by_device(self, device_id: str) -> Client | None:
        """The device's connection; the newest, where it may hold several."""
        clients = self._clients.get(device_id)
        return clients[-1] if clients else None

    def clients_of(self, device_id: str) -> Sequence[Client]:
        """The device's connections, oldest first. Not changed by what happens to them."""
        return self._clients.get(device_id, ())

    def send_to_device(self, device_id: str, payload: bytes, timestamp_ms: int = 0, interim_of: str = "") -> int:
        """Queue a text message for every connection of one device, and of no other; returns how many that are.

        :param payload: UTF-8, as the device is to read it
        :param timestamp_ms: when the record was made, Unix milliseconds, for the latency metric; 0: unknown
        :param interim_of: the session that it is a hypothesis of; '' for everything else
        """
        clients = self._clients.get(device_id)
        if clients is None:
            return 0
        frame = text_frame(payload)
        # A client that overflows unregisters itself, which replaces the list and does not change this one.
        for client in clients:
            client.send(frame, timestamp_ms, interim_of)
        return len(clients)

    def broadcast(self, payload: bytes) -> int:
        """Queue a text message for every connection; returns how many. Never a fall-back of routing."""
        clients = list(self)
        frame = text_frame(payload)
        for client in clients:
            client.send(frame, 0)
        return len(clients)

    def _expire(self, device_id: str, deadline: float) -> None:
        # A timer may fire a hair early; the rule is asked for the moment that it was set for.
        self._carry_out(self._slots.expire(device_id, max(deadline, self._clock())))

    def _carry_out(self, settlement: Settlement) -> None:
        if settlement is NOTHING:
            return
        for ticket in settlement.evict:
            for client in list(self._clients.get(ticket.device_id, ())):
                if client.ticket == ticket:
                    self.counters.evictions += 1
                    client.end(REPLACED)
        for ticket in settlement.admit:
            self._settle(ticket, None)
        for ticket in settlement.refuse:
            self._settle(ticket, self._refused("device"))

    def _settle(self, ticket: Ticket, refused: Refused | None) -> None:
        verdict = self._waiting.get(ticket)
        if verdict is None or verdict.done():
            # It was cancelled in this very turn; reserve() gives the slot back when it runs.
            return
        if refused is None:
            verdict.set_result(None)
        else:
            verdict.set_exception(refused)

    def _refused(self, reason: RefusalReason) -> Refused:
        self.counters.refused[reason] = self.counters.refused.get(reason, 0) + 1
        return Refused(reason)
