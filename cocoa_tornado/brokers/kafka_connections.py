"""The connections of a kafka-python client: sockets that close, failures that are remembered, brokers that move."""

from __future__ import annotations

import ssl
import time
import weakref
from math import inf
from typing import Any, TypeAlias

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager

from ..rules.rebootstrap import Reachability
from .kafka_failures import UnreachableBroker

BOOTSTRAP_TIMEOUT_MS = 3_000
REQUEST_TIMEOUT_MS = 10_000  # of one request; a broker that does not answer for this long counts as dead
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
    """Closed when its handshake fails; kafka-python leaves that to the garbage collector, too."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except BaseException:
            self.close()
            raise


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


class ProducerClient(KafkaNetClient):  # type: ignore[misc]  # kafka-python ships no types
    """Keeps a producer from spinning while a broker does not answer.

    The sender expects milliseconds, but gets seconds, and zero for a connection that is being set up. With a hanging
    broker or lost packets it used a whole core.
    """

    def connection_delay(self, node_id: Any) -> float:
        delay_s: float = super().connection_delay(node_id)
        return max(delay_s * 1000, SETUP_LOOK_MS)
