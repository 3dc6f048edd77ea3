"""Brokers that move behind their bootstrap name, and brokers that advertise an unreachable address."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kafka.net.selector import NetworkSelector
from kafka.protocol.metadata import MetadataResponse

from cocoa_tornado.brokers.kafka_connections import ConnectionManager
from cocoa_tornado.brokers.port import Broker, BrokerState
from testing.kafka_server import KafkaServer, make_broker
from testing.ports import ReservedPort
from testing.tcp_proxy import proxying
from testing.waiting import eventually

from .bench import AWAY, KAFKA_CLIENTS, LOST, Receiver, consuming, decode, kafka_stand, numbered, payloads, ready

pytestmark = [
    pytest.mark.gen_test(timeout=180),
    pytest.mark.kafka,
    pytest.mark.apache,
    pytest.mark.slow,
    pytest.mark.logs("kafka", "", optional=True),  # of the test's own clients
]

NOT_THE_OLD_ONES_S = 60.0  # less than any time-out by which a client would give an address up by itself


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KafkaServer]:
    """A broker for one test, not started."""
    server = make_broker(tmp_path / "kafka")
    assert isinstance(server, KafkaServer)
    yield server
    server.close()


@pytest.fixture(params=KAFKA_CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@AWAY
async def test_brokers_that_have_all_moved_are_found_at_the_bootstrap_address_and_nothing_is_lost(
    client: str, server: KafkaServer
) -> None:
    await asyncio.to_thread(server.start)
    stand, receiver = kafka_stand(client, server), Receiver()
    async with proxying(server.bootstrap) as proxy:
        options = replace(stand.options, bootstrap=(proxy.address,), sole_reader=True)
        async with consuming(stand.make(options), receiver) as broker:
            await stand.write(numbered(0, 5))
            await receiver.has(5)
            published = [broker.publish(stand.messages, "doll", b"%d" % number) for number in range(100)]
            await asyncio.gather(*published)
            await asyncio.to_thread(server.stop)
            await eventually(lambda: broker.status().state is BrokerState.CONNECTING)
            published = [broker.publish(stand.messages, "doll", b"%d" % number) for number in range(100, 200)]
            await asyncio.to_thread(server.move)
            await asyncio.to_thread(server.start)
            proxy.target = server.bootstrap
            await asyncio.wait_for(asyncio.gather(*published), NOT_THE_OLD_ONES_S)
            await ready(broker, NOT_THE_OLD_ONES_S)
            await stand.write(numbered(5, 5))
            await eventually(lambda: receiver.payloads[-1:] == payloads(9, 1))
        assert list(dict.fromkeys(receiver.payloads)) == payloads(0, 10)
        messages = await stand.read(stand.messages, 200)
        assert [value for _, value, _ in messages] == [b"%d" % number for number in range(200)]


@AWAY
@LOST
async def test_an_unreachable_advertised_address_is_named(client: str, server: KafkaServer) -> None:
    unreachable = ReservedPort()
    server.advertise(f"127.0.0.1:{unreachable.number}")
    await asyncio.to_thread(server.start)
    stand = kafka_stand(client, server)
    for sole_reader in (False, True):
        broker = stand.make(replace(stand.options, sole_reader=sole_reader))
        broker.start(Receiver(), decode)
        broker.publish(stand.messages, "doll", b"waits")
        wanted = f"127.0.0.1:{unreachable.number}, which {server.bootstrap} advertises, cannot be reached"
        try:
            await named(broker, wanted)
        finally:
            await broker.close(0.2)
    unreachable.close()


@AWAY
async def test_an_advertised_address_that_fails_later_is_named(client: str, server: KafkaServer) -> None:
    async with proxying(server.bootstrap) as proxy:
        server.advertise(proxy.address)
        await asyncio.to_thread(server.start)
        stand = kafka_stand(client, server)
        async with consuming(await stand.broker(), Receiver()) as broker:
            assert broker.status().detail.startswith(server.bootstrap)
            await proxy.stop()
            await named(broker, f"{proxy.address}, which {server.bootstrap} advertises, cannot be reached")
            await proxy.start()
            await ready(broker)


async def named(broker: Broker, wanted: str) -> None:
    try:
        await eventually(lambda: wanted in broker.status().detail)
    except AssertionError as error:
        raise AssertionError(f"{broker.status()}") from error


class Dialing:
    """A connection that is being made.

    :ivar closed_by: why it was given up
    """

    initializing, connected = True, False

    def __init__(self) -> None:
        self.closed_by: BaseException | None = None

    def close(self, error: BaseException | None = None) -> None:
        self.closed_by = error


async def test_connections_that_are_still_being_made_to_where_a_broker_was_are_given_up() -> None:
    net = NetworkSelector()
    manager = ConnectionManager(net, bootstrap_servers=["bootstrap:9092"])
    try:
        broker = MetadataResponse.MetadataResponseBroker
        moved, stays = Dialing(), Dialing()
        for node_id, host in ((1, "old-1"), (2, "same-2")):
            manager.cluster._brokers[node_id] = broker(node_id, host, 9092, None)
            manager.cluster._coordinator_brokers[f"coordinator-{node_id}"] = broker(
                f"coordinator-{node_id}", host, 9092, None
            )
        manager._conns = {1: moved, "coordinator-1": Dialing(), 2: stays, "coordinator-2": Dialing()}
        manager._addresses = {
            1: "old-1:9092",
            "coordinator-1": "old-1:9092",
            2: "same-2:9092",
            "coordinator-2": "same-2:9092",
        }
        manager.cluster._brokers[1] = broker(1, "new-1", 9092, None)
        manager.follow_the_brokers()
        given_up = {node_id for node_id, connection in manager._conns.items() if connection.closed_by is not None}
        assert given_up == {1, "coordinator-1"}
        assert manager.cluster.broker_metadata("coordinator-1").host == "new-1"
        assert manager.cluster.broker_metadata("coordinator-2").host == "same-2"
    finally:
        manager._conns.clear()
        manager.close()
        net.close()
