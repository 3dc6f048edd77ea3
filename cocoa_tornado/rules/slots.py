"""One connection per device: who gets the slot, who waits, who must go. Pure; the hub carries it out.

A *ticket* is a request for a slot and, once admitted, the right to it. Its number is unique within the process, so
whatever is done with a ticket concerns that connection alone: a late close can't free its replacement's slot.

The life of a ticket::

    request --+-- Admit ------------------------> reserved --register--> held --release--> gone
              |                                      |                     |
              +-- Wait --(challenge settles)--admit--+                     +--(silent in a challenge)--> evicted
              |            `--refuse--> gone
              `-- Refuse

A challenge is open while a device's slots are all taken and somebody waits for one. There is at most one per device.
It ends in one of three ways: every incumbent has answered (all who wait are refused), an incumbent left (the first
who waits is admitted, the others are refused), or the time is over (the silent incumbents are evicted, and as many
as fit are admitted).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RefusalReason = Literal["device", "full", "draining"]
DuplicatePolicy = Literal["challenge", "reject"]

MAX_WAITING = 16
"""Newcomers that may wait for one device's challenge; one more is refused at once."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request for a slot. Compared by value; ``number`` never repeats."""

    device_id: str
    number: int

    def __repr__(self) -> str:
        return f"<Ticket #{self.number} {self.device_id!r}>"


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """:ivar total: connections in all, 0 for no limit; :ivar challenge_s: how long an incumbent may stay silent."""

    per_device: int = 1
    total: int = 0
    policy: DuplicatePolicy = "challenge"
    challenge_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Admit:
    """The slot is the newcomer's: reserved until :meth:`Slots.register` or :meth:`Slots.release`."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Wait:
    """A challenge decides.

    :ivar ping: incumbents to ping now (empty for those who join a challenge that is under way)
    :ivar deadline: when :meth:`Slots.expire` is due, in the units of ``now``
    """

    ticket: Ticket
    ping: tuple[Ticket, ...]
    deadline: float


@dataclass(frozen=True, slots=True)
class Refuse:
    reason: RefusalReason


Decision = Admit | Wait | Refuse


@dataclass(frozen=True, slots=True)
class Settlement:
    """What the end of a challenge asks for: close ``evict``, let ``admit`` in, answer ``refuse`` with 409."""

    evict: tuple[Ticket, ...] = ()
    admit: tuple[Ticket, ...] = ()
    refuse: tuple[Ticket, ...] = ()


NOTHING = Settlement()


class _Challenge:
    __slots__ = ("answered", "deadline", "waiting")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.waiting: list[Ticket] = []
        self.answered: set[Ticket] = set()


class _Seats:
    """One device: its tickets in the order of arrival (True: held, False: reserved), and its challenge if any."""

    __slots__ = ("challenge", "tickets")

    def __init__(self) -> None:
        self.tickets: dict[Ticket, bool] = {}
        self.challenge: _Challenge | None = None


class Slots:
    """The table of all slots. Not thread-safe: the IOLoop thread alone touches it. Every call is O(slots of a device).

    ``limits`` may be replaced at any time; who is in stays in.
    """

    def __init__(self, limits: SlotLimits) -> None:
        self.limits = limits
        self.draining = False
        self._devices: dict[str, _Seats] = {}
        self._number = 0
        self._total = 0

    def __repr__(self) -> str:
        return f"<Slots {self._total} taken by {len(self._devices)} devices>"

    def __len__(self) -> int:
        """Slots taken: held and reserved."""
        return self._total

    def taken(self, device_id: str) -> int:
        """Slots that a device holds or has reserved."""
        seats = self._devices.get(device_id)
        return len(seats.tickets) if seats else 0

    def obstacle(self, device_id: str) -> RefusalReason | None:
        """Why there is no slot for the device as things are, as in :class:`Refuse`; None: there is. Changes nothing."""
        if self.draining:
            return "draining"
        if self.taken(device_id) >= self.limits.per_device:
            return "device"
        return "full" if self.limits.total and self._total >= self.limits.total else None

    def request(self, device_id: str, now: float) -> Decision:
        """Ask for a slot. Cases, in order: draining; a free slot of the device (full or not in all); all taken."""
        obstacle = self.obstacle(device_id)
        if obstacle is None:
            return Admit(self._take(device_id))
        if obstacle != "device" or self.limits.policy == "reject":
            return Refuse(obstacle)
        seats = self._devices[device_id]
        if seats.challenge is not None:
            if len(seats.challenge.waiting) >= MAX_WAITING:
                return Refuse("device")
            ticket = self._ticket(device_id)
            seats.challenge.waiting.append(ticket)
            return Wait(ticket, (), seats.challenge.deadline)
        held = tuple(ticket for ticket, is_held in seats.tickets.items() if is_held)
        if not held:
            # Every slot was handed out this very moment: whoever got it is alive.
            return Refuse("device")
        challenge = seats.challenge = _Challenge(now + self.limits.challenge_s)
        ticket = self._ticket(device_id)
        challenge.waiting.append(ticket)
        return Wait(ticket, held, challenge.deadline)

    def register(self, ticket: Ticket) -> None:
        """The upgrade is done: a reserved slot becomes a held one. KeyError if the ticket has no slot."""
        seats = self._devices[ticket.device_id]
        if ticket not in seats.tickets:
            raise KeyError(ticket)
        seats.tickets[ticket] = True
        if seats.challenge is not None:
            # It came in after the pings went out; to have registered just now is its sign of life.
            seats.challenge.answered.add(ticket)

    def answered(self, ticket: Ticket) -> Settlement:
        """An incumbent gave a sign of life. With every incumbent heard, those who wait are refused."""
        seats = self._devices.get(ticket.device_id)
        if seats is None or seats.challenge is None or ticket not in seats.tickets:
            return NOTHING
        challenge = seats.challenge
        challenge.answered.add(ticket)
        if any(is_held and other not in challenge.answered for other, is_held in seats.tickets.items()):
            return NOTHING
        seats.challenge = None
        return Settlement(refuse=tuple(challenge.waiting))

    def expire(self, device_id: str, now: float) -> Settlement:
        """The challenge's time is over. Does nothing where it has been settled, or is another with a later end."""
        seats = self._devices.get(device_id)
        if seats is None or seats.challenge is None or now < seats.challenge.deadline:
            return NOTHING
        challenge = seats.challenge
        silent = tuple(t for t, is_held in seats.tickets.items() if is_held and t not in challenge.answered)
        for ticket in silent:
            self._vacate(seats, ticket)
        return self._settle(seats, silent)

    def release(self, ticket: Ticket) -> Settlement:
        """The connection is gone, its upgrade failed, or its client left while it waited. Idempotent."""
        seats = self._devices.get(ticket.device_id)
        if seats is None:
            return NOTHING
        challenge = seats.challenge
        if challenge is not None and ticket in challenge.waiting:
            challenge.waiting.remove(ticket)
            if not challenge.waiting:
                seats.challenge = None
            return NOTHING
        if ticket not in seats.tickets:
            return NOTHING
        self._vacate(seats, ticket)
        if challenge is not None:
            return self._settle(seats, ())
        if not seats.tickets:
            del self._devices[ticket.device_id]
        return NOTHING

    def _settle(self, seats: _Seats, evicted: tuple[Ticket, ...]) -> Settlement:
        """End a challenge: admit as many as fit, in the order of arrival, and refuse the others."""
        challenge, seats.challenge = seats.challenge, None
        assert challenge is not None
        room = max(0, self.limits.per_device - len(seats.tickets))
        admit, refuse = tuple(challenge.waiting[:room]), tuple(challenge.waiting[room:])
        for ticket in admit:
            seats.tickets[ticket] = False
            self._total += 1
        if not seats.tickets:
            self._devices.pop((evicted or refuse)[0].device_id, None)
        return Settlement(evicted, admit, refuse)

    def _take(self, device_id: str) -> Ticket:
        ticket = self._ticket(device_id)
        seats = self._devices.get(device_id)
        if seats is None:
            seats = self._devices[device_id] = _Seats()
        seats.tickets[ticket] = False
        self._total += 1
        return ticket

    def _ticket(self, device_id: str) -> Ticket:
        self._number += 1
        return Ticket(device_id, self._number)

    def _vacate(self, seats: _Seats, ticket: Ticket) -> None:
        del seats.tickets[ticket]
        self._total -= 1
