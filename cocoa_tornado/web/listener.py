"""Accepts connections, within bounds, upgrades devices at once, and hands all others to Tornado's HTTP server.

When the process is out of file descriptors, Tornado's own accept loop retries without a pause: the event loop then does
nothing else, and each attempt logs a traceback. Here ``rules/accepting.py`` decides, and this module carries it out.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tornado.http1connection import HTTP1ConnectionParameters
from tornado.httputil import HTTPServerConnectionDelegate
from tornado.netutil import ssl_wrap_socket

from ..counters import Counters, count
from ..rules.accepting import Gate, Obstacle
from ..rules.crowd import LOOPBACK, RESERVE_SHARE, Crowd, address_of
from ..rules.origins import Network
from ..rules.rate import LineBudget, RateLimit
from ..rules.request_head import MAX_HEAD_BYTES
from .http_server import WatchedServer
from .lingering import Lingering
from .newcomer import Newcomer
from .streams import HttpsStream, HttpStream
from .waiting import Waiting

MAX_BUFFER_BYTES = 16 * 1024 * 1024
LINES = RateLimit(per_s=1 / 30, burst=10)

EVENTS = {
    Obstacle.DESCRIPTORS: "out of file descriptors: no new connections for now",
    Obstacle.MEMORY: "out of memory for sockets: no new connections for now",
    Obstacle.FAULT: "accepting fails: no new connections for now",
    Obstacle.PENDING: "too many connections that are not a device's: newcomers wait",
}

log = logging.getLogger("cocoa.listener")

TryUpgrade = Callable[[socket.socket, bytes, str], bool | Waiting]
"""``Upgrader.try_at_once``."""


@dataclass(frozen=True, slots=True)
class ListenerOptions:
    """:ivar max_pending: connections that are not a device's; more wait in the kernel's queue
    :ivar max_per_address: of them, those of one address; 0: no limit
    :ivar unlimited: the networks without that limit: proxies, which have many clients behind them, and this machine
    :ivar header_timeout_s: for a request's headers, TLS handshake included, and between two requests
    :ivar body_timeout_s: for a request's body
    :ivar write_wait_s: a client that takes no byte of an answer for this long is cut off, after twice as long at most
    """

    max_pending: int = 4096
    max_per_address: int = 0
    unlimited: Sequence[Network] = LOOPBACK
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_wait_s: float = 10.0


class Listener:
    """Accepts connections, and tracks those that are not a device's: in a TLS handshake, in a request, or idle.

    IOLoop thread only.

    :param delegate: answers requests
    :param tls: returns the context of new connections; None: without TLS
    :param devices: returns how many connections are a device's, for the log
    :param try_upgrade: called first, without TLS, once the first bytes have arrived
    """

    def __init__(
        self,
        delegate: HTTPServerConnectionDelegate,
        options: ListenerOptions,
        tls: Callable[[], ssl.SSLContext | None],
        counters: Counters,
        devices: Callable[[], int],
        try_upgrade: TryUpgrade = lambda sock, received, peer: False,
    ) -> None:
        self._options, self._tls, self._counters, self._devices = options, tls, counters, devices
        self._gate = Gate(options.max_pending)
        self._try_upgrade = try_upgrade
        self._crowd: Crowd[HttpStream | Newcomer] = Crowd(options.max_per_address)
        self._newcomers: set[Newcomer] = set()
        self._held: set[Newcomer] = set()
        self._waiting: deque[tuple[socket.socket, Any]] = deque()
        self._marks: dict[HttpStream, tuple[int, int] | None] = {}
        # The listener enforces header_timeout itself, with one timer for all connections.
        parameters = HTTP1ConnectionParameters(max_header_size=MAX_HEAD_BYTES, body_timeout=options.body_timeout_s)
        self._server = WatchedServer(delegate, self, parameters)
        self._lingering = Lingering()
        self._sockets: list[socket.socket] = []
        self._is_reading = False
        self._retry: asyncio.TimerHandle | None = None
        self._relief: asyncio.TimerHandle | None = None
        self._next_turn: asyncio.Handle | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._lateness: asyncio.TimerHandle | None = None
        self._lines = LineBudget(LINES)
        self._address_lines = LineBudget(LINES)
        self._obstacle: Obstacle | None = None
        self._has_warned = False

    def __repr__(self) -> str:
        return f"<Listener on {len(self._sockets)} sockets {self._gate!r}>"

    @property
    def pending(self) -> int:
        """Connections that are not a device's, or not yet."""
        return self._gate.pending

    def start(self, sockets: list[socket.socket]) -> None:
        """Accept from these listening, non-blocking sockets, which are closed by :meth:`stop`."""
        self._loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._sweep = self._loop.call_later(self._options.write_wait_s, self._cut_off_the_stuck)
        self._follow()

    def stop(self) -> None:
        """Stop accepting; existing connections continue. Idempotent."""
        self._pause()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for sock in self._sockets:
            sock.close()
        self._sockets = []

    async def close_connections(self) -> None:
        """Cut off all connections that are not a device's. May be cancelled."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        if self._lateness is not None:
            self._lateness.cancel()
            self._lateness = None
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        if self._relief is not None:
            self._relief.cancel()
            self._relief = None
        while self._waiting:
            connection, _ = self._leave_the_queue()
            connection.close()
            self._gate.ended()
        for newcomer in self._newcomers | self._held:
            newcomer.close()
            self._gone(newcomer)
        self._lingering.close()
        await self._server.close_all_connections()

    def _follow(self) -> None:
        """Carry out the rule's decision: accept, or wait for the clock or for a connection to end."""
        self._relieve()
        decision = self._gate.decide(self._loop.time())
        self._tell()
        if decision.room:
            self._resume()
            return
        self._pause()
        if decision.retry_at is not None and self._retry is None:
            self._retry = self._loop.call_at(decision.retry_at, self._try_again)

    def _relieve(self) -> None:
        """Keep the reserve free: close connections in favor of others, and check again when there may be another
        one."""
        if self._relief is not None:
            self._relief.cancel()
            self._relief = None
        excess = self._gate.excess
        if excess > self._crowd.yielding and self._give_way(excess) < excess:
            next_at = self._crowd.next_at()
            if next_at is not None:
                # A timer may fire slightly early; then it must not fire again at once.
                self._relief = self._loop.call_at(max(next_at, self._loop.time() + 0.01), self._relieve)

    def _give_way(self, count: int) -> int:
        """Close this many connections, or as many as may be closed now; return how many are being closed."""
        for stream, phase in self._crowd.give_way(count - self._crowd.yielding, self._loop.time()):
            self._close(stream, phase.value)
        return self._crowd.yielding

    def _close(self, stream: HttpStream | Newcomer, reason: str) -> None:
        """Close a connection in favor of others. Its end is reported in a later turn."""
        count(self._counters.http_connections_shed, reason)
        stream.close()

    def _try_again(self) -> None:
        self._retry = None
        self._follow()

    def _resume(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            for sock in self._sockets:
                self._loop.add_reader(sock, self._accept_waiting, sock)

    def _pause(self) -> None:
        if self._is_reading:
            self._is_reading = False
            for sock in self._sockets:
                self._loop.remove_reader(sock)

    def _accept_waiting(self, sock: socket.socket) -> None:
        """Accept waiting connections for one turn, as far as there is room. The loop returns for the others."""
        room = self._gate.decide(self._loop.time()).room
        if not room:
            # In this turn another of our sockets has accepted it, or failed.
            return
        has_failed = False
        for _ in range(room):
            try:
                connection, address = sock.accept()
            except BlockingIOError:
                break
            except OSError as error:
                has_failed = self._gate.failed(error.errno, self._loop.time())
                if has_failed:
                    # Each closed connection frees a descriptor for the next attempt.
                    self._give_way(max(1, self._gate.pending // RESERVE_SHARE))
                    break
            else:
                self._gate.admitted()
                self._waiting.append((connection, address))
        if not has_failed:
            self._gate.turn_passed()
        if self._next_turn is None:
            self._serve_waiting()
        self._follow()

    def _serve_waiting(self) -> None:
        """Serve the connections that have waited longest, for one turn. The loop returns for the others."""
        self._next_turn = None
        try:
            for _ in range(self._gate.to_serve):
                self._serve(*self._leave_the_queue())
        finally:
            # Also after an error: there may be no further connection that would trigger serving those that still wait.
            if self._waiting:
                self._next_turn = self._loop.call_soon(self._serve_next)

    def _serve_next(self) -> None:
        self._serve_waiting()
        if not self._is_reading and self._sockets:
            self._follow()

    def _leave_the_queue(self) -> tuple[socket.socket, Any]:
        self._gate.served()
        return self._waiting.popleft()

    def _serve(self, connection: socket.socket, address: Any) -> None:
        """Determine the kind of an accepted connection: a device, or a client of the HTTP server."""
        newcomer = Newcomer(connection, address)
        # Only near the bound: a fleet behind one NAT may reconnect all at once.
        if self._gate.is_near_full and not self._has_room_at(self._source(newcomer)):
            connection.close()
            self._gate.ended()
            return
        try:
            connection.setblocking(False)
            tls = self._tls()
            if tls is not None:
                # Fails if the client has already disconnected, like that of a port scan.
                connection = ssl_wrap_socket(connection, tls, server_side=True, do_handshake_on_connect=False)
                self._enter(stream := HttpsStream(connection, max_buffer_size=MAX_BUFFER_BYTES), newcomer)
                self._serve_http(stream, address)
                return
        except OSError as error:
            log.debug("connection lost before it began", extra={"error": error.strerror or type(error).__name__})
            connection.close()
            self._gate.ended()
            return
        if not self._listen_to(newcomer):
            self._wait_for(newcomer)

    def _wait_for(self, newcomer: Newcomer) -> None:
        """Wait for its first bytes."""
        self._enter(newcomer, newcomer)
        self._newcomers.add(newcomer)
        try:
            newcomer.wait(self._on_first_bytes, self._on_closed)
        except OSError as error:
            # The kernel watches no more sockets (fs.epoll.max_user_watches), or has no memory for it.
            log.debug("connection lost before it began", extra={"error": error.strerror or type(error).__name__})
            newcomer.leave().close()
            self._gone(newcomer)
            return
        self._watch_the_late()

    def _listen_to(self, newcomer: Newcomer) -> bool:
        """Return False if nothing has arrived yet. Otherwise the connection has left this state."""
        received = newcomer.peek()
        if received is None:
            return False
        sock = newcomer.leave()
        if not received:
            sock.close()
            self._gone(newcomer)
            return True
        upgraded = self._is_upgraded(sock, received, newcomer.peer)
        if isinstance(upgraded, Waiting) and upgraded.refusal is None:
            self._hold(newcomer, upgraded)
        elif upgraded is True:
            self._gone(newcomer)
        else:
            self._give_to_tornado(newcomer, upgraded if isinstance(upgraded, Waiting) else None)
        return True

    def _hold(self, newcomer: Newcomer, waiting: Waiting) -> None:
        """Its handshake waits for presence, usually for a millisecond, so it does not join the crowd."""
        self._held.add(newcomer)
        newcomer.hold(waiting, self._on_closed)
        waiting.on_settled = partial(self._on_settled, newcomer)

    def _on_settled(self, newcomer: Newcomer) -> None:
        waiting = newcomer.waiting
        if waiting is None or newcomer not in self._held:
            return
        self._held.remove(newcomer)
        newcomer.leave()
        if waiting.is_served:
            self._gone(newcomer)
        else:
            self._give_to_tornado(newcomer, waiting)
        self._follow_if_room()

    def _give_to_tornado(self, newcomer: Newcomer, waiting: Waiting | None) -> None:
        """:param waiting: its handshake, if presence has refused it"""
        stream = HttpStream(newcomer.sock, max_buffer_size=MAX_BUFFER_BYTES)
        if waiting is not None and waiting.refusal is not None:
            stream.refusal = (waiting.device_id, waiting.refusal)
        if newcomer in self._newcomers:
            self._newcomers.remove(newcomer)
            self._crowd.replace(newcomer, stream)
        else:
            self._enter(stream, newcomer)
        self._serve_http(stream, newcomer.address)

    def _is_upgraded(self, sock: socket.socket, received: bytes, peer: str) -> bool | Waiting:
        """Whether this connection is done: it has become a device's, or was closed after a fault."""
        try:
            return self._try_upgrade(sock, received, peer)
        except Exception:
            # Otherwise it would stay pending until the process ends.
            log.exception("upgrade failed")
            sock.close()
            return True

    def _on_first_bytes(self, newcomer: Newcomer) -> None:
        if newcomer in self._newcomers:
            self._listen_to(newcomer)
            self._follow_if_room()

    def _on_closed(self, newcomer: Newcomer) -> None:
        if newcomer in self._newcomers or newcomer in self._held:
            self._gone(newcomer)
            self._follow_if_room()

    def _gone(self, newcomer: Newcomer) -> None:
        """The connection is closed, or has become a device's."""
        self._newcomers.discard(newcomer)
        self._held.discard(newcomer)
        self._crowd.leave(newcomer)
        self._gate.ended()

    def _enter(self, member: HttpStream | Newcomer, newcomer: Newcomer) -> None:
        self._crowd.enter(member, self._source(newcomer), self._loop.time(), in_reserve=self._gate.excess > 0)

    def _source(self, newcomer: Newcomer) -> str:
        return address_of(newcomer.peer, self._options.unlimited)

    def _serve_http(self, stream: HttpStream, address: Any) -> None:
        """Hand the connection to the HTTP server, which calls :meth:`ended` when it is done with it."""
        stream.lingering = self._lingering
        self._marks[stream] = None
        self._server.handle_stream(stream, address)

    def _has_room_at(self, source: str) -> bool:
        return self._crowd.admits(source) or self._make_room_at(source)

    def _make_room_at(self, source: str) -> bool:
        """Close the oldest connection of an address that is at its limit, if its time is over."""
        found = self._crowd.give_way_at(source, self._loop.time())
        if found is not None:
            self._close(found[0], found[1].value)
            return True
        if self._crowd.admits(source):
            # Some of its connections had become uploads, which do not count.
            return True
        count(self._counters.http_connections_shed, "address")
        suppressed = self._address_lines.take(self._loop.time())
        if suppressed is not None:
            extra: dict[str, object] = {"remote_ip": source, "most": self._options.max_per_address}
            log.warning(
                "too many connections of one address", extra=extra | ({"suppressed": suppressed} if suppressed else {})
            )
        return False

    # -- reports of the HTTP server

    def awaits(self, stream: HttpStream) -> None:
        """The connection's next request may come."""
        now = self._loop.time()
        stream.needs_both_ways = False
        stream.is_last_request = not self._crowd.awaits(stream, now)
        self._watch_the_late()

    def asks(self, stream: HttpStream) -> None:
        """The headers of a request have come."""
        self._crowd.asks(stream, self._loop.time())
        if self._gate.is_near_full:
            stream.is_last_request = True

    def ended(self, stream: HttpStream) -> None:
        """The connection is closed, or has become a device's."""
        del self._marks[stream]
        self._crowd.leave(stream)
        self._gate.ended()
        self._follow_if_room()

    def _follow_if_room(self) -> None:
        """A connection has ended, and another one may be waiting for its place."""
        if self._sockets and (not self._is_reading or self._gate.is_near_full):
            self._follow()

    def _tell(self) -> None:
        """Count and log a change, once. Any client can cause it at any rate, so the lines have a budget."""
        obstacle, before = self._gate.obstacle, self._obstacle
        if obstacle is before:
            return
        self._obstacle = obstacle
        extra: dict[str, object] = {"pending": self._gate.pending, "devices": self._devices()}
        if obstacle is None:
            if self._has_warned:
                self._has_warned = False
                log.info("accepting connections again", extra=extra)
            return
        count(self._counters.accept_pauses, obstacle.value)
        suppressed = self._lines.take(self._loop.time())
        if suppressed is None:
            return
        self._has_warned = True
        if obstacle is Obstacle.DESCRIPTORS:
            extra["max_open_files"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if suppressed:
            extra["suppressed"] = suppressed
        log.warning(EVENTS[obstacle], extra=extra)

    def _watch_the_late(self) -> None:
        if self._lateness is None:
            at = self._loop.time() + self._options.header_timeout_s
            self._lateness = self._loop.call_at(at, self._close_the_late)

    def _close_the_late(self) -> None:
        """Close the connections whose next head is overdue. No timer runs while none is expected."""
        self._lateness = None
        now, timeout_s = self._loop.time(), self._options.header_timeout_s
        for stream in self._crowd.late(timeout_s, now):
            stream.close()
        next_at = self._crowd.next_late_at(timeout_s)
        if next_at is not None:
            # A timer may fire slightly early; then it must not fire again at once.
            self._lateness = self._loop.call_at(max(next_at, now + 0.01), self._close_the_late)

    def _cut_off_the_stuck(self) -> None:
        """Close the connections whose clients have taken no byte of the answer since the last time.

        Tornado waits for them indefinitely, and a few thousand of them would block all new connections.
        """
        self._sweep = self._loop.call_later(self._options.write_wait_s, self._cut_off_the_stuck)
        for stream, before in list(self._marks.items()):
            mark = stream.write_mark if stream.writing() and not stream.closed() else None
            self._marks[stream] = mark
            if mark is not None and mark == before:
                stream.close()
