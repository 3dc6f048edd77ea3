"""A random walk: several servers, their devices, Redis and the network, for some simulated seconds.

A walk is determined by its seed. Times are in seconds, of a clock that nobody else can read.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from cocoa_tornado.presence.actions import Send
from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.membership import Timing
from cocoa_tornado.presence.rules import Slots
from cocoa_tornado.rules.claims import Claim, Generation

from .faults import FAULTS, scripts_with
from .oracle import Client, Oracle
from .server import Server
from .store import Data, Process

CHAOS_FROM, CHAOS_UNTIL, HEALED_AT = 2.0, 20.0, 22.0
LAST_ATTEMPT_AT: Final = HEALED_AT + 13.0
"""By then the last term is settled, and whoever was dead is fenced."""
ADMITTED_WITHIN_S: Final = 9.0
KEPT_STATES: Final = 60
CLOSING_S: Final = 0.3
"""How long it takes until a server that wakes up has closed its connections."""

HARM: Final = {
    "pause": 3,
    "cut": 3,
    "deaf": 1,
    "kill": 1,
    "leave": 1,
    "redis": 1,
    "stuck": 1,
}
"""What may happen, and how often."""

_WRITING: Final = frozenset({"claim", "release", "fence", "settle", "join", "leave"})


class Walk:
    """:param planted: the name of a fault
    :param wants_end: go on after the chaos, and see that every device is admitted again
    :param is_scripted: nothing happens by itself, and messages take a hundredth of a second
    :ivar process: the Redis of now
    """

    def __init__(self, seed: int, planted: str = "", wants_end: bool = True, is_scripted: bool = False) -> None:
        self.random = draw = random.Random(seed)
        self.planted = {planted} - {""}
        self.slots_class: type[Slots] = FAULTS[planted].slots if planted else Slots
        self.is_strict = draw.random() < 0.3
        fence_s, freeze_s = draw.choice(((10.0, 5.0), (6.0, 3.0)))  # the default, and one of which more happens
        cut_s = freeze_s if self.is_strict else draw.choice((8.0, 30.0))
        self.timing = Timing(fence_s=fence_s, freeze_s=freeze_s, cut_s=cut_s)
        self.limits = SlotLimits(per_device=2 if draw.random() < 0.2 else 1)
        self.loss_rate = draw.choice((0.0, 0.01, 0.05, 0.15))
        self.late_rate = draw.choice((0.0, 0.01, 0.05))
        self.slow_s, self.slowest_s = draw.choice((0.01, 0.05, 0.3)), 1.2
        # Each walk has some kinds of harm: what many prevent, few bring about.
        self._harm = [kind for kind, weight in HARM.items() for _ in range(weight * (draw.random() < 0.5))] or ["pause"]
        self.oracle = Oracle(self.limits.per_device, self.is_strict)
        self.oracle.log = self.log
        self.now = 0.0
        self.events = 0
        self.trace: Callable[[str], None] | None = None
        self.sends: list[Send] = []
        self._queue: list[tuple[float, int, Callable[[], object], Server | None]] = []
        self._number = self._runs = self._clients = 0
        self._scripts = scripts_with(planted)
        self.process = Process("r0", Data(), self._scripts)
        self._states: deque[Data] = deque(maxlen=KEPT_STATES)
        self._ends_at = LAST_ATTEMPT_AT + ADMITTED_WITHIN_S + 1.0 if wants_end else HEALED_AT
        self.servers: list[Server] = []
        self.clients: dict[str, list[Client]] = {}
        if is_scripted:
            self._script_all()
        else:
            self._leave_all_to_chance()

    def _leave_all_to_chance(self) -> None:
        draw = self.random
        for number in range(draw.choice((2, 2, 3))):
            self.servers.append(Server(self, "ABC"[number]))
        self.clients = {f"d{number}": [] for number in range(draw.choice((1, 2)))}
        # The first term is settled only after a while: most walks begin later.
        if draw.random() < 0.8:
            self.at(1.0, self.settle)
        for device_id in self.clients:
            self.at(draw.uniform(1.0, 3.0), partial(self._live, device_id))
            self.at(LAST_ATTEMPT_AT, partial(self._attempt_last, device_id))
        self.at(draw.uniform(CHAOS_FROM, 5.0), self._do_harm)
        self.at(HEALED_AT, self._heal)

    def _script_all(self) -> None:
        self.is_strict, self.timing, self.limits = False, Timing(), SlotLimits()
        self.loss_rate, self.late_rate = 0.0, 0.0
        self.slow_s = self.slowest_s = 0.01
        self.oracle.per_device, self.oracle.is_strict = 1, False
        self.servers += [Server(self, "A"), Server(self, "B")]
        self.clients = {"d0": []}

    def at(self, time: float, call: Callable[[], object], server: Server | None = None) -> None:
        """:param server: while it is paused, the call waits"""
        self._number += 1
        heapq.heappush(self._queue, (time, self._number, call, server))

    def run(self, until: float | None = None) -> dict[str, str]:
        """Returns what has gone wrong.

        :param until: go on later
        """
        queue, oracle = self._queue, self.oracle
        until = self._ends_at if until is None else until
        while queue and queue[0][0] <= until:
            time, _, call, server = heapq.heappop(queue)
            self.now = oracle.now = max(self.now, time)
            if server is not None and server.paused_until > self.now:
                self.at(server.paused_until + self.random.uniform(0, 1e-4), call, server)
                continue
            self.events += 1
            call()
        self.now = max(self.now, until)
        return oracle.faults

    def log(self, *what: object) -> None:
        if self.trace is not None:
            self.trace(f"{self.now:8.3f} {' '.join(map(str, what))}")

    # -- the network

    def is_lost(self) -> bool:
        return self.random.random() < self.loss_rate

    def delay(self) -> float:
        return self.random.uniform(0.001, self.slow_s if self.random.random() < 0.95 else self.slowest_s)

    def new_epoch(self) -> str:
        return f"{self.random.getrandbits(64):016x}"

    def generation(self, term: int, number: int) -> Generation:
        return Generation(0 if "unique" in self.planted else term, number)

    def serve(self, server: Server, name: str, arguments: Sequence[bytes]) -> list[Any]:
        """Redis carries out a request."""
        process = self.process
        if name == "send":
            return self._forward(arguments)
        if name in _WRITING:
            self._states.append(process.data.copy())
        victim = arguments[1].decode() if name == "fence" else ""
        was_member = bool(victim) and process.is_member(victim)
        reply = process.call(name, arguments)
        if (self.trace is not None and name not in ("beat", "guard")) or reply[0] in (b"term", b"fenced"):
            self.log("  ", server, name, arguments, "->", reply)
        if was_member and not process.is_member(victim):
            for other in self.servers:
                self.oracle.fenced(other, victim)
        if name == "claim" and reply[0] == b"claims":
            self._note_grant(arguments, reply[1])
        if name == "guard" and reply == [b"ok"]:
            epoch, number, _ = arguments[3].decode().split(":")
            self.oracle.passes_guard(self.oracle.owners[Claim(epoch, int(number))])
        return reply

    def _note_grant(self, arguments: Sequence[bytes], reply: bytes) -> None:
        stamp, epoch, _, bucket, device, number = arguments[:6]
        if reply.startswith(b"granted"):
            generation = self.generation(int(stamp.partition(b":")[0]), int(reply.split()[1]))
            holders = [holder.decode().split(":") for holder in self.process.holders(bucket, device)]
            claims = [Claim(server, int(number)) for server, number, _ in holders]
            self.oracle.store_granted(device.decode(), Claim(epoch.decode(), int(number)), generation, claims)

    def _forward(self, arguments: Sequence[bytes]) -> list[Any]:
        process, send = self.process, self.sends[int(arguments[1])]
        if arguments[0].decode() != process.stamp:
            return [b"term"]
        if not process.is_member(send.server):
            return [b"no_server"]
        self.log("   send", send)
        process.post(send.server, send.message)
        for server in self.servers:
            if server.is_alive and server.membership.epoch == send.server and not self.is_lost():
                self.at(
                    self.now + self.delay(),
                    partial(server.unless_it_died, server.incarnation, server.read_inbox),
                    server,
                )
        return [b"accepted"]

    def settle(self) -> None:
        term = self.process.stamp.partition(":")[0]
        if term:
            self.process.call("settle", [self.process.stamp.encode()])

    # -- devices

    def _live(self, device_id: str) -> None:
        if self.now > CHAOS_UNTIL:
            return
        draw = self.random
        for client in self.clients[device_id]:
            if client.is_there and client.state == "open":
                kind = draw.random()
                if kind < 0.45:
                    self._close(client)
                elif kind < 0.8:
                    client.is_there = False  # no server notices
        self.clients[device_id] = [client for client in self.clients[device_id] if client.is_there]
        self._attempt(device_id, draw.choice((0, 1, 3)))
        if draw.random() < 0.25:
            self.at(self.now + draw.uniform(0, 0.4), lambda: self._attempt(device_id, 1))
        self.at(self.now + draw.choice((0.1, 0.5, 2.0, 6.0)) * draw.uniform(0.5, 1.5), lambda: self._live(device_id))

    def _close(self, client: Client) -> None:
        client.is_there = False
        server = client.server
        assert server is not None
        self.at(self.now + self.random.uniform(0, 0.05), lambda: server.end(client, "eof"), server)

    def connect(self, server: Server, device_id: str = "d0") -> Client:
        self._clients += 1
        client = Client(self._clients, device_id, server=server)
        self.clients[device_id].append(client)
        server.connect(client)
        return client

    def _attempt(self, device_id: str, retries: int, is_last: bool = False) -> None:
        if self.now > CHAOS_UNTIL and not is_last:
            return
        living = [server for server in self.servers if server.is_alive]
        if not living:
            if retries:
                self.at(self.now + 1.0, lambda: self._attempt(device_id, retries - 1, is_last))
            return
        server = self.random.choice(living)
        self._clients += 1
        client = Client(self._clients, device_id, retries=retries, is_last=is_last, server=server)
        self.clients[device_id].append(client)
        self.log(client, "connects to", server)
        still = partial(server.unless_it_died, server.incarnation)
        self.at(self.now + 0.01, lambda: still(partial(server.connect, client)), server)
        if not is_last and self.random.random() < 0.15:
            self.at(self.now + self.random.uniform(0, 3.5), lambda: still(partial(server.vanish, client)), server)

    def refused(self, client: Client, status: str) -> None:
        """A handshake has ended without a connection."""
        self.oracle.refuses(client, status)
        if client.is_there:
            client.is_there = False
            if client.retries:
                again = (client.device_id, client.retries - 1, client.is_last)
                self.at(self.now + self.random.uniform(0.8, 1.2), lambda: self._attempt(*again))

    def _attempt_last(self, device_id: str) -> None:
        for client in self.clients[device_id]:
            if client.is_there and client.state == "open" and self.random.random() < 0.5:
                self._close(client)
            client.is_there = False

        def check() -> None:
            if not any(client.is_last and client.state == "open" for client in self.clients[device_id]):
                self.oracle.fault("L4 locked out", device_id)

        self.at(self.now + 0.5, lambda: self._attempt(device_id, 99, is_last=True))
        self.at(self.now + ADMITTED_WITHIN_S, check)

    # -- harm

    def _do_harm(self) -> None:
        if self.now > CHAOS_UNTIL:
            return
        draw = self.random
        server = draw.choice(self.servers)
        kind = draw.choice(self._harm)
        duration = draw.choice((0.3, 2.0, 6.0, 10.0, 14.0)) * draw.uniform(0.7, 1.2)
        self.log("##", kind, server, f"{duration:.1f}")
        match kind:
            case "pause":
                self._pause(server, duration)
            case "cut" | "deaf":
                self.cut(server, duration, is_deaf=kind == "deaf")
            case "kill" if server.is_alive:
                server.die()
                self.at(self.now + duration, lambda: self._boot(server))
            case "leave" if server.is_alive and server.membership.epoch and not server.slots.draining:
                server.leave()
                self.at(self.now + draw.uniform(0.1, 3), lambda: self._restart(server))
            case "redis":
                self._restart_redis(draw.choice((0.1, 1.0, 4.0)), draw.choice((0, 0, 1, 2, 3, 6, 30)))
            case "stuck":
                self.process.stuck_until = self.now + min(duration, 7.0)
                self._all_cut_off(self.process.stuck_until)
        self.at(self.now + draw.choice((0.2, 1.0, 4.0)) * draw.uniform(0.5, 1.5), self._do_harm)

    def _pause(self, server: Server, duration: float) -> None:
        if not server.is_alive:
            return
        if self.is_strict:
            # The promise is for pauses of up to 3 s, none of which follows another at once.
            if server.paused_until + 8.0 > self.now and server.paused_until > 0:
                return
            duration = min(duration, 0.99 * self.timing.watch_s - 1.01 * self.timing.freeze_s - CLOSING_S, 3.0)
        self.pause(server, min(duration, HEALED_AT - self.now))

    def pause(self, server: Server, duration: float) -> None:
        until = self.now + duration
        server.paused_s += max(0.0, until - max(server.paused_until, self.now))
        server.paused_until = max(server.paused_until, until)
        self._cut_off(server, until)

    def cut(self, server: Server, duration: float, *, is_deaf: bool = False) -> None:
        def end() -> None:
            server.cut = server.is_deaf = False

        server.cut, server.is_deaf = server.cut or not is_deaf, server.is_deaf or is_deaf
        self._cut_off(server, self.now + duration)
        self.at(self.now + duration, end)

    def _cut_off(self, server: Server, until: float) -> None:
        server.disturbed_at = max(server.disturbed_at, until)
        for client in (client for clients in self.clients.values() for client in clients):
            if client.server is server:  # also one that is still waiting to be admitted
                client.was_cut_off = True

    def _all_cut_off(self, until: float) -> None:
        for server in self.servers:
            self._cut_off(server, until)

    def _restart_redis(self, down_s: float, lost: int) -> None:
        """:param lost: the last so many writes"""
        if self.process.is_up:
            self.restart_redis(down_s, self._states[-min(lost, len(self._states))] if lost and self._states else None)

    def restart_redis(self, down_s: float, data: Data | None) -> None:
        """:param data: what the next process begins with; None: all that this one has"""
        self.process.is_up = False
        self._runs += 1
        data = self.process.data if data is None else data
        new = Process(f"r{self._runs}", data.copy(), self._scripts)
        self._all_cut_off(self.now + down_s)

        def come_up() -> None:
            self.process = new
            self._all_cut_off(self.now)

        self.at(self.now + down_s, come_up)

    def _restart(self, server: Server) -> None:
        if server.is_alive:
            server.die()
        self.at(self.now + 1.0, lambda: self._boot(server))

    def _boot(self, server: Server) -> None:
        if not server.is_alive:
            server.boot()

    def _heal(self) -> None:
        self.log("## heal")
        self.loss_rate = self.late_rate = 0.0
        self.slow_s = self.slowest_s = 0.02
        self.process.stuck_until = min(self.process.stuck_until, self.now)
        for server in self.servers:
            server.cut = server.is_deaf = False
            self._boot(server)
