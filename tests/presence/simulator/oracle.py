"""What must hold after each event, from outside: who was granted what, which sockets are open, who acts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cocoa_tornado.presence.grants import Grant
from cocoa_tornado.rules.claims import Claim, Generation

if TYPE_CHECKING:
    from .server import Server

LATE_SCHEDULING_S = 0.3
HANDSHAKE_S = 6.0
NONE_YET = Generation(-1, -1)


@dataclass(eq=False)
class Client:
    """A connection attempt of a device, and the connection that may come of it.

    :ivar is_there: the client's side of it
    :ivar state: new, waiting, open, ended
    :ivar was_cut_off: its server was paused, cut off, or without Redis for a while
    :ivar paused_s: of the server, before the attempt
    """

    number: int
    device_id: str
    is_there: bool = True
    state: str = "new"
    server: Server | None = None
    began_at: float = 0.0
    closed_at: float | None = None
    was_cut_off: bool = False
    paused_s: float = 0.0
    claim: Claim | None = None
    grant: Grant | None = None
    retries: int = 0
    is_last: bool = False

    def __repr__(self) -> str:
        return f"c{self.number} of {self.device_id}"


@dataclass
class Oracle:
    """:ivar faults: what has gone wrong, each kind once, with its time and details
    :ivar granted: clients by device, and whether they still have what the store has granted them
    :ivar owners: clients by claim
    :ivar admitted: all clients that ever had a slot, by device
    """

    per_device: int
    is_strict: bool
    faults: dict[str, str] = field(default_factory=dict)
    stats: Counter[str] = field(default_factory=Counter)
    owners: dict[Claim, Client] = field(default_factory=dict)
    granted: defaultdict[str, dict[Client, bool]] = field(default_factory=lambda: defaultdict(dict))
    admitted: defaultdict[str, list[Client]] = field(default_factory=lambda: defaultdict(list))
    generations: dict[Generation, Claim] = field(default_factory=dict)
    newest: Generation = NONE_YET
    now: float = 0.0
    log: Callable[..., None] = lambda *_: None

    def fault(self, kind: str, detail: str) -> None:
        self.log("!!", kind, detail)
        self.faults.setdefault(kind, f"{self.now:.3f} {detail}")

    # -- the store

    def store_granted(self, device_id: str, claim: Claim, generation: Generation, holders: Sequence[Claim]) -> None:
        """A reply to CLAIM, whether it arrives or not.

        :param holders: in the store, after it
        """
        before = self.generations.setdefault(generation, claim)
        if before != claim:
            self.fault("P1 generation given twice", f"{generation} to {before} and {claim}")
        if len(holders) > self.per_device:
            self.fault("P1 too many holders", f"{holders} of {device_id}")
        owner, granted = self.owners[claim], self.granted[device_id]
        if generation <= self.newest:
            if owner not in granted:
                self.fault("P1 generation goes back", f"{generation} after {self.newest}")
            return
        self.newest = generation
        granted[owner] = True
        if len(holders) >= self.per_device:
            holding = [self.owners[holder] for holder in holders]
            for other in granted:
                granted[other] = other in holding

    def is_superseded(self, client: Client) -> bool:
        """Others have all of the device's slots by now, or had them since in what Redis has lost."""
        return not self.granted[client.device_id].get(client, False)

    def fenced(self, server: Server, epoch: str) -> None:
        if server.is_alive and server.membership.epoch == epoch and not server.slots.draining:
            if server.membership.lease.is_valid(server.now) and not server.is_paused:
                self.fault("P2 fenced with a valid lease", f"{server}")
            if self.now - server.disturbed_at > server.walk.timing.fence_s + 3.0 and not _loses_beats(server):
                self.fault("L2 fenced without a reason", f"{server}")

    # -- connections

    def acts(self, client: Client) -> None:
        self.stats["acts"] += 1
        if self.is_superseded(client):
            self.fault("P2 acts when superseded", f"{client} at {client.server}")

    def passes_guard(self, client: Client) -> None:
        self.stats["guarded"] += 1
        if self.is_superseded(client):
            self.fault("P2 passes the guard when superseded", f"{client} at {client.server}")

    def admits(self, client: Client) -> None:
        """Its server knows that it has a slot."""
        self.admitted[client.device_id].append(client)

    def opens(self, client: Client) -> None:
        assert client.server is not None
        self._handshake_ends(client, "101")
        client.state = "open"
        if self.is_strict:
            still = [other for other in self.admitted[client.device_id] if other.state == "open"]
            if len(still) > self.per_device:
                self.fault("P3 too many open sockets", f"{still}")

    def refuses(self, client: Client, status: str) -> None:
        self._handshake_ends(client, status)
        self.ends(client)
        if status != "409":
            return
        others = [
            other
            for other in self.admitted[client.device_id]
            if other.closed_at is None or other.closed_at >= client.began_at
        ]
        if len(others) < self.per_device:
            self.fault("L3 409 without a connection", f"{client} at {client.server}")

    def _handshake_ends(self, client: Client, status: str) -> None:
        self.stats[status] += 1
        self.log(client, "at", client.server, "->", status)
        assert client.server is not None
        took = self.now - client.began_at - (client.server.paused_s - client.paused_s)
        if took > HANDSHAKE_S * 1.02 + LATE_SCHEDULING_S:
            self.fault("L1 handshake takes too long", f"{client} {took:.1f} s")

    def ends(self, client: Client) -> None:
        client.state, client.closed_at = "ended", self.now

    def closes(self, client: Client, why: str) -> None:
        self.ends(client)
        self.stats[why] += 1
        self.log(client, "at", client.server, "ends:", why)
        if client.is_there and why == "challenge":
            self.fault("L2 evicted although alive", f"{client} at {client.server}")
        assert client.server is not None
        excused = client.was_cut_off or _loses_beats(client.server)
        if client.is_there and why in ("superseded", "fenced") and not excused:
            self.fault(f"L2 {why} without a reason", f"{client} at {client.server}")


def _loses_beats(server: Server) -> bool:
    """So many messages are lost that a server may be fenced because all its beats, or their replies, are."""
    return server.walk.loss_rate >= 0.1
