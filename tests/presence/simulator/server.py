"""One simulated server: what an adapter does with the actions of ``Slots`` and ``Membership``, in simulated time.

Requests to Redis have no order among each other, which is harsher than a connection: any may be lost, or applied late
although it was given up, or twice. Only JOIN is sent once, to the process whose run it names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cocoa_tornado.presence import actions as of_slots
from cocoa_tornado.presence import membership as of_members
from cocoa_tornado.presence import redis_scripts as scripts
from cocoa_tornado.presence.grants import Grant
from cocoa_tornado.presence.membership import Membership
from cocoa_tornado.relay.messages import Answer, Challenge
from cocoa_tornado.rules.claims import Claim, bucket_of

from .oracle import Client

if TYPE_CHECKING:
    from .walk import Walk

PATIENCE_S: Final = 1.0
SILENT_S: Final = 2.5
"""A server that has not beaten for so long is not challenged."""


class _Release:
    """A slot to free in the store, and the messages that follow from it."""

    def __init__(self) -> None:
        self.is_done = False
        self.then: list[of_slots.Send] = []


class Server:
    """:ivar rate: of its clock; :ivar disturbed_at: until when it was last paused, cut off, or without Redis
    :ivar cut: nothing is sent; :ivar is_deaf: no reply arrives
    """

    def __init__(self, walk: Walk, name: str) -> None:
        self.walk, self.name = walk, name
        self.rate = 1 + walk.random.uniform(-0.01, 0.01)
        self.offset = walk.random.uniform(0, 100)
        # Clocks are synchronized: with more, generations may go back if Redis loses its tail twice within that time.
        self.wall_skew_s = walk.random.uniform(-0.05, 0.05)
        self.is_alive = self.cut = self.is_deaf = False
        self.paused_until = self.paused_s = self.disturbed_at = 0.0
        self.incarnation = 0
        self.boot()

    def __repr__(self) -> str:
        return self.name

    @property
    def now(self) -> float:
        return self.offset + self.rate * self.walk.now

    @property
    def is_paused(self) -> bool:
        return self.paused_until > self.walk.now

    # -- life

    def boot(self) -> None:
        self.is_alive, self.incarnation = True, self.incarnation + 1
        self.membership = Membership(self.walk.timing, self.walk.new_epoch)
        self.slots = self.walk.slots_class("", lambda: self.walk.limits)
        self.clients: dict[Claim, Client] = {}
        self.handshakes: dict[Claim, Client] = {}
        self.inbox_position = 0
        self._wake_at = math.inf
        self.follow(self.membership.start(self.now))
        self.every(0.6, self._act)
        self.every(0.5, self.read_inbox)

    def die(self) -> None:
        self.is_alive = False
        for client in (*self.clients.values(), *self.handshakes.values()):
            client.is_there = False
            self.walk.oracle.ends(client)
        self.clients, self.handshakes = {}, {}
        self.incarnation += 1

    def leave(self) -> None:
        """Drain: the order is what matters."""
        self.slots.draining = True
        if "leave" in self.walk.planted:
            left = of_members.Leave(self.membership.stamp, self.membership.epoch)
            self.follow([left])
        for client in list(self.clients.values()):
            self.end(client, "drain")
        if "leave" not in self.walk.planted:
            self.carry_out(self.slots.lose_all(""))
            self.follow(self.membership.leave(self.now))

    def after(self, seconds: float, call: Callable[[], object]) -> None:
        """By its own clock, unless it dies before."""
        self.walk.at(self.walk.now + seconds / self.rate, partial(self.unless_it_died, self.incarnation, call), self)

    def unless_it_died(self, incarnation: int, call: Callable[[], object]) -> None:
        if self.incarnation == incarnation:
            call()

    def every(self, seconds: float, call: Callable[[], object]) -> None:
        def go() -> None:
            call()
            self.after(seconds, go)

        self.after(seconds * self.walk.random.uniform(0.9, 1.1), go)

    # -- requests to Redis

    def call(
        self,
        name: str,
        arguments: Sequence[bytes],
        on_reply: Callable[[list[Any]], None] | None = None,
        on_failure: Callable[[], None] | None = None,
        patience_s: float = PATIENCE_S,
        run: str | None = None,
    ) -> None:
        """One of the two is called, unless the server dies: a reply that is late is ignored.

        :param run: only a process with this run takes it
        """
        walk, is_over = self.walk, False
        still = partial(self.unless_it_died, self.incarnation)

        def fail() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                if on_failure is not None:
                    on_failure()

        def arrive(may_repeat: bool) -> None:
            process = walk.process
            if not process.is_up or (run is not None and process.run != run):
                return
            if process.stuck_until > walk.now:
                walk.at(process.stuck_until + walk.random.uniform(0, 0.05), lambda: arrive(may_repeat))
                return
            # An adapter reads the run of each connection that it opens.
            stamp = [] if run is not None else [arguments[0].partition(b":")[0] + b":" + process.run.encode()]
            reply = walk.serve(self, name, [*stamp, *arguments[len(stamp) :]])
            if may_repeat and run is None and walk.random.random() < walk.late_rate:
                walk.at(walk.now + walk.random.uniform(0, 6), lambda: arrive(False))
            if not self.cut and not self.is_deaf and not walk.is_lost():
                walk.at(walk.now + walk.delay(), lambda: still(partial(take, reply)), self)

        def take(reply: list[Any]) -> None:
            nonlocal is_over
            if not is_over and on_reply is not None:
                is_over = True
                on_reply(reply)

        if on_failure is not None:
            self.after(patience_s, fail)
        if not self.cut and not walk.is_lost():
            is_late = run is None and walk.random.random() < walk.late_rate
            delay = walk.random.uniform(0.5, 6) if is_late else walk.delay()
            walk.at(walk.now + delay, lambda: arrive(True))

    def _parsed(self, parse: Callable[[list[Any]], Any], reply: list[Any], stamp: str, epoch: str) -> Any:
        """None: a word that concerns the whole server."""
        try:
            return parse(reply)
        except scripts.TermOver:
            self.follow(self.membership.term_over(stamp, self.now))
        except scripts.EpochOver:
            self.follow(self.membership.epoch_over(epoch, self.now))
        return None

    # -- membership

    def follow(self, actions: of_members.Actions) -> None:
        for action in actions:
            self._follow(action)
        wake_at = self.membership.wake_at
        if wake_at < self._wake_at or self._wake_at <= self.now:
            self._wake_at = wake_at
            if wake_at < math.inf:
                self.after(max(0.0, wake_at - self.now), lambda: self._wake(wake_at))

    def _wake(self, wake_at: float) -> None:
        if wake_at == self._wake_at:
            self._wake_at = math.inf
            self.follow(self.membership.wake(max(wake_at, self.now)))

    def _follow(self, action: of_members.Action) -> None:
        match action:
            case of_members.Join():
                self._join(action)
            case of_members.Beat(stamp, epoch, seen):
                self.call(
                    "beat",
                    scripts.beat_arguments(stamp, epoch, seen),
                    lambda reply: self._beaten(action, reply),
                    lambda: self.follow(self.membership.beat_failed(action, self.now)),
                    self.walk.timing.beat_s,
                )
            case of_members.Fence(stamp, epoch, beat):
                self.call("fence", scripts.fence_arguments(stamp, epoch, beat))
            case of_members.Settle(stamp):
                self.call("settle", scripts.settle_arguments(stamp))
            case of_members.Leave(stamp, epoch):
                self.call("leave", scripts.leave_arguments(stamp, epoch))
            case of_members.Joined(lease):
                self.inbox_position = 0
                timing = self.walk.timing
                self.carry_out(self.slots.rejoin(lease, timing.freeze_s, timing.proof_s, self.now))
            case of_members.Settled():
                self.carry_out(self.slots.settled(self.now))
            case of_members.Fenced():
                for client in list(self.clients.values()):
                    self.end(client, "fenced")
                self.carry_out(self.slots.lose_all(""))
            case of_members.Cut():
                for client in list(self.clients.values()):
                    assert client.grant is not None
                    if not client.grant.lease.is_valid(self.now):
                        self.end(client, "cut")

    def _join(self, join: of_members.Join) -> None:
        walk, sent_at = self.walk, self.now
        run = walk.process.run
        wall_s = scripts.TERM_ORIGIN_S + 1e6 + walk.now + self.wall_skew_s

        def joined(reply: list[Any]) -> None:
            found = scripts.join_reply(reply)
            member = self.membership
            self.follow(member.joined(join, run, found.term, found.is_settled, sent_at, self.now))

        self.call(
            "join",
            scripts.join_arguments(run, join.known_term, join.epoch, wall_s),
            joined,
            lambda: self.follow(self.membership.join_failed(join, self.now)),
            run=run,
        )

    def _beaten(self, beat: of_members.Beat, reply: list[Any]) -> None:
        found = self._parsed(scripts.beat_reply, reply, beat.stamp, beat.epoch)
        member = self.membership
        if found is None:
            self.follow(member.beat_failed(beat, self.now))
        else:
            self.follow(member.beaten(beat, found.mine, found.is_settled, found.beats, found.infos, self.now))

    # -- slots

    def carry_out(self, actions: of_slots.Actions) -> None:
        releases: list[_Release] = []
        for action in actions:  # the list grows meanwhile
            if isinstance(action, of_slots.Release):
                release, (device_id, claim) = _Release(), (action.device_id, action.claim)
                releases.append(release)
                lazily_s = self.walk.random.choice((0.0, 0.0, 0.1, 0.5))
                self.after(lazily_s, partial(self._release, device_id, claim, release))
            elif isinstance(action, of_slots.Send):
                self._send_after(releases, action)
            else:
                self._do(action)

    def _do(self, action: of_slots.Action) -> None:
        match action:
            case of_slots.Acquire():
                self._acquire(action)
            case of_slots.Admit(grant):
                client = self.handshakes[grant.claim]
                client.grant = grant
                self.walk.oracle.admits(client)
                self.after(self.walk.random.choice((0.0, 0.0, 0.02, 0.3)), lambda: self._upgrade(client, grant))
            case of_slots.Refuse(claim, reason):
                refused = self.handshakes.pop(claim, None)
                if refused is not None:
                    self.walk.refused(refused, "409" if reason == "device" else "503")
            case of_slots.Ping(grants):
                for grant in grants:
                    self._ping(grant)
            case of_slots.Evict(grant):
                self._end_of(grant, "challenge")
            case of_slots.Supersede(grant):
                self._end_of(grant, "superseded")
            case of_slots.Regrant(old, new):
                client = self.clients.pop(old.claim)
                client.grant = new
                self.clients[new.claim] = client
            case of_slots.Wake(device_id, at):
                # One turn later, so that what has arrived is read before it is judged.
                delay_s = max(0.0, at - self.now)
                self.after(delay_s, lambda: self.after(0.005, lambda: self._expire(device_id, at)))
            case _:
                raise AssertionError(action)

    def _expire(self, device_id: str, at: float) -> None:
        self.carry_out(self.slots.expire(device_id, max(at, self.now)))

    def _acquire(self, acquire: of_slots.Acquire) -> None:
        device_id, claim, stamp = acquire.device_id, acquire.claim, self.membership.stamp
        if claim not in self.walk.oracle.owners:
            self.walk.oracle.owners[claim] = self._owner(device_id, claim)
        lease, term = self.membership.lease, self.membership.term

        def answered(reply: list[Any]) -> None:
            found = self._parsed(scripts.claim_replies, reply, stamp, claim.server)
            if found is None:
                # It is refused, or claimed again, when the server has joined again.
                self.after(PATIENCE_S, failed)
                return
            for item in found:
                self.carry_out(decide(item))

        def decide(item: scripts.ClaimReply) -> of_slots.Actions:
            match item:
                case scripts.Granted(number):
                    generation = self.walk.generation(term, number)
                    return self.slots.granted(Grant(device_id, claim, generation, lease), self.now)
                case scripts.Held(holders):
                    claims = [holding.claim for holding in holders]
                    silent = [c.server for c in claims if self.membership.silent_for(c.server, self.now) > SILENT_S]
                    return self.slots.held(device_id, claim, claims, self.now, silent)
                case "settling":
                    return self.slots.settling(device_id, claim, self.now)
                case _:
                    return self.slots.late(device_id, claim, self.now)

        def failed() -> None:
            self.carry_out(self.slots.unanswered(device_id, claim, self.now))

        if self.membership.is_joining or claim.server != lease.server:
            self.after(PATIENCE_S, failed)
            return
        item = scripts.ClaimItem(device_id, claim.number, acquire.mode, acquire.kept)
        per_device = self.walk.limits.per_device
        arguments = scripts.claim_arguments(stamp, claim.server, per_device, [item])
        self.call("claim", arguments, answered, failed)

    def _owner(self, device_id: str, claim: Claim) -> Client:
        """The client for which a claim is made."""
        client = self.handshakes.get(claim)
        if client is not None:
            return client
        grant = self.slots.grant_of(device_id, claim)
        assert grant is not None
        return self.clients[grant.claim]

    def _release(self, device_id: str, claim: Claim, release: _Release) -> None:
        """Until it is answered, or the claim has ended with its epoch."""
        stamp = self.membership.stamp

        def answered(reply: list[Any]) -> None:
            if self._parsed(scripts.done, reply, stamp, claim.server) is not None:
                release.is_done = True
                for send in release.then:
                    self._send(send)

        def again() -> None:
            if claim.server == self.membership.epoch and not self.slots.draining:
                self._release(device_id, claim, release)

        self.call("release", scripts.release_arguments(stamp, [(device_id, claim)]), answered, again)

    def _send_after(self, releases: Sequence[_Release], send: of_slots.Send) -> None:
        """What a slot's end is reported by follows the end."""
        is_gone = isinstance(send.message, Answer) and send.message.verdict == "gone"
        if is_gone and releases and not releases[-1].is_done:
            releases[-1].then.append(send)
        else:
            self._send(send)

    def _send(self, send: of_slots.Send) -> None:
        def sent(reply: list[Any]) -> None:
            if reply == [b"no_server"] and isinstance(send.message, Challenge):
                self.carry_out(self.slots.unreachable(send.message, self.now))
            elif reply == [b"term"]:
                self.follow(self.membership.term_over(stamp, self.now))

        stamp = self.membership.stamp
        self.walk.sends.append(send)
        self.call("send", [stamp.encode(), b"%d" % (len(self.walk.sends) - 1)], sent)

    # -- the inbox

    def read_inbox(self) -> None:
        """On a connection of its own; what cannot be read now waits."""
        process, epoch = self.walk.process, self.membership.epoch
        if self.cut or self.is_deaf or not process.is_up or process.stuck_until > self.walk.now:
            return
        if self.membership.is_joining or process.stamp != self.membership.stamp:
            return
        inbox = process.inbox(epoch)
        new, self.inbox_position = inbox[self.inbox_position :], max(self.inbox_position, len(inbox))
        for message in new:
            if isinstance(message, Challenge):
                self.carry_out(self.slots.challenged(message, self.now))
            else:
                self.carry_out(self.slots.heard(message, self.now))

    # -- clients

    def connect(self, client: Client) -> None:
        walk = self.walk
        client.server, client.began_at, client.paused_s = self, walk.now, self.paused_s
        client.state = "waiting"
        if self.membership.is_joining or not self.membership.lease.is_valid(self.now):
            walk.refused(client, "503")
            return
        claim, actions = self.slots.request(client.device_id, self.now)
        client.claim = claim
        self.handshakes[claim] = client
        self.carry_out(actions)

    def _upgrade(self, client: Client, grant: Grant) -> None:
        """The last step of a handshake, after another wait."""
        if self.handshakes.pop(grant.claim, None) is None:
            return
        if not grant.lease.is_valid(self.now) or (self.slots.draining and "leave" not in self.walk.planted):
            self.walk.refused(client, "503")
            self.carry_out(self.slots.release(client.device_id, grant.claim, self.now))
            return
        try:
            actions = self.slots.register(grant, self.now)
        except KeyError:
            self.walk.refused(client, "503")
            return
        self.clients[grant.claim] = client
        self.walk.oracle.opens(client)
        self.carry_out(actions)
        if not client.is_there:
            self.after(0.05, lambda: self.end(client, "eof"))

    def vanish(self, client: Client) -> None:
        """The client of a handshake has disconnected."""
        client.is_there = False
        if client.state == "waiting" and client.claim in self.handshakes:
            del self.handshakes[client.claim]
            self.walk.oracle.ends(client)
            self.carry_out(self.slots.withdraw(client.device_id, client.claim, self.now))

    def end(self, client: Client, why: str) -> None:
        """A connection ends: it no longer acts when this returns."""
        if client.state != "open":
            return
        assert client.grant is not None
        del self.clients[client.grant.claim]
        self.walk.oracle.closes(client, why)
        self.carry_out(self.slots.release(client.device_id, client.grant.claim, self.now))

    def _end_of(self, grant: Grant, why: str) -> None:
        client = self.clients.get(grant.claim)
        if client is not None:
            self.end(client, why)

    def _ping(self, grant: Grant) -> None:
        client = self.clients[grant.claim]

        def pong() -> None:
            if client.grant is not None and client.state == "open":
                self.carry_out(self.slots.answered(client.grant, self.now))

        if client.is_there:
            self.after(self.walk.random.uniform(0.01, 0.2), pong)

    def _act(self) -> None:
        for client in list(self.clients.values()):
            assert client.grant is not None
            lease = self.membership.lease if "lease" in self.walk.planted else client.grant.lease
            if lease.is_valid(self.now) or "flush" in self.walk.planted:
                self.walk.oracle.acts(client)
            if self.walk.random.random() < 0.5:
                self._look(client, client.grant)

    def _look(self, client: Client, grant: Grant) -> None:
        """A read of the box, or a mark: guarded by the identity of the holder."""
        stamp, claim = self.membership.stamp, grant.claim
        if claim.server != self.membership.epoch:
            return

        def looked(reply: list[Any]) -> None:
            if reply == [b"term"]:
                self.follow(self.membership.term_over(stamp, self.now))
            elif reply == [b"superseded"] and client.grant is grant:
                self.end(client, "superseded")

        holder = b"%s:%d:%d" % (claim.server.encode(), claim.number, grant.generation.number)
        device = client.device_id.encode()
        self.call("guard", [stamp.encode(), b"%d" % bucket_of(device), device, holder], looked)
