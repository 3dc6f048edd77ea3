"""The Hub: the live connections of this process, by device, by user and by group. Created by the composition root.

Presence decides which devices may connect; the Hub is how presence reaches the connections. IOLoop thread only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

from .presence.grants import ConnectionDelivery, Grant, Lease
from .presence.port import Health
from .rules.addressing import Options
from .rules.close_codes import GOING_AWAY, CloseReason
from .rules.frames import text_frame
from .rules.identity import DeviceIdentity
from .rules.members import Members
from .rules.terms import Later, Left, Terms


class Client(Protocol):
    """A live connection, as the Hub uses it."""

    @property
    def grant(self) -> Grant: ...

    @property
    def identity(self) -> DeviceIdentity: ...

    @property
    def health(self) -> Health: ...

    @property
    def connected_at(self) -> int:
        """Unix seconds."""

    @property
    def remote_ip(self) -> str:
        """The address of the device, behind trusted proxies too."""

    def send(self, frame: bytes, timestamp_ms: int, terms: Terms | None = None) -> None:
        """Queue one WebSocket frame. Never raises and never blocks; a full outbox closes the client.

        :param terms: None: the defaults. An interim, or a message of low priority, may be dropped and closes no client
        """

    def stored(
        self, number: int, payload: bytes, timestamp_ms: int, options: Options | None = None, expires_ms: int = 0
    ) -> None:
        """A message was stored in the device's box. Queue it if it is the next one of its lane.

        :param number: in the lane of its priority
        :param options: None: the defaults
        :param expires_ms: not to be sent after this time, Unix milliseconds; 0: its own ``ttl`` is unlimited
        """

    def look_again(self) -> None:
        """The device's box may have messages without a call of :meth:`stored`."""

    def suggest(
        self,
        payload: bytes,
        timestamp_ms: int,
        terms: Terms | None,
        after: int | None = None,
        later: Later | None = None,
    ) -> None:
        """Queue a transient message, if a mailbox is configured. It may be dropped.

        :param after: the number of the stored message that it comes after, in the lane of its priority; None: it is
            unknown
        :param later: returns the lowest number of a lane that a later message of the device has; 0 if it is unknown;
            None if there is no later one. It may take some time, so it is called only if that matters
        """

    def take_over(self, left: Left) -> None:
        """Continue where another connection of the device has stopped. From now on, the device's messages come here."""

    def is_queued(self, payload: bytes, timestamp_ms: int) -> bool:
        """Whether a message waits for the socket to take it."""

    def challenge(self) -> None:
        """Send a ping; the answer is reported to presence. A connection that has ended is cut."""

    def regrant(self, grant: Grant) -> None:
        """Continue under another grant."""

    def resume(self) -> None:
        """The lease of the grant is valid again: write the messages that have waited."""

    def drop(self, reason: CloseReason) -> None:
        """Close the socket now, behind the close frame if the socket takes it at once."""

    def end(self, reason: CloseReason, keep_queued: bool = False, notice: bytes = b"") -> None:
        """Begin the closing handshake. Calls :meth:`Hub.unregister` before it returns.

        :param notice: the last message, which comes right before the close frame
        """


