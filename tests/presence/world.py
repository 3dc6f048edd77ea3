"""The rules of one server or several, and their store, without a loop.

Each action is carried out at once, unless the store is said to be far: then it hears and answers when the test says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from cocoa_tornado.presence.actions import Acquire, Action, Actions, Admit, Evict, Ping, Refuse, Release, Send, Wake
from cocoa_tornado.presence.grants import Grant, Lease, RefusalReason, SlotLimits
from cocoa_tornado.presence.rules import Slots
from cocoa_tornado.presence.table import Table
from cocoa_tornado.relay.messages import Challenge
from cocoa_tornado.rules.claims import Claim


@dataclass
class World:
    """:ivar is_quick: claim devices that are free, and free slots that nobody waits for, without going by actions
    :ivar is_far: what servers ask of the store, and its answers, are under way until :meth:`serve` and :meth:`reply`
    :ivar asked: by server, in the order of its questions; :ivar replies: likewise
    :ivar sent: messages under way between servers, with their receivers
    :ivar pings: one entry for each challenge; :ivar timers: when each server asked to be woken, and for which device
    """

    limits: SlotLimits = field(default_factory=SlotLimits)
    names: tuple[str, ...] = ("a",)
    now: float = 0.0
    is_far: bool = False
    is_quick: bool = True
    admitted: dict[Claim, Grant] = field(default_factory=dict)
    refused: dict[Claim, RefusalReason] = field(default_factory=dict)
    pings: list[tuple[Grant, ...]] = field(default_factory=list)
    evicted: list[Grant] = field(default_factory=list)
    timers: list[tuple[float, str, str]] = field(default_factory=list)
    sent: deque[Send] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.table = Table()
        self.asked: dict[str, deque[Acquire | Release]] = {name: deque() for name in self.names}
        self.replies: dict[str, deque[tuple[Acquire, Grant | Sequence[Claim]]]] = {name: deque() for name in self.names}
        self.servers = {name: Slots(name, lambda: self.limits) for name in self.names}
        for name in self.names:
            self.table.join(Lease(name))

    # -- what may happen

    def request(self, device_id: str = "doll", server: str = "a") -> Claim:
        grant = self.try_claim(device_id, server)
        if grant is not None:
            self.admitted[grant.claim] = grant
            return grant.claim
        claim, actions = self.servers[server].request(device_id, self.now)
        self.carry_out(server, actions)
        return claim

    def try_claim(self, device_id: str, server: str) -> Grant | None:
        if self.is_far or not self.is_quick:
            return None
        claim = self.servers[server].claim_free(device_id)
        answer = None if claim is None else self.table.claim(device_id, claim, self.limits.per_device)
        if not isinstance(answer, Grant):
            return None
        self.servers[server].reserve(answer)
        return answer

    def connect(self, device_id: str = "doll", server: str = "a") -> Grant:
        grant = self.admitted[self.request(device_id, server)]
        self.register(grant)
        return grant

    def register(self, grant: Grant) -> None:
        self.carry_out(grant.claim.server, self._of(grant).register(grant, self.now))

    def answer(self, grant: Grant) -> None:
        self.carry_out(grant.claim.server, self._of(grant).answered(grant, self.now))

    def release(self, grant: Grant) -> None:
        if self.is_quick and self._of(grant).free(grant.device_id, grant.claim):
            self.carry_out(grant.claim.server, [Release(grant.device_id, grant.claim)])
        else:
            self.carry_out(grant.claim.server, self._of(grant).release(grant.device_id, grant.claim, self.now))

    def withdraw(self, claim: Claim, device_id: str = "doll") -> None:
        self.carry_out(claim.server, self.servers[claim.server].withdraw(device_id, claim, self.now))

    def wait(self, seconds: float) -> None:
        """Let time pass, and every timer fire that is due then."""
        self.now += seconds
        while due := [timer for timer in self.timers if timer[0] <= self.now]:
            self.timers = [timer for timer in self.timers if timer[0] > self.now]
            for _, server, device_id in sorted(due):
                self.carry_out(server, self.servers[server].expire(device_id, self.now))

    def deliver(self) -> None:
        """The next message under way arrives."""
        send = self.sent.popleft()
        slots = self.servers[send.server]
        if isinstance(send.message, Challenge):
            self.carry_out(send.server, slots.challenged(send.message, self.now))
        else:
            self.carry_out(send.server, slots.heard(send.message, self.now))

    def deliver_all(self) -> None:
        while self.sent:
            self.deliver()

    def serve(self, server: str) -> None:
        """The store carries out the first thing that a server asks of it."""
        question = self.asked[server].popleft()
        if isinstance(question, Release):
            self.table.release(question.device_id, question.claim)
        else:
            answer = self.table.claim(question.device_id, question.claim, self.limits.per_device)
            self.replies[server].append((question, answer))

    def reply(self, server: str) -> None:
        """The store's first answer that is under way reaches the server."""
        question, answer = self.replies[server].popleft()
        slots = self.servers[server]
        if isinstance(answer, Grant):
            self.carry_out(server, slots.granted(answer, self.now))
        else:
            self.carry_out(server, slots.held(question.device_id, question.claim, answer, self.now))

    def give_up(self, server: str) -> None:
        """The store's first answer that is under way is lost, and the server waits no longer for it."""
        question, _ = self.replies[server].popleft()
        self.carry_out(server, self.servers[server].undecided(question.device_id, question.claim, self.now))

    def ask_again(self, server: str) -> None:
        """The server has waited for the store's first answer that is under way for a while; it arrives nevertheless."""
        question, _ = self.replies[server][0]
        self.carry_out(server, self.servers[server].unanswered(question.device_id, question.claim, self.now))

    def serve_all(self) -> None:
        while any(self.asked.values()) or any(self.replies.values()):
            for name in self.names:
                while self.asked[name]:
                    self.serve(name)
                while self.replies[name]:
                    self.reply(name)

    # -- what is asked for

    def carry_out(self, server: str, actions: Actions) -> None:
        todo = deque(actions)
        while todo:
            todo.extend(self._do(server, todo.popleft()))

    def _do(self, server: str, action: Action) -> Actions:
        slots = self.servers[server]
        if self.is_far and isinstance(action, Acquire | Release):
            self.asked[server].append(action)
            return []
        match action:
            case Acquire(device_id, claim):
                answer = self.table.claim(device_id, claim, self.limits.per_device)
                if isinstance(answer, Grant):
                    return slots.granted(answer, self.now)
                return slots.held(device_id, claim, answer, self.now)
            case Release(device_id, claim):
                self.table.release(device_id, claim)
            case Admit(grant):
                assert grant.claim not in self.admitted
                assert grant.claim not in self.refused
                self.admitted[grant.claim] = grant
            case Refuse(claim, reason):
                assert claim not in self.admitted
                assert claim not in self.refused
                self.refused[claim] = reason
            case Ping(grants):
                self.pings.append(grants)
            case Evict(grant):
                self.evicted.append(grant)
                self.release(grant)  # as the connection does when it ends
            case Send():
                self.sent.append(action)
            case Wake(device_id, at):
                self.timers.append((at, server, device_id))
        return []

    def _of(self, grant: Grant) -> Slots:
        return self.servers[grant.claim.server]
