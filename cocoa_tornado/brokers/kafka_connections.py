"""The connections of a kafka-python client: sockets that close, failures that are remembered, brokers that move."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
import weakref
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, NamedTuple, TypeAlias

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from ..rules.rebootstrap import Reachability
from .kafka_failures import UnreachableBroker

BOOTSTRAP_TIMEOUT_MS = 3_000
REQUEST_TIMEOUT_MS = 10_000  # of one request; a broker that does not answer for this long counts as dead
HANDSHAKE_TIMEOUT_S = 10.0  # of TLS, after the connection has been accepted
REACHABLE_LOOK_S = 1.0  # how often a client checks whether it has a connection to any broker
SETUP_LOOK_MS = 50  # how often a producer checks a connection that is being set up
KafkaClient: TypeAlias = Any  # kafka-python ships no types

DIRECT = "direct://"


class TidySocket(KafkaNetSocket):  # type: ignore[misc]  # kafka-python ships no types
    """An ordinary connection whose socket is closed when it fails; kafka-python leaves that to the garbage collector.

    kafka-python selects the class by the scheme of its setting ``proxy_url``, and this one by DIRECT.
    """

    SCHEMES = ("direct",)

    async def sock_connect(self, net: Any, sock: Any, sockaddr: Any, timeout_at: float | None = None) -> Any:
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise


class TidyTlsSocket(ssl.SSLSocket):
    """Closed when its handshake fails, or is abandoned because the client closes. kafka-python leaves that to the
    garbage collector, too.

    :ivar handshake_until: while the handshake is under way, when it is to be given up (``time.monotonic``)
    :ivar is_watched: the selector will give it up
    """

    handshake_until: float | None = None
    is_watched = False

    def do_handshake(self, block: bool = False) -> None:
        if self.handshake_until is None:
            self.handshake_until = time.monotonic() + HANDSHAKE_TIMEOUT_S
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except BaseException as error:
            self.close()
            if time.monotonic() >= self.handshake_until:
                raise TimeoutError("the broker does not answer the TLS handshake") from error
            raise
        self.handshake_until = None

    def __del__(self) -> None:
        # An abandoned handshake is a coroutine that is closed: it holds the last reference, and no error reaches it.
        self.close()


class TidySelector(NetworkSelector):  # type: ignore[misc]  # kafka-python ships no types
    """Gives up a TLS handshake that the broker does not answer, as after it has lost its power. kafka-python would wait
    indefinitely, and dial this broker no more.
    """

    def wait_read(self, fileobj: Any, timeout_at: float | None = None) -> Any:
        if isinstance(fileobj, TidyTlsSocket) and fileobj.handshake_until is not None and not fileobj.is_watched:
            fileobj.is_watched, sock = True, weakref.ref(fileobj)
            self.call_at(fileobj.handshake_until, lambda: _give_up_handshake(sock()))
        return super().wait_read(fileobj, timeout_at)


def _give_up_handshake(sock: TidyTlsSocket | None) -> None:
    if sock is not None and sock.handshake_until is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # which wakes the coroutine


class ConnectionManager(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python ships no types
    """Remembers why connections failed, which kafka-python itself logs before it reports a timeout. Also returns to the
    bootstrap addresses when none of the known brokers can be reached, because they may have moved.

    Runs on kafka-python's network thread, except :attr:`trouble`.
    """

    def __init__(self, net: Any, **settings: Any) -> None:
        self._troubles: dict[Any, BaseException] = {}  # by node; the latest is the last
        self._addresses: dict[Any, str] = {}  # by node, of its latest connection
        self._reachability = Reachability()
        super().__init__(net, **(settings | {"socket_connection_setup_timeout_max_ms": REQUEST_TIMEOUT_MS}))
        me = weakref.ref(self)  # like kafka-python, avoid a reference cycle between the two
        self.cluster.add_listener(lambda _: follow(me()))
        net.call_later(REACHABLE_LOOK_S, self._look)

    @property
    def trouble(self) -> BaseException | None:
        """The latest connection failure of a node to which no later attempt has succeeded. Thread-safe."""
        return next(reversed(list(self._troubles.values())), None)

    def close(self, node_id: Any = None, timeout_ms: float | None = None) -> None:
        transports = [connection.transport for connection in self._conns.values() if node_id is None]
        super().close(node_id, timeout_ms)
        for transport in transports:
            if transport is not None:
                transport._close()  # if a request waits to be written: nothing writes it once the client is closed

    def get_connection(self, node_id: Any, *args: Any, **settings: Any) -> Any:
        connection = super().get_connection(node_id, *args, **settings)
        if not connection.init_future.is_done:
            address = self._addresses[node_id] = self._address(node_id)
            connection.init_future.add_callback(lambda _: self._troubles.pop(node_id, None))
            connection.init_future.add_errback(lambda error: self._note(node_id, address, error))
        return connection

    def follow_the_brokers(self) -> None:
        """New metadata has arrived: close connections that still try to reach a broker's previous address."""
        brokers = {f"coordinator-{broker.node_id}": broker for broker in self.cluster.brokers()}
        coordinators = self.cluster._coordinator_brokers
        for node_id in coordinators.keys() & brokers.keys():
            host, port = brokers[node_id].host, brokers[node_id].port
            coordinators[node_id] = type(brokers[node_id])(node_id, host, port, None)
        for node_id in set(self._troubles):
            if self.cluster.broker_metadata(node_id) is None:
                del self._troubles[node_id]
        for node_id, connection in list(self._conns.items()):
            if connection.initializing and self._addresses.get(node_id) != self._address(node_id):
                connection.close(kafka_errors.KafkaConnectionError("the broker has moved"))
                self.reset_backoff(node_id)

    def oldest_request_at(self, node_id: Any) -> float | None:
        """When the node's oldest unanswered request was sent; infinity if there is none, None if there is no
        connection. Thread-safe."""
        connection = self._conns.get(node_id)
        if connection is None or not connection.connected:
            return None
        try:
            sent_at: float = connection.in_flight_requests[0][2]
        except IndexError:
            return inf
        return sent_at

    def _look(self) -> None:
        if self.closed:
            return
        known = [connection for node, connection in self._conns.items() if not self.cluster.is_bootstrap(node)]
        reached, tried = any(connection.connected for connection in known), bool(known or self._troubles)
        if self._reachability.look(time.monotonic(), reached=reached, tried=tried) and self.cluster.brokers():
            self.bootstrap_async(timeout_ms=BOOTSTRAP_TIMEOUT_MS)
        self._net.call_later(REACHABLE_LOOK_S, self._look)

    def _address(self, node_id: Any) -> str:
        node = self.cluster.broker_metadata(node_id)
        return "" if node is None else f"{node.host}:{node.port}"

    def _note(self, node_id: Any, address: str, trouble: BaseException) -> None:
        if self.config["security_protocol"].startswith("SASL_") and "socket disconnected" in str(trouble):
            # A broker that refuses access says why and hangs up, and often only the hang-up is seen.
            trouble = kafka_errors.SaslAuthenticationFailedError("the connection was closed while logging in")
        elif isinstance(trouble, kafka_errors.KafkaConnectionError) and not self.cluster.is_bootstrap(node_id):
            trouble = UnreachableBroker(address, trouble)
        self._troubles.pop(node_id, None)
        self._troubles[node_id] = trouble


