"""A client of kafka-python that is closed leaves no socket and no thread to the garbage collector."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator

import pytest
from kafka.net.connection import KafkaConnection
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from cocoa_tornado.brokers import kafka_connections
from cocoa_tornado.brokers.kafka_connections import ConnectionManager, TidyClient, TidySelector, TidyTlsSocket
from cocoa_tornado.brokers.kafka_link import close_consumer

# A socket pair has no address for kafka-python's own log lines.
pytestmark = pytest.mark.logs("kafka", "", optional=True)


@pytest.fixture
def peers() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's end and the broker's, of a connection."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def connected(sock: socket.socket) -> tuple[TidyClient, KafkaConnection]:
    net = NetworkSelector()
    manager = ConnectionManager(net, bootstrap_servers=["nowhere:9092"])
    connection = KafkaConnection(net, node_id=1)
    manager._conns[1] = connection
    connection.connection_made(KafkaTCPTransport(net, sock))
    return TidyClient(net=net, manager=manager), connection


def test_a_request_that_waits_to_be_written_keeps_no_socket_open(peers: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = peers
    client, connection = connected(ours)
    connection._init_complete()
    connection.transport.write(b"a request")
    client.close()
    assert ours.fileno() == -1
    assert connection.closed
    assert theirs.recv(100) == b""


def test_the_network_thread_has_ended_before_the_connections_are_closed(
    peers: tuple[socket.socket, socket.socket],
) -> None:
    client, connection = connected(peers[0])
    client._net.start()
    thread = client._net._io_thread
    alive: list[bool] = []
    connection.close_future.add_both(lambda _: alive.append(thread.is_alive()))
    client.close()
    assert alive == [False]
    assert peers[0].fileno() == -1


def test_a_client_may_be_closed_twice_and_by_node(peers: tuple[socket.socket, socket.socket]) -> None:
    client, connection = connected(peers[0])
    client._net.start()
    client.close(2)
    assert not connection.closed
    assert client._net._io_thread is not None
    client.close()
    client.close()
    assert connection.closed


def test_a_tls_handshake_that_is_abandoned_leaves_no_socket(peers: tuple[socket.socket, socket.socket]) -> None:
    """An unclosed one would fail this test with a warning."""
    context = ssl.create_default_context()
    context.sslsocket_class = TidyTlsSocket
    net = NetworkSelector()
    # Only the coroutine refers to the transport, as in kafka-python.
    net.call_soon(lambda: KafkaSSLTransport(net, peers[0], host="broker", ssl_context=context).handshake())
    net.poll(timeout_ms=0)
    net.poll(timeout_ms=0)
    assert peers[1].recv(5)[:1] == b"\x16"  # the handshake has begun
    net.close()
    while peers[1].recv(4096):
        pass  # the end: the client's socket is closed


def test_a_tls_handshake_that_the_broker_does_not_answer_is_given_up(
    peers: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_connections, "HANDSHAKE_TIMEOUT_S", 0.01)
    context = ssl.create_default_context()
    context.sslsocket_class = TidyTlsSocket
    net, errors = TidySelector(), list[BaseException]()

    async def dial() -> None:
        try:
            await KafkaSSLTransport(net, peers[0], host="broker", ssl_context=context).handshake()
        except TimeoutError as error:
            errors.append(error)

    net.call_soon(dial)
    for _ in range(1000):
        if not errors:
            net.poll(timeout_ms=10)
    assert len(errors) == 1
    net.close()
    while peers[1].recv(4096):
        pass  # the end: the client's socket is closed


class FailingConsumer:
    """A consumer whose rebalance listener fails in close()."""

    def __init__(self, client: TidyClient) -> None:
        self._client = client

    def close(self, autocommit: bool, timeout_ms: int) -> None:
        raise RuntimeError("in the listener")


def test_a_consumer_that_fails_to_leave_its_group_closes_its_connections(
    peers: tuple[socket.socket, socket.socket],
) -> None:
    client, connection = connected(peers[0])
    client._net.start()
    close_consumer(FailingConsumer(client))
    assert connection.closed
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kafka-io-")]