class Hub:
    """All connections of this process. Adding, removing and looking up a connection are O(1).

    A device's user and groups are those of its newest token, for all of its connections, until the last has ended.

    :param delivery: ``all``: each of a device's connections gets its messages; ``one``: only the *active* one does,
        until :meth:`unregister` or :meth:`relieve`. The others stand by
    """

    def __init__(self, delivery: ConnectionDelivery = "all") -> None:
        self._clients: dict[str, list[Client]] = {}
        # Those that get messages: all of them, or one of each device.
        self._receiving = self._clients if delivery == "all" else dict[str, list[Client]]()
        self._identities: dict[str, DeviceIdentity] = {}
        self._users: Members[int | str] = Members()
        self._groups: Members[str] = Members()
        self._canaries: dict[str, Client] = {}
        self._registered = 0
        self._ending: dict[Grant, Client] = {}  # have ended, but presence was not notified yet
        self._on_arrival: Callable[[str], None] = _nothing
        self._on_departure: Callable[[str], None] = _nothing

    def __repr__(self) -> str:
        return f"<Hub {self._registered} connections of {len(self._identities)} devices>"

    def __len__(self) -> int:
        """Connections now."""
        return self._registered

    def __iter__(self) -> Iterator[Client]:
        """A snapshot of all connections."""
        return iter([client for device_id in self._identities for client in self._clients[device_id]])

    def watch(self, on_arrival: Callable[[str], None], on_departure: Callable[[str], None]) -> None:
        """Call one function with each device that connects, and the other one with each that has no connection here
        any more."""
        self._on_arrival, self._on_departure = on_arrival, on_departure

    def register(self, client: Client) -> None:
        """The upgrade is done: from here on the device's messages go to this client."""
        device_id = client.grant.device_id
        is_new = device_id not in self._clients
        self._clients[device_id] = [*self._clients.get(device_id, ()), client]
        if self._receiving is not self._clients:
            self._receiving.setdefault(device_id, [client])
        self._set_identity(device_id, client.identity)
        self._registered += 1
        if is_new:
            self._on_arrival(device_id)

    def unregister(self, client: Client) -> bool:
        """Remove exactly this connection, and no other of its device; False if it was not there. Idempotent."""
        device_id = client.grant.device_id
        clients = self._clients.get(device_id, [])
        if not any(other is client for other in clients):
            return False
        remaining = [other for other in clients if other is not client]
        if remaining:
            self._clients[device_id] = remaining
        else:
            del self._clients[device_id]
            self._forget(device_id, self._identities.pop(device_id))
        self._registered -= 1
        if client.grant.lease.is_shared:
            self._ending[client.grant] = client
        if self._receiving is not self._clients and self._receiving[device_id][0] is client:
            del self._receiving[device_id]
            if remaining:
                self._receiving[device_id] = [min(remaining, key=_by_health)]
        if not remaining:
            self._on_departure(device_id)
        return True

    def forget(self, client: Client) -> None:
        """The slot of an unregistered connection is about to be released. Needed if the lease of its grant is shared:
        until then, presence reaches the connection, and may give it another grant."""
        self._ending.pop(client.grant, None)

    def add_canary(self, client: Client) -> None:
        """A canary (``rules/canaries.py``) is connected: messages for it go to this client, as to a device. It is no
        device: it is not counted, iterated or listed, has no user and no group, and is not one of all devices."""
        device_id = client.grant.device_id
        self._clients[device_id], self._canaries[device_id] = [client], client
        if self._receiving is not self._clients:
            self._receiving[device_id] = [client]
        self._on_arrival(device_id)

    def remove_canary(self, client: Client) -> None:
        """Remove exactly this client. Idempotent."""
        device_id = client.grant.device_id
        if self._canaries.get(device_id) is not client:
            return
        del self._canaries[device_id], self._clients[device_id]
        self._receiving.pop(device_id, None)
        self._on_departure(device_id)

    @property
    def has_stand_bys(self) -> bool:
        """Whether only one of a device's connections gets its messages."""
        return self._receiving is not self._clients

    def relieve(self, client: Client, keeps: int) -> Client | None:
        """An active connection is in trouble: its queue is long, or a pong is missing. If another one of its device is
        healthier, that one becomes active and is returned.

        :param keeps: how long its queue would be without the messages that it would leave to the other one. It is
            compared with the queues of the others, so that two slow connections don't pass messages back and forth
        """
        device_id = client.grant.device_id
        if self._receiving is self._clients or not self.is_receiving(client):
            return None
        others = [other for other in self._clients[device_id] if other is not client]
        healthiest = min(others, key=_by_health, default=client)
        if healthiest is client or _by_health(healthiest) > _by_health(client, keeps):
            return None
        self._receiving[device_id] = [healthiest]
        return healthiest

    # -- look-up

    @property
    def connected(self) -> Mapping[str, Sequence[Client]]:
        """The devices that are connected, and the canaries, each with the connections that get its messages, oldest
        first: a live view. The sequences do not change; another takes their place."""
        return self._receiving

    def devices(self) -> Collection[str]:
        """The devices that are connected: a live view."""
        return self._identities.keys()

    def is_device_connected(self, device_id: str) -> bool:
        return device_id in self._identities

    def get_client_by_device(self, device_id: str) -> Client | None:
        """The device's connection; the newest one if it has several."""
        clients = self._clients.get(device_id)
        return clients[-1] if clients else None

    def identity_of(self, device_id: str) -> DeviceIdentity | None:
        """The newest token of a device that is connected."""
        return self._identities.get(device_id)

    def clients_of(self, device_id: str) -> Sequence[Client]:
        """The device's connections, oldest first. A snapshot."""
        return self._clients.get(device_id, ())

    def receivers_of(self, device_id: str) -> Sequence[Client]:
        """The connections that get the device's messages, oldest first. A snapshot."""
        return self._receiving.get(device_id, ())

    def is_receiving(self, client: Client) -> bool:
        """False: the connection stands by, or is not registered."""
        return any(other is client for other in self._receiving.get(client.grant.device_id, ()))

    def devices_of_user(self, user_id: int | str) -> Collection[str]:
        """Connected devices of a user, oldest first. User 99 and user "99" are two.

        This and :meth:`devices_of_group` are views: copy them before anything is sent, which may end a connection.
        """
        return self._users.of(user_id)

    def devices_of_group(self, group: str) -> Collection[str]:
        """Connected devices of a group, oldest first."""
        return self._groups.of(group)

    # -- sending

    def send_to_device(self, device_id: str, payload: bytes, timestamp_ms: int = 0, terms: Terms | None = None) -> int:
        """Queue a text message for one device, and no other; return for how many of its connections.

        :param payload: the message in UTF-8
        :param timestamp_ms: when the record was made, Unix milliseconds, for the latency metric; 0: unknown
        :param terms: None: the defaults
        """
        clients = self._receiving.get(device_id)
        if clients is None:
            return 0
        frame = text_frame(payload)
        # A client that overflows unregisters itself, which replaces the list and does not change this one.
        for client in clients:
            client.send(frame, timestamp_ms, terms)
        return len(clients)

    def broadcast(self, payload: bytes) -> int:
        """Queue a text message for every connection; return how many.

        It is for programs that embed the Hub. Routing never falls back to it.
        """
        clients = list(self)
        frame = text_frame(payload)
        for client in clients:
            client.send(frame, 0)
        return len(clients)

    # -- called by presence (presence.port.Incumbents)

    def challenge(self, grant: Grant) -> None:
        client = self._find(grant)
        if client is not None:
            client.challenge()

    def evict(self, grant: Grant, reason: CloseReason) -> None:
        client = self._find(grant)
        if client is None:
            return
        if grant.lease.is_shared:
            # When this returns, another server may have the device.
            client.drop(reason)
        else:
            client.end(reason)

    def health(self, grant: Grant) -> Health | None:
        client = self._find(grant)
        return None if client is None else client.health

    def lease_lost(self, lease: Lease) -> None:
        for client in (*self, *self._canaries.values(), *self._ending.values()):
            if client.grant.lease is lease:
                client.drop(GOING_AWAY)

    def regranted(self, old: Grant, new: Grant) -> None:
        client = self._find(old)
        if client is None:
            return
        if self._ending.pop(old, None) is not None:
            self._ending[new] = client
        client.regrant(new)

    def resumed(self) -> None:
        for client in (*self, *self._canaries.values()):
            client.resume()

    def _find(self, grant: Grant) -> Client | None:
        for client in self._clients.get(grant.device_id, ()):
            if client.grant == grant:
                return client
        return self._ending.get(grant)

    # -- members

    def _set_identity(self, device_id: str, identity: DeviceIdentity) -> None:
        before = self._identities.get(device_id)
        self._identities[device_id] = identity
        if before is not None:
            self._forget(device_id, before)
        self._users.add(identity.user_id, device_id)
        for group in identity.groups:
            self._groups.add(group, device_id)

    def _forget(self, device_id: str, identity: DeviceIdentity) -> None:
        self._users.remove(identity.user_id, device_id)
        for group in identity.groups:
            self._groups.remove(group, device_id)


def _by_health(client: Client, queued: int | None = None) -> tuple[bool, int, float, int]:
    """The order of health: no pong is missing, the shortest queue, the shortest round trip, the newest.

    :param queued: assume a queue of this length
    """
    health = client.health
    round_trip_s = math.inf if health.round_trip_s is None else health.round_trip_s
    length = health.queued if queued is None else queued
    return health.misses_pong, length, round_trip_s, -client.grant.generation.number


def _nothing(device_id: str) -> None:
    pass