def follow(manager: ConnectionManager | None) -> None:
    if manager is not None:
        manager.follow_the_brokers()


class TidyClient(KafkaNetClient):  # type: ignore[misc]  # kafka-python ships no types
    """Leaves no thread and no socket behind when it is closed."""

    def close(self, node_id: Any = None) -> None:
        if node_id is None:
            # kafka-python closes the connections on the caller's thread while its own still uses them: a connection
            # that is being made may lose its socket, and a task that is running makes the closing fail half-way.
            self._net.stop()
        super().close(node_id)


class ProducerClient(TidyClient):
    """Keeps a producer from spinning while a broker does not answer.

    The sender expects milliseconds, but gets seconds, and zero for a connection that is being set up. With a hanging
    broker or lost packets it used a whole core.
    """

    def connection_delay(self, node_id: Any) -> float:
        delay_s: float = super().connection_delay(node_id)
        return max(delay_s * 1000, SETUP_LOOK_MS)


class Made(NamedTuple):
    """A client and its parts.

    :ivar client: a KafkaConsumer, a KafkaProducer or a KafkaAdminClient
    :ivar net: its network loop
    """

    client: KafkaClient
    manager: ConnectionManager
    net: Any


def make_client(
    kind: Callable[..., KafkaClient],
    settings: Mapping[str, object],
    net_client: Callable[..., KafkaClient] = TidyClient,
    *,
    creates_topics: bool,
) -> Made:
    """Create a client that closes its sockets, also if its constructor fails.

    :param creates_topics: whether a request for a missing topic creates it, if the broker allows that
    """
    made: list[tuple[KafkaClient, ConnectionManager, Any]] = []

    def kafka_client(**settings: object) -> KafkaClient:
        net = TidySelector(**settings)
        manager = ConnectionManager(net, **settings)
        # The constructors accept allow_auto_create_topics but don't pass it on.
        manager.cluster.config["allow_auto_create_topics"] = creates_topics
        made.append((net_client(net=net, manager=manager, **settings), manager, net))
        return made[0][0]

    try:
        client = kind(**settings, proxy_url=DIRECT, kafka_client=kafka_client)
    except BaseException as error:
        # A constructor that fails to bootstrap raises, and leaves its thread and its sockets behind.
        for half_made, _, _ in made:
            with contextlib.suppress(Exception):  # it is discarded; the first error is the one to report
                half_made.close()
        if made and isinstance(error, kafka_errors.KafkaTimeoutError) and made[0][1].trouble is not None:
            raise made[0][1].trouble from error  # the actual cause
        raise
    _, manager, net = made[0]
    return Made(client, manager, net)
